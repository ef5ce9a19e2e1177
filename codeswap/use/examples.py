"""Faces of nobody to try things with: rendered, so that they can be shown and shared freely."""

import numpy as np

from codeswap.data.synthetic import attributes, identities, render

SEED, COUNT = 77, 6  # of persons that no data set of the profiles renders


def examples(size: int, count: int = COUNT) -> np.ndarray:
    """uint8 (count, size, size, 3) aligned crops."""
    pictures, _ = render(identities(0, count, SEED), attributes(0, count, SEED), size)
    return pictures.permute(0, 2, 3, 1).numpy()

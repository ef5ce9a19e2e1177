"""Label maps of face parts (`types.PARSING_LABELS`)."""

import torch
from jaxtyping import Bool
from torch import Tensor


def among(labels: Tensor, classes: tuple[int, ...]) -> Bool[Tensor, "b h w"]:
    """Where label maps (b, h, w) show one of `classes`."""
    return torch.isin(labels, torch.tensor(classes, dtype=labels.dtype, device=labels.device))

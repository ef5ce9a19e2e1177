"""What a swap is compared with: no model at all, the ground truth of rendered faces, other methods' pictures.

All images are RGB in [-1, 1].
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image as PILImage
from torch import Tensor

from codeswap.data.faces import to_float
from codeswap.data.labels import among
from codeswap.data.scenes import Scenes, true_swap
from codeswap.data.synthetic import expression_of, pose_of
from codeswap.types import FACE_CLASSES, Image, Mask


class Truth(NamedTuple):
    """The true swap of a batch, where either it or the target shows a face (outside, nothing may change), and the
    renderer's own expression in [-1, 1] and pose in degrees."""

    image: Image
    target_face: Bool[Tensor, "b 1 h w"]
    region: Bool[Tensor, "b 1 h w"]
    expression: Float[Tensor, "b x"]
    pose: Float[Tensor, "b 3"]


def face_of(labels: Tensor) -> Bool[Tensor, "b 1 h w"]:
    """Where a label map (b, h, w) of `types.PARSING_LABELS` shows the face: skin, brows, eyes, nose, mouth."""
    return among(labels, FACE_CLASSES)[:, None]


def truth_of(source: Scenes | None, target: Scenes | None, size: int) -> Truth | None:
    """Renders the source's identity under everything else of the target, a perfect result; None for photographs."""
    if source is None or target is None:
        return None
    image, labels = true_swap(source, target, size)
    _, target_labels = true_swap(target, target, size)
    face, target_face = face_of(labels), face_of(target_labels)
    exact = expression_of(target.attributes), pose_of(target.attributes)
    return Truth(to_float(image), target_face, face | target_face, *exact)


def paste(source: Image, target: Image, target_face: Mask | Bool[Tensor, "b 1 h w"]) -> Image:
    """The source's pixels through the target's face mask: no model, no alignment. It wins on identity alone."""
    return torch.where(target_face > 0.5, source, target)


def result_file(folder: Path, source: str, target: str) -> Path:
    """Where another method's result for a pair lies."""
    return folder / f"{source}_{target}.png"


def read_results(folder: Path, pairs: Sequence[tuple[str, str]], size: int) -> tuple[Image, Bool[Tensor, " b"]]:
    """Another method's pictures for (source, target) pairs, brought to `size` square by antialiased bicubic resizing.

    Returns the images and which of them were there and readable; one that was not is grey and counts as a failure.
    """
    images = torch.zeros(len(pairs), 3, size, size)
    there = torch.zeros(len(pairs), dtype=torch.bool)
    for row, (source, target) in enumerate(pairs):
        try:
            with PILImage.open(result_file(folder, source, target)) as file:
                pixels = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)[None]
        except (OSError, SyntaxError):  # PIL reports a broken PNG as SyntaxError
            continue
        image = to_float(pixels)
        if image.shape[-2:] != (size, size):
            image = F.interpolate(image, (size, size), mode="bicubic", antialias=True, align_corners=False)
        images[row], there[row] = image[0].clamp(-1, 1), True
    return images, there


def check_results(name: str, folder: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Raises ValueError when `folder` has no result for any pair: a wrong folder, not a method that fails."""
    if not any(result_file(folder, source, target).exists() for source, target in pairs):
        raise ValueError(
            f"evaluate.results.{name}: {folder} has none of the {len(pairs)} results, expected files such as "
            f"{result_file(folder, *pairs[0]).name}; write the list with `python -m pipeline.pairs`"
        )

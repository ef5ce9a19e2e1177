"""Label maps of face parts (`types.PARSING_LABELS`)."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from codeswap.types import REGIONS


def among(labels: Tensor, classes: tuple[int, ...]) -> Bool[Tensor, "b h w"]:
    """Where label maps (b, h, w) show one of `classes`."""
    return torch.isin(labels, torch.tensor(classes, dtype=labels.dtype, device=labels.device))


def last_row(part: Bool[Tensor, "b h w"]) -> Int[Tensor, " b"]:
    """The lowest row in which each `part` is seen; -1 where it is not."""
    rows = torch.arange(1, part.shape[1] + 1, device=part.device)
    return (part.any(dim=2) * rows).amax(dim=1) - 1


def without_forehead(labels: Tensor) -> Tensor:
    """Label maps (b, h, w) whose skin above the brows is background; unchanged where no brow is seen.

    Faces are aligned, so that a row is level with the brows.
    """
    first = labels.shape[1] - 1 - last_row(among(labels, REGIONS["brows"]).flip(1))
    rows = torch.arange(labels.shape[1], device=labels.device)
    above = (rows < first[:, None])[:, :, None] & (first < labels.shape[1])[:, None, None]
    return labels.masked_fill(above & among(labels, REGIONS["skin"]), 0)

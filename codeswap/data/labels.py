"""Label maps of face parts (`types.PARSING_LABELS`)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from codeswap.types import REGIONS, Mask

INNER_MOUTH = (11,)
BROW = 3  # 64ths of the picture above the brows that stay the face's: a higher or thicker brow has room there
AROUND = 3  # 64ths of the picture beyond a mouth that belong to it: its tongue, the smile beside it
OPEN = 0.08, 0.12  # difference of two mouths' open shares from which a swap's begins to be, and is, the target's


def among(labels: Tensor, classes: tuple[int, ...]) -> Bool[Tensor, "b h w"]:
    """Where label maps (b, h, w) show one of `classes`."""
    return torch.isin(labels, torch.tensor(classes, dtype=labels.dtype, device=labels.device))


def last_row(part: Bool[Tensor, "b h w"]) -> Int[Tensor, " b"]:
    """The lowest row in which each `part` is seen; -1 where it is not."""
    rows = torch.arange(1, part.shape[1] + 1, device=part.device)
    return (part.any(dim=2) * rows).amax(dim=1) - 1


def above_brows(labels: Tensor, rows: int = 0) -> Bool[Tensor, "b h 1"]:
    """The rows of label maps (b, h, w) that are more than `rows` above the brows; none where no brow is seen.

    Faces are aligned, so that a row is level with the brows.
    """
    height = labels.shape[1]
    first = height - 1 - last_row(among(labels, REGIONS["brows"]).flip(1))
    above = torch.arange(height, device=labels.device) < first[:, None] - rows
    return (above & (first < height)[:, None])[:, :, None]


def without_forehead(labels: Tensor) -> Tensor:
    """Label maps (b, h, w) whose skin farther than BROW above the brows, where those are seen, is background."""
    above = above_brows(labels, round(BROW * labels.shape[1] / 64))
    return labels.masked_fill(above & among(labels, REGIONS["skin"]), 0)


def mouth_kept(own: Tensor, other: Tensor) -> Mask:
    """How far (b, 1, h, w), 0 to 1, a swap on faces `other` keeps their mouths because those of `own` are not as open.

    Label maps (b, h, w) of sources and targets. How open: the share of a mouth that lies between its lips. What is kept
    reaches AROUND beyond the mouth.
    """
    shares = []
    for labels in (own, other):
        mouth, inner = (among(labels, part).sum(dim=(1, 2)) for part in (REGIONS["mouth"], INNER_MOUTH))
        shares.append(inner / mouth.clamp(min=1))
    differently = (((shares[0] - shares[1]).abs() - OPEN[0]) / (OPEN[1] - OPEN[0])).clamp(0, 1)
    reach = max(1, round(AROUND * other.shape[-1] / 64))
    around = F.max_pool2d(among(other, REGIONS["mouth"])[:, None].float(), 2 * reach + 1, 1, reach)
    return around * differently[:, None, None, None]

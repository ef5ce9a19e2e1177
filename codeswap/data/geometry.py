"""A face with the pose and expression of another one, by a warp that carries its parts to where the other's lie.

Off-paper, for people of whom there is one picture: their triplets (train/triplets.py) need a source that is not already
in the target's pose. Only label maps are needed, which every face has.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from codeswap.data.labels import among
from codeswap.types import FACE_CLASSES, REGIONS

PAIRS = REGIONS["brows"], REGIONS["eyes"]  # the picture's left one, then its right one
SINGLE = REGIONS["nose"], REGIONS["mouth"], FACE_CLASSES
LEAST = 3  # pixels below which a part is not there
EDGE = 2.0  # standard deviations from the middle of an ellipse to its edge
REACH = 0.06  # of the picture's side: how far around it a part is felt
FAR = 0.02  # weight of what lies beyond all parts, which stays where it is
LARGEST = 0.15  # of the picture's side: no part moves further, so that turned heads do not fold


class Anchors(NamedTuple):
    """Five points of each part, in units of the picture's side: middle, left, right, top, bottom."""

    points: Tensor  # (b, k, 2): x, y
    there: Tensor  # (b, k): 1, or 0 for a part that is not seen


def centres(picture: Tensor) -> tuple[Tensor, Tensor]:
    """x (1, w) and y (h, 1) of the middles of pixels (..., h, w), in units of the picture's side."""
    h, w = picture.shape[-2:]
    x, y = ((torch.arange(count, device=picture.device) + 0.5) / count for count in (w, h))
    return x[None], y[:, None]


def anchors(labels: Tensor) -> Anchors:
    """The anchors of label maps (b, h, w)."""
    x, y = centres(labels)
    points, there = [], []
    parts = [part for pair in PAIRS for part in _sides(labels, pair, x)]
    for inside in (*parts, *(among(labels, classes) for classes in SINGLE)):
        area = inside.sum(dim=(1, 2)).clamp(min=1)
        middle = [(inside * axis).sum(dim=(1, 2)) / area for axis in (x, y)]
        spread = [
            ((inside * (axis - at[:, None, None]).square()).sum(dim=(1, 2)) / area).sqrt() * EDGE
            for axis, at in zip((x, y), middle, strict=True)
        ]
        centre = torch.stack(middle, dim=1)
        for right, down in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)):
            points.append(centre + torch.stack([right * spread[0], down * spread[1]], dim=1))
            there.append((inside.sum(dim=(1, 2)) >= LEAST).float())
    return Anchors(torch.stack(points, dim=1), torch.stack(there, dim=1))


def _sides(labels: Tensor, pair: tuple[int, ...], x: Tensor) -> tuple[Tensor, Tensor]:
    """Which of two parts, (b, h, w) each, lies on the left in the picture, and which on the right.

    Ids tell two parts, but not sides: mirroring does not exchange them (data/annotations.py). Where one id is for both,
    as our renderer has it, or one part is not seen, the middle divides.
    """
    one, two = (labels == each for each in pair)
    middles = [_middle(part, x) for part in (one, two, one | two)]
    left = torch.where(middles[0] < middles[1], one, two)
    left = torch.where(one.any(dim=(1, 2), keepdim=True) & two.any(dim=(1, 2), keepdim=True), left, x < middles[2])
    return (one | two) & left, (one | two) & ~left


def _middle(part: Tensor, x: Tensor) -> Tensor:
    """Mean of `x` (1, w) over `part` (b, h, w): (b, 1, 1)."""
    return (part * x).sum(dim=(1, 2), keepdim=True) / part.sum(dim=(1, 2), keepdim=True).clamp(min=1)


def with_geometry_of(
    image: Float[Tensor, "b c h w"], own: Tensor, other: Tensor, share: Tensor
) -> Float[Tensor, "b c h w"]:
    """`image` with its parts moved from where `own` label maps have them towards where `other` has them.

    `share` (b,) in [0, 1] of the way, and of each part's change of size. Parts that one of the two lacks stay.
    """
    h, w = image.shape[-2:]
    here, there = anchors(own), anchors(other)
    known = here.there * there.there
    move = (share[:, None, None] * (there.points - here.points)).clamp(-LARGEST, LARGEST)
    goal = here.points + move
    grid = torch.stack(torch.broadcast_tensors(*centres(image)), dim=-1)  # (h, w, 2)
    distance = (grid.view(1, h * w, 1, 2) - goal[:, None]).square().sum(dim=-1)
    weights = known[:, None] * (-distance / (2 * REACH**2)).exp()
    shift = (weights @ move) / (weights.sum(dim=2, keepdim=True) + FAR)
    from_where = (grid.view(1, h * w, 2) - shift).view(-1, h, w, 2) * 2 - 1
    return F.grid_sample(image, from_where.to(image.dtype), mode="bilinear", padding_mode="border", align_corners=False)

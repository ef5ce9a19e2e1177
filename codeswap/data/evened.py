"""A face lit from one side with its darker half replaced by its brighter one, mirrored (data/dressed.py).

Off-paper. What lies in the dark of a photograph cannot be lit again: the edges of its shadows stay, and what is lifted
is noise. A face that looks ahead is nearly even, and has a half in the light.
"""

import torch
from torch import Tensor

from codeswap.data.geometry import anchors, centres, with_geometry_of
from codeswap.data.labels import among
from codeswap.data.spoil import soften
from codeswap.types import FACE_CLASSES, REGIONS, Image, Mask

SKIN = REGIONS["skin"] + REGIONS["nose"]
DARKEST = 0.03  # below which a pixel's logarithm says nothing of light
SHADE = 0.45, 0.7  # log brightness between the halves' skin from which the darker one begins to give way, and does
AHEAD = 0.08, 0.04  # how far the nose may lie from the eyes' middle, in distances of the eyes: not at all, and wholly
HALVES = 0.08, 0.05  # how far the halves' shares of the face may be from one half, likewise
SEAM = 1.0  # softness of the line between the halves, in 64ths of the picture
LEAST = 0.05  # of the picture's side: eyes that are nearer to each other say nothing of a middle


def evened(image: Image, labels: Tensor) -> Image:
    """`image` (b, 3, h, w) in [-1, 1] with label maps `labels` (b, h, w); unchanged where light or head turn aside."""
    size = image.shape[-1] / 64
    face, skin = (among(labels, part)[:, None].float() for part in (FACE_CLASSES, SKIN))
    right, off = _halves(image, labels, SEAM * size)
    bright = ((image + 1) / 2).clamp(min=DARKEST).log().mean(dim=1, keepdim=True)
    darker = _mean(bright, skin * right) - _mean(bright, skin * (1 - right))
    share = _mean(right, face) - 0.5
    strength = _ramp(darker.abs(), *SHADE) * _ramp(off, *AHEAD) * _ramp(share.abs(), *HALVES)
    half = torch.where((darker < 0)[:, None, None, None], right, 1 - right)
    seen = labels.flip(-1)
    other = torch.cat([image.flip(-1), among(seen, FACE_CLASSES)[:, None].float()], dim=1)
    other = with_geometry_of(other, seen, labels, torch.ones_like(strength))
    known = soften((other[:, 3:] > 0.9) * face, size / 2)
    return image + half * strength[:, None, None, None] * known * (other[:, :3] - image)


def _halves(image: Image, labels: Tensor, seam: float) -> tuple[Mask, Tensor]:
    """The half (b, 1, h, w) to the right of the line through eyes, nose and mouth; how far the nose is from ahead."""
    left_eye, right_eye, nose, mouth = anchors(labels).points[:, 10:30:5].unbind(dim=1)
    middle = (left_eye + right_eye) / 2
    off = (nose - middle)[:, 0].abs() / (left_eye - right_eye)[:, 0].abs().clamp(min=LEAST)
    across, down = torch.stack([middle, nose, mouth], dim=1).unbind(dim=2)
    at, row = across.mean(dim=1, keepdim=True), down.mean(dim=1, keepdim=True)
    slope = ((down - row) * (across - at)).sum(dim=1, keepdim=True)
    slope = slope / (down - row).square().sum(dim=1, keepdim=True).clamp(min=1e-4)
    x, y = centres(image)
    line = (at + slope * (y[:, 0] - row))[:, :, None]
    return torch.sigmoid((x - line) * image.shape[-1] / seam)[:, None], off


def _mean(x: Tensor, where: Mask) -> Tensor:
    return (where * x).sum(dim=(1, 2, 3)) / where.sum(dim=(1, 2, 3)).clamp(min=1)


def _ramp(x: Tensor, nothing: float, all_of_it: float) -> Tensor:
    """0 at `nothing`, 1 at `all_of_it`, linear between."""
    return ((x - nothing) / (all_of_it - nothing)).clamp(0, 1)

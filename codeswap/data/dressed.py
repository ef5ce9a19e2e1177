"""The source's face in the target's place, tone and light: what a swap of photographs may be told (train/truth.py).

Off-paper. A photograph has no true swap. Carrying the source's parts to where the target's are, and its skin to the
target's, comes near one where the two look the same way and have the same expression; the rest is left to Eq. 9.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from codeswap.data.geometry import with_geometry_of
from codeswap.data.labels import among, last_row
from codeswap.data.spoil import soften
from codeswap.types import FACE_CLASSES, REGIONS, Image, Mask

SHARE = 0.8  # of the way from the source's geometry to the target's: the rest of its face's proportions stays
SKIN = REGIONS["skin"] + REGIONS["nose"]
DARKEST = 0.03  # below which a pixel's logarithm says nothing of light
LIKE = 0.2, 0.3  # log brightness by which skin may differ before it counts less: all of it, and a place of it
LIGHT = 5.0  # reach of the target's light and shade, in 64ths of the picture
SURE = 0.15  # weight of "no difference of light" where no skin tells
EDGE = 1.2  # softness of the face's edge, in 64ths of the picture


def dressed(source: Image, own: Tensor, target: Image, other: Tensor) -> Image:
    """`source` (b, 3, h, w) with label maps `own` put over `target`, whose label maps are `other`; in [-1, 1].

    Beyond the target's face (types.FACE_CLASSES of `other`) the picture is the target's. Log brightness and each colour
    are moved by what separates the skin above both mouths, beards and hair counting little, and by the target's shades.
    """
    size = target.shape[-1] / 64
    share = torch.full((len(source),), SHARE, device=source.device)
    carried = with_geometry_of(torch.cat([source, _where(own, FACE_CLASSES)], dim=1), own, other, share)
    moved, known = carried[:, :3], carried[:, 3:]
    face = _where(other, FACE_CLASSES) * (known > 0.9)
    skin = _where(other, SKIN) * face
    rows = torch.arange(target.shape[-2], device=target.device)
    upper = skin * (rows <= last_row(among(other, REGIONS["nose"]))[:, None])[:, None, :, None]

    log, wanted = (((image + 1) / 2).clamp(min=DARKEST).log() for image in (moved, target))
    tone, wanted_tone = _typical(log, upper), _typical(wanted, upper)
    contrast = (_spread(wanted, wanted_tone, upper) / _spread(log, tone, upper)).clamp(max=1)
    log = wanted_tone + contrast * (log - tone)
    light = (wanted - log).mean(dim=1, keepdim=True)
    sure = skin / (1 + (light / LIKE[1]).square())
    log = log + soften(sure * light, LIGHT * size) / (soften(sure, LIGHT * size) + SURE)

    picture = log.exp().clamp(0, 1) * 2 - 1
    edge = soften(1 - F.max_pool2d(1 - face, 3, 1, 1), EDGE * size)
    return target + edge * (picture - target)


def _where(labels: Tensor, classes: tuple[int, ...]) -> Mask:
    return among(labels, classes)[:, None].float()


def _mean(x: Tensor, weights: Mask) -> Tensor:
    return (x * weights).sum(dim=(2, 3), keepdim=True) / weights.sum(dim=(2, 3), keepdim=True).clamp(min=1e-3)


def _typical(log: Tensor, skin: Mask) -> Tensor:
    """The colour (b, 3, 1, 1) of most of the skin: a mean in which what is far from it counts little."""
    weights = skin
    for _ in range(5):
        typical = _mean(log, weights)
        weights = _alike(log, typical, skin)
    return typical


def _alike(log: Tensor, typical: Tensor, skin: Mask) -> Mask:
    return skin / (1 + ((log - typical).mean(dim=1, keepdim=True) / LIKE[0]).square())


def _spread(log: Tensor, typical: Tensor, skin: Mask) -> Tensor:
    """Standard deviation (b, 1, 1, 1) of the log brightness of most of the skin."""
    difference = (log - typical).mean(dim=1, keepdim=True)
    return (_mean(difference.square(), _alike(log, typical, skin)) + 1e-4).sqrt()

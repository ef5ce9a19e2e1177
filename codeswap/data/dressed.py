"""The source's face in the target's place, tone and light: what a swap of photographs may be told (train/truth.py).

Off-paper. A photograph has no true swap. Carrying the source's parts to where the target's are, and its skin to the
target's, comes near one where the two look the same way and have the same expression; the rest is left to Eq. 9.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from codeswap.data.evened import DARKEST, SKIN, evened
from codeswap.data.geometry import with_geometry_of
from codeswap.data.labels import among, last_row, mouth_kept
from codeswap.data.spoil import soften
from codeswap.types import FACE_CLASSES, REGIONS, Image, Mask

SHARE = 0.6  # of the way from the source's geometry to the target's: the rest of its face's proportions stays
CONTRAST = 1.4  # to which a source's contrast is raised at most, where the target's light is harder
SLOPE = 8.0  # reach of light that slopes over a face and goes on below the nose, in 64ths of the picture
LIGHT = 5.0  # reach of smaller lights and shades, likewise
HUE = 0.35  # log chroma by which a pixel may differ from its face's skin before it passes for hair, glass or make-up
HIDDEN = 0.7  # and by which it counts as hiding the face
LIKE = 0.3  # log brightness by which skin below the nose may differ before it counts less as light: a beard is none
UPPER_LIKE = 0.9  # likewise above
SURE = 0.15  # weight of "no difference of light" where no skin tells
EDGE = 1.2  # softness of the face's edge, in 64ths of the picture


def dressed(source: Image, own: Tensor, target: Image, other: Tensor) -> Image:
    """`source` (b, 3, h, w) with label maps `own` put over `target`, whose label maps are `other`; in [-1, 1].

    A source lit from one side is evened first (data/evened.py). Beyond the target's face (FACE_CLASSES of `other`) the
    picture is the target's, and so is the mouth where one of the two is open and the other is not. The light on
    the source's skin above its mouth, which goes on below, gives way to the target's, and the rest's contrast to its
    contrast; below, a beard is not taken for shade. Above, what is of another hue than its face's skin (hair, tinted
    glasses) says nothing of light or tone, and is not carried over.
    """
    size = target.shape[-1] / 64
    share = torch.full((len(source),), SHARE, device=source.device)
    source = torch.cat([evened(source, own), _where(own, FACE_CLASSES)], dim=1)
    carried = with_geometry_of(source, own, other, share)
    moved, known = carried[:, :3], carried[:, 3:]
    face = _where(other, FACE_CLASSES) * (known > 0.9)
    skin = _where(other, SKIN) * face
    rows = torch.arange(target.shape[-2], device=target.device)
    upper = skin * (rows <= last_row(among(other, REGIONS["nose"]))[:, None])[:, None, :, None]

    log, wanted = (((image + 1) / 2).clamp(min=DARKEST).log() for image in (moved, target))
    odd, odd_there = _oddness(log, upper), _oddness(wanted, upper)
    mine, theirs = _likeness(odd, HUE), _likeness(odd_there, HUE)
    lit, wanted_lit = (_around(x, upper * part, SLOPE * size, 1e-4) for x, part in ((log, mine), (wanted, theirs)))
    contrast = (_deviation(wanted - wanted_lit, upper) / _deviation(log - lit, upper)).clamp(max=CONTRAST)
    log = wanted_lit + contrast * (log - lit)
    light = (wanted - log).mean(dim=1, keepdim=True)
    colour = wanted - log - light
    skin = skin * (mine * theirs)
    like = torch.where(upper > 0, UPPER_LIKE, LIKE)
    log = log + _around(colour, skin, LIGHT * size, SURE)
    log = log + _around(light, skin / (1 + (light / like).square()), LIGHT * size, SURE)

    picture = log.exp().clamp(0, 1) * 2 - 1
    edge = soften(1 - F.max_pool2d(1 - face, 3, 1, 1), EDGE * size)
    edge = edge * soften(_likeness(odd, HIDDEN), EDGE * size)
    edge = edge * (1 - soften(mouth_kept(own, other), EDGE * size))
    return target + edge * (picture - target)


def _where(labels: Tensor, classes: tuple[int, ...]) -> Mask:
    return among(labels, classes)[:, None].float()


def _around(x: Tensor, where: Mask, reach: float, nothing: float) -> Tensor:
    """Mean of `x` around each pixel, `reach` pixels far, `where` telling what counts; `nothing`: the weight of 0."""
    return soften(where * x, reach) / (soften(where, reach) + nothing)


def _oddness(log: Tensor, skin: Mask) -> Tensor:
    """How far (b, 1, h, w) the chroma of each pixel of `skin` is from their median; 0 elsewhere."""
    chroma = log - log.mean(dim=1, keepdim=True)
    median = torch.where(skin > 0, chroma, torch.nan).flatten(2).nanmedian(dim=2).values[:, :, None, None]
    return (skin * (chroma - median.nan_to_num())).norm(dim=1, keepdim=True)


def _likeness(oddness: Tensor, enough: float) -> Tensor:
    return 1 / (1 + (oddness / enough) ** 4)


def _deviation(log: Tensor, skin: Mask) -> Tensor:
    """Standard deviation (b, 1, 1, 1) of the brightness of `skin`, whose mean is 0."""
    squares = (skin * log.mean(dim=1, keepdim=True).square()).sum(dim=(2, 3), keepdim=True)
    return (squares / skin.sum(dim=(2, 3), keepdim=True).clamp(min=1e-3) + 1e-4).sqrt()

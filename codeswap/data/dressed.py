"""The source's face in the target's place, tone and light: what a swap of photographs may be told (train/truth.py).

Off-paper. A photograph has no true swap. Carrying the source's parts to where the target's are, and its skin to the
target's, comes near one where the two look the same way and have the same expression; the rest is left to Eq. 9.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from codeswap.data.evened import DARKEST, SKIN, evened
from codeswap.data.geometry import with_geometry_of
from codeswap.data.labels import above_brows, among, last_row, mouth_kept
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
DARK = 1.0  # log brightness below its face's skin at which what is seen above the mouth is half glass, rim or hair
STRAND = 0.4  # likewise above the brows, where little else is dark
COVER = 1.0  # width in 64ths of the picture from which what is dark on the target covers its face: no thin rim
COVERED = 0.2, 0.6  # share of what is seen around a pixel that is so dark, from which it begins to be covered, and is
RIM = 0.7  # log brightness by which a line is darker than what lies beside it where it is half taken for a rim
LINE, BELOW = 2.0, 5.0  # half the width of the widest rim, and how far below the eyes it reaches, in 64ths
LIT = 0.6  # share of a face's skin above its mouth that is darker than its lit skin
SURE = 0.15  # weight of "no difference of light" where no skin tells
EDGE = 1.2  # softness of the face's edge, in 64ths of the picture


def dressed(source: Image, own: Tensor, target: Image, other: Tensor) -> Image:
    """`source` (b, 3, h, w) with label maps `own` put over `target`, whose label maps are `other`; in [-1, 1].

    A source lit from one side is evened first (data/evened.py). Beyond the target's face (FACE_CLASSES of `other`) the
    picture is the target's, and so is the mouth where one of the two is open and the other is not. The light on
    the source's skin above its mouth, which goes on below, gives way to the target's, and the rest's contrast to its
    contrast; below, a beard is not taken for shade. Above, what is of another hue than its face's skin (hair, tinted
    glasses) says nothing of light or tone, and is not carried over. What is much darker says nothing either: dark
    glasses and rims of the source stay as dark as they are, but above the brows they are hair and not carried over;
    what covers the target's face stays over it, the rims of its glasses too.
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
    mine, theirs = _likeness(odd / HUE), _likeness(odd_there / HUE)
    dark, dark_there = _darkness(log, upper * mine), _darkness(wanted, upper * theirs)
    bare, bare_there = _likeness(dark / DARK), _likeness(dark_there / DARK)
    mine, theirs = mine * bare, theirs * bare_there
    lit, wanted_lit = (_around(x, upper * part, SLOPE * size, 1e-4) for x, part in ((log, mine), (wanted, theirs)))
    contrast = (_deviation(wanted - wanted_lit, upper) / _deviation(log - lit, upper * (dark < DARK))).clamp(
        max=CONTRAST
    )
    log = wanted_lit + contrast * (log - lit)
    light = (wanted - log).mean(dim=1, keepdim=True)
    colour = wanted - log - light
    skin = skin * (mine * theirs)
    like = torch.where(upper > 0, UPPER_LIKE, LIKE)
    log = log + _around(colour, skin, LIGHT * size, SURE)
    log = log + _around(light, skin * _likeness(light / like), LIGHT * size, SURE)

    picture = log.exp().clamp(0, 1) * 2 - 1
    edge = soften(1 - F.max_pool2d(1 - face, 3, 1, 1), EDGE * size)
    edge = edge * soften(_likeness(odd / HIDDEN), EDGE * size)
    strands = F.max_pool2d(upper * above_brows(other)[:, None] * (1 - _likeness(dark / STRAND)), 3, 1, 1)
    edge = edge * (1 - soften(strands, EDGE * size))
    edge = edge * (1 - _covered(1 - bare_there, upper, size)) * (1 - _rims(wanted, other, upper, size))
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


def _darkness(log: Tensor, skin: Mask) -> Tensor:
    """How much darker (b, 1, h, w) each pixel is than the lit part of its face's `skin`; 0 where it is lighter."""
    light = log.mean(dim=1, keepdim=True)
    level = torch.where(skin > 0.5, light, torch.nan).flatten(2).nanquantile(LIT, dim=2)[:, :, None, None]
    return F.relu(level.nan_to_num() - light)


def _covered(dark: Tensor, skin: Mask, size: float) -> Mask:
    """Where something wide and `dark` (0 to 1) covers the face (b, 1, h, w): the eyes too where all around them is."""
    wide = 2 * round(COVER * size) + 1
    thick = -F.max_pool2d(-torch.where(skin > 0, dark, 1), wide, 1, wide // 2)
    thick = F.max_pool2d(thick, wide, 1, wide // 2).minimum(dark)
    around = _around(thick, skin, 2 * size, 1e-4)
    return ((around - COVERED[0]) / (COVERED[1] - COVERED[0])).clamp(0, 1)


def _rims(log: Tensor, labels: Tensor, skin: Mask, size: float) -> Mask:
    """Thin dark lines on the skin around the eyes (b, 1, h, w), but lids and brows."""
    parts = F.max_pool2d(_where(labels, REGIONS["eyes"] + REGIONS["brows"]), 3, 1, 1)
    rows = torch.arange(log.shape[-2], device=log.device)
    near = rows <= last_row(among(labels, REGIONS["eyes"]))[:, None] + round(BELOW * size)
    light, wide = log.mean(dim=1, keepdim=True), 2 * round(LINE * size) + 1
    filled = -F.max_pool2d(-F.max_pool2d(light, wide, 1, wide // 2), wide, 1, wide // 2)
    lines = (filled - light) * skin * near[:, None, :, None] * (1 - parts)
    return soften(1 - _likeness(lines / RIM), LINE * size / 5)


def _likeness(x: Tensor) -> Tensor:
    return 1 / (1 + x**4)


def _deviation(log: Tensor, skin: Mask) -> Tensor:
    """Standard deviation (b, 1, 1, 1) of the brightness of `skin`, whose mean is 0."""
    squares = (skin * log.mean(dim=1, keepdim=True).square()).sum(dim=(2, 3), keepdim=True)
    return (squares / skin.sum(dim=(2, 3), keepdim=True).clamp(min=1e-3) + 1e-4).sqrt()

"""Faces whose identity is spoilt and whose pose, expression and surroundings stay: targets with a known answer.

Off-paper. A face swapper never sees the answer to its task; a face that was spoilt has one, the picture it was.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from kornia.filters import filter2d_separable, get_gaussian_kernel1d
from torch import Tensor

from codeswap.types import Image, Mask

FIELD = 4  # knots along each side of the warp's random field
PATCHES = 5  # knots along each side of the random patches of tone
WIDTH, HEIGHT, JAW = 0.15, 0.10, 0.20  # largest change of the face's width, its height, and the width of its jaw
BEND = 0.12  # largest bend of the random field, in half pictures
CONTRAST, BLURRED, TONE_KEPT, MOTTLE = 0.25, 0.15, 0.2, 0.35
LOOK_LIGHT, LOOK_BEND = 0.3, 0.6  # of another look: log brightness, and its share of BEND
PART = 0.5  # largest change of the log brightness of brows, eyes and lips


class Spoiling(NamedTuple):
    """What is done to each face; all drawn from [-1, 1)."""

    scalars: Tensor  # (n, 16)
    warp: Tensor  # (n, 2, FIELD, FIELD)
    patches: Tensor  # (n, 3, PATCHES, PATCHES)

    @classmethod
    def draw(cls, n: int, generator: torch.Generator) -> "Spoiling":
        shapes = (n, 16), (n, 2, FIELD, FIELD), (n, 3, PATCHES, PATCHES)
        return cls(*(torch.rand(shape, generator=generator) * 2 - 1 for shape in shapes))


def mean_colour(image: Image, region: Mask) -> Tensor:
    """Mean of each channel in the region, (n, 3, 1, 1), in the image's range; the whole picture's where it is empty."""
    region = torch.where(region.sum(dim=(2, 3), keepdim=True) > 0, region, torch.ones_like(region))
    return (image * region).sum(dim=(2, 3), keepdim=True) / region.sum(dim=(2, 3), keepdim=True)


def spoil(image: Image, face: Mask, parts: Mask, tone: Tensor, how: Spoiling, bend: float = 1.0) -> Image:
    """Changes tone, contrast, colours of the `parts` and the shape of the face, smoothly, inside `face` only.

    `image` in [-1, 1]; `face` and `parts` (n, p, h, w: brows, eyes, lips) are 0/1 masks; `tone` (n, 3, 1, 1) is the
    mean face colour that the face takes on (another person's), in [-1, 1]. `bend`: share of the change of shape.
    """
    s = [column[:, None, None, None] for column in how.scalars.unbind(1)]
    x, tone = (image + 1) / 2, (tone + 1) / 2
    size = x.shape[-2:]
    soft = _blur(face, 1)

    blurred = _blur(x, 1)
    x = x + soft * (s[0] * 0.5 + 0.5 < BLURRED) * (blurred - x)

    own = mean_colour(x, face)
    shift = (tone.clamp(min=0.05) / own.clamp(min=0.05)).log().clamp(-1.6, 1.6)
    shift = (s[1] * 0.5 + 0.5 >= TONE_KEPT) * (shift + 0.1 * s[2] + 0.05 * torch.cat(s[3:6], dim=1))
    patches = F.interpolate(how.patches, size=size, mode="bicubic", align_corners=True)
    log = soft * (shift + MOTTLE * s[6].clamp(min=0) * (0.8 * patches[:, :1] + 0.2 * patches))
    log = log + (_blur(parts, 1) * PART * how.scalars[:, 13 : 13 + parts.shape[1], None, None]).sum(dim=1, keepdim=True)
    x = x * log.exp()
    x = x + soft * CONTRAST * s[7] * (x - mean_colour(x, face))
    return _warp(x, soft, [bend * scale for scale in s[8:11]], bend * how.warp).clamp(0, 1) * 2 - 1


def another_look(image: Image, how: Spoiling) -> Image:
    """The same person once more, where no other picture is to be had: mirrored, smoothly bent, in another light.

    Only what changes with pose and light is changed; the face's proportions stay. `image` in [-1, 1].
    """
    x, s = (image.flip(-1) + 1) / 2, [column[:, None, None, None] for column in how.scalars.unbind(1)]
    x = x * (LOOK_LIGHT * s[0] + 0.2 * LOOK_LIGHT * torch.cat(s[1:4], dim=1)).exp()
    everywhere = torch.ones_like(x[:, :1])
    still = [torch.zeros_like(s[0])] * 3
    return _warp(x, everywhere, still, LOOK_BEND * how.warp).clamp(0, 1) * 2 - 1


def in_surroundings_of(image: Image, face: Mask, other: Image) -> Image:
    """The face of `image` (where the 0/1 mask `face` says) pasted over `other`: its person with another's hair."""
    soft = _blur(face, 1)
    return other + soft * (image - other)


def soften(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (b, c, h, w), `sigma` in pixels, edges repeated; nothing at 0. Never waits for the device."""
    if sigma == 0:
        return x
    kernel = get_gaussian_kernel1d(2 * int(3 * sigma + 0.5) + 1, sigma, dtype=x.dtype)  # made on the CPU
    return filter2d_separable(x, kernel, kernel, "replicate")


def _blur(x: Tensor, reach: int) -> Tensor:
    """Box blur, `reach` in 64ths of the picture to each side."""
    reach *= max(1, round(x.shape[-1] / 64))
    return F.avg_pool2d(x, 2 * reach + 1, 1, reach, count_include_pad=False)


def _warp(x: Tensor, face: Mask, scales: list[Tensor], field: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    reach = 3 * max(1, round(w / 64))
    wide = _blur(F.max_pool2d(face, 2 * reach + 1, 1, reach), 4)
    bend = BEND * F.interpolate(field, size=(h, w), mode="bicubic", align_corners=True)
    rows = ((torch.arange(h, device=x.device) + 0.5) / h * 2 - 1).view(1, 1, h, 1)
    columns = ((torch.arange(w, device=x.device) + 0.5) / w * 2 - 1).view(1, 1, 1, w)
    area = face.sum(dim=(2, 3), keepdim=True).clamp(min=1)
    middle = (face * columns).sum(dim=(2, 3), keepdim=True) / area
    width, height, jaw = WIDTH * scales[0], HEIGHT * scales[1], JAW * scales[2] * rows.clamp(min=0)
    dx = wide * (bend[:, :1] + (columns - middle) * (width + jaw))
    dy = wide * (0.6 * bend[:, 1:] + rows * height)
    grid = torch.stack([(columns + dx).expand(-1, -1, h, w)[:, 0], (rows + dy).expand(-1, -1, h, w)[:, 0]], dim=-1)
    return F.grid_sample(x, grid.to(x.dtype), mode="bilinear", padding_mode="border", align_corners=False)

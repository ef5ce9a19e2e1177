"""Looking into a model: what the codebook keeps of a face (Fig. 3), and where a place of a swap looks (Fig. 9)."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PILImage
from torch import Tensor

from codeswap.data.pictures import grid
from codeswap.models.codeswap import CodeSwap
from codeswap.models.vqgan import feature_map, tokens
from codeswap.types import Image

SHOWN = 192  # pixels, about, of a face in these pictures
SMALLEST = 32  # pixels, of a degraded face: less shows nobody, whatever its crop was
SHRINK, NOISE, QUALITY = 8, 12.0, 30  # of a degraded picture (METHOD §G): times smaller, sigma in grey levels, JPEG


def degraded(crop: np.ndarray, seed: int = 0) -> np.ndarray:
    """A bad picture of an aligned uint8 (s, s, 3) crop: shrunk and enlarged again, noisy, as a coarse JPEG."""
    size = len(crop)
    small = PILImage.fromarray(crop).resize((max(size // SHRINK, min(size, SMALLEST)),) * 2, PILImage.Resampling.BOX)
    large = np.asarray(small.resize((size, size), PILImage.Resampling.BICUBIC), dtype=np.float32)
    noisy = large + np.random.default_rng(seed).normal(0, NOISE, large.shape)
    out = io.BytesIO()
    PILImage.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)).save(out, "JPEG", quality=QUALITY)
    return np.asarray(PILImage.open(out).convert("RGB"))


@torch.inference_mode()
def through_codes(model: CodeSwap, images: Image) -> Image:
    """What is decoded of the faces' nearest codes."""
    vqgan, book = model.vqgan, model.vqgan.codebook
    return vqgan.decode(feature_map(book.lookup(book.nearest(tokens(vqgan.encode(images))))))


@torch.inference_mode()
def reconstructions(model: CodeSwap, images: Image) -> PILImage.Image:
    """A grid: each face, and what is decoded of its nearest and of its soft codes."""
    vqgan = model.vqgan
    soft = vqgan.decode(feature_map(vqgan.codebook.soft(tokens(vqgan.encode(images)), 1.0)))
    nearest = through_codes(model, images)
    return grid(
        [images, nearest, soft], ["input", "nearest codes", "soft codes"], scale=max(1, 192 // images.shape[-1])
    )


@torch.inference_mode()
def attention(
    model: CodeSwap, image_a: Image, image_b: Image, at: tuple[float, float], layer: int = -1
) -> PILImage.Image:
    """Where the place `at` (x, y in 0..1 of b's crop) of a's swap onto b looks: in b itself, and in a.

    Mean over the heads of one layer; both maps share one scale. Raises ValueError for a place or a layer outside.
    """
    if not all(0 <= coordinate < 1 for coordinate in at):
        raise ValueError(f"the place {at[0]:g},{at[1]:g} is outside: give x and y from 0 to 1 in the aligned face")
    vqgan, cells = model.vqgan, model.vqgan.config.grid
    maps = model.fusion.attention_maps(tokens(vqgan.encode(image_a)), tokens(vqgan.encode(image_b)))
    if not -len(maps) <= layer < len(maps):
        raise ValueError(f"there is no layer {layer}: the model has {len(maps)}, counted from 0")
    column, row = (int(coordinate * cells) for coordinate in at)
    found = maps[layer][0, -1].mean(dim=0)[row * cells + column]  # side b; (own or other face, key token)
    other = found[-1]  # a's tokens; one-sided models look nowhere else
    own = found[0] if len(found) > 1 else torch.zeros_like(other)
    low, high = min(own.min(), other.min()), max(own.max(), other.max())
    heats = [((heat - low) / (high - low + 1e-12)).view(1, 1, cells, cells) for heat in (own, other)]
    marked = _cell(image_b, row, column, cells)
    rows = [marked, _overlaid(image_b, heats[0]), _overlaid(image_a, heats[1])]
    return grid(rows, ["target b, the place", "looks in b", "looks in a"], scale=max(1, SHOWN // image_a.shape[-1]))


def _overlaid(image: Image, heat: Tensor) -> Image:
    """The picture in grey, reddened where the heat is."""
    heat = F.interpolate(heat, size=image.shape[-2:], mode="bilinear", align_corners=False)
    grey = image.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1) * 0.8
    red = torch.tensor([1.0, -0.2, -1.0], device=image.device).view(1, 3, 1, 1)
    return grey * (1 - 0.7 * heat) + red * 0.7 * heat


def _cell(image: Image, row: int, column: int, cells: int) -> Image:
    side = image.shape[-1] // cells
    marked = image.clone()
    top, left = row * side, column * side
    marked[..., top : top + side, left : left + side] = 0.5 * marked[..., top : top + side, left : left + side] + 0.5
    return marked

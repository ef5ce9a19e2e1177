"""Regional control: swap only the codes inside a region of the target (Fig. 8, METHOD §G)."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from codeswap.models.codeswap import CodeSwap
from codeswap.models.mask import blend
from codeswap.models.vqgan import feature_map, tokens
from codeswap.types import Image, Latent, Mask

Region = Bool[Tensor, "b n"]


def region_tokens(region: Mask, grid: int, threshold: float = 0.25) -> Region:
    """Tokens of a grid x grid map with at least `threshold` of their patch inside; one at least if any pixel is.

    `region` is 1 inside, 0 outside, of any size.
    """
    share = F.adaptive_avg_pool2d(region.float(), grid).flatten(1)
    inside = share >= threshold
    best = F.one_hot(share.argmax(dim=1), grid * grid).bool() & (share > 0)
    return inside | (best & ~inside.any(dim=1, keepdim=True))


def mixed_codes(z_q: Latent, target: Latent, region: Region) -> Latent:
    """Z_mix: the swapped codes inside the region, the target's outside."""
    return torch.where(region[..., None], z_q, target)


def swap_region(
    model: CodeSwap,
    image_a: Image,
    image_b: Image,
    region_b: Mask,
    *,
    outside: Literal["nearest", "self", "continuous"] = "nearest",
    threshold: float = 0.25,
) -> Image:
    """I_ab with the identity of a inside `region_b` only; granularity is one token.

    `outside` chooses the target's codes there: its nearest codes, its swap with itself (same softness as the swapped
    codes), or its latent as it is. With a mask generator the result is blended by M_b inside the region, dilated by
    one token and softened; without one the decoded image is returned.
    """
    vqgan, codebook = model.vqgan, model.vqgan.codebook
    z_b, features_b = vqgan.encoder_features(image_b)
    latent_a, latent_b = tokens(vqgan.encode(image_a)), tokens(z_b)
    swapped = model.fusion(latent_a, latent_b, codebook.weight).z_q_ab
    match outside:
        case "nearest":
            target = codebook.lookup(codebook.nearest(latent_b))
        case "self":
            target = model.fusion(latent_b, latent_b, codebook.weight).z_q_ab
        case "continuous":
            target = latent_b
    grid = vqgan.config.grid
    inside = region_tokens(region_b, grid, threshold)
    _, naive, mask = model.paint(mixed_codes(swapped, target, inside), image_b, features_b)
    if mask is None:
        return naive
    dilated = F.max_pool2d(feature_map(inside[..., None].float()), 3, stride=1, padding=1)
    soft = F.interpolate(dilated, size=image_b.shape[-2:], mode="bilinear", align_corners=False)
    return blend(naive, image_b, mask * soft)

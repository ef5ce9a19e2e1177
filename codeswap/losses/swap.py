"""Stage 2 and the second half of Stage 3: what a good swap is (Eq. 9-13, METHOD §B.3).

`xy` = identity of x, everything else of y. Arguments come as (result, what it should equal), ab first. Without the ba
pair, as in the one-sided variant, each loss is its ab term alone.
"""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from codeswap.losses.codebook import Norm, difference
from codeswap.losses.image import Features, feature_norm
from codeswap.types import Embedding, Flags, Image, Latent, Mask, Scalar

LEAST_EYES = 0.08  # of the picture's side: nearer eyes are a profile's, whose distance is no measure


def _both(ab: Tensor, ba: Tensor | None) -> Tensor:
    return ab if ba is None else (ab + ba) / 2


def identity_loss(
    e_ab: Embedding,
    e_a: Embedding,
    e_ba: Embedding | None = None,
    e_b: Embedding | None = None,
    *,
    enough: float = 1.0,
) -> Scalar:
    """Eq. (10): 1 - (cos(E(I_a), E(I_ab)) + cos(E(I_b), E(I_ba))) / 2. Embeddings need not be normalised.

    Off-paper with `enough` below 1: enough - cos where that is positive, else 0. Two pictures of one person have a
    cosine well below 1, so asking for more asks for the source's pixels.
    """
    ab = (enough - F.cosine_similarity(e_ab, e_a)).clamp(min=0).mean()
    return _both(ab, None if e_ba is None else (enough - F.cosine_similarity(e_ba, e_b)).clamp(min=0).mean())


def reconstruction_loss(
    image_ab: Image,
    image_b: Image,
    image_ba: Image | None = None,
    image_a: Image | None = None,
    *,
    same: Flags,
    normalise: Literal["batch", "same"] = "batch",
) -> Scalar:
    """Eq. (11): (||I_ba - I_a||_1 + ||I_ab - I_b||_1) / 2 where I_a = I_b, else 0; mean per pixel.

    `batch` divides by all pairs, as printed; `same` by the pairs of equal images of this call (0 without any).
    """
    ab = (image_ab - image_b).abs().flatten(1).mean(dim=1)
    ba = None if image_ba is None else (image_ba - image_a).abs().flatten(1).mean(dim=1)
    per_pair = _both(ab, ba) * same
    return per_pair.mean() if normalise == "batch" else per_pair.sum() / same.sum().clamp(min=1)


def perceptual_loss(f_ab: Features, f_b: Features, f_ba: Features | None = None, f_a: Features | None = None) -> Scalar:
    """Eq. (9), L_per: the norm of Eq. (3) between each swap and its target face, over all pairs."""
    ab = feature_norm(f_ab, f_b).mean()
    return _both(ab, None if f_ba is None else feature_norm(f_ba, f_a).mean())


def expression_loss(
    x_ab: Embedding, x_b: Embedding, x_ba: Embedding | None = None, x_a: Embedding | None = None
) -> Scalar:
    """Eq. (12): (||E_exp(I_a) - E_exp(I_ba)||_2 + ||E_exp(I_b) - E_exp(I_ab)||_2) / 2; plain norms, not squared."""
    ab = _distance(x_ab, x_b).mean()
    return _both(ab, None if x_ba is None else _distance(x_ba, x_a).mean())


def _distance(x: Embedding, y: Embedding) -> Tensor:
    return _lengths(x - y)


def _lengths(x: Tensor) -> Tensor:
    return (x.square().sum(dim=-1) + 1e-12).sqrt()  # the norm's gradient is undefined at 0


def cycle_loss(
    z_bab: Latent, z_b: Latent, z_aba: Latent | None = None, z_a: Latent | None = None, *, norm: Norm = "mse"
) -> Scalar:
    """Eq. (13): ||Z_q^aba - Z^a|| + ||Z_q^bab - Z^b||, a sum, not an average. Targets are detached.

    `mse` by default. Soft codes lie in the codebook's convex hull, so the floor is above 0 (METHOD §B.1).
    """
    bab = difference(z_bab, z_b.detach(), norm)
    return bab if z_aba is None else bab + difference(z_aba, z_a.detach(), norm)


def landmark_loss(points: Float[Tensor, "b 68 2"], wanted: Float[Tensor, "b 68 2"]) -> Scalar:
    """Off-paper: mean distance of iBUG's 68 points from where they are `wanted`, in distances between its eyes."""
    eyes = (wanted[:, 36:42].mean(dim=1) - wanted[:, 42:48].mean(dim=1)).norm(dim=1).clamp(min=LEAST_EYES)
    return (_lengths(points - wanted).mean(dim=1) / eyes).mean()


def chroma_loss(image_ab: Image, image_b: Image, cells: int = 16) -> Scalar:
    """Off-paper: mean |difference| of chroma (RGB without its mean) in `cells` x `cells` cells: the target's colours.

    Brightness and all that is smaller than a cell are free, so features and shading may be the source's.
    """
    difference = image_ab - image_b
    chroma = difference - difference.mean(dim=1, keepdim=True)
    return F.adaptive_avg_pool2d(chroma, cells).abs().mean()


def tone_loss(image_ab: Image, image_b: Image, cells: int = 8) -> Scalar:
    """Off-paper: mean squared difference of colour (RGB) in `cells` x `cells` cells: the target's light and tone.

    What is smaller than a cell is nearly free, so features may be the source's. What covers a cell and is far off, as
    the source's hair on the target's brow, costs most.
    """
    return F.adaptive_avg_pool2d(image_ab - image_b, cells).square().mean()


def background_loss(image_ab: Image, image_b: Image, outside_b: Mask) -> Scalar:
    """Off-paper: mean |I_ab - I_b| outside the face; `outside_b` is 1 on what must not change."""
    return ((image_ab - image_b).abs() * outside_b).mean()


def embedding_loss(e_ab: Embedding, e_a: Embedding) -> Scalar:
    """Off-paper: half the mean squared distance of raw embeddings; pulls on their length too, which cosine cannot."""
    return (e_ab - e_a).square().mean() / 2

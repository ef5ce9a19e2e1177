"""Stage 1: the codebook loss (Eq. 4)."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from codeswap.types import Latent, Scalar

Norm = Literal["mse", "l2norm"]


def difference(x: Latent, y: Latent, norm: Norm, weights: Float[Tensor, "b n"] | None = None) -> Scalar:
    """Mean squared difference (`mse`, as the cited code), or the mean over tokens of the unsquared norm as printed.

    `weights` per token are normalised to mean 1.
    """
    square = (x - y).square()
    per_token = square.mean(dim=-1) if norm == "mse" else (square.sum(dim=-1) + 1e-12).sqrt()
    return per_token.mean() if weights is None else (per_token * weights).sum() / weights.sum()


def commitment_loss(z: Latent, z_q: Latent, norm: Norm = "mse", weights: Float[Tensor, "b n"] | None = None) -> Scalar:
    """Eq. (4), first term: ||sg[Z_q] - Z_f||. Moves the encoder, never the codes."""
    return difference(z, z_q.detach(), norm, weights)


def code_loss(z: Latent, z_q: Latent, norm: Norm = "mse", weights: Float[Tensor, "b n"] | None = None) -> Scalar:
    """Eq. (4), second term: ||sg[Z_f] - Z_q||. Moves the codes, never the encoder."""
    return difference(z_q, z.detach(), norm, weights)


def codebook_loss(
    z: Latent,
    z_q: Latent,
    *,
    beta: float = 0.25,
    beta_on: Literal["codebook", "commitment"] = "codebook",
    norm: Norm = "mse",
    weights: Float[Tensor, "b n"] | None = None,
) -> Scalar:
    """Eq. (4): ||sg[Z_q] - Z_f|| + beta ||sg[Z_f] - Z_q||.

    The default puts beta where the paper prints it, on the codebook term, as taming-transformers' default ("legacy")
    does; `commitment` is VQ-VAE's form. `z_q` must carry the codes' gradient (`Quantised.z_q`, not `passed`).
    """
    commitment, code = commitment_loss(z, z_q, norm, weights), code_loss(z, z_q, norm, weights)
    return commitment + beta * code if beta_on == "codebook" else beta * commitment + code

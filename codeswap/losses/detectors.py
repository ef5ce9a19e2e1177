"""Alarms for Stage 2's two trivial minima: plain exchange and plain copy (METHOD §B.4)."""

from jaxtyping import Bool, Float
from torch import Tensor

Share = Float[Tensor, " b"]


def exchange_ratio(distance_to_target: Share, distance_to_source: Share) -> Share:
    """r = d(I_ab, I_b) / (d(I_ab, I_b) + d(I_ab, I_a)): 0 = the target itself, 1 = the source itself."""
    return distance_to_target / (distance_to_target + distance_to_source).clamp(min=1e-12)


def is_exchange(ratio: Share, limit: float = 0.6) -> Bool[Tensor, " b"]:
    """The output looks more like the source than like the target."""
    return ratio > limit


def is_copy(
    ratio: Share, identity_cosine: Share, ratio_limit: float = 0.05, cosine_limit: float = 0.15
) -> Bool[Tensor, " b"]:
    """The output looks like the target and has none of the source's identity."""
    return (ratio < ratio_limit) & (identity_cosine < cosine_limit)

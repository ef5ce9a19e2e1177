"""Stage 3: the mask's own losses (Eq. 15, METHOD §D.4). All but Eq. 15 are off-paper safety against collapse."""

from typing import NamedTuple

import torch.nn.functional as F

from codeswap.types import Mask, Scalar


def mask_loss(mask: Mask, truth: Mask) -> Scalar:
    """Eq. (15): ||M - M_GT||_1, mean per pixel. Also the anchor of the unsupervised phase."""
    return (mask - truth).abs().mean()


def coverage_loss(mask: Mask, low: float = 0.10, high: float = 0.60) -> Scalar:
    """Off-paper: relu(low - mean M) + relu(mean M - high), per image: no empty and no full masks."""
    share = mask.flatten(1).mean(dim=1)
    return (F.relu(low - share) + F.relu(share - high)).mean()


def binarisation_loss(mask: Mask) -> Scalar:
    """Off-paper: mean min(M, 1 - M); 0 for a hard mask, at most 1/2."""
    return mask.minimum(1 - mask).mean()


class MaskStatistics(NamedTuple):
    """Mean of M, overlap with the truth at .5, and the share of undecided pixels (.1 < M < .9)."""

    mean: Scalar
    iou: Scalar
    undecided: Scalar


def mask_statistics(mask: Mask, truth: Mask) -> MaskStatistics:
    """What to log of a mask; a mean below .05 or above .7 means that it has collapsed."""
    hard, true = mask > 0.5, truth > 0.5
    union = (hard | true).sum().clamp(min=1)
    undecided = ((mask > 0.1) & (mask < 0.9)).float().mean()
    return MaskStatistics(mask.mean(), (hard & true).sum() / union, undecided)

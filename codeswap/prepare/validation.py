"""What the trained perception networks are worth on rendered persons they have never seen; written to the card."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codeswap.data.faces import to_float
from codeswap.perception.networks import ExpressionNetwork, IdentityNetwork, ParsingNetwork, PoseNetwork
from codeswap.types import PARSING_LABELS

EXPRESSION_NAMES = ("mouth_open", "smile", "brow_raise", "eye_open", "gaze_x", "gaze_y")


@torch.no_grad()
def _answers(function: nn.Module, image: Tensor, device: torch.device) -> Tensor:
    """`function` of uint8 images, in pieces."""
    return torch.cat([function(to_float(part.to(device))).cpu() for part in image.split(128)])


def judge_retrieval(embedding: Tensor, each: int) -> dict[str, float]:
    """Rank-1 retrieval and mean cosines of (persons * each, e) embeddings.

    The gallery is every person's first picture, the queries are the others.
    """
    unit = F.normalize(embedding).unflatten(0, (-1, each))
    gallery, query = unit[:, 0], unit[:, 1:].flatten(0, 1)
    person = torch.arange(len(gallery)).repeat_interleave(each - 1)
    cosine = query @ gallery.t()
    same = cosine.gather(1, person[:, None])
    different = (cosine.sum() - same.sum()) / (cosine.numel() - len(same))
    return {
        "persons": len(gallery),
        "rank1": (cosine.argmax(1) == person).float().mean().item(),
        "cosine_same": same.mean().item(),
        "cosine_different": different.item(),
    }


def explained(found: Tensor, true: Tensor) -> Tensor:
    """R^2 of each column."""
    return 1 - (found - true).square().mean(0) / true.var(0, unbiased=False)


def judge_expert(
    identity: IdentityNetwork,
    expression: ExpressionNetwork,
    pose: PoseNetwork,
    *,
    image: Tensor,
    expression_true: Tensor,
    pose_true: Tensor,
    each: int,
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """Metrics of an expert's heads: `identity`, `expression` ([-1, 1] units) and `pose` (degrees)."""
    said = _answers(expression.attributes, image, device)[:, : len(EXPRESSION_NAMES)]
    share = explained(said, expression_true)
    turned = (_answers(pose, image, device) - pose_true).abs().mean(0)
    return {
        "identity": judge_retrieval(_answers(identity, image, device), each),
        "expression": {
            "mae": (said - expression_true).abs().mean().item(),
            "r2": share.mean().item(),
            **{f"r2_{name}": value for name, value in zip(EXPRESSION_NAMES, share.tolist(), strict=True)},
        },
        "pose": dict(zip(("yaw_deg", "pitch_deg", "roll_deg"), turned.tolist(), strict=True)),
    }


def judge_parsing(network: ParsingNetwork, image: Tensor, label: Tensor, device: torch.device) -> dict[str, float]:
    """Intersection over union of every part, and their mean."""
    found = _answers(network.label_map, image, device)
    scores = {}
    for number in network.labels.tolist():
        both = ((found == number) & (label == number)).sum().item()
        either = ((found == number) | (label == number)).sum().item()
        scores["iou_" + PARSING_LABELS[number].replace(" ", "_")] = both / max(either, 1)
    return {"iou": sum(scores.values()) / len(scores), **scores}

"""The networks of the paper's group and their usual kin, from their official weights.

`converted` turns a publisher's checkpoint into a state dict of one of these networks; only `codeswap weights convert`
does that (perception/convert.py). Stages read the converted file, strictly.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from codeswap.perception.arcface import IRSE50, IResNet, Sphere20
from codeswap.perception.bisenet import BiSeNet, Parsing
from codeswap.perception.boxes import ARCFACE_112, WHOLE, Box, View, box_of
from codeswap.perception.fecnet import FECNet, Scrambled
from codeswap.perception.imagenet import FIDInception, Hopenet, VGGFeatures, vgg_state
from codeswap.perception.poster import PosterPP
from codeswap.perception.viewed import Pose, Viewed

Official = Literal[
    "arcface_iresnet50", "arcface_iresnet100", "ir_se50", "cosface_sphere20", "poster_pp", "fecnet", "hopenet",
    "bisenet", "vgg16_lpips", "fid_inception",
]  # fmt: skip

ARCFACE_BOX = box_of(ARCFACE_112, 112)
PSP_BOX = Box(32 / 256, 35 / 256, 188 / 256)  # what IR-SE50 is shown by E4S, RAFSwap and REFace (METHOD §B.8)
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_HALF = ((127.5,), (127.5,))
_WRAPPERS = ("state_dict", "model", "net", "params")  # keys under which checkpoints keep their state dict


def empty(architecture: Official, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """The bare network. FID's Inception can only be made of its weights, a `state` of bare names."""
    match architecture:
        case "arcface_iresnet50":
            return IResNet(50)
        case "arcface_iresnet100":
            return IResNet(100)
        case "ir_se50":
            return IRSE50()
        case "cosface_sphere20":
            return Sphere20()
        case "poster_pp":
            return PosterPP()
        case "fecnet":
            return FECNet()
        case "hopenet":
            return Hopenet()
        case "bisenet":
            return BiSeNet()
        case "vgg16_lpips":
            return VGGFeatures()
        case "fid_inception":
            return FIDInception(state or {})


def dress(architecture: Official, net: nn.Module) -> nn.Module:
    """`net` with the view of the FFHQ crop that it was trained on (METHOD §B.7-B.9, §D.5, §F.2)."""
    match architecture:
        case "arcface_iresnet50" | "arcface_iresnet100" | "cosface_sphere20":
            return Viewed(View(ARCFACE_BOX, 112, *_HALF), net)
        case "ir_se50":
            return Viewed(View(PSP_BOX, 112, *_HALF), net)
        case "poster_pp":
            return Viewed(View(ARCFACE_BOX, 224, IMAGENET_MEAN, IMAGENET_STD), net)
        case "fecnet":
            return Viewed(nn.Sequential(View(ARCFACE_BOX, 224, (0.0,), (1.0,), "bgr"), Scrambled()), net)
        case "hopenet":
            return Pose(View(WHOLE, 224, IMAGENET_MEAN, IMAGENET_STD), net)
        case "bisenet":
            return Parsing(View(WHOLE, 512, IMAGENET_MEAN, IMAGENET_STD), net)
        case "vgg16_lpips" | "fid_inception":
            return net


def converted(architecture: Official, checkpoints: list[object]) -> dict[str, Tensor]:
    """The bare network's state dict from what the official files hold, one object for each file.

    Raises ValueError when an object holds no state dict.
    """
    first, *others = [bare_state(checkpoint) for checkpoint in checkpoints]
    if architecture == "vgg16_lpips":
        return vgg_state(first, others[0] if others else None)
    if architecture == "fid_inception":
        return {f"net.{name}": tensor for name, tensor in first.items()}
    return first


def bare_state(checkpoint: object) -> dict[str, Tensor]:
    """The state dict in a checkpoint: itself or under a usual key, without the prefix of nn.DataParallel."""
    for key in _WRAPPERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(key), Mapping):
            checkpoint = checkpoint[key]
    tensors = {}
    if isinstance(checkpoint, Mapping):
        tensors = {str(name): value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"it holds no state dict, neither itself nor under {', '.join(_WRAPPERS)}")
    return {name.removeprefix("module."): value for name, value in tensors.items()}

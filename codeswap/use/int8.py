"""The autoencoder's convolutions in 8 bits on the processor: weights by output channel, inputs by ranges read once.

What is read of pictures and written to them stays fp32: the first and last convolutions, fusion, masks, normalisation.
oneDNN multiplies (`torch.ops.onednn`, what torch's compiler calls for quantised models): fast on processors that have
VNNI or AMX. Without them x86 adds pairs of products in 16 bits, where 8 bits overflow: inputs get 7 there.
"""

import warnings

import torch
from torch import Tensor, nn

from codeswap.models.codeswap import CodeSwap, decoder_of
from codeswap.types import Image
from codeswap.use.errors import MissingModelError

LEAST = 16  # input channels of a convolution that is worth it
ADD_IN_32_BITS = ("avx512_vnni", "avx_vnni", "amx_int8")  # of torch.cpu.get_capabilities(), where it is an x86


def input_levels() -> int:
    """The largest number an input may become on this processor."""
    found = torch.cpu.get_capabilities()
    narrow = found.get("architecture") == "x86_64" and not any(found.get(name) for name in ADD_IN_32_BITS)
    return 127 if narrow else 255


class Int8Conv(nn.Module):
    """`conv` for inputs between `low` and `high`; beyond them they are clamped. fp32 in and out."""

    def __init__(self, conv: nn.Conv2d, low: float, high: float) -> None:
        super().__init__()
        low, high = min(low, 0.0), max(high, 1e-6)  # zero is exact: padding is
        self.levels = input_levels()
        self.scale = (high - low) / self.levels
        self.zero = round(-low / self.scale)
        weight = conv.weight.detach()
        steps = (weight.abs().amax((1, 2, 3)) / 127).clamp_min(1e-12)
        whole = torch.round(weight / steps[:, None, None, None]).to(torch.int8)
        self.geometry = conv.stride, conv.padding, conv.dilation, conv.groups
        self.packed = torch.ops.onednn.qconv_prepack(whole, steps, self.scale, self.zero, *self.geometry)
        self.steps, self.zeros, self.bias = steps, torch.zeros(len(steps), dtype=torch.int32), conv.bias

    def forward(self, x: Tensor) -> Tensor:
        whole = torch.quantize_per_tensor(x.float(), self.scale, self.zero, torch.quint8).int_repr()
        whole.clamp_(max=self.levels)
        return torch.ops.onednn.qconv2d_pointwise(
            whole, self.scale, self.zero, self.packed, self.steps, self.zeros, self.bias, *self.geometry,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip


def to_int8_(model: CodeSwap, faces: Image) -> None:
    """Converts the model in place, with the ranges its layers see when half of the faces are swapped with the rest.

    Raises MissingModelError where this torch has no such convolutions.
    """
    if not hasattr(torch.ops.onednn, "qconv2d_pointwise") or not torch.backends.mkldnn.is_available():
        raise MissingModelError("this torch has no 8-bit convolutions: use --precision fp32 or bf16")
    warnings.filterwarnings("ignore", message=r"torch\.quantize_per_tensor")
    nets = (model.vqgan.encoder, decoder_of(model.vqgan, model.fusion).decoder)
    inside = [(part, name) for net in nets for part, name in _convolutions(net)]
    ranges: dict[nn.Module, list[float]] = {}

    def watch(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        low, high = (float(x) for x in inputs[0].permute(0, 2, 3, 1).aminmax())  # fast where channels are last
        known = ranges.setdefault(layer, [low, high])
        known[:] = min(known[0], low), max(known[1], high)

    watched = [getattr(part, name).register_forward_pre_hook(watch) for part, name in inside]
    with torch.enable_grad():  # layers then run as they are written, each convolution by its module
        model.swap(*faces.chunk(2))
    for handle in watched:
        handle.remove()
    for part, name in inside:
        conv = getattr(part, name)
        setattr(part, name, Int8Conv(conv, *ranges[conv]))


def _convolutions(net: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where the convolutions are that are neither the network's first nor its last."""
    return [
        (part, name)
        for block in net.children()
        if not isinstance(block, nn.Conv2d)
        for part in block.modules()
        for name, layer in part.named_children()
        if isinstance(layer, nn.Conv2d) and layer.in_channels >= LEAST
    ]

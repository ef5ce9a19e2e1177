"""dlib's face recognition network (29 convolutions, 128 numbers, L2 distance) read from its .dat file.

The network was published by Davis King (dlib 19.3, public domain); its file is dlib's own serialisation, of which only
the tensors are needed: they stand in the order of the layers, and their sizes are known.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Blocks after the stem, in order: (width, halves the resolution).
BLOCKS = (
    *((32, False),) * 3, (64, True), *((64, False),) * 3, (128, True), *((128, False),) * 2, (256, True),
    *((256, False),) * 2, (256, True),
)  # fmt: skip
MEAN = (122.782, 117.001, 104.298)  # RGB, 0..255


class Block(nn.Module):
    """Residual block without batch statistics: dlib's affine layers are folded into the convolutions."""

    def __init__(self, width_in: int, width: int, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        self.conv1 = nn.Conv2d(width_in, width, 3, 2 if halve else 1, 0 if halve else 1)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x)))
        if self.halve:
            x = F.avg_pool2d(x, 2)
            # dlib adds tensors of unequal shape as if the smaller one went on with zeros.
            x = F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
            y = F.pad(y, (0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]))
        return F.relu(x + y)


class DlibResNet(nn.Module):
    """(b, 3, 150, 150), (RGB 0..255 - MEAN) / 256 -> (b, 128)."""

    same_person = 0.6  # two pictures with a smaller L2 distance are of one person, says dlib's face_recognition.py

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, 2)
        widths = [32, *(width for width, _ in BLOCKS)]
        self.blocks = nn.Sequential(*(Block(before, *block) for before, block in zip(widths, BLOCKS, strict=False)))
        self.embedding = nn.Linear(256, 128, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.max_pool2d(F.relu(self.stem(x)), 3, 2))
        return self.embedding(x.mean((2, 3)))

    def convolutions(self) -> list[nn.Conv2d]:
        return [layer for layer in self.modules() if isinstance(layer, nn.Conv2d)]


def integer(value: int) -> bytes:
    """dlib's serialisation of a non-negative integer: the number of bytes, then the bytes, lowest first."""
    length = max((value.bit_length() + 7) // 8, 1)
    return bytes([length]) + value.to_bytes(length, "little")


def tensor_header(samples: int, k: int) -> bytes:
    """What stands before the raw floats of a (samples, k, 1, 1) tensor: format version 2, then the four sizes."""
    return b"".join(integer(value) for value in (2, samples, k, 1, 1))


def read_tensors(data: bytes, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """The tensors of the given (samples, k) in their order in the file. Raises ValueError when one is not found."""
    tensors, position = [], 0
    for number, (samples, k) in enumerate(sizes):
        header, length = tensor_header(samples, k), 4 * samples * k
        start = data.find(header, position) + len(header)
        if start < len(header) or start + length > len(data):
            raise ValueError(
                f"tensor {number} of {len(sizes)} ({samples} x {k} floats) is not in the file: "
                "it is no dlib_face_recognition_resnet_model_v1.dat, or it is cut short"
            )
        tensors.append(torch.frombuffer(bytearray(data[start : start + length]), dtype=torch.float32))
        position = start + length
    return tensors


def load_dlib_resnet(path: Path) -> DlibResNet:
    """The network with the weights of `path`. Raises ValueError when the file is not that network's."""
    network = DlibResNet()
    layers = network.convolutions()
    sizes = []
    for layer in layers:
        sizes += [(layer.weight.numel() + layer.out_channels, 1), (2 * layer.out_channels, 1)]
    *convolutions, embedding = read_tensors(path.read_bytes(), [*sizes, (256, 128)])
    with torch.no_grad():
        for layer, filters, affine in zip(layers, convolutions[::2], convolutions[1::2], strict=True):
            weight, bias = filters.split([layer.weight.numel(), layer.out_channels])
            scale, shift = affine.chunk(2)
            layer.weight.copy_(weight.view_as(layer.weight) * scale.view(-1, 1, 1, 1))
            layer.bias.copy_(bias * scale + shift)
        network.embedding.weight.copy_(embedding.view(256, 128).t())
    return network

"""FECNet (Vemulapalli & Agarwala 2019 as AmirSh15/FECNet trained it), with the parameter names of its checkpoint.

Shapes and names as `models/*.py` there (commit 21b3593), the trunk as timesler/facenet-pytorch; METHOD §F.2. The
checkpoint was trained on scrambled pictures: 224 x 224 x 3 bytes (rows, columns, BGR) read as if they were 3 planes,
without any normalisation. `Scrambled` repeats that, or the weights mean nothing.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicConv2d(nn.Module):
    def __init__(self, c_in: int, c_out: int, kernel: int | tuple[int, int], stride: int = 1) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (0, 0) if stride > 1 else (sides[0] // 2, sides[1] // 2)
        self.conv = nn.Conv2d(c_in, c_out, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


class _Mixed(nn.Module):
    """Branches side by side, then a 1x1 convolution whose scaled output is added to the input."""

    def __init__(self, width: int, branches: list[nn.Module], out: int, scale: float, last: bool = False) -> None:
        super().__init__()
        self.scale, self.last, self.count = scale, last, len(branches)
        for number, branch in enumerate(branches):
            self.add_module(f"branch{number}", branch)
        self.conv2d = nn.Conv2d(out, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.cat([self.get_submodule(f"branch{number}")(x) for number in range(self.count)], dim=1)
        out = self.conv2d(out) * self.scale + x
        return out if self.last else out.relu()


class _Reduction(nn.Module):
    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.count = len(branches)
        for number, branch in enumerate(branches):
            self.add_module(f"branch{number}", branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.get_submodule(f"branch{number}")(x) for number in range(self.count)], dim=1)


def _block35() -> _Mixed:
    one = [BasicConv2d(256, 32, 1), nn.Sequential(BasicConv2d(256, 32, 1), BasicConv2d(32, 32, 3))]
    three = nn.Sequential(BasicConv2d(256, 32, 1), BasicConv2d(32, 32, 3), BasicConv2d(32, 32, 3))
    return _Mixed(256, [*one, three], 96, 0.17)


def _block17() -> _Mixed:
    cross = nn.Sequential(BasicConv2d(896, 128, 1), BasicConv2d(128, 128, (1, 7)), BasicConv2d(128, 128, (7, 1)))
    return _Mixed(896, [BasicConv2d(896, 128, 1), cross], 256, 0.10)


def _block8(scale: float = 0.20, last: bool = False) -> _Mixed:
    cross = nn.Sequential(BasicConv2d(1792, 192, 1), BasicConv2d(192, 192, (1, 3)), BasicConv2d(192, 192, (3, 1)))
    return _Mixed(1792, [BasicConv2d(1792, 192, 1), cross], 384, scale, last)


class InceptionResnetV1(nn.Module):
    """(b, 3, 224, 224) -> (b, 1792, 5, 5), the map after `block8`. The 8,631 logits are kept for the file's sake."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2d_1a = BasicConv2d(3, 32, 3, 2)
        self.conv2d_2a = BasicConv2d(32, 32, 3)
        self.conv2d_2a.conv.padding = (0, 0)
        self.conv2d_2b = BasicConv2d(32, 64, 3)
        self.conv2d_3b = BasicConv2d(64, 80, 1)
        self.conv2d_4a = BasicConv2d(80, 192, 3)
        self.conv2d_4a.conv.padding = (0, 0)
        self.conv2d_4b = BasicConv2d(192, 256, 3, 2)
        self.repeat_1 = nn.Sequential(*(_block35() for _ in range(5)))
        middle = nn.Sequential(BasicConv2d(256, 192, 1), BasicConv2d(192, 192, 3), BasicConv2d(192, 256, 3, 2))
        self.mixed_6a = _Reduction([BasicConv2d(256, 384, 3, 2), middle, nn.MaxPool2d(3, 2)])
        self.repeat_2 = nn.Sequential(*(_block17() for _ in range(10)))
        ends = [nn.Sequential(BasicConv2d(896, 256, 1), BasicConv2d(256, c_out, 3, 2)) for c_out in (384, 256)]
        deep = nn.Sequential(BasicConv2d(896, 256, 1), BasicConv2d(256, 256, 3), BasicConv2d(256, 256, 3, 2))
        self.mixed_7a = _Reduction([*ends, deep, nn.MaxPool2d(3, 2)])
        self.repeat_3 = nn.Sequential(*(_block8() for _ in range(5)))
        self.block8 = _block8(1.0, last=True)
        self.last_linear, self.last_bn = nn.Linear(1792, 512, bias=False), nn.BatchNorm1d(512, eps=0.001)
        self.logits = nn.Linear(512, 8631)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x))), 3, 2)
        x = self.mixed_6a(self.repeat_1(self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(x)))))
        return self.block8(self.repeat_3(self.mixed_7a(self.repeat_2(x))))


class _DenseLayer(nn.Module):
    def __init__(self, c_in: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(c_in), nn.Conv2d(c_in, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu6(self.norm2(self.conv1(F.relu6(self.norm1(x))))))


class _DenseBlock(nn.Module):
    def __init__(self, c_in: int, layers: int, growth: int) -> None:
        super().__init__()
        for number in range(layers):
            self.add_module(f"denselayer{number + 1}", _DenseLayer(c_in + number * growth, growth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = torch.cat([x, layer(x)], dim=1)
        return x


class _DenseNet(nn.Module):
    """(b, 1792, 5, 5) -> (b, 16). The first convolution pads its 1x1 kernel, so that the map becomes 7 x 7."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(1792, 512, 1, padding=1, bias=False))
        self.features.add_module("denseblock1", _DenseBlock(512, 5, 64))
        self.features.add_module("norm_final", nn.BatchNorm2d(832))
        self.classifier = nn.Sequential(nn.Linear(832, 512), nn.ReLU6(), nn.Linear(512, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.avg_pool2d(F.relu6(self.features(x)), 7).flatten(1))


class FECNet(nn.Module):
    """(b, 3, 224, 224) as `Scrambled` gives it -> (b, 16), not of unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.Inc, self.dense = InceptionResnetV1(), _DenseNet()

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.Inc(x))


class Scrambled(nn.Module):
    """(b, 3, 224, 224) BGR in 0..255 -> the same numbers row by row, pixel by pixel, cut into three planes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(x.shape)

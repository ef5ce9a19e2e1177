"""Recognition networks as their published files name them: iresnet, IR-SE50, sphere20 (METHOD §B.7, §F.2).

Shapes and names: iresnet as insightface's arcface_torch and BlendFace (`swapping/model/iresnet.py`, commit 5fe7905),
IR-SE50 as TreB1eN's InsightFace_Pytorch (`model.py`, commit 0169163), sphere20 as MuggleWang's CosFace_pytorch
(`net.py`, commit 191354b). All give 512 numbers that are compared by their cosine.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IRESNET_BLOCKS = {50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}
WIDTHS = (64, 128, 256, 512)


def _conv3(c_in: int, c_out: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride, 1, bias=bias)


def _narrow(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))


class _IBlock(nn.Module):
    """Norm, convolution, norm, PReLU, strided convolution, norm; nothing after the sum."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(c_in), _conv3(c_in, c_out)
        self.bn2, self.prelu = nn.BatchNorm2d(c_out), nn.PReLU(c_out)
        self.conv2, self.bn3 = _conv3(c_out, c_out, stride), nn.BatchNorm2d(c_out)
        self.downsample = _narrow(c_in, c_out, stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return h + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """(b, 3, 112, 112) -> (b, 512); `depth` 50 has 43,590,848 parameters, 100 has 65,156,160."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.prelu = _conv3(3, 64), nn.BatchNorm2d(64), nn.PReLU(64)
        width = 64
        for number, (c_out, blocks) in enumerate(zip(WIDTHS, IRESNET_BLOCKS[depth], strict=True), start=1):
            layer = [_IBlock(width, c_out, 2), *(_IBlock(c_out, c_out, 1) for _ in range(blocks - 1))]
            self.add_module(f"layer{number}", nn.Sequential(*layer))
            width = c_out
        self.bn2, self.fc, self.features = nn.BatchNorm2d(512), nn.Linear(512 * 49, 512), nn.BatchNorm1d(512)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.bn2(x).flatten(1)))


class _Squeeze(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, width // 16, 1, bias=False), nn.Conv2d(width // 16, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class IRBlock(nn.Module):
    """TreB1eN's bottleneck, with or without squeeze and excitation; an identity shortcut skips pixels."""

    def __init__(self, c_in: int, c_out: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        self.shortcut_layer = nn.MaxPool2d(1, stride) if c_in == c_out else _narrow(c_in, c_out, stride)
        layers = [nn.BatchNorm2d(c_in), _conv3(c_in, c_out), nn.PReLU(c_out), _conv3(c_out, c_out, stride)]
        layers += [nn.BatchNorm2d(c_out), *([_Squeeze(c_out)] if squeeze else [])]
        self.res_layer = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


def ir_stage(c_in: int, c_out: int, blocks: int, squeeze: bool) -> list[IRBlock]:
    """The blocks of one resolution, the first of which halves it."""
    return [IRBlock(c_in, c_out, 2, squeeze), *(IRBlock(c_out, c_out, 1, squeeze) for _ in range(blocks - 1))]


def ir_input() -> nn.Sequential:
    return nn.Sequential(_conv3(3, 64), nn.BatchNorm2d(64), nn.PReLU(64))


def ir_output() -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(512), nn.Dropout(0.0), nn.Flatten(), nn.Linear(512 * 49, 512), nn.BatchNorm1d(512)
    )


class IRSE50(nn.Module):
    """(b, 3, 112, 112) -> (b, 512) of unit length; 43,797,696 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layer, self.output_layer = ir_input(), ir_output()
        body: list[nn.Module] = []
        width = 64
        for c_out, blocks in zip(WIDTHS, IRESNET_BLOCKS[50], strict=True):
            body += ir_stage(width, c_out, blocks, squeeze=True)
            width = c_out
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.output_layer(self.body(self.input_layer(x))), dim=1)


class _SphereBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.prelu1 = _conv3(width, width), nn.PReLU(width)
        self.conv2, self.prelu2 = _conv3(width, width), nn.PReLU(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.prelu2(self.conv2(self.prelu1(self.conv1(x))))


class Sphere20(nn.Module):
    """CosFace's network: (b, 3, 112, 96) -> (b, 512); 22,666,944 parameters.

    Given ArcFace's square of 112 it looks at its 96 middle columns, for the template is the same but 8 to the left.
    """

    def __init__(self, blocks: Sequence[int] = (1, 2, 4, 1)) -> None:
        super().__init__()
        width = 3
        for number, (c_out, count) in enumerate(zip(WIDTHS, blocks, strict=True), start=1):
            layer = [_conv3(width, c_out, 2, bias=True), nn.PReLU(c_out), *(_SphereBlock(c_out) for _ in range(count))]
            self.add_module(f"layer{number}", nn.Sequential(*layer))
            width = c_out
        self.fc = nn.Linear(512 * 7 * 6, 512)

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., 8:104] if x.shape[-1] == 112 else x
        return self.fc(torch.flatten(self.layer4(self.layer3(self.layer2(self.layer1(x)))), 1))

"""BiSeNet with a ResNet-18 context path, 19 face parts, with the parameter names of `79999_iter.pth` (METHOD §D.5).

Shapes and names as zllrunning/face-parsing.PyTorch (`model.py`, commit b9a12fe); facexlib's `parsing_bisenet.pth`
is the same file. Its ids are those of `types.PARSING_LABELS`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18

from codeswap.types import PARSING_LABELS, Image

CLASSES = 19


class _ConvBNReLU(nn.Module):
    def __init__(self, c_in: int, c_out: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


class _Refinement(nn.Module):
    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.conv = _ConvBNReLU(c_in, 128)
        self.conv_atten, self.bn_atten = nn.Conv2d(128, 128, 1, bias=False), nn.BatchNorm2d(128)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.bn_atten(self.conv_atten(x.mean((2, 3), keepdim=True))).sigmoid()


class _Trunk(nn.Module):
    """ResNet-18's maps at strides 8, 16 and 32; torchvision's blocks have the file's names."""

    def __init__(self) -> None:
        super().__init__()
        for name, part in resnet18(weights=None).named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, part)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        at_8 = self.layer2(self.layer1(x))
        at_16 = self.layer3(at_8)
        return at_8, at_16, self.layer4(at_16)


class _ContextPath(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resnet = _Trunk()
        self.arm16, self.arm32 = _Refinement(256), _Refinement(512)
        self.conv_head32, self.conv_head16 = _ConvBNReLU(128, 128), _ConvBNReLU(128, 128)
        self.conv_avg = _ConvBNReLU(512, 128, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        at_8, at_16, at_32 = self.resnet(x)
        whole = self.conv_avg(at_32.mean((2, 3), keepdim=True))
        up = self.conv_head32(F.interpolate(self.arm32(at_32) + whole, at_16.shape[2:], mode="nearest"))
        return at_8, self.conv_head16(F.interpolate(self.arm16(at_16) + up, at_8.shape[2:], mode="nearest"))


class _Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convblk = _ConvBNReLU(256, 256, 1)
        self.conv1, self.conv2 = nn.Conv2d(256, 64, 1, bias=False), nn.Conv2d(64, 256, 1, bias=False)

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        x = self.convblk(torch.cat([spatial, context], dim=1))
        return x + x * self.conv2(self.conv1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class _Output(nn.Module):
    def __init__(self, c_in: int, middle: int) -> None:
        super().__init__()
        self.conv, self.conv_out = _ConvBNReLU(c_in, middle), nn.Conv2d(middle, CLASSES, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv(x))


class BiSeNet(nn.Module):
    """(b, 3, h, w), ImageNet's normalisation -> logits (b, 19, h, w). The two side outputs are kept, not computed."""

    def __init__(self) -> None:
        super().__init__()
        self.cp, self.ffm = _ContextPath(), _Fusion()
        self.conv_out, self.conv_out16, self.conv_out32 = _Output(256, 256), _Output(128, 64), _Output(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.conv_out(self.ffm(*self.cp(x)))
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True)


class Parsing(nn.Module):
    """What `view` shows through a BiSeNet: logits (b, 19, h, w) at the image's own size, and label maps."""

    def __init__(self, view: nn.Module, net: nn.Module) -> None:
        super().__init__()
        self.view, self.net = view, net
        self.labels: Tensor
        self.register_buffer("labels", torch.tensor(sorted(PARSING_LABELS), dtype=torch.uint8), persistent=False)

    def forward(self, image: Image) -> Tensor:
        logits = self.net(self.view(image))
        return F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=False)

    def label_map(self, image: Image) -> Tensor:
        """(b, h, w) uint8 ids of types.PARSING_LABELS."""
        return self.labels[self(image).argmax(dim=1)]

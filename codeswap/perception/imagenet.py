"""ImageNet and FID networks from their official weights: VGG16's taps with LPIPS' weights, Hopenet, FID's Inception.

VGG16 and Hopenet's trunk are torchvision's; FID's Inception is torch-fidelity's, which reads a local file.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import vgg16
from torchvision.models.resnet import Bottleneck, ResNet

from codeswap.types import Image

VGG_TAPS = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
VGG_WIDTHS = (64, 128, 256, 512, 512)
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]


class VGGFeatures(nn.Module):
    """The five taps of VGG16 that LPIPS compares: (b, 3, h, w) RGB in [-1, 1] -> five (b, c, h', w').

    `heads` are LPIPS' learnt weights of each tap's channels, what `losses.image.lpips_loss` multiplies by; ones where
    only VGG16 was given, and then the distance is not LPIPS but the same without learnt weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = vgg16(weights=None).features[: VGG_TAPS[-1] + 1]
        for layer in self.trunk:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # a tap must not be overwritten
        for tap, width in enumerate(VGG_WIDTHS):
            self.register_buffer(f"head{tap}", torch.ones(width))
        self.register_buffer("shift", torch.tensor(LPIPS_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(LPIPS_SCALE).view(1, 3, 1, 1), persistent=False)

    @property
    def heads(self) -> list[Tensor]:
        return [self.get_buffer(f"head{tap}") for tap in range(len(VGG_TAPS))]

    def forward(self, image: Image) -> list[Tensor]:
        x, taps = (image - self.shift) / self.scale, []
        for index, layer in enumerate(self.trunk):
            x = layer(x)
            if index in VGG_TAPS:
                taps.append(x)
        return taps


def vgg_state(vgg: Mapping[str, Tensor], lpips: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The state dict of `VGGFeatures` from torchvision's vgg16 and, where there is one, `lpips`' vgg.pth."""
    state = {name.replace("features.", "trunk."): x for name, x in vgg.items() if name.startswith("features.")}
    heads = {f"head{tap}": torch.ones(width) for tap, width in enumerate(VGG_WIDTHS)}
    if lpips is not None:
        heads = {f"head{tap}": lpips[f"lin{tap}.model.1.weight"].flatten() for tap in range(len(VGG_TAPS))}
    return state | heads


class Hopenet(ResNet):
    """(b, 3, 224, 224), ImageNet's normalisation -> three times logits (b, 66): yaw, pitch, roll in bins of 3 degrees.

    Names as natanielruiz/deep-head-pose (`code/hopenet.py`, commit 0b8e19c); `fc_finetune` is in the file, unused.
    """

    def __init__(self) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3])
        self.fc = nn.Identity()
        self.fc_yaw, self.fc_pitch, self.fc_roll = (nn.Linear(2048, 66) for _ in range(3))
        self.fc_finetune = nn.Linear(2051, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = super().forward(x)
        return self.fc_yaw(x), self.fc_pitch(x), self.fc_roll(x)


class FIDInception(nn.Module):
    """The only features whose distance may be called FID: (b, 3, h, w) in [-1, 1] -> (b, 2048).

    torch-fidelity's network, which resizes to 299 as TensorFlow 1 does and wants bytes, so images are rounded: no
    gradient passes. `state` holds the tensors of `pt_inception-2015-12-05-6726825d.pth` (torch-fidelity publishes the
    same file as weights-inception-...) under `net.`.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise ValueError("FID needs the package torch-fidelity: pip install -e '.[official]'") from None
        with tempfile.TemporaryDirectory() as scratch:  # it knows no other way to be made without a download
            file = Path(scratch) / "inception.pth"
            torch.save({name.removeprefix("net."): tensor for name, tensor in state.items()}, file)
            self.net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(file))

    def forward(self, image: Image) -> Tensor:
        return self.net(((image + 1) * 127.5).round().clamp(0, 255).byte())[0]

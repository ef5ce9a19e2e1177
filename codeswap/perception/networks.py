"""Our own small face networks, trained in the `perception` stage on rendered faces (DESIGN §5).

Every network takes RGB images (b, 3, h, w) in [-1, 1] of any size, the whole aligned crop, and resizes it itself,
differentiably. There are two trunks of different make-up: a network that judges never resembles the one that trained.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codeswap.types import PARSING_LABELS, Config, Embedding, Image

Trunk = Literal["strided", "residual"]
RENDERED_LABELS = (0, 1, 2, 4, 10, 12, 16, 17)  # the ids of types.PARSING_LABELS that rendered faces have
EXPRESSIONS = 6  # mouth open, smile, brow raise, eye openness, gaze x, gaze y
POSE_UNIT = 45.0  # degrees
HEADS = 8  # of the attention pooling
FACE_TOP, FACE_LEFT, FACE_SIDE = 0.17, 0.125, 0.75  # the square that holds every rendered face, of the whole crop


def face_box(image: Image) -> Image:
    """The part of an aligned crop that holds the face, 3/4 of its side."""
    height, width = image.shape[-2:]
    top, left = round(FACE_TOP * height), round(FACE_LEFT * width)
    return image[..., top : top + round(FACE_SIDE * height), left : left + round(FACE_SIDE * width)]


def resize(image: Image, size: int) -> Image:
    """The image at size x size: bilinear and antialiased, with a gradient; unchanged when it has that size already."""
    if image.shape[-2:] == (size, size):
        return image
    return F.interpolate(image, (size, size), mode="bilinear", align_corners=False, antialias=True)


def _conv(c_in: int, c_out: int, kernel: int, stride: int, activation: nn.Module) -> nn.Sequential:
    padding = (kernel - stride + 1) // 2 if kernel % 2 == 0 else kernel // 2
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), activation)


class StridedTrunk(nn.Module):
    """Overlapping 4x4 strided convolutions, SiLU. Maps at 1/2, 1/4 and 1/8 of the input, widths w, 2w and 4w."""

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width
        self.stages = nn.ModuleList(
            [
                _conv(3, w, 4, 2, nn.SiLU()),
                nn.Sequential(_conv(w, 2 * w, 4, 2, nn.SiLU()), _conv(2 * w, 2 * w, 3, 1, nn.SiLU())),
                nn.Sequential(_conv(2 * w, 4 * w, 4, 2, nn.SiLU()), _conv(4 * w, 4 * w, 3, 1, nn.SiLU())),
            ]
        )
        self.widths = (w, 2 * w, 4 * w)

    def forward(self, image: Image) -> list[Tensor]:
        """The three feature maps, finest first."""
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        return maps


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, LeakyReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv(width, width, 3, 1, nn.LeakyReLU(0.1)),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, h: Tensor) -> Tensor:
        return F.leaky_relu(h + self.body(h), 0.1)


class ResidualTrunk(nn.Module):
    """Space to depth, then residual blocks, LeakyReLU. Maps at 1/2, 1/4 and 1/8 of the input, widths w, 2w and 4w."""

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width
        self.stages = nn.ModuleList(
            [
                nn.Sequential(nn.PixelUnshuffle(2), _conv(12, w, 3, 1, nn.LeakyReLU(0.1))),
                nn.Sequential(_conv(w, 2 * w, 4, 2, nn.LeakyReLU(0.1)), _Residual(2 * w)),
                nn.Sequential(_conv(2 * w, 4 * w, 4, 2, nn.LeakyReLU(0.1)), _Residual(4 * w)),
            ]
        )
        self.widths = (w, 2 * w, 4 * w)

    def forward(self, image: Image) -> list[Tensor]:
        """The three feature maps, finest first."""
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        return maps


def trunk(kind: Trunk, width: int) -> StridedTrunk | ResidualTrunk:
    """The trunk called `kind`."""
    match kind:
        case "strided":
            return StridedTrunk(width)
        case "residual":
            return ResidualTrunk(width)


class AttentionPool(nn.Module):
    """Several learnt weightings of the grid, each a softmax over places: (b, c, s, s) -> (b, heads * c)."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.score = nn.Conv2d(width, heads, 1)
        self.place = nn.Parameter(0.5 * torch.randn(1, heads, side, side))
        self.offset = nn.Parameter(torch.zeros(1, width, side, side))

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.offset
        weight = (self.score(h) + self.place).flatten(2).softmax(-1)
        return torch.einsum("bkn,bcn->bkc", weight, h.flatten(2)).flatten(1)


class Backbone(nn.Module):
    """What all heads of an expert share: face box, trunk and pooling, (b, 3, h, w) -> (b, features)."""

    def __init__(self, kind: Trunk, input_size: int, width: int) -> None:
        super().__init__()
        if input_size % 8:
            raise ValueError(f"input_size {input_size} must be divisible by 8")
        self.input_size = input_size
        self.trunk = trunk(kind, width)
        self.pool = AttentionPool(self.trunk.widths[-1], HEADS, input_size // 8)
        self.features = HEADS * self.trunk.widths[-1]

    def forward(self, image: Image) -> Tensor:
        return self.pool(self.trunk(resize(face_box(image), self.input_size))[-1])


class IdentityNetwork(nn.Module):
    """Image -> identity embedding (b, e), compared by its cosine; centred by a batch norm without parameters."""

    def __init__(self, backbone: Backbone, embedding: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.out = nn.Linear(backbone.features, embedding)
        self.norm = nn.BatchNorm1d(embedding, affine=False)

    def head(self, pooled: Tensor) -> Embedding:
        """The embedding from the backbone's output."""
        return self.norm(self.out(pooled))

    def forward(self, image: Image) -> Embedding:
        return self.head(self.backbone(image))


class ExpressionNetwork(nn.Module):
    """Image -> the renderer's expression in [-1, 1], (b, 6); with `pose` also yaw, pitch, roll / 45 degrees, (b, 9)."""

    def __init__(self, backbone: Backbone, pose: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.out = nn.Linear(backbone.features, EXPRESSIONS + 3)
        self.outputs = EXPRESSIONS + 3 if pose else EXPRESSIONS

    def attributes(self, image: Image) -> Embedding:
        """(b, 9): expression and pose / 45 degrees."""
        return self.out(self.backbone(image))

    def forward(self, image: Image) -> Embedding:
        return self.attributes(image)[:, : self.outputs]


class PoseNetwork(nn.Module):
    """Image -> (b, 3) degrees: yaw, pitch, roll."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.out = nn.Linear(backbone.features, 3)

    def forward(self, image: Image) -> Tensor:
        return self.out(self.backbone(image)) * POSE_UNIT


class FeatureNetwork(nn.Module):
    """Image -> (b, f): a narrow description from which every parameter of the renderer was learnt."""

    def __init__(self, backbone: Backbone, features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.out = nn.Linear(backbone.features, features)

    def forward(self, image: Image) -> Embedding:
        return self.out(self.backbone(image))


class FeatureMaps(nn.Module):
    """Image -> the trunk's feature maps over the *whole* image, each divided by its root mean square over faces."""

    def __init__(self, kind: Trunk, input_size: int, width: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.trunk = trunk(kind, width)
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(len(self.trunk.widths)))

    def forward(self, image: Image) -> list[Tensor]:
        maps = self.trunk(resize(image, self.input_size))
        return [one / scale for one, scale in zip(maps, self.scale, strict=True)]


class ParsingNetwork(nn.Module):
    """Image -> logits of the face parts (b, C, h, w) at the image's own size; class i has the id `labels[i]`."""

    def __init__(self, input_size: int, width: int, labels: tuple[int, ...]) -> None:
        super().__init__()
        unknown = sorted(set(labels) - set(PARSING_LABELS))
        if unknown:
            raise ValueError(f"labels {unknown} are no ids of the face parsing (0..{max(PARSING_LABELS)})")
        w, act = width, nn.SiLU
        self.input_size = input_size
        self.labels: Tensor
        self.register_buffer("labels", torch.tensor(labels, dtype=torch.uint8))
        self.down = nn.ModuleList(
            [_conv(3, w, 3, 1, act()), _conv(w, 2 * w, 4, 2, act()), _conv(2 * w, 4 * w, 4, 2, act())]
        )
        self.bottom = _conv(4 * w, 4 * w, 3, 1, act())
        self.lateral = nn.ModuleList([nn.Conv2d(4 * w, 2 * w, 1), nn.Conv2d(2 * w, w, 1)])
        self.up = nn.ModuleList([_conv(2 * w, 2 * w, 3, 1, act()), _conv(w, w, 3, 1, act())])
        self.out = nn.Conv2d(w, len(labels), 1)

    def forward(self, image: Image) -> Tensor:
        h, skips = resize(image, self.input_size), []
        for down in self.down:
            h = down(h)
            skips.append(h)
        h = self.bottom(h)
        for lateral, up, skip in zip(self.lateral, self.up, reversed(skips[:-1]), strict=True):
            h = up(F.interpolate(lateral(h), scale_factor=2.0, mode="nearest") + skip)
        logits = self.out(h)
        if logits.shape[-2:] == image.shape[-2:]:
            return logits
        return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)

    def label_map(self, image: Image) -> Tensor:
        """(b, h, w) uint8 ids of types.PARSING_LABELS."""
        return self.labels[self(image).argmax(dim=1)]


class NetworkConfig(Config):
    """What rebuilds one of our networks; kept in the card."""

    trunk: Trunk | None = None  # None: parsing
    input_size: int
    width: int
    outputs: int = 0  # width of an identity embedding or of features
    pose: bool = False  # expression networks: give pose too


def build(role: str, config: NetworkConfig) -> nn.Module:
    """The untrained network of a role. Raises ValueError for a role that we have no network of our own for."""
    match role:
        case "identity_train" | "identity_eval":
            return IdentityNetwork(_backbone(config), config.outputs)
        case "expression_train" | "expression_eval":
            return ExpressionNetwork(_backbone(config), config.pose)
        case "pose":
            return PoseNetwork(_backbone(config))
        case "features":
            return FeatureNetwork(_backbone(config), config.outputs)
        case "perceptual":
            return FeatureMaps(_trunk(config), config.input_size, config.width)
        case "parsing":
            return ParsingNetwork(config.input_size, config.width, RENDERED_LABELS)
    raise ValueError(f"no network of our own fills the role {role!r}: name a file for it under `perception`")


def _trunk(config: NetworkConfig) -> Trunk:
    if config.trunk is None:
        raise ValueError("the network's config names no trunk: expected 'strided' or 'residual'")
    return config.trunk


def _backbone(config: NetworkConfig) -> Backbone:
    return Backbone(_trunk(config), config.input_size, config.width)

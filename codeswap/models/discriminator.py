"""Discriminators: the patch discriminator of Stage 1 (METHOD §A.4, after taming-transformers), and one on features."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from codeswap.types import Config, Image


class DiscriminatorConfig(Config):
    """The defaults are taming's: receptive field 70 px, 2.77 M parameters."""

    n_layers: int = Field(3, ge=1)
    ch: PositiveInt = 64
    norm: Literal["batch", "group", "none"] = "batch"  # batch statistics are per process: `group` at <= 2 images each
    spectral: bool = False
    # off-paper: judges the maps of the frozen `perceptual` network instead of pixels (Projected GAN, Sauer et al.,
    # arXiv 2111.01007, without its random mixing of channels); of the sizes above only `ch` counts then
    frozen_features: bool = False


def _norm(kind: Literal["batch", "group", "none"], channels: int) -> nn.Module:
    match kind:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "group":
            return nn.GroupNorm(math.gcd(32, channels), channels)
        case "none":
            return nn.Identity()


class PatchGAN(nn.Module):
    """Image -> map of logits, one per overlapping patch, high for real."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        width = [config.ch * min(2**n, 8) for n in range(config.n_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, width[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for n in range(1, config.n_layers + 1):
            stride = 2 if n < config.n_layers else 1
            bias = config.norm == "none"  # a normalisation has its own
            layers += [nn.Conv2d(width[n - 1], width[n], 4, stride, 1, bias=bias)]
            layers += [_norm(config.norm, width[n]), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(width[-1], 1, 4, 1, 1))
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, mean=1.0, std=0.02)
        if config.spectral:
            for layer in self.layers:
                if isinstance(layer, nn.Conv2d):
                    spectral_norm(layer)

    def forward(self, image: Image) -> Float[Tensor, "b 1 y x"]:
        return self.layers(image)


class FeatureDiscriminator(nn.Module):
    """Feature maps of a frozen network -> logits (b, n) of all their places, high for real."""

    def __init__(self, config: DiscriminatorConfig, channels: list[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                spectral_norm(nn.Conv2d(width, config.ch, 1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(config.ch, 1, 3, 1, 1)),
            )
            for width in channels
        )

    def forward(self, maps: list[Tensor]) -> Float[Tensor, "b n"]:
        return torch.cat([head(part).flatten(1) for head, part in zip(self.heads, maps, strict=True)], dim=1)


Look = Callable[[Image], Image | list[Tensor]]


def new_discriminator(config: DiscriminatorConfig, features: nn.Module | None, size: int) -> tuple[nn.Module, Look]:
    """A discriminator of pictures of `size` px, and what it is shown of a picture: itself, or the maps of `features`.

    Raises ValueError when `frozen_features` is asked for without a network.
    """
    if not config.frozen_features:
        return PatchGAN(config), lambda image: image
    if features is None:
        raise ValueError("discriminator.frozen_features needs the role `perceptual`: fill it")
    with torch.no_grad():
        device = next(features.parameters()).device
        channels = [part.shape[1] for part in features(torch.zeros(1, 3, size, size, device=device))]
    return FeatureDiscriminator(config, channels), features

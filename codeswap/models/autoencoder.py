"""Encoder E and decoder D of Stage 1's autoencoder (METHOD §A)."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from codeswap.models.layers import ConvDown, ConvUp, Norm, Res, ShuffleDown, ShuffleUp, SpatialAttention, normalisation
from codeswap.types import Config, FeatureMap, Image


class VQGANConfig(Config):
    """Encoder and decoder. The defaults: 512 px -> 16x16x512, 75,688,259 parameters with 1,024 codes (METHOD REC-A).

    Off-paper, for small fast models: `patch`, `norm: none`, `resample: shuffle`, `mid`, `linear_shortcut`.
    A number of residual blocks may be given per level, finest first.
    """

    image_size: PositiveInt = 512
    framing: float = Field(1.0, ge=0.6, le=1)  # of the faces it is for (image.framing); the networks know nothing of it
    patch: PositiveInt = 1  # space-to-depth before the first convolution, depth-to-space after the last
    ch: PositiveInt = 64
    ch_mult: tuple[PositiveInt, ...] = (1, 2, 2, 4, 4, 8)
    n_res_enc: int | tuple[int, ...] = 2
    n_res_dec: int | tuple[int, ...] = 3
    attn_res: tuple[int, ...] = (16,)
    mid: Literal["attention", "residual", "none"] = "attention"
    resample: Literal["conv", "shuffle"] = "conv"
    norm: Norm = "group"
    z_ch: PositiveInt = 512
    embed_dim: PositiveInt = 512
    quant_conv: bool = True
    last_swish: bool = True
    linear_shortcut: bool = False  # adds a linear map of patches to the latent, and one back to the image

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.ch * multiple for multiple in self.ch_mult)

    @property
    def downsample(self) -> int:
        """Pixels per token along one side."""
        return self.patch * 2 ** (len(self.ch_mult) - 1)

    @property
    def grid(self) -> int:
        """Tokens along one side of the latent."""
        return self.image_size // self.downsample

    def blocks(self, side: Literal["enc", "dec"]) -> tuple[int, ...]:
        """Residual blocks of each level, finest first."""
        given = self.n_res_enc if side == "enc" else self.n_res_dec
        return (given,) * len(self.ch_mult) if isinstance(given, int) else given

    @model_validator(mode="after")
    def _fits(self) -> "VQGANConfig":
        if self.image_size % self.downsample:
            raise ValueError(f"image_size={self.image_size} is no multiple of patch * 2^(levels-1) = {self.downsample}")
        if not self.quant_conv and self.z_ch != self.embed_dim:
            raise ValueError(f"quant_conv: false needs z_ch == embed_dim, found {self.z_ch} and {self.embed_dim}")
        entering = self.widths if self.resample == "shuffle" else (self.ch, *self.widths[:-1])
        leaving = self.widths if self.resample == "shuffle" else (*self.widths[1:], self.widths[-1])
        for side, before in (("enc", (self.ch, *entering[1:])), ("dec", leaving)):
            count = self.blocks(side)
            if len(count) != len(self.ch_mult) or min(count) < 0:
                raise ValueError(f"n_res_{side}={count}: one number >= 0 for each of {len(self.ch_mult)} levels")
            if any(n == 0 and b != w for n, b, w in zip(count, before, self.widths, strict=True)):
                raise ValueError(f"n_res_{side}={count}: a level without blocks cannot change its width {before}")
        return self


class Encoded(NamedTuple):
    latent: Tensor
    features: list[Tensor]


class Decoded(NamedTuple):
    """`head` is the input of the last convolution, from which its weight's gradient follows (adaptive weight)."""

    image: Tensor
    features: list[Tensor]
    head: Tensor


def _level(config: VQGANConfig, level: int, in_width: int, blocks: int) -> nn.Sequential:
    width, size = config.widths[level], config.image_size // config.patch // 2**level
    layers: list[nn.Module] = []
    for block in range(blocks):
        layers.append(Res(in_width if block == 0 else width, width, config.norm))
        if size in config.attn_res:
            layers.append(SpatialAttention(width, config.norm))
    return nn.Sequential(*layers)


def _middle(config: VQGANConfig) -> nn.Sequential:
    width, norm = config.widths[-1], config.norm
    match config.mid:
        case "attention":
            return nn.Sequential(Res(width, width, norm), SpatialAttention(width, norm), Res(width, width, norm))
        case "residual":
            return nn.Sequential(Res(width, width, norm))
        case "none":
            return nn.Sequential()


def _run(level: nn.Module, x: Tensor, recompute_from: int | None) -> Tensor:
    if recompute_from is not None and x.shape[-1] >= recompute_from and torch.is_grad_enabled():
        return checkpoint(level, x, use_reentrant=False)
    return level(x)


class Encoder(nn.Module):
    """Image -> latent of `z_ch` channels, and the output of every level (finest first)."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.patch, self.last_swish, self.recompute_from = config.patch, config.last_swish, None
        widths, last = config.widths, len(config.widths) - 1
        shuffle = config.resample == "shuffle"
        self.conv_in = nn.Conv2d(3 * config.patch**2, config.ch, 3, padding=1)
        self.levels, self.downs = nn.ModuleList(), nn.ModuleList()
        width = config.ch
        for level, blocks in enumerate(config.blocks("enc")):
            self.levels.append(_level(config, level, width, blocks))
            width = widths[level]
            if level < last and shuffle:
                self.downs.append(ShuffleDown(width, widths[level + 1]))
                width = widths[level + 1]
            elif level < last:
                self.downs.append(ConvDown(width))
        self.middle = _middle(config)
        self.norm_out = normalisation(width, config.norm)
        self.conv_out = nn.Conv2d(width, config.z_ch, 3, padding=1)

    def forward(self, image: Image) -> Encoded:
        h = self.conv_in(F.pixel_unshuffle(image, self.patch))
        features = []
        for level, layers in enumerate(self.levels):
            h = _run(layers, h, self.recompute_from)
            features.append(h)
            if level < len(self.downs):
                h = self.downs[level](h)
        h = self.norm_out(self.middle(h))
        return Encoded(self.conv_out(F.silu(h) if self.last_swish else h), features)


class Decoder(nn.Module):
    """Latent of `z_ch` channels -> image, the output of every level (finest first) and the last convolution's input."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.patch, self.last_swish, self.recompute_from = config.patch, config.last_swish, None
        widths, last = config.widths, len(config.widths) - 1
        shuffle = config.resample == "shuffle"
        width = widths[-1]
        self.conv_in = nn.Conv2d(config.z_ch, width, 3, padding=1)
        self.middle = _middle(config)
        self.levels, self.ups = nn.ModuleList(), nn.ModuleList()  # coarsest first: the order in which they run
        for level in range(last, -1, -1):
            self.levels.append(_level(config, level, width, config.blocks("dec")[level]))
            width = widths[level]
            if level and shuffle:
                self.ups.append(ShuffleUp(width, widths[level - 1]))
                width = widths[level - 1]
            elif level:
                self.ups.append(ConvUp(width))
        self.norm_out = normalisation(width, config.norm)
        self.conv_out = nn.Conv2d(width, 3 * config.patch**2, 3, padding=1)

    def forward(self, latent: FeatureMap) -> Decoded:
        h = self.middle(self.conv_in(latent))
        features = []
        for step, layers in enumerate(self.levels):
            h = _run(layers, h, self.recompute_from)
            features.append(h)
            if step < len(self.ups):
                h = self.ups[step](h)
        h = self.norm_out(h)
        head = F.silu(h) if self.last_swish else h
        return Decoded(F.pixel_shuffle(self.conv_out(head), self.patch), features[::-1], head)

"""Stage 1's autoencoder: encoder E, prior codebook Q, decoder D (METHOD §A)."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from codeswap.models.layers import ConvDown, ConvUp, Norm, Res, ShuffleDown, ShuffleUp, SpatialAttention, normalisation
from codeswap.models.quantizer import Codebook, DecodingMix, QuantizerConfig
from codeswap.types import Config, FeatureMap, Image, Latent, Reconstruction


class VQGANConfig(Config):
    """Encoder and decoder. The defaults: 512 px -> 16x16x512, 75,688,259 parameters with 1,024 codes (METHOD REC-A).

    Off-paper, for small fast models: `patch`, `norm: none`, `resample: shuffle`, `mid`, `linear_shortcut`.
    A number of residual blocks may be given per level, finest first.
    """

    image_size: PositiveInt = 512
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


def tokens(feature_map: FeatureMap) -> Latent:
    """(b, d, h, w) -> (b, h*w, d), row by row."""
    return feature_map.flatten(2).transpose(1, 2)


def feature_map(latent: Latent) -> FeatureMap:
    """(b, n, d) -> (b, d, sqrt(n), sqrt(n)): the inverse of `tokens` for square maps."""
    side = int(latent.shape[1] ** 0.5)
    if side * side != latent.shape[1]:
        raise ValueError(f"{latent.shape[1]} tokens are no square map")
    return latent.transpose(1, 2).unflatten(2, (side, side))


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


class VQGAN(nn.Module):
    """E, Q and D. Images are RGB in [-1, 1]; decoded ones are not clamped.

    `encode` gives Z before quantisation, which is what Stage 2 fuses. `forward` is a training step of Stage 1.
    """

    def __init__(self, config: VQGANConfig, quantizer: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.codebook = Codebook(quantizer, config.embed_dim)
        self.quant = nn.Conv2d(config.z_ch, config.embed_dim, 1) if config.quant_conv else nn.Identity()
        self.post_quant = nn.Conv2d(config.embed_dim, config.z_ch, 1) if config.quant_conv else nn.Identity()
        self.to_latent = self.to_image = None
        if config.linear_shortcut:
            pixels = 3 * config.downsample**2
            self.to_latent = nn.Conv2d(pixels, config.embed_dim, 1)
            self.to_image = nn.Conv2d(config.embed_dim, pixels, 1)
            self._start_linear()

    def _start_linear(self) -> None:
        nn.init.orthogonal_(self.to_latent.weight.flatten(1))
        with torch.no_grad():
            self.to_image.weight.copy_(self.to_latent.weight.transpose(0, 1))
        for bias in (self.to_latent.bias, self.to_image.bias, self.encoder.conv_out.bias, self.decoder.conv_out.bias):
            nn.init.zeros_(bias)
        # The convolutions start as a small correction of the linear autoencoder (prototype's values).
        nn.init.normal_(self.encoder.conv_out.weight, std=0.02)
        nn.init.normal_(self.decoder.conv_out.weight, std=0.01)

    @torch.no_grad()
    def start_from_principal_patches_(self, images: Image) -> None:
        """Sets the linear shortcut to the leading principal directions of the images' patches and back.

        Raises ValueError without `linear_shortcut`, or with fewer patches than directions.
        """
        if self.to_latent is None:
            raise ValueError("principal patches need `vqgan.linear_shortcut: true`")
        patches = tokens(F.pixel_unshuffle(images, self.config.downsample)).flatten(0, 1)
        if len(patches) < patches.shape[1]:
            raise ValueError(f"{len(patches)} patches are too few for {patches.shape[1]} directions: give more images")
        directions = torch.linalg.svd(patches, full_matrices=False).Vh[: self.config.embed_dim]
        self.to_latent.weight.zero_()[: len(directions), :, 0, 0] = directions
        self.to_image.weight.zero_()[:, : len(directions), 0, 0] = directions.T

    def hold_codes_(self) -> None:
        """What makes codes of images learns no more; what makes images of codes does."""
        for part in (self.encoder, self.codebook, self.quant, self.to_latent):
            if part is not None:
                part.requires_grad_(False)

    @property
    def last_layer(self) -> nn.Conv2d:
        """The decoder's last convolution: the adaptive weight compares gradients at its weight."""
        return self.decoder.conv_out

    def recompute_from_(self, size: int | None) -> None:
        """Levels of at least `size` px are recomputed in the backward pass instead of being kept (None: keep all)."""
        self.encoder.recompute_from = self.decoder.recompute_from = size

    def encoder_features(self, image: Image) -> tuple[FeatureMap, list[Tensor]]:
        """Z (b, embed_dim, grid, grid), of unit length with `quantizer.normalised`, and the encoder's level outputs,
        finest first (taps of METHOD §D.3)."""
        if image.shape[-2:] != (self.config.image_size, self.config.image_size):
            found = "x".join(map(str, image.shape[-2:]))
            raise ValueError(f"image of {found} px, this model was built for {self.config.image_size} px squares")
        latent, features = self.encoder(image)
        z = self.quant(latent)
        if self.to_latent is not None:
            z = z + self.to_latent(F.pixel_unshuffle(image, self.config.downsample))
        return F.normalize(z, dim=1) if self.codebook.config.normalised else z, features

    def encode(self, image: Image) -> FeatureMap:
        """Z, not quantised."""
        return self.encoder_features(image)[0]

    def _decode(self, z: FeatureMap) -> Decoded:
        decoded = self.decoder(self.post_quant(z))
        if self.to_image is None:
            return decoded
        linear = F.pixel_shuffle(self.to_image(z), self.config.downsample)
        return decoded._replace(image=decoded.image + linear)

    def decode_features(self, z: FeatureMap) -> tuple[Image, list[Tensor]]:
        """The image and the decoder's level outputs, finest first."""
        decoded = self._decode(z)
        return decoded.image, decoded.features

    def decode(self, z: FeatureMap) -> Image:
        """Codes, soft codes or continuous latents -> image."""
        return self._decode(z).image

    def forward(self, image: Image, mix: DecodingMix | None = None) -> Reconstruction:
        """Encode, quantise (all samples to the nearest code, or each as `mix` says), decode."""
        z = tokens(self.encode(image))
        quantised = self.codebook.straight_through(z)
        passed = quantised.passed if mix is None else self.codebook.mixed(z, quantised, mix)
        decoded = self._decode(feature_map(passed))
        return Reconstruction(decoded.image, z, quantised.z_q, quantised.codes, decoded.head.detach())

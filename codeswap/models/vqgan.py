"""Stage 1's autoencoder: encoder E, prior codebook Q, decoder D (METHOD §A)."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeswap.models.autoencoder import Decoded, Decoder, Encoder, VQGANConfig
from codeswap.models.quantizer import Codebook, DecodingMix, QuantizerConfig
from codeswap.types import FeatureMap, Image, Latent, Reconstruction


def tokens(feature_map: FeatureMap) -> Latent:
    """(b, d, h, w) -> (b, h*w, d), row by row."""
    return feature_map.flatten(2).transpose(1, 2)


def feature_map(latent: Latent) -> FeatureMap:
    """(b, n, d) -> (b, d, sqrt(n), sqrt(n)): the inverse of `tokens` for square maps."""
    side = int(latent.shape[1] ** 0.5)
    if side * side != latent.shape[1]:
        raise ValueError(f"{latent.shape[1]} tokens are no square map")
    return latent.transpose(1, 2).unflatten(2, (side, side))


class Decoding(nn.Module):
    """Codes, soft codes or continuous latents -> images in [-1, 1], not clamped.

    Holds the `config` of its VQGAN, `post_quant`, `decoder`, and `to_image` (None without `linear_shortcut`).
    """

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


class OwnDecoder(Decoding):
    """Off-paper: a copy of the decoder of `vqgan` that a swap model trains and keeps (`swap.own_decoder`)."""

    def __init__(self, vqgan: "VQGAN") -> None:
        super().__init__()
        self.config = vqgan.config
        parts = (vqgan.post_quant, vqgan.decoder, vqgan.to_image)
        self.post_quant, self.decoder, self.to_image = copy.deepcopy(parts)
        self.requires_grad_(True)


class VQGAN(Decoding):
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

    def forward(self, image: Image, mix: DecodingMix | None = None) -> Reconstruction:
        """Encode, quantise (all samples to the nearest code, or each as `mix` says), decode."""
        z = tokens(self.encode(image))
        quantised = self.codebook.straight_through(z)
        passed = quantised.passed if mix is None else self.codebook.mixed(z, quantised, mix)
        decoded = self._decode(feature_map(passed))
        return Reconstruction(decoded.image, z, quantised.z_q, quantised.codes, decoded.head.detach())

"""The whole method (Fig. 2): two faces in, both swaps out."""

from pathlib import Path

import torch
from torch import Tensor, nn

from codeswap.models.fusion import Fusion, FusionConfig
from codeswap.models.mask import MaskConfig, MaskGenerator, blend
from codeswap.models.quantizer import QuantizerConfig
from codeswap.models.store import StoredModel, StoredModelError, read_model
from codeswap.models.vqgan import VQGAN, Decoding, OwnDecoder, VQGANConfig, feature_map, tokens
from codeswap.types import FeatureMap, Image, Latent, Mask, Swap


class CodeSwap(nn.Module):
    """Encoder, codebook and decoder (Stage 1), fusion and selector (Stage 2), mask generator (Stage 3, optional)."""

    def __init__(self, vqgan: VQGAN, fusion: Fusion, mask_generator: MaskGenerator | None) -> None:
        super().__init__()
        self.vqgan, self.fusion, self.mask_generator = vqgan, fusion, mask_generator

    def swap(self, image_a: Image, image_b: Image) -> Swap:
        """I_ab (identity of a, everything else of b) and I_ba in one pass. Images in [-1, 1]; results not clamped.

        Without a mask generator (w/o M) the images are the naive ones and the masks None. The one-sided variant
        (`no_symmetry`) yields I_ab only.
        """
        z_a, features_a = self.vqgan.encoder_features(image_a)
        z_b, features_b = self.vqgan.encoder_features(image_b)
        codes = self.fusion(tokens(z_a), tokens(z_b), self.vqgan.codebook.weight)
        image_ab, naive_ab, mask_b = self.paint(codes.z_q_ab, image_b, features_b)
        if codes.z_q_ba is None:
            return Swap(image_ab, None, naive_ab, None, mask_b, None)
        image_ba, naive_ba, mask_a = self.paint(codes.z_q_ba, image_a, features_a)
        return Swap(image_ab, image_ba, naive_ab, naive_ba, mask_b, mask_a)

    def swap_onto(self, z_a: FeatureMap, image_b: Image) -> tuple[Image, Mask | None]:
        """One direction, for many targets of one source whose latent is known: the naive image and its mask."""
        z_b, features_b = self.vqgan.encoder_features(image_b)
        codes = self.fusion(tokens(z_a), tokens(z_b), self.vqgan.codebook.weight)
        _, naive, mask = self.paint(codes.z_q_ab, image_b, features_b)
        return naive, mask

    def paint(self, z_q: Latent, target: Image, target_features: list[Tensor]) -> tuple[Image, Image, Mask | None]:
        """Decode codes that lie at the target's places and blend them into it: (blended image, naive image, mask)."""
        naive, decoded_features = decoder_of(self.vqgan, self.fusion).decode_features(feature_map(z_q))
        if self.mask_generator is None:
            return naive, naive, None
        mask = self.mask_generator(target_features, decoded_features)
        return blend(naive, target, mask), naive, mask

    def forward(self, image_a: Image, image_b: Image) -> Swap:
        return self.swap(image_a, image_b)


def decoder_of(vqgan: VQGAN, fusion: Fusion) -> Decoding:
    """What makes images of swapped codes: Stage 1, or the swap model's own decoder."""
    return vqgan if fusion.decoder is None else fusion.decoder


def new_fusion(config: FusionConfig, variant: str, vqgan: VQGAN, own_decoder: bool = False) -> Fusion:
    """A fusion module that fits `vqgan`, started from its codebook where the config says so."""
    fusion = _fitting(config, variant, vqgan, own_decoder)
    fusion.start_from_codebook_(vqgan.codebook.weight, vqgan.codebook.nearest_distance)
    return fusion


def _fitting(config: FusionConfig, variant: str, vqgan: VQGAN, own_decoder: bool) -> Fusion:
    n_codes, width = vqgan.codebook.weight.shape
    fusion = Fusion(config, variant, vqgan.config.grid**2, width, n_codes)
    fusion.decoder = OwnDecoder(vqgan) if own_decoder else None
    return fusion


def load_vqgan(folder: Path) -> VQGAN:
    """Stage 1's model out, frozen and in eval mode. Raises StoredModelError when it is missing or damaged."""
    stored = read_model(folder, "codebook")
    vqgan = VQGAN(stored.group("vqgan", VQGANConfig), stored.group("quantizer", QuantizerConfig))
    return stored.fill(vqgan).eval().requires_grad_(False)


def fill_fusion(fusion: Fusion, folder: Path, codebook: Path, vqgan: VQGAN) -> None:
    """Gives `fusion` the weights of the swap model in `folder`, to train on from them; it may have more layers.

    Raises StoredModelError when there is none, when it was made over other codes than `codebook` holds (another decoder
    is fine: `codebook.decoder_only`), or when it is of another variant, of other sizes, or has a decoder of its own
    that `fusion` has not.
    """
    stored = read_model(folder, "swap")
    stored.check_parent("codebook", read_model(codebook, "codebook"), or_same_codes=True)
    start = _stored_fusion(stored, vqgan)
    layers = min(start.config.layers, fusion.config.layers)
    fits = start.config == fusion.config.model_copy(update={"layers": layers}) and start.variant == fusion.variant
    if not fits:
        raise StoredModelError(
            f"{folder} holds a swap model of variant {start.variant} with {start.config!r}; the training asks for "
            f"{fusion.variant} with {fusion.config!r}: give a model that fits (it may have fewer layers), or no "
            "start_from"
        )
    if start.decoder is not None and fusion.decoder is None:
        raise StoredModelError(f"{folder} holds a swap model with a decoder of its own: set swap.own_decoder: true")
    fusion.grow_from_(start)


def _stored_fusion(stored: StoredModel, vqgan: VQGAN) -> Fusion:
    own_decoder = any(name.startswith("decoder.") for name in stored.weights)
    config, variant = stored.group("fusion", FusionConfig), stored.text("variant")
    return stored.fill(_fitting(config, variant, vqgan, own_decoder))


def load_fusion(folder: Path, vqgan: VQGAN) -> Fusion:
    """Stage 2's model out, frozen and in eval mode."""
    return _stored_fusion(read_model(folder, "swap"), vqgan).eval().requires_grad_(False)


def load_mask_generator(folder: Path, vqgan: VQGAN) -> MaskGenerator:
    """Stage 3's model out, frozen and in eval mode."""
    stored = read_model(folder, "mask")
    generator = MaskGenerator(stored.group("mask_generator", MaskConfig), vqgan.config)
    return stored.fill(generator).eval().requires_grad_(False)


def load_codeswap(codebook: Path, swap: Path, mask: Path | None = None) -> CodeSwap:
    """The method from its stages' outs, frozen and in eval mode; without `mask` it swaps without one (w/o M).

    Raises StoredModelError when a file is missing, damaged, or was made from another Stage 1 or Stage 2 model than
    the one given.
    """
    with torch.no_grad():
        vqgan = load_vqgan(codebook)
        fusion = load_fusion(swap, vqgan)
        generator = None if mask is None else load_mask_generator(mask, vqgan)
    first, second = read_model(codebook, "codebook"), read_model(swap, "swap")
    second.check_parent("codebook", first)
    if mask is not None:
        third = read_model(mask, "mask")
        third.check_parent("codebook", first)
        third.check_parent("swap", second)
    return CodeSwap(vqgan, fusion, generator).eval()


@torch.no_grad()
def swap_with_features(
    vqgan: VQGAN, fusion: Fusion, image_a: Image, image_b: Image
) -> tuple[Image, Image, list[Tensor], list[Tensor]]:
    """Naive swaps, their targets and both lists of level outputs, ab before ba along the batch; without gradients."""
    z_a, features_a = vqgan.encoder_features(image_a)
    z_b, features_b = vqgan.encoder_features(image_b)
    codes = fusion(tokens(z_a), tokens(z_b), vqgan.codebook.weight)
    target, from_target = image_b, features_b
    if codes.z_q_ba is not None:
        target = torch.cat([image_b, image_a])
        from_target = [torch.cat(pair) for pair in zip(features_b, features_a, strict=True)]
    both = codes.z_q_ab if codes.z_q_ba is None else torch.cat([codes.z_q_ab, codes.z_q_ba])
    naive, from_swap = decoder_of(vqgan, fusion).decode_features(feature_map(both))
    return naive.float(), target, from_target, from_swap

"""Every method's picture for a batch of pairs: the model, its parts, the baselines, the ground truth, the rivals."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from codeswap.evaluate.baselines import Truth, paste
from codeswap.evaluate.rivals import Rival
from codeswap.models.codeswap import CodeSwap
from codeswap.models.vqgan import VQGAN, feature_map, tokens
from codeswap.types import Image, Latent, Mask


class Batch(NamedTuple):
    """Some pairs. `truth` is None for photographs; `face` is where the target shows its face (exact if rendered)."""

    pairs: Sequence[tuple[str, str]]
    source: Image
    target: Image
    face: Bool[Tensor, "b 1 h w"]
    truth: Truth | None


class Pictures(NamedTuple):
    """Each method's images, rounded to 8 bits as if read from a PNG, which of them are real results, and the masks."""

    images: dict[str, Image]
    there: dict[str, Bool[Tensor, " b"]]
    mask: Mask | None


def eight_bits(image: Image) -> Image:
    """Clamped and rounded to the 256 levels of a PNG, still in [-1, 1]: rivals come as PNG, so all are judged alike."""
    return (image.clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1


@torch.no_grad()
def pictures(model: CodeSwap, batch: Batch, rivals: Mapping[str, Rival], temperature: float) -> Pictures:
    """All methods on one batch. `temperature` is that of the soft codes of the `*_soft` row (Codebook.soft)."""
    swapped, mask = _swap_onto_target(model, batch.source, batch.target)
    images = {
        **swapped,
        "copy_target": batch.target,
        "copy_source": batch.source,
        "paste": paste(batch.source, batch.target, batch.face),
    }
    if batch.truth is not None:
        z = tokens(model.vqgan.encode(batch.truth.image))
        images["true_swap"] = batch.truth.image
        images["true_swap_through_codebook"] = _through_nearest(model.vqgan, z)
        images["true_swap_through_codebook_soft"] = _decode(model.vqgan, model.vqgan.codebook.soft(z, temperature))
    there = {name: image.isfinite().flatten(1).all(dim=1) for name, image in images.items()}
    for name, rival in rivals.items():
        images[name], there[name] = rival(batch.pairs, batch.source, batch.target)
    return Pictures({name: eight_bits(image.nan_to_num()) for name, image in images.items()}, there, mask)


def _swap_onto_target(model: CodeSwap, source: Image, target: Image) -> tuple[dict[str, Image], Mask | None]:
    """`CodeSwap.swap` without the half that is not judged here; the same codes taken by argmax (METHOD §C, Q1); and
    the target itself through the codebook, the floor for pose and expression that Stage 1 sets."""
    vqgan = model.vqgan
    z_source, _ = vqgan.encoder_features(source)
    z_target, target_features = vqgan.encoder_features(target)
    codes = model.fusion(tokens(z_source), tokens(z_target), vqgan.codebook.weight)
    image, naive, mask = model.paint(codes.z_q_ab, target, target_features)
    images = {"swap": image}
    if mask is not None:
        images["swap_without_mask"] = naive
    if codes.logits_ab is not None and model.fusion.variant != "hard":
        nearest = vqgan.codebook.lookup(codes.logits_ab.argmax(dim=-1))
        images["swap_hard_codes"] = model.paint(nearest, target, target_features)[0]
    images["target_through_codebook"] = _through_nearest(vqgan, tokens(z_target))
    return images, mask


def _through_nearest(vqgan: VQGAN, z: Latent) -> Image:
    return _decode(vqgan, vqgan.codebook.lookup(vqgan.codebook.nearest(z)))


def _decode(vqgan: VQGAN, z_q: Latent) -> Image:
    return vqgan.decode(feature_map(z_q))


@torch.no_grad()
def exchange_error(model: CodeSwap, a: Image, b: Image) -> float | None:
    """Largest difference between I_ab of swap(a, b) and of swap(b, a), images in 0..1; None for a one-sided variant."""
    forward, backward = model.swap(a, b), model.swap(b, a)
    if forward.image_ba is None or backward.image_ba is None:
        return None
    return (
        max(
            float((forward.image_ab - backward.image_ba).abs().max()),
            float((forward.image_ba - backward.image_ab).abs().max()),
        )
        / 2
    )  # [-1, 1] -> 0..1

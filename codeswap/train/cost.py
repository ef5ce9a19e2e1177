"""What a training costs: FLOPs, bytes and messages of one sample, counted on networks without memory (`meta`).

Counted are the paper's own networks, forward and backward, as the loops call them; the frozen perception networks that
judge pictures are not (they differ from profile to profile), and distances to codes neither.
"""

import copy
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from codeswap.losses.image import discriminator_loss, generator_loss
from codeswap.models.codeswap import decoder_of, swap_with_features
from codeswap.models.discriminator import PatchGAN
from codeswap.models.fusion import Fusion, second_pass
from codeswap.models.mask import MaskGenerator
from codeswap.models.vqgan import VQGAN, feature_map, tokens
from codeswap.train.engine import held
from codeswap.train.plans import Cost
from codeswap.train.schedule import TrainingConfig

if TYPE_CHECKING:
    from codeswap.train.codebook import CodebookTraining
    from codeswap.train.swap import SwapTraining


class Piece(NamedTuple):
    """A part of a step and how many times a sample takes it on average."""

    run: Callable[[], None]
    times: float


class Step(NamedTuple):
    """The pieces of a stage's step for one sample, the networks it trains and those it only runs."""

    pieces: list[Piece]
    trained: list[nn.Module]
    frozen: list[nn.Module]


def codebook_step(config: "CodebookTraining", vqgan: VQGAN, judge: nn.Module, device: str = "meta") -> Step:
    """Stage 1: encoder, codes and decoder; the discriminator from `adversarial_from` on."""
    vqgan, judge = _copies(device, vqgan, judge)
    image = _image(vqgan, device)

    def generator() -> None:
        out = vqgan(image)
        (out.image.sum() + out.z.sum()).backward()

    late = _late(config.adversarial, config.adversarial_from, config.samples)
    pieces = [Piece(generator, 1.0), Piece(lambda: _adversary(judge, image), late)]
    return Step(pieces, [vqgan, judge] if late else [vqgan], [])


def swap_step(
    config: "SwapTraining", vqgan: VQGAN, fusion: Fusion, judge: nn.Module | None, device: str = "meta"
) -> Step:
    """Stage 2: both encodings, the fusion, both decodings; second passes, triplets and true swaps as `config` says."""
    vqgan, fusion = _copies(device, vqgan, fusion)
    vqgan.requires_grad_(False)
    if fusion.variant == "gumbel":
        fusion.variant = "ours"  # noise costs next to nothing, and `meta` cannot draw any
    judges = [] if judge is None else _copies(device, judge)
    image = _image(vqgan, device)

    def swap(sides: int, again: bool) -> None:
        with torch.no_grad():
            z_a, z_b = tokens(vqgan.encode(image)), tokens(vqgan.encode(image))
        first = fusion(z_a, z_b, vqgan.codebook.weight)
        both = [part for part in (first.z_q_ab, first.z_q_ba) if part is not None]
        parts = [decoder_of(vqgan, fusion).decode(feature_map(part)) for part in both[:sides]]
        if again:
            parts += [part for part in second_pass(fusion, first, z_b, vqgan.codebook.weight) if part is not None]
        torch.stack([part.sum() for part in parts]).sum().backward()

    def truths() -> None:
        with torch.no_grad():
            vqgan.encode(image)

    cycled = config.cycle_share if config.ever.cycle else 0.0
    late = _late(config.adversarial, config.adversarial_from, config.samples) if judges else 0.0
    pieces = [
        Piece(lambda: swap(2, again=True), cycled),
        Piece(lambda: swap(2, again=False), 1 - cycled),
        Piece(lambda: swap(1, again=False), config.triplets.share),
        Piece(lambda: _adversary(judges[0], image), 2 * late),
        Piece(truths, 2.0 if config.truth else 0.0),
    ]
    return Step(pieces, [fusion, *judges], [vqgan])


def mask_step(generator: MaskGenerator, vqgan: VQGAN, fusion: Fusion, device: str = "meta") -> Step:
    """Stage 3: the frozen swap of a pair, and the mask generator on both directions."""
    generator, vqgan, fusion = _copies(device, generator, vqgan, fusion)
    image = _image(vqgan, device)

    def blend() -> None:
        _, _, from_target, from_swap = swap_with_features(vqgan, fusion, image, image)
        generator(from_target, from_swap).sum().backward()

    return Step([Piece(blend, 1.0)], [generator], [vqgan, fusion])


def _copies(device: str, *modules: nn.Module) -> list[nn.Module]:
    """The modules on another device, without touching them; on `meta` they have no numbers."""
    return [copy.deepcopy(module).to(device) for module in modules]


def _image(vqgan: VQGAN, device: str) -> Tensor:
    return torch.zeros(1, 3, vqgan.config.image_size, vqgan.config.image_size, device=device)


def _late(weight: float, begins: int, samples: int) -> float:
    """Share of the samples that an adversarial term sees."""
    return max(0.0, 1 - begins / samples) if weight else 0.0


def _adversary(judge: nn.Module, image: Tensor) -> None:
    if not isinstance(judge, PatchGAN):
        return  # heads on a frozen network's maps: next to nothing, and frozen networks are not counted
    fake = image.clone().requires_grad_()
    with held(judge):
        generator_loss(judge(fake)).backward()
    discriminator_loss(judge(image), judge(image)).backward()


def flops_of(step: Step) -> float:
    """FLOPs of one sample, forward and backward."""
    total = 0.0
    for piece in step.pieces:
        if piece.times:
            with FlopCounterMode(display=False) as counter:
                piece.run()
            total += piece.times * counter.get_total_flops()
    return total


def activations_of(step: Step) -> int:
    """Bytes that the largest piece keeps for its backward pass, parameters not counted."""
    known = {p.untyped_storage()._cdata for part in (*step.trained, *step.frozen) for p in part.parameters()}
    most = 0
    for piece in step.pieces:
        kept: dict[int, torch.UntypedStorage] = {}  # held, so that no other takes its place

        def keep(tensor: Tensor, kept: dict = kept) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
            return tensor

        if piece.times:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                piece.run()
            most = max(most, sum(storage.nbytes() for key, storage in kept.items() if key not in known))
    return most


def seconds_of(step: Step, repeats: int = 3) -> float:
    """Seconds of one sample on the device of the step's networks: the best of some repeats, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        total = 0.0
        for piece in step.pieces:
            if piece.times:
                begun = time.perf_counter()
                piece.run()
                total += piece.times * (time.perf_counter() - begun)
        times.append(total)
    return min(times[1:])


def convolution_rate(device: torch.device) -> float:
    """FLOPs per second of a large 3x3 convolution here: what a processor reaches in practice."""
    layer, x = nn.Conv2d(128, 128, 3, padding=1).to(device), torch.rand(1, 128, 128, 128, device=device)
    layer, x = layer.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    flops, best = 2 * 9 * 128 * 128 * x[0, 0].numel(), float("inf")
    with torch.no_grad():
        for _ in range(6):
            begun = time.perf_counter()
            layer(x).sum().item()  # waits for a GPU
            best = min(best, time.perf_counter() - begun)
    return flops / best


def cost(name: str, training: TrainingConfig, step: Step, recompute_from: int | None = None) -> Cost:
    """The figures of a stage whose `step` was built on `meta`. What is recomputed saves memory; FLOPs count it once."""
    vqgans = [part for part in (*step.trained, *step.frozen) if isinstance(part, VQGAN)]
    for vqgan in vqgans:
        vqgan.recompute_from_(None)
    flops = flops_of(step)
    for vqgan in vqgans:
        vqgan.recompute_from_(recompute_from)
    trained, frozen = (sum(p.numel() for part in parts for p in part.parameters()) for parts in step[1:])
    return Cost(name, training.samples, training.batch, trained, frozen, flops, activations_of(step))

"""`codeswap cost`: a training's figures on so many GPUs, as a table."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from codeswap.models.codeswap import new_fusion
from codeswap.models.discriminator import PatchGAN
from codeswap.models.mask import MaskGenerator
from codeswap.models.vqgan import VQGAN
from codeswap.train.codebook import CodebookParams
from codeswap.train.cost import Step, codebook_step, convolution_rate, cost, mask_step, seconds_of, swap_step
from codeswap.train.mask import MaskParams
from codeswap.train.plans import Cluster, Cost, Plan, plan
from codeswap.train.schedule import TrainingConfig
from codeswap.train.swap import SwapParams
from codeswap.types import VARIANTS


class Trainings(NamedTuple):
    """The parameters of the three stages."""

    codebook: CodebookParams
    swap: SwapParams
    mask: MaskParams


def stage_steps(params: Trainings, variant: str, device: str) -> Iterator[tuple[str, TrainingConfig, Step]]:
    """(stage, its training, its step on `device`) with random weights. Raises ValueError for an unknown variant."""
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}; there are {', '.join(VARIANTS)}")
    first, second, third = params
    with torch.device(device):
        vqgan = VQGAN(first.vqgan, first.quantizer)
        fusion = new_fusion(second.fusion, variant, vqgan, second.swap.own_decoder)
        judge = PatchGAN(first.discriminator)
        adversary = judge if second.swap.adversarial else None
        yield "codebook", first.codebook, codebook_step(first.codebook, vqgan, judge, device)
        yield "swap", second.swap, swap_step(second.swap, vqgan, fusion, adversary, device)
        generator = MaskGenerator(third.mask_generator, first.vqgan)
        frozen = (vqgan.requires_grad_(False), fusion.requires_grad_(False))
        yield "mask", third.mask, mask_step(generator, *frozen, device)


def cost_table(params: Trainings, variant: str, gpus: Sequence[int], cluster: Cluster, measure: bool) -> Iterator[str]:
    """The lines of the table; with `measure` also seconds of one sample on this CPU against the FLOPs' forecast.

    Raises ValueError for an unknown variant.
    """
    steps = list(stage_steps(params, variant, "meta"))
    yield (
        f"variant {variant}; assumed: {cluster.peak / 1e12:g} TFLOP/s a GPU, {cluster.used:.0%} of them "
        f"used, {cluster.link / 1e9:g} GB/s between GPUs, {cluster.price:g} a GPU-hour; fp32 weights and Adam"
    )
    measured = {name: seconds_of(step) for name, _, step in stage_steps(params, variant, "cpu")} if measure else {}
    rate = convolution_rate(torch.device("cpu")) if measure else 0.0
    for name, training, step in steps:
        found = cost(name, training, step, getattr(training, "recompute_from", None))
        yield ""
        yield (
            f"{name}: {found.samples:,} samples in batches of {found.batch}; {found.trained / 1e6:.1f} M parameters "
            f"trained, {found.frozen / 1e6:.1f} M frozen; {found.flops / 1e9:,.1f} GFLOP and "
            f"{found.activations / 1e6:,.0f} MB of activations a sample"
        )
        if measure:
            forecast = found.flops / rate
            yield (
                f"  this CPU: a 3x3 convolution reaches {rate / 1e9:.0f} GFLOP/s, so a sample should take "
                f"{forecast:.3g} s; it took {measured[name]:.3g} s: {forecast / measured[name]:.2f} of that rate"
            )
        yield (
            f"  {'GPUs':>5} {'samples/s':>10} {'days':>8} {'money':>9} {'sent/step DDP':>14} {'ZeRO-3':>9} "
            f"{'memory DDP':>11} {'ZeRO-2':>8} {'ZeRO-3':>8}"
        )
        for number in gpus:
            yield _row(number, found, plan(found, number, cluster))


def _row(gpus: int, found: Cost, planned: Plan | None) -> str:
    if planned is None:
        return f"  {gpus:5}  the batch of {found.batch} cannot be shared by so many"
    p = planned
    return (
        f"  {gpus:5} {p.images_per_second:10,.1f} {p.days:8.2f} {p.money:9,.0f} {p.ddp_bytes / 1e9:11.3f} GB "
        f"{p.zero3_bytes / 1e9:6.3f} GB {p.ddp_memory / 1e9:8.1f} GB {p.zero2_memory / 1e9:5.1f} GB "
        f"{p.zero3_memory / 1e9:5.1f} GB"
    )

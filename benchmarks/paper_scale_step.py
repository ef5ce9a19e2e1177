"""One forward and backward pass of each paper-scale network on the CPU, at batch 1.

    python benchmarks/paper_scale_step.py [--network vqgan] [--channels-last]

Prints parameters, FLOPs (a multiply-add counts 2), seconds and the peak of resident memory while the pass ran. The
FLOPs, unlike the seconds, hold for any machine.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from codeswap.losses.codebook import codebook_loss
from codeswap.losses.image import discriminator_loss, l1_loss
from codeswap.losses.mask import mask_loss
from codeswap.losses.swap import cycle_loss
from codeswap.models.discriminator import DiscriminatorConfig, PatchGAN
from codeswap.models.fusion import Fusion, FusionConfig, second_pass
from codeswap.models.mask import MaskConfig, MaskGenerator
from codeswap.models.quantizer import QuantizerConfig
from codeswap.models.vqgan import VQGAN, VQGANConfig


class Step(NamedTuple):
    """What one pass cost. `finite` tells whether every parameter that should learn got a finite, non-zero gradient."""

    network: str
    parameters: int
    forward_gflop: float
    backward_gflop: float
    seconds: float
    peak_mib: float
    finite: bool


def _vqgan(channels_last: bool) -> tuple[nn.Module, Callable[[], Tensor]]:
    vqgan, image = VQGAN(VQGANConfig(), QuantizerConfig()), torch.rand(1, 3, 512, 512) * 2 - 1
    if channels_last:
        vqgan.to(memory_format=torch.channels_last)
        image = image.contiguous(memory_format=torch.channels_last)

    def loss() -> Tensor:
        out = vqgan(image)
        return l1_loss(out.image, image) + codebook_loss(out.z, out.z_q)

    return vqgan, loss


def _discriminator(channels_last: bool) -> tuple[nn.Module, Callable[[], Tensor]]:
    patch_gan, image = PatchGAN(DiscriminatorConfig()), torch.rand(2, 3, 512, 512) * 2 - 1
    if channels_last:
        patch_gan.to(memory_format=torch.channels_last)

    def loss() -> Tensor:
        real, fake = patch_gan(image).chunk(2)
        return discriminator_loss(real, fake)

    return patch_gan, loss


def _fusion(channels_last: bool) -> tuple[nn.Module, Callable[[], Tensor]]:
    fusion, codebook = Fusion(FusionConfig(), "ours", 256, 512, 1024), torch.randn(1024, 512)
    z_a, z_b = torch.randn(2, 1, 256, 512).unbind(0)

    def loss() -> Tensor:
        first = fusion(z_a, z_b, codebook)
        z_aba, z_bab = second_pass(fusion, first, z_b, codebook)
        return cycle_loss(z_bab, z_b, z_aba, z_a)

    return fusion, loss


def _mask(channels_last: bool) -> tuple[nn.Module, Callable[[], Tensor]]:
    config = VQGANConfig()
    generator = MaskGenerator(MaskConfig(), config)
    maps = [torch.randn(2, 1, width, 512 >> level, 512 >> level) for level, width in enumerate(config.widths)]
    encoded, decoded = [pair[0] for pair in maps], [pair[1] for pair in maps]

    def loss() -> Tensor:
        return mask_loss(generator(encoded, decoded), torch.ones(1, 1, 512, 512))

    return generator, loss


NETWORKS = {"vqgan": _vqgan, "discriminator": _discriminator, "fusion": _fusion, "mask": _mask}


def _peak_mib(reset: bool = False) -> float:
    """Peak resident memory in MiB since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(network: str, channels_last: bool = False) -> Step:
    """Runs one training pass of a network of the paper's size, with random weights."""
    torch.manual_seed(0)
    module, loss = NETWORKS[network](channels_last)
    _peak_mib(reset=True)
    start = time.perf_counter()
    with FlopCounterMode(display=False) as forward:
        value = loss()
    with FlopCounterMode(display=False) as backward:
        value.backward()
    seconds = time.perf_counter() - start
    gradients = [p.grad for p in module.parameters() if p.requires_grad and p.grad is not None]
    finite = bool(gradients) and all(bool(g.isfinite().all()) for g in gradients)
    return Step(
        network,
        sum(p.numel() for p in module.parameters()),
        forward.get_total_flops() / 1e9,
        backward.get_total_flops() / 1e9,
        seconds,
        _peak_mib(),
        finite and len(gradients) == len([p for p in module.parameters() if p.requires_grad]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=[*NETWORKS, "all"], default="all")
    parser.add_argument("--channels-last", action="store_true")
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} thread(s)")
    print(
        f"{'network':14} {'parameters':>12} {'fwd GFLOP':>10} {'bwd GFLOP':>10} {'seconds':>8} {'peak MiB':>9}  finite"
    )
    for name in NETWORKS if arguments.network == "all" else [arguments.network]:
        s = measure(name, arguments.channels_last)
        print(
            f"{s.network:14} {s.parameters:12,} {s.forward_gflop:10.1f} {s.backward_gflop:10.1f} {s.seconds:8.1f} "
            f"{s.peak_mib:9.0f}  {s.finite}",
            flush=True,
        )


if __name__ == "__main__":
    main()

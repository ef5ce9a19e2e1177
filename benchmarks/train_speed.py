"""Our training steps against literal ones, and our quantiser against others: ratios, in one run.

    pip install -e '.[bench]'
    python -m benchmarks.train_speed [--profile profiles/demo.yaml] [--batch 4] [--repeats 5] [--threads 1]

Networks have random weights (they time the same), but for the profile's perception networks whose files are there.
Repetitions are interleaved and the best of each is kept. Memory: by how much a run raises the process' peak.

Stage 2, ours: as the stage does it, and with the engine's switches `precision: bf16` and `compile: true`, one and both.
Literal: as one would write it from the paper. Frozen networks are called on every input of every step
(embeddings of the input faces), each direction is decoded and judged by itself, attention is written out, and every
term is read with `.item()`. Stage 1, literal: lambda by two more passes through the decoder's last layer.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from codeswap.config import load_params
from codeswap.data.synthetic import attributes, identities, render
from codeswap.losses.codebook import codebook_loss
from codeswap.losses.image import (
    adaptive_weight,
    generator_loss,
    l1_loss,
    last_layer_gradient_from_image,
    last_layer_gradients,
)
from codeswap.losses.swap import cycle_loss, expression_loss, identity_loss, reconstruction_loss
from codeswap.models.attention import FusionAttention
from codeswap.models.codeswap import decoder_of, new_fusion
from codeswap.models.discriminator import PatchGAN
from codeswap.models.fusion import second_pass
from codeswap.models.quantizer import Codebook
from codeswap.models.vqgan import VQGAN, feature_map, tokens
from codeswap.perception import packaged
from codeswap.perception.networks import NetworkConfig, build
from codeswap.perception.roles import PerceptionConfig
from codeswap.train.codebook import CodebookParams
from codeswap.train.engine import held
from codeswap.train.swap import SwapParams
from codeswap.types import Config, SwappedCodes

Run = Callable[[], object]


class Profile(Config):
    """What of a params file the perception networks' size is read from."""

    perception: PerceptionConfig


def faces(batch: int, size: int) -> tuple[Tensor, Tensor]:
    """Two batches of rendered faces in [-1, 1]."""
    image, _ = render(identities(0, 2 * batch, 1), attributes(0, 2 * batch, 1), size)
    return (image.float() / 127.5 - 1).chunk(2)


def judge(params: Path, role: str) -> nn.Module:
    """The profile's network in a role if its file has been fetched, else our own of the size that would be trained."""
    perception = load_params(params, Profile).perception
    entry, training = getattr(perception, role), perception.training
    if entry is not None and entry.file is not None and Path(entry.file).exists():
        network = packaged.build(entry.architecture, Path(entry.file))
    else:
        config = NetworkConfig(
            trunk=training.train_trunk, input_size=training.image_size, width=training.width, outputs=training.embedding
        )
        network = build(role, config)
    return network.eval().requires_grad_(False)


def stage_2(params: Path, batch: int) -> dict[str, Run]:
    """Ours and literal."""
    first, second = load_params(params, CodebookParams), load_params(params, SwapParams)
    torch.manual_seed(0)
    vqgan = VQGAN(first.vqgan, first.quantizer).requires_grad_(False)
    fusion = new_fusion(second.fusion, "ours", vqgan, second.swap.own_decoder)
    decoder = decoder_of(vqgan, fusion)
    compiled = torch.compile(fusion)
    identity, expression = (judge(params, role) for role in ("identity_train", "expression_train"))
    optimizer = torch.optim.Adam(fusion.parameters(), 1e-4)
    codes = vqgan.codebook.weight
    a, b = faces(batch, first.vqgan.image_size)
    same = torch.zeros(batch, dtype=torch.bool)
    channels_last = partial(torch.Tensor.contiguous, memory_format=torch.channels_last)
    fast = [module.to(memory_format=torch.channels_last) for module in (vqgan, decoder, identity, expression)]
    with torch.no_grad():
        known = [network(x) for network in (identity, expression) for x in (a, b)]
        latents = [tokens(vqgan.encode(x)) for x in (a, b)]  # swap.cache_latents
    sums: dict[str, Tensor] = {}

    def ours(trained: Callable[..., SwappedCodes]) -> None:
        e_a, e_b, x_a, x_b = known
        image_a, image_b = channels_last(a), channels_last(b)
        z_a, z_b = latents
        swapped = trained(z_a, z_b, codes)
        pictures = decoder.decode(feature_map(torch.cat([swapped.z_q_ab, swapped.z_q_ba]))).float()
        ab, ba = pictures.chunk(2)
        (e_ab, e_ba), (x_ab, x_ba) = (network(pictures).chunk(2) for network in (identity, expression))
        z_aba, z_bab = second_pass(trained, swapped, z_b, codes)
        terms = {
            "reconstruction": reconstruction_loss(ab, image_b, ba, image_a, same=same),
            "identity": identity_loss(e_ab, e_a, e_ba, e_b),
            "expression": expression_loss(x_ab, x_b, x_ba, x_a),
            "cycle": cycle_loss(z_bab.float(), z_b, z_aba, z_a),
        }
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, term in terms.items():
            sums[name] = sums.get(name, 0) + term.detach()

    def literal() -> None:
        z_a, z_b = tokens(vqgan.encode(a)), tokens(vqgan.encode(b))
        swapped = fusion(z_a, z_b, codes)
        ab, ba = decoder.decode(feature_map(swapped.z_q_ab)), decoder.decode(feature_map(swapped.z_q_ba))
        z_aba, z_bab = second_pass(fusion, swapped, z_b, codes)
        terms = [
            reconstruction_loss(ab, b, ba, a, same=same),
            identity_loss(identity(ab), identity(a), identity(ba), identity(b)),
            expression_loss(expression(ab), expression(b), expression(ba), expression(a)),
            cycle_loss(z_bab, z_b, z_aba, z_a),
        ]
        optimizer.zero_grad()
        torch.stack(terms).sum().backward()
        optimizer.step()
        for term in terms:
            term.item()

    def literal_run() -> None:
        forward = FusionAttention.forward
        FusionAttention.forward = lambda self, x, position, source=None, explicit=False: forward(
            self, x, position, source, True
        )
        modules = (vqgan, decoder, identity, expression)
        try:
            for module in modules:
                module.to(memory_format=torch.contiguous_format)
            literal()
        finally:
            FusionAttention.forward = forward

    def ours_run(trained: Callable[..., SwappedCodes] = fusion, bf16: bool = False) -> None:
        for module in fast:
            module.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            ours(trained)

    return {
        "ours": ours_run,
        "ours, bf16": partial(ours_run, bf16=True),
        "ours, compiled": partial(ours_run, compiled),
        "ours, bf16 and compiled": partial(ours_run, compiled, True),
        "literal": literal_run,
    }


def stage_1(params: Path, batch: int) -> dict[str, Run]:
    """lambda from the gradients at the picture, and by autograd through the graph."""
    first = load_params(params, CodebookParams)
    torch.manual_seed(0)
    vqgan, judge = VQGAN(first.vqgan, first.quantizer), PatchGAN(first.discriminator)
    x, _ = faces(batch, first.vqgan.image_size)

    def ours() -> None:
        out = vqgan(x)
        picture = out.image.detach().requires_grad_()
        (slope,) = torch.autograd.grad(l1_loss(picture, x), picture)
        with held(judge):
            (slope_adv,) = torch.autograd.grad(generator_loss(judge(picture)), picture)
        at_last = [last_layer_gradient_from_image(g, out.head, vqgan.last_layer) for g in (slope, slope_adv)]
        total = (out.image * (slope + adaptive_weight(*at_last) * slope_adv)).sum()
        (total + codebook_loss(out.z, out.z_q)).backward()

    def literal() -> None:
        out = vqgan(x)
        reconstruction = l1_loss(out.image, x)
        with held(judge):
            adversarial = generator_loss(judge(out.image))
            at_last = last_layer_gradients(reconstruction, adversarial, vqgan.last_layer.weight)
            (reconstruction + adaptive_weight(*at_last) * adversarial + codebook_loss(out.z, out.z_q)).backward()

    return {"ours": ours, "literal lambda": literal}


def quantiser(n_codes: int, width: int, count: int) -> dict[str, Run]:
    """Nearest codes of `count` tokens: ours, the broadcast difference, and vector-quantize-pytorch's module."""
    from codeswap.models.quantizer import QuantizerConfig

    book = Codebook(QuantizerConfig(n_codes=n_codes), width)
    z = torch.randn(1, count, width)

    def broadcast() -> None:
        with torch.no_grad():
            (z[0, :, None] - book.weight[None]).square().sum(-1).argmin(-1)

    runs = {"ours": lambda: book.straight_through(z), "broadcast": broadcast}
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError:
        print("vector-quantize-pytorch is not installed: pip install -e '.[bench]'")
        return runs
    theirs = VectorQuantize(dim=width, codebook_size=n_codes, decay=0.99).eval()
    return runs | {"vector-quantize-pytorch": lambda: theirs(z)}


def compare(title: str, runs: dict[str, Run], repeats: int) -> None:
    """Prints the best time of each as a ratio to ours, and the peak of memory of each."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - begun)
    print(title)
    for name, seconds in best.items():
        ratio, memory = seconds / best["ours"], _memory(runs[name])
        print(f"  {name:24} {1e3 * seconds:9.2f} ms   {ratio:5.2f} x ours   {memory:7.1f} MB")


def _memory(run: Run) -> float:
    """MB by which a run raises the process' peak above what it holds already (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status")
    before = float(status.read_text().split("VmRSS:")[1].split()[0])
    run()
    return (float(status.read_text().split("VmHWM:")[1].split()[0]) - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, default=Path("profiles/demo.yaml"))
    for name, default in (("batch", 4), ("repeats", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = f"{options.profile}, batch {options.batch}"
    compare(f"Stage 2, {where}", stage_2(options.profile, options.batch), options.repeats)
    compare(f"Stage 1, {where}", stage_1(options.profile, options.batch), options.repeats)
    for codes, width, count in ((1024, 512, 8 * 256), (1024, 32, 64 * 256)):
        compare(f"{count} tokens of {width}, {codes} codes", quantiser(codes, width, count), options.repeats)


if __name__ == "__main__":
    main()

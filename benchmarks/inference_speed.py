"""One pair of photographs at the paper's size, part by part, against what this processor's multipliers can do.

    pip install -e '.[onnx]'
    python -m benchmarks.inference_speed [--profile profiles/paper.yaml] [--repeats 2] [--threads 2] [--onnx]

Networks have random weights (they time the same). The floor is the time of the counted FLOPs at the rate of a large
3x3 convolution measured in the same run; shares of it are what counts, seconds are this machine's. `--onnx` also
exports the graph and runs it by onnxruntime in fp32 and in 8 bits (minutes and some GB at the paper's size).
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from codeswap.config import load_params
from codeswap.data.synthetic import attributes, identities, render
from codeswap.models.codeswap import CodeSwap, new_fusion
from codeswap.models.mask import MaskGenerator
from codeswap.models.vqgan import VQGAN, feature_map, tokens
from codeswap.train.codebook import CodebookParams
from codeswap.train.mask import MaskParams
from codeswap.train.swap import SwapParams
from codeswap.use.export import export
from codeswap.use.photographs import Face, paste


def built(profile: Path) -> CodeSwap:
    first, second, third = (load_params(profile, kind) for kind in (CodebookParams, SwapParams, MaskParams))
    torch.manual_seed(0)
    vqgan = VQGAN(first.vqgan, first.quantizer)
    model = CodeSwap(vqgan, new_fusion(second.fusion, "ours", vqgan), MaskGenerator(third.mask_generator, first.vqgan))
    return model.eval().requires_grad_(False)


def best(run: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of `repeats` runs after one that warms up."""
    run()
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def floor_rate() -> float:
    """FLOP/s of a 3x3 convolution of 256 channels at 128 px, channels last."""
    layer = torch.nn.Conv2d(256, 256, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(1, 256, 128, 128).contiguous(memory_format=torch.channels_last)
    return 2 * 256 * 256 * 9 * 128 * 128 / best(lambda: layer(x), 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, default=Path("profiles/paper.yaml"))
    parser.add_argument("--onnx", action="store_true")
    for name, default in (("repeats", 2), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        measure(options)


def measure(options: argparse.Namespace) -> None:
    model = built(options.profile)
    size = model.vqgan.config.image_size
    pictures, _ = render(identities(0, 2, 1), attributes(0, 2, 1), size)
    a, b = (pictures.float() / 127.5 - 1).split(1)
    with FlopCounterMode(display=False) as counter:
        model.swap(a, b)
    rate, flops = floor_rate(), counter.get_total_flops()
    floor = flops / rate
    print(f"{options.profile}: {flops / 1e12:.3f} TFLOP a pair; floor {floor:.2f} s at {rate / 1e9:.0f} GFLOP/s")

    def line(name: str, seconds: float) -> None:
        print(f"  {name:34} {seconds:8.2f} s   {floor / seconds:5.2f} of the floor", flush=True)

    line("torch eager, NCHW", best(lambda: model.swap(a, b), options.repeats))
    model.to(memory_format=torch.channels_last)
    last = [x.contiguous(memory_format=torch.channels_last) for x in (a, b)]
    line("torch eager, channels last", best(lambda: model.swap(*last), options.repeats))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        line("the same, bf16", best(lambda: model.swap(*last), options.repeats))
    parts(model, *last, options.repeats)
    rate = floor_rate()
    print(f"  floor measured again: {flops / rate:.2f} s; memory {psutil.Process().memory_info().rss / 2**30:.1f} GiB")
    if options.onnx:
        runtimes(model, a, b, options, line)


def parts(model: CodeSwap, a: torch.Tensor, b: torch.Tensor, repeats: int) -> None:
    """Encoding, fusion, decoding, mask and paste, each by itself."""
    vqgan, codes = model.vqgan, model.vqgan.codebook.weight
    (z_a, features_a), (z_b, _) = vqgan.encoder_features(a), vqgan.encoder_features(b)
    swapped = model.fusion(tokens(z_a), tokens(z_b), codes)
    naive, decoded = vqgan.decode_features(feature_map(swapped.z_q_ab))
    pixels = ((naive[0].permute(1, 2, 0).clamp(-1, 1) + 1) * 127.5).byte().numpy()
    mask = model.mask_generator(features_a, decoded)[0, 0].float().numpy()
    side = float(len(pixels))
    quad = np.array([[50, 50], [50, 50 + side], [50 + side, 50 + side], [50 + side, 50]])
    picture = np.zeros((len(pixels) + 100, len(pixels) + 100, 3), dtype=np.uint8)
    runs = {
        "encode, both": lambda: [vqgan.encoder_features(x) for x in (a, b)],
        "fuse": lambda: model.fusion(tokens(z_a), tokens(z_b), codes),
        "decode, both": lambda: [vqgan.decode_features(feature_map(z)) for z in (swapped.z_q_ab, swapped.z_q_ba)],
        "masks, both": lambda: [model.mask_generator(features_a, decoded) for _ in range(2)],
        "paste, both": lambda: [paste(picture, Face(quad, pixels), pixels, mask, False) for _ in range(2)],
    }
    for name, run in runs.items():
        print(f"    {name:32} {best(run, repeats):8.2f} s", flush=True)


def runtimes(
    model: CodeSwap, a: torch.Tensor, b: torch.Tensor, options: argparse.Namespace, line: Callable[[str, float], None]
) -> None:
    """The exported graph by onnxruntime."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    feed = {"image_a": a.numpy(), "image_b": b.numpy()}
    with tempfile.TemporaryDirectory() as scratch:
        for precision in ("fp32", "dynamic8", "static8"):
            path = Path(scratch) / f"{precision}.onnx"
            export(model, {}, path, precision)
            session = onnxruntime.InferenceSession(str(path), settings)
            line(f"onnxruntime, {precision}", best(lambda session=session: session.run(None, feed), options.repeats))
            path.unlink()


if __name__ == "__main__":
    main()

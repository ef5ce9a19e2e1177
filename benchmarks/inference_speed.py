"""One pair of photographs at the paper's size, part by part, against what this processor's multipliers can do.

    pip install -e '.[onnx]'
    codeswap weights fetch --only mtcnn
    python -m benchmarks.inference_speed A.jpg B.jpg [--profile profiles/paper.yaml] [--threads 2] [--compile] [--onnx]

Networks have random weights (they time the same). The floor is the time of the counted FLOPs of the method as written
at the rate of a large 3x3 convolution measured in the same run; shares of it are what counts, seconds are this
machine's. The whole command detects, aligns, swaps both ways, pastes, marks, signs and writes both results.
`--compile` and `--onnx` (fp32 and 8 bits) take minutes, and some GB at the paper's size.
"""

import argparse
import copy
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from codeswap.config import load_params
from codeswap.data.align import align, quad_of
from codeswap.data.synthetic import attributes, identities, render
from codeswap.models.codeswap import CodeSwap, new_fusion
from codeswap.models.mask import MaskGenerator
from codeswap.models.vqgan import VQGAN, feature_map, tokens
from codeswap.perception.mtcnn import largest
from codeswap.train.codebook import CodebookParams
from codeswap.train.mask import MaskParams
from codeswap.train.swap import SwapParams
from codeswap.use.export import export
from codeswap.use.int8 import to_int8_
from codeswap.use.loading import Swapper, load_detector
from codeswap.use.memory import keep_freed_memory
from codeswap.use.pairs import Tools, swap_pair
from codeswap.use.photographs import Face, paste, read


def built(profile: Path) -> CodeSwap:
    first, second, third = (load_params(profile, kind) for kind in (CodebookParams, SwapParams, MaskParams))
    torch.manual_seed(0)
    vqgan = VQGAN(first.vqgan, first.quantizer)
    fusion = new_fusion(second.fusion, "ours", vqgan, second.swap.own_decoder)
    model = CodeSwap(vqgan, fusion, MaskGenerator(third.mask_generator, first.vqgan))
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
    for name in "ab":
        parser.add_argument(name, type=Path, help="a photograph with a face")
    parser.add_argument("--profile", type=Path, default=Path("profiles/paper.yaml"))
    for name in ("compile", "onnx"):
        parser.add_argument(f"--{name}", action="store_true")
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
    with FlopCounterMode(display=False) as counter, torch.inference_mode(False):
        model.swap(a, b)  # where gradients are allowed, layers run as they are written
    rate, flops = floor_rate(), counter.get_total_flops()
    floor = flops / rate
    print(f"{options.profile}: {flops / 1e12:.3f} TFLOP a pair; floor {floor:.2f} s at {rate / 1e9:.0f} GFLOP/s")

    def line(name: str, seconds: float) -> None:
        print(f"  {name:34} {seconds:8.2f} s   {floor / seconds:5.2f} of the floor", flush=True)

    line("torch eager, NCHW", best(lambda: model.swap(a, b), options.repeats))
    model.to(memory_format=torch.channels_last)
    last = [x.contiguous(memory_format=torch.channels_last) for x in (a, b)]
    line("torch eager, channels last", best(lambda: model.swap(*last), options.repeats))
    keep_freed_memory()
    line("the same, freed memory kept", best(lambda: model.swap(*last), options.repeats))
    whole_command(model, options, line)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        line("the same, bf16", best(lambda: model.swap(*last), options.repeats))
    parts(model, *last, options)
    kept = copy.deepcopy(model.vqgan)
    to_int8_(model, torch.cat(last))
    line("int8", best(lambda: model.swap(*last), options.repeats))
    whole_command(model, options, line)
    model.vqgan = kept
    if options.compile:
        compiled = torch.compile(model.swap)
        line("torch.compile", best(lambda: compiled(*last), options.repeats))
    rate = floor_rate()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  floor measured again: {flops / rate:.2f} s; memory at most {memory:.1f} GiB")
    if options.onnx:
        runtimes(model, a, b, options, line)


def whole_command(model: CodeSwap, options: argparse.Namespace, line: Callable[[str, float], None]) -> None:
    """`codeswap swap A B` without the start of the interpreter and the reading of weights."""
    tools = Tools(Swapper(model, {}, torch.device("cpu")), load_detector(), False, True, ".png", False)
    with tempfile.TemporaryDirectory() as out:
        line("the whole command", best(lambda: swap_pair(tools, options.a, options.b, Path(out)), options.repeats))


def parts(model: CodeSwap, a: torch.Tensor, b: torch.Tensor, options: argparse.Namespace) -> None:
    """Detection, alignment, encoding, fusion, decoding, mask and paste, each by itself."""
    detector, pictures = load_detector(), [read(path) for path in (options.a, options.b)]
    quads = [quad_of(largest(detector.detect(pixels)).points) for pixels in pictures]
    vqgan, codes = model.vqgan, model.vqgan.codebook.weight
    (z_a, features_a), (z_b, _) = vqgan.encoder_features(a), vqgan.encoder_features(b)
    swapped = model.fusion(tokens(z_a), tokens(z_b), codes)
    naive, decoded = vqgan.decode_features(feature_map(swapped.z_q_ab))
    pixels = ((naive[0].permute(1, 2, 0).clamp(-1, 1) + 1) * 127.5).byte().numpy()
    mask = model.mask_generator(features_a, decoded)[0, 0].float().numpy()
    side = float(len(pixels))
    quad = np.array([[50, 50], [50, 50 + side], [50 + side, 50 + side], [50 + side, 50]])
    picture = np.zeros((len(pixels) + 100, len(pixels) + 100, 3), dtype=np.uint8)
    size = model.vqgan.config.image_size
    runs = {
        "detect, both": lambda: [detector.detect(pixels) for pixels in pictures],
        "align, both": lambda: [align(*one, size) for one in zip(pictures, quads, strict=True)],
        "encode, both": lambda: [vqgan.encoder_features(x) for x in (a, b)],
        "fuse": lambda: model.fusion(tokens(z_a), tokens(z_b), codes),
        "decode, both": lambda: [vqgan.decode_features(feature_map(z)) for z in (swapped.z_q_ab, swapped.z_q_ba)],
        "masks, both": lambda: [model.mask_generator(features_a, decoded) for _ in range(2)],
        "paste, both": lambda: [paste(picture, Face(quad, pixels), pixels, mask, False) for _ in range(2)],
    }
    for name, run in runs.items():
        print(f"    {name:32} {best(run, options.repeats):8.2f} s", flush=True)


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

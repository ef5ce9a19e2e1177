"""Frames a second of `codeswap swap PHOTO VIDEO`, against its parts one after the other, and pairs a second in batches.

    codeswap weights fetch --only mtcnn
    python -m benchmarks.video_throughput A.jpg B.jpg [--models models] [--frames 96] [--size 512] [--threads 1]

The video is B's photograph moving about, encoded first. One after the other: decode all frames, swap all, mark and
encode all. Pairs: the two photographs' crops, in passes of 1, 4 and 16. Ratios of one run.
"""

import argparse
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image as PILImage

from codeswap.use import watermark
from codeswap.use.loading import Precision, Swapper, load_detector, load_swapper
from codeswap.use.photographs import portrait
from codeswap.use.video import CODEC, QUALITY, FrameSwapper, Tracker, swap_video


def encode(frames: list[np.ndarray], path: Path, mark: bool) -> None:
    with av.open(str(path), "w") as target:
        stream = target.add_stream(CODEC, rate=Fraction(25), options=QUALITY)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            pixels = watermark.embed(frame) if mark else frame
            target.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        target.mux(stream.encode())


def decode(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as source:
        return [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]


def moving(picture: Path, count: int, size: int) -> list[np.ndarray]:
    """Windows of a photograph that drift on a circle."""
    whole = PILImage.open(picture).convert("RGB").resize((size * 9 // 8, size * 9 // 8))
    angles = np.linspace(0, 4 * np.pi, count)
    corners = (size / 16 * (1 + np.stack([np.cos(angles), np.sin(angles)], axis=1))).astype(int)
    return [np.asarray(whole.crop((x, y, x + size, y + size))) for x, y in corners]


def swapping(swapper: Swapper, source: np.ndarray) -> tuple[FrameSwapper, Tracker]:
    return FrameSwapper(swapper, source, False), Tracker(load_detector(), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in "ab":
        parser.add_argument(name, type=Path, help="a photograph with a face")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--precision", default="fp32", choices=Precision.__args__)
    for name, default in (("frames", 96), ("size", 512), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    swapper = load_swapper(options.models, "ours", options.precision)
    source = portrait(options.a, load_detector(), swapper.cut, None).face.crop
    with tempfile.TemporaryDirectory() as scratch:
        video, out = Path(scratch) / "in.mp4", Path(scratch) / "out.mp4"
        encode(moving(options.b, options.frames, options.size), video, mark=False)
        frames, tracker = swapping(swapper, source)
        frames(first := decode(video)[0], *tracker.follow(first))  # warms up
        times = [time.perf_counter()]
        decoded = decode(video)
        times.append(time.perf_counter())
        frames, tracker = swapping(swapper, source)
        swapped = [frames(pixels, *tracker.follow(pixels)) for pixels in decoded]
        times.append(time.perf_counter())
        encode(swapped, out, mark=True)
        times.append(time.perf_counter())
        frames, tracker = swapping(swapper, source)
        report = swap_video(frames, tracker, video, out, swapper.facts, True)
        overlapped = time.perf_counter() - times[-1]
    parts = np.diff(times)
    print(f"{options.frames} frames of {options.size} px, crops of {swapper.size} px: {report}")
    print(f"  decode {parts[0]:.2f} s, swap {parts[1]:.2f} s, mark and encode {parts[2]:.2f} s: {parts.sum():.2f} s")
    print(
        f"  overlapped {overlapped:.2f} s: {options.frames / overlapped:.1f} frames/s, {parts.sum() / overlapped:.2f} x"
    )
    other = portrait(options.b, load_detector(), swapper.cut, None).face.crop
    for together in (1, 4, 16):
        pairs = [(source, other)] * together
        swapper.swap_all(pairs)
        begun = time.perf_counter()
        for _ in range(32 // together):
            swapper.swap_all(pairs)
        print(f"  {together:2} pairs in a pass: {32 / (time.perf_counter() - begun):.1f} pairs/s")


if __name__ == "__main__":
    main()

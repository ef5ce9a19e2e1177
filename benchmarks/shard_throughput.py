"""Images per second of the shard stage against decoding, resizing and encoding alone, and with 1 and 2 workers.

    python -m benchmarks.shard_throughput [--pictures 1500] [--size 512] [--to 256]

The floor does what no sharding can avoid: read, decode, resize, encode, one process, no tar, no manifest, no Ray. The
stage's own work is timed beside it in one process, then on Ray with one and with two workers, after Ray has started.
Repetitions are interleaved, the best of each is kept.
"""

import argparse
import hashlib
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
import torch
from PIL import Image as PILImage
from PIL import ImageOps
from pydantic import TypeAdapter

from codeswap.data.align import resized
from codeswap.data.shards import ImageConfig, encode
from codeswap.data.sources import DatasetConfig
from codeswap.data.synthetic import attributes, identities, render
from codeswap.prepare.blocks import run_blocks
from codeswap.prepare.ingest import _ShardMaker, plan

SHARD = 100


def make_pictures(root: Path, count: int, size: int) -> None:
    """Jpegs as a photographer would send them."""
    root.mkdir()
    for start in range(0, count, 50):
        images, _ = render(identities(start, 50, 1), attributes(start, 50, 1), size)
        for number, pixels in enumerate(images.permute(0, 2, 3, 1).numpy(), start):
            PILImage.fromarray(pixels).save(root / f"{number:06d}.jpg", quality=95)


def floor(root: Path, image: ImageConfig) -> int:
    """Read, decode upright, resize and encode every picture; its hash, too, is in every manifest."""
    done = 0
    for path in sorted(root.iterdir()):
        data = path.read_bytes()
        hashlib.sha256(data).hexdigest()
        with PILImage.open(io.BytesIO(data)) as picture:
            pixels = np.array(ImageOps.exif_transpose(picture).convert("RGB"))
        done += len(encode(resized(pixels, image.size), image)) > 0
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("pictures", 1500), ("size", 512), ("to", 256), ("repeats", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    image = ImageConfig(size=options.to, format="webp", quality=95)
    with tempfile.TemporaryDirectory() as folder:
        root, planned = Path(folder) / "raw", Path(folder) / "plan.parquet"
        make_pictures(root, options.pictures, options.size)
        config = {"source": "folder", "split": "train", "root": str(root), "licence": "CC0", "shard_size": SHARD}
        source = TypeAdapter(DatasetConfig).validate_python(config)
        blocks = plan("bench", source, planned)
        for part in ("shards", "parts"):
            (Path(folder) / "run" / part).mkdir(parents=True)
        arguments = ("bench", source, image, planned, Path(folder) / "run", None)
        best: dict[str, float] = {}

        def timed(name: str, begun: float) -> None:
            best[name] = max(best.get(name, 0), options.pictures / (time.perf_counter() - begun))

        for _ in range(options.repeats):
            begun = time.perf_counter()
            floor(root, image)
            timed("decode, resize, encode (floor)", begun)
            begun = time.perf_counter()
            maker = _ShardMaker(*arguments)
            for number in range(blocks):
                maker(number)
            timed("the stage's work, no Ray", begun)
        for workers in (1, 2):
            ray.init(num_cpus=workers, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
            for repeat in range(options.repeats + 1):  # the first one starts the worker processes
                begun = time.perf_counter()
                list(run_blocks(_ShardMaker, arguments, range(blocks), "bench", holds=False))
                if repeat:
                    timed(f"on Ray, {workers} worker{'s' if workers > 1 else ''}", begun)
            ray.shutdown()
    first = next(iter(best.values()))
    print(f"{options.pictures} jpegs of {options.size} px to webp of {options.to} px, best of {options.repeats}")
    for name, speed in best.items():
        print(f"{name:32} {speed:7.0f} images/s   {speed / first:5.2f} x the floor")


if __name__ == "__main__":
    main()

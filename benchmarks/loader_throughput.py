"""Images per second of our loader against others, on the same faces, in one run.

    pip install -e '.[bench]'
    python -m benchmarks.loader_throughput [--size 128] [--faces 4000] [--workers 2] [--repeats 3]

All deliver shuffled uint8 batches (32, 3, size, size) of the same jpegs with the same number of workers. The first
batches are not counted: worker processes take seconds to start. Repetitions are interleaved and the best of each is
kept, because a busy machine only ever makes a loader slower. Two floors stand beside them: decoding alone from memory
with as many threads, and reading the bytes alone.
"""

import argparse
import contextlib
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage

from codeswap.data.faces import Faces
from codeswap.data.loader import batches
from codeswap.data.manifest import CARD, MANIFEST, SCHEMA, write_card, write_rows
from codeswap.data.order import Order
from codeswap.data.shards import ImageConfig, Sample, decode, encode, write_shard
from codeswap.data.synthetic import attributes, identities, render

BATCH, SHARD, STARTING = 32, 500, 16
Run = Callable[[], float]


def make_faces(root: Path, count: int, size: int) -> Path:
    """Shards with manifest and card, and the same jpegs as a folder of files."""
    folder, files = root / "shards" / "train" / "bench", root / "files" / "all"
    image = ImageConfig(size=size, format="jpg")
    folder.mkdir(parents=True)
    files.mkdir(parents=True)
    rows, sizes = [], {}
    for shard in range(0, count, SHARD):
        numbers = range(shard, min(shard + SHARD, count))
        pictures, _ = render(identities(shard, len(numbers), 1), attributes(shard, len(numbers), 1), size)
        samples = [
            Sample(f"bench-{n:06d}", encode(one, image), {})
            for n, one in zip(numbers, pictures.permute(0, 2, 3, 1).numpy(), strict=True)
        ]
        name = f"{shard // SHARD:05d}.tar"
        for sample, place in zip(samples, write_shard(folder / name, samples, image), strict=True):
            (files / f"{sample.key}.jpg").write_bytes(sample.image)
            rows.append({
                "key": sample.key, "dataset": "bench", "split": "train", "source": "x", "sha256": "", "licence": "CC0",
                "source_width": size, "source_height": size, "shard": name, **place._asdict(),
            })  # fmt: skip
        sizes[name] = (folder / name).stat().st_size
    write_rows(folder / MANIFEST, rows, SCHEMA)
    write_card(folder / CARD, {"dataset": "bench", "image": {"size": size}, "shards": sizes})
    return folder


def ours(folder: Path, workers: int) -> float:
    """Positions -> faces by offset, decoded by threads of one process."""
    faces = Faces([folder])
    order, straight = Order(faces.shards["bench"], seed=0), np.zeros(BATCH, dtype=bool)
    stream = batches(lambda p: faces.images(order.at(p), straight), 0, BATCH, 0, 1, 2 * workers, workers)
    with contextlib.closing(stream):
        return _speed(batch for _, batch in islice(stream, len(faces) // BATCH))


def decode_only(data: list[bytes], workers: int) -> float:
    """The decoder on bytes in memory: no reading, no batches."""
    parts = [data[start : start + BATCH] for start in range(0, len(data), BATCH)]
    with ThreadPoolExecutor(workers) as pool:
        return _speed(pool.map(lambda some: [decode(one) for one in some], parts))


def bytes_only(folder: Path) -> float:
    """Every face's bytes in our order, not decoded."""
    faces = Faces([folder])
    order = Order(faces.shards["bench"], seed=0).at(np.arange(len(faces)))
    parts = np.split(order, range(BATCH, len(order), BATCH))
    return _speed([faces.encoded(int(index)) for index in some] for some in parts)


def stock_webdataset(folder: Path, workers: int) -> float:
    """webdataset's own reader, its shuffle buffer and PIL, in a DataLoader of processes."""
    import webdataset

    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    data = webdataset.WebDataset(shards, shardshuffle=len(shards), nodesplitter=webdataset.split_by_node)
    data = data.shuffle(1000).decode("rgb8").to_tuple("jpg").map(_tensor_of)
    return _speed(torch.utils.data.DataLoader(data.batched(BATCH), batch_size=None, num_workers=workers))


def _tensor_of(sample: tuple[np.ndarray]) -> tuple[torch.Tensor]:
    return (torch.from_numpy(sample[0].transpose(2, 0, 1).copy()),)  # a bare tensor would be collated number by number


def image_folder(root: Path, workers: int) -> float:
    """torchvision's ImageFolder with PIL, in a shuffling DataLoader of processes."""
    from torchvision.datasets import ImageFolder

    data = ImageFolder(str(root / "files"), transform=_pixels)
    return _speed(torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers))


def _pixels(picture: PILImage.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture).transpose(2, 0, 1).copy())


def make_litdata(root: Path) -> None:
    """The same jpegs in litdata's chunks."""
    import litdata

    files = sorted(str(path) for path in (root / "files" / "all").glob("*.jpg"))
    litdata.optimize(_opened, files, str(root / "litdata"), num_workers=1, chunk_bytes="16MB")


def _opened(path: str) -> PILImage.Image:
    return PILImage.open(path)


def litdata(root: Path, workers: int) -> float:
    """litdata's streaming reader on local chunks."""
    from litdata import StreamingDataLoader, StreamingDataset

    data = StreamingDataset(str(root / "litdata"), shuffle=True, transform=_as_uint8)
    return _speed(StreamingDataLoader(data, batch_size=BATCH, num_workers=workers))


def _as_uint8(item: object) -> torch.Tensor:
    return item if isinstance(item, torch.Tensor) else _pixels(item)


def _speed(stream: Iterable) -> float:
    """Images a second after the first STARTING batches, in which every worker has come to work."""
    seen, begun = 0, 0.0
    for number, batch in enumerate(stream, start=1):
        if number > STARTING:
            seen += len(batch[0]) if isinstance(batch[0], torch.Tensor) and batch[0].ndim == 4 else len(batch)
        elif number == STARTING:
            begun = time.perf_counter()
    return seen / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("size", 128), ("faces", 4000), ("workers", 2), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp())
    folder, workers = make_faces(root, options.faces, options.size), options.workers
    faces = Faces([folder])
    # In our order, because memory is slower where it is not read in a row, and any shuffle has to pay that.
    data = [faces.encoded(index) for index in Order(faces.shards["bench"], seed=0).at(np.arange(len(faces))).tolist()]
    runs: dict[str, Run] = {
        "decode only (floor)": partial(decode_only, data, workers),
        "ours": partial(ours, folder, workers),
        "stock webdataset, PIL": partial(stock_webdataset, folder, workers),
        "image folder, PIL": partial(image_folder, root, workers),
        "bytes only (floor)": partial(bytes_only, folder),
    }
    try:
        make_litdata(root)
        runs["litdata"] = partial(litdata, root, workers)
    except ImportError:
        print("litdata is not installed: pip install -e '.[bench]'")
    best = dict.fromkeys(runs, 0.0)
    for _ in range(options.repeats):
        for name, run in runs.items():
            best[name] = max(best[name], run())
    shutil.rmtree(root)
    print(f"{options.faces} jpegs of {options.size} px, {workers} workers, best of {options.repeats}")
    for name, speed in best.items():
        print(f"{name:24} {speed:8.0f} images/s   ours is {best['ours'] / speed:5.2f} x")


if __name__ == "__main__":
    main()

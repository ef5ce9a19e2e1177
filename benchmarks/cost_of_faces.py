"""What a data set of any size costs beside its pixels: bytes a face on disk and in memory, measured, then multiplied.

    python -m benchmarks.cost_of_faces [--faces 200000]

Measures a listing, a manifest as opened for training, and annotations of the paper's widths (ArcFace 512, POSTER++ 768)
with label maps of 512 px, and says what 3.3 million (VGGFace2) and 100 million faces cost at that rate.
"""

import argparse
import hashlib
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from codeswap.data.annotations import VECTORS, column, encode_labels, schema, write
from codeswap.data.faces import Faces
from codeswap.data.manifest import CARD, MANIFEST, SCHEMA, write_card
from codeswap.data.records import Record, Source
from codeswap.data.sources import listed
from codeswap.data.synthetic import attributes, identities, render

SIZES = {"3.3 M": 3.3e6, "100 M": 100e6}
WIDTHS = {"identity": 512, "expression": 768, "pose": 3}
SHARD = 1000


class Imagined(Source):
    """Records of as many files as are wanted, in folders of a hundred."""

    source: Literal["imagined"] = "imagined"
    count: int

    def missing(self) -> list[str]:
        return []

    def origin(self) -> str:
        return "imagined"

    def records(self, name: str) -> Iterator[Record]:
        for number in range(self.count):
            person = f"n{number // 100:06d}"
            source = f"{person}/{number % 100:04d}.jpg"
            yield Record(f"{name}-{person}-{number % 100:04d}", source, person, None, None, "research only", None)

    def read(self, records: object, size: int) -> Iterator:
        raise NotImplementedError


def _resident() -> int:
    return psutil.Process().memory_info().rss


def _manifest(folder: Path, count: int) -> tuple[float, float]:
    """Bytes a face of the manifest on disk and of `Faces` in memory."""
    folder.mkdir(parents=True)
    with pq.ParquetWriter(folder / MANIFEST, SCHEMA, compression="zstd") as writer:
        for start in range(0, count, SHARD):
            numbers = range(start, min(start + SHARD, count))
            rows = [
                {
                    "key": f"set-n{n // 100:06d}-{n % 100:04d}", "dataset": "set", "identity": f"n{n // 100:06d}",
                    "split": "train", "source": f"n{n // 100:06d}/{n % 100:04d}.jpg",
                    "sha256": hashlib.sha256(str(n).encode()).hexdigest(), "source_width": 512, "source_height": 512,
                    "licence": "research only", "shard": f"{start // SHARD:05d}.tar", "offset": 90_000 * (n - start),
                    "size": 80_000 + n * 7919 % 20_000, "crc32": n * 2654435761 % 2**32,
                }
                for n in numbers
            ]  # fmt: skip
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    write_card(folder / CARD, {"dataset": "set", "image": {"size": 512}, "shards": {}})
    before = _resident()
    faces = Faces([folder])
    held = _resident() - before
    return (folder / MANIFEST).stat().st_size / count, held / len(faces)


def _annotations(path: Path, count: int = 256) -> float:
    """Bytes a face, both views, on disk; in memory only what is looked at."""
    _, labels = render(identities(0, count, 1), attributes(0, count, 1), 512)
    columns: dict[str, pa.Array] = {"key": pa.array([f"set-n000000-{n:04d}" for n in range(count)])}
    for name in VECTORS:
        for suffix in ("", "_mirrored"):
            columns[name + suffix] = column(np.zeros((count, WIDTHS[name]), dtype=np.float32))
    columns["parsing"] = pa.array([encode_labels(one) for one in labels.numpy()], pa.binary())
    fields = schema(WIDTHS, {})
    write(path, [pa.table(columns).cast(fields)], fields)
    return path.stat().st_size / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=200_000)
    count = parser.parse_args().faces
    with tempfile.TemporaryDirectory() as folder:
        before, begun = _resident(), time.perf_counter()
        table = listed("set", Imagined(split="train", count=count))
        listing, seconds = (_resident() - before) / len(table), time.perf_counter() - begun
        del table
        on_disk, in_memory = _manifest(Path(folder) / "train" / "set", count)
        annotated = _annotations(Path(folder) / "annotations.arrow")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"measured on {count:,} faces (annotations on 256); peak of this process {peak:.2f} GB")
    print(f"{'':44}{'a face':>12}" + "".join(f"{name:>12}" for name in SIZES))
    costs = {
        "listing while it is planned, memory": listing,
        "manifest, disk": on_disk,
        "manifest of a training process, memory": in_memory,
        "annotations, both views, disk (mapped)": annotated,
        "survey, memory": 20.0,
    }
    for name, cost in costs.items():
        print(f"{name:44}{cost:10.0f} B" + "".join(f"{cost * n / 1e9:9.1f} GB" for n in SIZES.values()))
    minutes = "".join(f"{seconds / count * n / 60:8.1f} min" for n in SIZES.values())
    print(f"{'listing, time':44}{seconds / count * 1e6:9.1f} us{minutes}")


if __name__ == "__main__":
    main()

"""Raw faces -> shards, manifest and quarantine, on Ray: one block of records makes one shard, whoever makes it."""

import shutil
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from codeswap.data.align import Cut, align, apply, crop_transform, cut_out, quad_of
from codeswap.data.manifest import (
    CARD,
    FACTS,
    HELD_OUT,
    MANIFEST,
    QUARANTINE,
    QUARANTINE_SCHEMA,
    SCHEMA,
    read_manifest,
    read_quarantine,
    write_card,
    write_rows,
    write_tables,
)
from codeswap.data.records import Raw, Record, Source, UnusableError
from codeswap.data.shards import ImageConfig, Sample, encode, write_shard
from codeswap.data.sources import listed, split_validation
from codeswap.perception.mtcnn import largest
from codeswap.perception.roles import REMEDIES, PerceptionError, RoleConfig, verify
from codeswap.prepare.blocks import cluster, publish, run_blocks
from codeswap.types import Detection

_HELD_OUT = b"held_out"  # in the plan's metadata: how many of the last blocks are


@runtime_checkable
class Detector(Protocol):
    """Finds faces in a uint8 (h, w, 3) RGB picture (the perception role `landmarks`)."""

    def detect(self, image: np.ndarray) -> list[Detection]: ...


class Summary(NamedTuple):
    """What became of the inputs of a data set."""

    inputs: int  # faces asked for: kept + quarantined
    kept: int
    quarantined: dict[str, int]  # by reason
    shards: int
    shard_bytes: int
    seconds: float
    images_per_second: float  # of what this run made itself; 0 when all shards were finished already

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.quarantined.items())) or "none"
        return (
            f"{self.inputs:,} in, {self.kept:,} kept, quarantined: {reasons}; {self.shards} shards, "
            f"{self.shard_bytes / 1e6:,.1f} MB; {self.seconds:.1f} s, {self.images_per_second:,.0f} images/s"
        )


def plan(name: str, source: Source, path: Path) -> int:
    """Lists the inputs of data set `name` into a Parquet file at `path`, one row group for each shard.

    The last ones are held out for validation; the file's metadata say how many. The same inputs give the same bytes, so
    the file names the work: part of the run's fingerprint. Returns the number of shards. Raises MissingDataError when
    something is not in its place.
    """
    parts = split_validation(listed(name, source), source)
    shards, held_out = (-(-len(part) // source.shard_size) for part in parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = parts[0].schema.with_metadata({_HELD_OUT: str(held_out)})
    with pq.ParquetWriter(path, columns) as writer:
        for part in parts:
            writer.write_table(part.cast(columns), row_group_size=source.shard_size)
    return shards + held_out


def ingest(
    name: str, source: Source, image: ImageConfig, planned: Path, run: Path, out: Path, detector: RoleConfig | None
) -> Summary:
    """Makes the shards of the plan at `planned` in `run`, and moves them to `out` when all are there.

    Shards that `run` already holds are not made again. `detector` (the perception role `landmarks`) is needed
    when the source's faces must be found first; its file is verified then. Raises ValueError when no face is usable,
    and for rendered faces of another framing than FFHQ's.
    """
    if image.framing != 1 and source.source == "synthetic":
        raise ValueError(
            f"image.framing is {image.framing}, but faces of {name!r} are rendered in FFHQ's: set it to 1.0"
        )
    begun = time.perf_counter()
    blocks = pq.ParquetFile(planned).num_row_groups
    training = blocks - _held_out_blocks(planned)
    shards, parts = run / "shards", run / "parts"
    (shards / HELD_OUT).mkdir(parents=True, exist_ok=True)
    parts.mkdir(exist_ok=True)
    open_blocks = [number for number in range(blocks) if not _part(parts / f"{number:05d}", MANIFEST).exists()]
    made = 0.0
    if open_blocks:
        if not source.aligned and pq.read_table(planned, columns=["points"])["points"].null_count:
            _verified(detector)  # now, and not after minutes of work
        if detector is not None:
            detector = detector.model_copy(update={"file": str(Path(detector.file).resolve())})
        with cluster():
            arguments = (name, source, image, planned.resolve(), run.resolve(), detector)
            working = time.perf_counter()
            reports = run_blocks(_ShardMaker, arguments, open_blocks, name, holds=False)
            made = sum(report["faces"] for report in reports) / (time.perf_counter() - working)
    summary = _close(name, source, image, shards, [parts / f"{number:05d}" for number in range(training)])
    if summary.kept == 0:
        first = read_quarantine(shards).slice(0, 1).to_pylist()[0]
        raise ValueError(
            f"data set {name!r}: none of {summary.inputs} inputs gave a face: {summary.quarantined}, first {first}"
        )
    held_out = [parts / f"{number:05d}" for number in range(training, blocks)]
    if not held_out or _close(name, source, image, shards / HELD_OUT, held_out).kept == 0:
        shutil.rmtree(shards / HELD_OUT)
    publish(shards, out)
    shutil.rmtree(run)
    return summary._replace(seconds=time.perf_counter() - begun, images_per_second=made)


def _close(name: str, source: Source, image: ImageConfig, shards: Path, parts: list[Path]) -> Summary:
    """Writes manifest, quarantine and card of finished shards from the parts of their blocks."""
    write_tables(shards / QUARANTINE, [_part(part, QUARANTINE) for part in parts], QUARANTINE_SCHEMA)
    write_tables(shards / MANIFEST, [_part(part, MANIFEST) for part in parts], SCHEMA)
    manifest = read_manifest(shards, ["identity", "licence", "shard"])
    rejected = read_quarantine(shards)
    reasons = _counts(rejected["reason"])
    sizes = {file: (shards / file).stat().st_size for file in sorted(manifest["shard"].unique().to_pylist())}
    inputs = len(manifest) + len(rejected)
    write_card(
        shards / CARD,
        {
            "kind": "shards",
            "dataset": name,
            "split": source.split,
            "inputs": inputs,
            "faces": len(manifest),
            "identities": pc.count_distinct(manifest["identity"], mode="only_valid").as_py(),
            "quarantined": reasons,
            "licences": _counts(manifest["licence"]),
            "image": image.model_dump(mode="json"),
            "source": source.model_dump(mode="json"),
            "shards": sizes,
        },
    )
    return Summary(inputs, len(manifest), reasons, len(sizes), sum(sizes.values()), 0.0, 0.0)


def _held_out_blocks(planned: Path) -> int:
    return int(pq.ParquetFile(planned).schema_arrow.metadata[_HELD_OUT])


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in sorted(pc.value_counts(column).to_pylist(), key=str)}


def _part(part: Path, kind: str) -> Path:
    return part.with_name(f"{part.name}.{kind}")


@lru_cache(maxsize=1)
def _detector(detector: RoleConfig | None) -> Detector:
    from codeswap.perception import packaged  # here: aligned sources need no networks

    return packaged.build(*_verified(detector))


def _verified(detector: RoleConfig | None) -> tuple[str, Path]:
    """Architecture and file of the detector. Raises PerceptionError when there is none or its hash is another."""
    if detector is None or detector.file is None or detector.architecture is None:
        raise PerceptionError(
            f"faces must be found first, but nothing fills perception.landmarks: {REMEDIES['landmarks']}"
        )
    file = Path(detector.file)
    verify("landmarks", file, detector.sha256)
    return detector.architecture, file


class _ShardMaker:
    """Makes one shard of one block of the plan; lives in a Ray worker."""

    def __init__(
        self, name: str, source: Source, image: ImageConfig, planned: Path, run: Path, detector: RoleConfig | None
    ):
        self.name, self.source, self.image = name, source, image
        self.planned, self.run, self.detector = planned, run, detector
        self.training = pq.ParquetFile(planned).num_row_groups - _held_out_blocks(planned)

    def __call__(self, number: int) -> dict[str, float]:
        rows = pq.ParquetFile(self.planned).read_row_group(number).to_pylist()
        records = [Record(**row) for row in rows]
        rejected: list[dict[str, str]] = []
        made = list(self._faces(records, rejected))
        file = f"{number:05d}.tar"
        shards = self.run / "shards" / ("" if number < self.training else HELD_OUT)
        places = write_shard(shards / file, [sample for sample, _ in made], self.image) if made else []
        rows = [facts | {"shard": file} | place._asdict() for (_, facts), place in zip(made, places, strict=True)]
        part = self.run / "parts" / f"{number:05d}"
        write_rows(_part(part, QUARANTINE), rejected, QUARANTINE_SCHEMA)
        write_rows(_part(part, MANIFEST), rows, SCHEMA)  # last: it says that the block is finished
        return {"faces": len(rows) + len(rejected)}

    def _faces(
        self, records: list[Record], rejected: list[dict[str, str]]
    ) -> Iterator[tuple[Sample, dict[str, object]]]:
        for record, candidates in zip(records, self.source.read(records, self.image.size), strict=True):
            kept, last = 0, UnusableError("no_face", "no more frames to try")
            while kept < record.wanted:
                try:
                    raw = next(candidates, None)
                    if raw is None:
                        break
                    yield self._face(record, raw, kept)
                    kept += 1
                except UnusableError as unusable:
                    last = unusable
            for missing in range(kept, record.wanted):
                place = record.source if record.wanted == 1 else f"{record.source}#{missing}"
                rejected.append({"source": place, "reason": last.reason, "detail": last.detail})

    def _face(self, record: Record, raw: Raw, number: int) -> tuple[Sample, dict[str, object]]:
        """The encoded crop of one face and its manifest row. Raises UnusableError."""
        pixels, quad, points = self._crop(record, raw)
        facts: dict[str, object] = {
            "key": record.key if record.wanted == 1 else f"{record.key}_{number}",
            "dataset": self.name,
            "identity": record.identity,
            "video": record.video,
            "frame": record.frame if raw.frame is None else raw.frame,
            "split": self.source.split,
            "source": record.source,
            "sha256": raw.sha256,
            "source_width": raw.pixels.shape[1],
            "source_height": raw.pixels.shape[0],
            "quad": None if quad is None else quad.flatten().tolist(),
            "landmarks": None if points is None else points.flatten().tolist(),
            "licence": record.licence,
        }
        extra = {} if raw.synthetic is None else {"synthetic": raw.synthetic}
        sample = Sample(str(facts["key"]), encode(pixels, self.image), {name: facts[name] for name in FACTS} | extra)
        return sample, facts

    def _crop(self, record: Record, raw: Raw) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Aligned pixels, the source's quad (None: all) and the landmarks in crop pixels. Raises UnusableError."""
        height, width = raw.pixels.shape[:2]
        points = None if record.points is None else np.asarray(record.points).reshape(-1, 2)
        if self.source.aligned:
            if width != height:
                raise UnusableError(
                    "not_square", f"{width}x{height}: an aligned face is a square; else set aligned: false"
                )
            if width < self.source.min_size:
                raise UnusableError("too_small", f"{width} px, min_size is {self.source.min_size}")
            crop = cut_out(raw.pixels, Cut(self.image.size, self.image.framing))
            scaled = None if points is None else apply(crop_transform(crop.quad, self.image.size), points)
            return crop.pixels, None if self.image.framing == 1 else crop.quad, scaled
        points = self._found(raw.pixels) if points is None else points
        try:
            quad = quad_of(points, self.image.framing)
            crop = align(raw.pixels, quad, self.image.size)
        except ValueError as error:
            raise UnusableError("bad_landmarks", str(error)) from None
        return crop.pixels, crop.quad, apply(crop_transform(quad, self.image.size), points)

    def _found(self, pixels: np.ndarray) -> np.ndarray:
        """The five points of the largest (sure) face. Raises UnusableError when there is none that is large enough."""
        detections = _detector(self.detector).detect(pixels)
        if not detections:
            raise UnusableError("no_face", "the detector found none")
        face = largest(detections)
        if face.side < self.source.min_size:
            raise UnusableError("small_face", f"{face.side:.0f} px, min_size is {self.source.min_size}")
        return face.points

"""What is known of each face on disk, and of each input that was not used: two Parquet tables and a card."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

MANIFEST, QUARANTINE, CARD = "manifest.parquet", "quarantine.parquet", "card.json"
HELD_OUT = "held_out"  # folder inside a training set's: a data set of the faces that no training sees

# Lists of free length, because Parquet does not give back fixed ones that hold nulls.
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # unique, stable, printable; the stem of its tar members
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("identity", pa.string()),
        pa.field("video", pa.string()),
        pa.field("frame", pa.int32()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # relative to the data set's root
        pa.field(
            "sha256", pa.string(), nullable=False
        ),  # of the source's bytes (of the pixels of a frame or rendering)
        pa.field("source_width", pa.int32(), nullable=False),
        pa.field("source_height", pa.int32(), nullable=False),
        pa.field("quad", pa.list_(pa.float32())),  # (4, 2) corners in source pixels; null: the whole image
        pa.field("landmarks", pa.list_(pa.float32())),  # (5 or 68, 2) points x, y in crop pixels; null: unknown
        pa.field("licence", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),  # the tar's file name
        pa.field("offset", pa.int64(), nullable=False),  # of the image's first byte in the tar
        pa.field("size", pa.int64(), nullable=False),  # of the encoded image in bytes
        pa.field("crc32", pa.uint32(), nullable=False),  # of the encoded image
    ]
)
QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),  # a few fixed words, so that reasons can be counted
        pa.field("detail", pa.string(), nullable=False),
    ]
)
# What a face's json repeats.
FACTS = tuple(name for name in SCHEMA.names if name not in ("shard", "offset", "size", "crc32"))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes whole or not at all: to a temporary name in the same folder, then renamed."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)


def write_table(path: Path, table: pa.Table) -> None:
    """Writes `table` as Parquet, whole or not at all. The same rows give the same bytes."""
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table.combine_chunks(), partial, compression="zstd")
    os.replace(partial, path)


def write_tables(path: Path, parts: Iterable[Path], schema: pa.Schema) -> None:
    """Joins Parquet files into one, whole or not at all, a row group each: never more than one of them in memory."""
    partial = path.with_name(f".{path.name}.partial")
    with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(pq.read_table(part, schema=schema))
    os.replace(partial, path)


def write_rows(path: Path, rows: Iterable[Mapping[str, object]], schema: pa.Schema) -> None:
    """Writes rows of Python values under `schema`."""
    write_table(path, pa.Table.from_pylist(list(rows), schema=schema))


def write_card(path: Path, card: Mapping[str, object]) -> None:
    """Writes a card: sorted, indented JSON."""
    write_bytes(path, (json.dumps(card, indent=2, sort_keys=True) + "\n").encode())


def read_card(folder: Path) -> dict[str, object]:
    """The card of a data set's folder. Raises ValueError when there is none or it cannot be read."""
    try:
        return json.loads((folder / CARD).read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder / CARD} is missing: {_how_to_make(folder)}") from None
    except ValueError as error:
        raise ValueError(f"{folder / CARD} is damaged ({error}): {_how_to_make(folder)}") from None


def _read(path: Path, schema: pa.Schema, columns: list[str] | None) -> pa.Table:
    try:
        file = pq.ParquetFile(path)
        found = file.schema_arrow
        if not found.equals(schema):
            different = sorted(set(found).symmetric_difference(schema), key=str)
            raise ValueError(
                f"{path} has other columns than this version writes: {[str(field) for field in different]}"
            )
        return file.read(columns)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {_how_to_make(path.parent)}") from None
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is damaged ({error}): {_how_to_make(path.parent)}") from None


def _how_to_make(folder: Path) -> str:
    return f"run `dvc repro shard@{folder.name}`"


def read_manifest(folder: Path, columns: list[str] | None = None) -> pa.Table:
    """The manifest of one data set's folder, all columns or some.

    Raises ValueError when it is missing, damaged or of another version.
    """
    return _read(folder / MANIFEST, SCHEMA, columns)


def read_quarantine(folder: Path) -> pa.Table:
    """The inputs of one data set that were not used, with the reasons. Raises as `read_manifest`."""
    return _read(folder / QUARANTINE, QUARANTINE_SCHEMA, None)

"""Manifests: whole or absent, the same bytes for the same rows, and clear words when they cannot be used."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codeswap.data.manifest import (
    CARD,
    MANIFEST,
    QUARANTINE,
    QUARANTINE_SCHEMA,
    SCHEMA,
    read_card,
    read_manifest,
    read_quarantine,
    write_card,
    write_rows,
)

ROW = {
    "key": "set-a", "dataset": "set", "identity": None, "video": None, "frame": None, "split": "train",
    "source": "a.png", "sha256": "00", "source_width": 10, "source_height": 10, "quad": None,
    "landmarks": [1.5] * 10, "licence": "CC0", "shard": "00000.tar", "offset": 512, "size": 100, "crc32": 7,
}  # fmt: skip


def test_rows_come_back(tmp_path: Path) -> None:
    write_rows(tmp_path / MANIFEST, [ROW, ROW | {"key": "set-b", "quad": [0.0] * 8}], SCHEMA)
    table = read_manifest(tmp_path)
    assert table.schema.equals(SCHEMA)
    assert table.to_pylist()[0] == ROW
    assert read_manifest(tmp_path, ["key"])["key"].to_pylist() == ["set-a", "set-b"]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_rows(tmp_path / name, [ROW], SCHEMA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_fact_that_must_be_known_is_demanded(tmp_path: Path) -> None:
    with pytest.raises((pa.ArrowInvalid, ValueError)):
        write_rows(tmp_path / MANIFEST, [ROW | {"licence": None}], SCHEMA)
    assert not (tmp_path / MANIFEST).exists()


def test_an_empty_quarantine_is_a_table_too(tmp_path: Path) -> None:
    write_rows(tmp_path / QUARANTINE, [], QUARANTINE_SCHEMA)
    assert len(read_quarantine(tmp_path)) == 0


def test_missing_damaged_and_foreign_files_are_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "ffhq"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"manifest\.parquet is missing: run `dvc repro shard@ffhq`"):
        read_manifest(folder)
    (folder / MANIFEST).write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="is damaged"):
        read_manifest(folder)
    pq.write_table(pa.table({"key": ["a"]}), folder / MANIFEST)
    with pytest.raises(ValueError, match="other columns than this version writes"):
        read_manifest(folder)


def test_cards(tmp_path: Path) -> None:
    write_card(tmp_path / CARD, {"b": 1, "a": {"x": [1.5]}})
    assert read_card(tmp_path) == {"b": 1, "a": {"x": [1.5]}}
    (tmp_path / CARD).write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        read_card(tmp_path)
    (tmp_path / CARD).unlink()
    with pytest.raises(ValueError, match="is missing"):
        read_card(tmp_path)

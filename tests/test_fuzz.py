"""Damage and malice: a small part of `python -m benchmarks.fuzz_data`, a full disk, names that are no text."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from benchmarks.fuzz_data import PICTURES, check_ingest, check_shards, write_pictures
from codeswap.data.sources import DatasetConfig, listed
from codeswap.prepare.blocks import cluster

FULL = """
import resource, sys
from pathlib import Path
from codeswap.data.shards import ImageConfig, Sample, write_shard
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
path = Path(sys.argv[1])
try:
    write_shard(path, [Sample("a", bytes(9000), {})], ImageConfig())
except OSError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home, raw = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("raw")
    kinds = write_pictures(raw, 150, random.Random(1))
    assert set(PICTURES) <= set(kinds)
    with cluster():
        reasons = check_ingest(raw, home)
    assert reasons["unreadable"] > 20 and reasons["not_square"] > 0 and reasons["too_small"] > 0
    return home / "shards" / "train" / "fuzz"


def test_every_picture_is_kept_or_quarantined_and_nothing_leaves_the_folder(fuzzed: Path) -> None:
    assert sorted(path.name for path in fuzzed.iterdir() if path.suffix != ".tar") == [
        "card.json", "manifest.parquet", "quarantine.parquet",
    ]  # fmt: skip


def test_damaged_shards_give_the_right_pixels_or_are_refused(fuzzed: Path) -> None:
    outcomes = check_shards(fuzzed, 60, random.Random(2))
    assert outcomes["refused"] > 20 and outcomes["whole"] > 20


def test_a_full_disk_is_one_error_with_the_files_name_and_leaves_nothing(tmp_path: Path) -> None:
    program = [sys.executable, "-c", FULL, str(tmp_path / "00000.tar")]
    done = subprocess.run(program, check=False, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == f"[Errno 27] File too large: '{tmp_path / '00000.tar'}'", done.stderr
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_no_text_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    os.link(os.fsencode(tmp_path / "a.png"), os.fsencode(tmp_path) + b"/\xff\xfe.png")
    source = TypeAdapter(DatasetConfig).validate_python(
        {"source": "folder", "split": "train", "root": str(tmp_path), "licence": "CC0"}
    )
    with pytest.raises(ValueError, match=r"the name of '.*png' is not UTF-8: rename it"):
        listed("odd", source)

"""Blocks of work on Ray: what fails says so in one line, and results are published whole."""

import os
import signal
from pathlib import Path

import pytest

from codeswap.prepare.blocks import BlockError, publish, run_blocks


def test_what_goes_wrong_in_a_worker_is_said_in_one_line(ray_is_running: None) -> None:
    with pytest.raises(BlockError, match=r"^title: disk 3 is full\. What is finished is kept: run again to go on$"):
        list(run_blocks(Fails, ("disk",), range(5), "title", holds=False))
    with pytest.raises(BlockError, match="cannot start"):
        list(run_blocks(CannotStart, (), range(2), "title", holds=True))
    with pytest.raises(BlockError, match="a worker process died"):
        list(run_blocks(Dies, (), range(2), "title", holds=True))


class Fails:
    def __init__(self, what: str) -> None:
        self.what = what

    def __call__(self, number: int) -> dict[str, float]:
        if number == 3:
            raise OSError(f"{self.what} {number} is full")
        return {"number": number}


class Dies:
    def __call__(self, number: int) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}


class CannotStart:
    def __init__(self) -> None:
        raise ValueError("cannot start")

    def __call__(self, number: int) -> dict[str, float]:
        return {}


def test_publish_replaces_the_whole_folder(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a").write_text("new")
    (tmp_path / "out" / "set").mkdir(parents=True)
    (tmp_path / "out" / "set" / "stale").write_text("old")
    publish(tmp_path / "new", tmp_path / "out" / "set")
    assert [path.name for path in (tmp_path / "out" / "set").iterdir()] == ["a"] and not (tmp_path / "new").exists()

"""Swaps hidden among photographs: every picture is there once, its place says nothing, and the count is by the key."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from benchmarks import blind_sheet
from codeswap.data.faces import Faces
from tests.evaluation_world import SIZE, models, perception, shards


@pytest.fixture
def faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The faces of a small world, in which the test works."""
    models(tmp_path / "models")
    perception(tmp_path / "models/perception")
    folder = shards(tmp_path / "data/shards/test/faces", 6, 2)
    monkeypatch.chdir(tmp_path)
    return np.stack([Faces([folder]).read(number) for number in range(12)])


def _run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["blind_sheet", *words])
    blind_sheet.main()


def _tiles(sheet: Path, count: int) -> list[np.ndarray]:
    pixels, scale = np.asarray(PILImage.open(sheet)), blind_sheet.SCALE
    side = SIZE * scale
    places = [divmod(number, blind_sheet.COLUMNS) for number in range(count)]
    corners = [(row * (side + 16) + 16, column * side) for row, column in places]
    return [pixels[top : top + side : scale, left : left + side : scale] for top, left in corners]


def test_swaps_are_hidden_among_photographs_and_counted(
    faces: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    Path("out/sheet-2.png").write_bytes(b"of an earlier draw")
    words = ["--testset", "faces", "--pairs", "6", "--leave-out", "0,1", "--models", "one=models", "two=models"]
    _run(monkeypatch, "draw", "out", *words)
    assert [path.name for path in Path("out").glob("*.png")] == ["sheet-1.png"]
    whose = json.loads(Path("out/key.json").read_text())
    assert Counter(whose) == {"one": 6, "two": 6, "photographs": 3}
    assert whose != ["one"] * 6 + ["two"] * 6 + ["photographs"] * 3
    for tile, name in zip(_tiles(Path("out/sheet-1.png"), len(whose)), whose, strict=True):
        alike = (faces == tile).all(axis=(1, 2, 3))
        assert alike.any() == (name == "photographs") and not alike[:2].any()
    capsys.readouterr()
    mine = [number for number, name in enumerate(whose) if name == "two"]
    _run(monkeypatch, "count", "out", "--flagged", f"{mine[0]},{mine[3]}")
    assert capsys.readouterr().out.splitlines() == [
        "one: 0 of 6 flagged", "photographs: 0 of 3 flagged", "two: 2 of 6 flagged"
    ]  # fmt: skip
    with pytest.raises(SystemExit, match=r"names \[15\]; out shows 15 pictures"):
        _run(monkeypatch, "count", "out", "--flagged", "15")
    with pytest.raises(SystemExit, match=r"names \[12\]; `list` shows 12 faces of faces"):
        _run(monkeypatch, "draw", "out", "--testset", "faces", "--leave-out", "3,12")


def test_faces_that_look_ahead_are_listed(faces: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(monkeypatch, "list", "out", "--testset", "faces")
    for tile, face in zip(_tiles(Path("out/sheet-1.png"), len(faces)), faces, strict=True):
        np.testing.assert_array_equal(tile, face)
    monkeypatch.setattr(blind_sheet, "AHEAD", 0)
    with pytest.raises(SystemExit, match="0 faces of faces are left"):
        _run(monkeypatch, "draw", "none", "--testset", "faces")
    assert not Path("none").exists()

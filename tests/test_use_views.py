"""What a model does, in pictures: reconstructions, attention, and swaps of a part of the face."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from typer.testing import CliRunner, Result

from codeswap.cli import app
from codeswap.data.faces import Faces, to_float
from codeswap.evaluate.views import attention, degraded
from codeswap.models.codeswap import load_codeswap
from codeswap.models.vqgan import tokens


@pytest.fixture(autouse=True)
def own_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def crops(trained: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two aligned faces of the model's own size."""
    faces = Faces([trained / "data/shards/train/tiny"])
    for name, index in (("ann", 0), ("bob", 9)):
        PILImage.fromarray(faces.read(index)).save(tmp_path / f"{name}.png")
    return tmp_path / "ann.png", tmp_path / "bob.png"


def invoke(trained: Path, *arguments: object) -> Result:
    words = [*arguments, "--models", trained / "models", "--aligned"]
    return CliRunner().invoke(app, [str(word) for word in words])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(PILImage.open(path).convert("RGB")).astype(int)


def test_a_part_of_the_face_is_swapped_and_the_rest_left(
    trained: Path, crops: tuple[Path, Path], tmp_path: Path
) -> None:
    painted = np.zeros((32, 32, 3), np.uint8)
    painted[8:16, 8:24] = 255
    PILImage.fromarray(painted).save(tmp_path / "upper.png")
    done = invoke(trained, "swap", *crops, "--region", tmp_path / "upper.png", "--no-marks", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    change = np.abs(pixels(tmp_path / "out/ann_on_bob_upper.png") - pixels(crops[1])).sum(axis=2)
    assert change[8:16, 8:24].any() and not change[26:].any()
    named = invoke(trained, "swap", *crops, "--region", "nose", "-o", tmp_path / "out")
    assert named.exit_code in (0, 4)  # the tiny parsing network is random: it may see no nose, and then says so
    assert named.exit_code == 0 or "the region nose is empty" in named.output
    cases = {"ear": "there is no region 'ear': give brows, eyes", str(tmp_path / "none.png"): "does not exist"}
    PILImage.new("RGB", (20, 20)).save(tmp_path / "small.png")
    cases[str(tmp_path / "small.png")] = "is 20x20, the photograph 32x32"
    for region, words in cases.items():
        wrong = invoke(trained, "swap", *crops, "--region", region, "-o", tmp_path / "out")
        assert wrong.exit_code == 4 and words in wrong.output.replace("\n", " "), wrong.output


def test_attention_shows_where_the_model_looks(trained: Path, crops: tuple[Path, Path], tmp_path: Path) -> None:
    models = trained / "models"
    model = load_codeswap(models / "codebook", models / "swap/ours")
    a, b = (to_float(torch.from_numpy(pixels(path).astype(np.uint8)).permute(2, 0, 1)[None]) for path in crops)
    with torch.no_grad():
        maps = model.fusion.attention_maps(tokens(model.vqgan.encode(a)), tokens(model.vqgan.encode(b)))
    row = maps[-1][0, 1].mean(dim=0)[8 * 3 + 5]  # b's side, the cell in row 3 and column 5
    assert row.sum().item() == pytest.approx(1, abs=1e-4)
    picture = np.asarray(attention(model, a, b, (5.5 / 8, 3.5 / 8))).astype(int)
    scale = 192 // 32
    height = 32 * scale
    top = picture.shape[0] - height
    redness = (
        (picture[top:, :height, 0] - picture[top:, :height, 2]).reshape(8, height // 8, 8, height // 8).mean((1, 3))
    )
    hottest = int(row[1].argmax())  # a's picture is the last strip
    assert redness[hottest // 8, hottest % 8] >= np.sort(redness.flatten())[-6]
    for at, words in {(1.0, 0.5): "outside", (0.2, -0.1): "outside"}.items():
        with pytest.raises(ValueError, match=words):
            attention(model, a, b, at)
    out = tmp_path / "look.png"
    assert invoke(trained, "attention", *crops, "--at", "0.7,0.4", "-o", out).exit_code == 0 and out.exists()
    wrong = invoke(trained, "attention", *crops, "--at", "eyes", "-o", out)
    assert wrong.exit_code == 4 and "--at eyes" in wrong.output
    wrong = invoke(trained, "attention", *crops, "--layer", "7", "-o", out)
    assert wrong.exit_code == 4 and "there is no layer 7: the model has 1" in wrong.output


def test_reconstructions_of_good_and_bad_pictures(trained: Path, crops: tuple[Path, Path], tmp_path: Path) -> None:
    for arguments in ((), ("--degrade",)):
        out = tmp_path / f"faces{len(arguments)}.png"
        assert invoke(trained, "reconstruct", *crops, *arguments, "-o", out).exit_code == 0
        assert pixels(out).shape[1] == 2 * 192
    assert (pixels(tmp_path / "faces0.png") != pixels(tmp_path / "faces1.png")).any()
    face = pixels(crops[0]).astype(np.uint8)
    worse = degraded(face)
    assert worse.shape == face.shape and (worse == degraded(face)).all() and np.abs(worse.astype(int) - face).mean() > 2

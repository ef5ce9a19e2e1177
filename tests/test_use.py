"""Swapping photographs as a user does: both results in their places, marked; each failure a sentence and a code."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from typer.testing import CliRunner, Result

from codeswap.cli import app
from codeswap.data.faces import Faces
from codeswap.models.codeswap import load_codeswap
from codeswap.use import commands, credentials, watermark
from codeswap.use.output import MIME

pytestmark = pytest.mark.usefixtures("own_certificate")


@pytest.fixture
def crops(trained: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two aligned faces, enlarged so that a watermark has room."""
    faces = Faces([trained / "data/shards/train/tiny"])
    places = tmp_path / "ann.png", tmp_path / "bob.png"
    for place, index in zip(places, (0, 9), strict=True):
        PILImage.fromarray(faces.read(index)).resize((256, 256), PILImage.Resampling.BICUBIC).save(place)
    return places


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def swap(trained: Path, *arguments: object) -> Result:
    return invoke("swap", *arguments, "--models", trained / "models")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(PILImage.open(path).convert("RGB"))


def test_both_swaps_are_written_and_are_the_models(trained: Path, crops: tuple[Path, Path], tmp_path: Path) -> None:
    done = swap(trained, *crops, "--aligned", "--parts", "--no-marks", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        f"{n}{part}.png" for n in ("ann_on_bob", "bob_on_ann") for part in ("", "_naive", "_crop", "_mask")
    }
    models = trained / "models"
    model = load_codeswap(models / "codebook", models / "swap/ours", models / "mask/ours")
    a, b = (torch.from_numpy(pixels(tmp_path / f"out/{n}_crop.png").copy()) for n in ("bob_on_ann", "ann_on_bob"))
    with torch.no_grad():
        expected = model.swap(*(x.permute(2, 0, 1)[None].float() / 127.5 - 1 for x in (a, b)))
    naive = ((expected.naive_ab[0].clamp(-1, 1) * 127.5 + 127.5).round().byte()).permute(1, 2, 0).numpy()
    assert (pixels(tmp_path / "out/ann_on_bob_naive.png") == naive).all()
    mask = pixels(tmp_path / "out/ann_on_bob_mask.png")[..., 0] / 255
    np.testing.assert_allclose(mask, expected.mask_b[0, 0].numpy(), atol=0.003)
    result, target = pixels(tmp_path / "out/ann_on_bob.png"), pixels(crops[1])
    assert result.shape == (256, 256, 3)
    assert (result[0] == target[0]).all() and (result[:, -1] == target[:, -1]).all()  # nothing at the crop's border


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_results_are_marked_and_verify_reads_it(trained, crops, tmp_path, suffix) -> None:
    assert swap(trained, *crops, "--aligned", "-o", tmp_path, "--suffix", suffix).exit_code == 0
    result = tmp_path / f"ann_on_bob{suffix}"
    told = invoke("verify", result)
    assert told.exit_code == 0 and "watermark: found" in told.output and "intact" in told.output
    assert "not verified by anybody" in told.output and "compositeWithTrainedAlgorithmicMedia" in told.output
    for kind, place in {"codebook": "codebook", "swap": "swap/ours", "mask": "mask/ours"}.items():
        card = json.loads((trained / "models" / place / "card.json").read_text())
        assert f"{kind}: {card['weights_sha256']}" in told.output  # which weights made it
    data = bytearray(result.read_bytes())
    data[-len(data) // 3] ^= 1
    result.write_bytes(data)
    assert not credentials.read_file(result, MIME[suffix]).intact
    plain = tmp_path / f"plain{suffix}"
    PILImage.fromarray(pixels(crops[0])).save(plain)
    told = invoke("verify", plain)
    assert told.exit_code == 1 and "watermark: not found" in told.output and "Credentials: none" in told.output


def test_marks_are_left_out_only_when_told(trained, crops, tmp_path) -> None:
    assert swap(trained, *crops, "--aligned", "--no-marks", "-o", tmp_path / "bare").exit_code == 0
    assert invoke("verify", tmp_path / "bare/ann_on_bob.png").exit_code == 1
    assert swap(trained, *crops, "--aligned", "--parts", "-o", tmp_path / "marked").exit_code == 0
    assert invoke("verify", tmp_path / "marked/ann_on_bob_crop.png").exit_code == 1  # the target's own pixels


def test_the_users_certificate_signs_and_half_of_one_is_refused(trained, crops, tmp_path, monkeypatch) -> None:
    chain, key = tmp_path / "mine.pem", tmp_path / "mine.key"
    credentials._make_local(chain, key)
    monkeypatch.setenv(credentials.CERTIFICATE, str(chain))
    half = swap(trained, *crops, "--aligned", "-o", tmp_path / "out")
    assert half.exit_code == 1 and "belong together" in half.output and not (tmp_path / "out").exists()
    monkeypatch.setenv(credentials.KEY, str(key))
    assert swap(trained, *crops, "--aligned", "-o", tmp_path / "out").exit_code == 0
    assert not (tmp_path / "config").exists()
    monkeypatch.setenv(credentials.KEY, str(tmp_path / "nowhere.key"))
    lost = swap(trained, *crops, "--aligned", "-o", tmp_path / "out")
    assert lost.exit_code == 1 and "nowhere.key cannot be read" in lost.output
    chain.write_text("no certificate")
    monkeypatch.setenv(credentials.KEY, str(key))
    wrong = swap(trained, *crops, "--aligned", "-o", tmp_path / "out")
    assert wrong.exit_code == 1 and "cannot be signed" in wrong.output


def test_every_failure_has_a_sentence_and_a_code(trained, crops, tmp_path, monkeypatch) -> None:
    out, (a, b) = ("-o", tmp_path / "out"), crops
    (tmp_path / "text.png").write_text("no picture")
    PILImage.new("RGB", (30, 20)).save(tmp_path / "wide.png")
    monkeypatch.setenv("CODESWAP_WEIGHTS", str(tmp_path / "weights"))
    cases = [
        (3, "there is no trained model", [a, b, "--aligned", "--models", tmp_path, *out]),
        (3, "weights fetch --only mtcnn", [a, b, "--models", trained / "models", *out]),
        (4, "does not exist", [a, tmp_path / "none.png", "--aligned", "--models", trained / "models", *out]),
        (4, "text.png cannot be read", [tmp_path / "text.png", b, "--aligned", "--models", trained / "models", *out]),
        (4, "--aligned takes square", [tmp_path / "wide.png", b, "--aligned", "--models", trained / "models", *out]),
        (4, "write one of .png", [a, b, "--aligned", "--models", trained / "models", "--suffix", ".gif", *out]),
        (2, "give two photographs", [a, *out]),
    ]
    for code, words, arguments in cases:
        done = invoke("swap", *arguments)
        assert done.exit_code == code and words in done.output, (words, done.exit_code, done.output)
    assert not (tmp_path / "out").exists()


def test_a_batch_goes_on_ends_with_what_failed_and_is_resumed(trained, crops, tmp_path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "pairs.csv").write_text("a,b\nann.png,bob.png\nann.png,text.png\nbob.png,ann.png\n")
    arguments = ("--pairs", tmp_path / "pairs.csv", "--aligned", "-o", tmp_path / "out")
    done = swap(trained, *arguments)
    assert done.exit_code == 6 and "2 of 3 pairs" in done.output and "text.png cannot be read" in done.output
    first = tmp_path / "out/ann_on_bob.png"
    before = first.stat().st_mtime_ns
    assert swap(trained, *arguments).exit_code == 6 and first.stat().st_mtime_ns == before
    (tmp_path / "pairs.csv").write_text("from,to\nx,y\n")
    wrong = swap(trained, *arguments)
    assert wrong.exit_code == 4 and "columns a and b" in wrong.output


def test_a_watermark_survives_jpeg_halving_and_cropping_and_is_nowhere_else(crops, tmp_path) -> None:
    picture = pixels(crops[0])
    assert not watermark.is_marked(picture)
    marked = watermark.embed(picture)
    assert 36 < 10 * np.log10(255**2 / np.mean((marked.astype(float) - picture) ** 2)) < 50
    image = PILImage.fromarray(marked).crop((13, 7, 243, 237)).resize((115, 115), PILImage.Resampling.LANCZOS)
    image.save(tmp_path / "spread.jpg", quality=75)
    assert watermark.is_marked(marked) and watermark.is_marked(pixels(tmp_path / "spread.jpg"))


def test_a_model_without_variants_and_without_a_mask_swaps_too(trained, crops, tmp_path) -> None:
    release = tmp_path / "release"
    shutil.copytree(trained / "models/codebook", release / "codebook")
    shutil.copytree(trained / "models/swap/ours", release / "swap")
    done = invoke("swap", *crops, "--aligned", "--models", release, "-o", tmp_path / "out")
    assert done.exit_code == 0 and (tmp_path / "out/bob_on_ann.png").exists()
    card = release / "swap/card.json"
    card.write_text(card.read_text().replace('"kind": "swap"', '"kind": "mask"'))
    wrong = invoke("swap", *crops, "--aligned", "--models", release, "-o", tmp_path / "out")
    assert wrong.exit_code == 3 and "expected 'swap'" in wrong.output
    assert commands.SOME_FAILED not in {3, 4, 5}


def test_two_folders_are_paired_by_name_and_nothing_is_overwritten(
    trained: Path, crops: tuple[Path, Path], tmp_path: Path
) -> None:
    for folder, picture in zip(("ann", "bob"), crops, strict=True):
        (tmp_path / folder).mkdir()
        for number in (1, 2):
            shutil.copyfile(picture, tmp_path / folder / f"{number}.png")
    (tmp_path / "bob" / "3.png").write_bytes(b"nobody's pair")
    arguments = (tmp_path / "ann", tmp_path / "bob", "--aligned", "--no-marks", "-o", tmp_path / "out")
    done = swap(trained, *arguments)
    assert done.exit_code == 0 and "2 of 2 pairs" in done.output, done.output
    names = {f"{a}-{n}_on_{b}-{n}.png" for a, b in (("ann", "bob"), ("bob", "ann")) for n in (1, 2)}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert not np.array_equal(pixels(tmp_path / "out/ann-1_on_bob-1.png"), pixels(tmp_path / "out/bob-1_on_ann-1.png"))
    globbed = (tmp_path / "ann" / "*.png", tmp_path / "bob" / "[12]*", "--aligned", "--no-marks", "--batch", 1)
    assert "2 of 2 pairs" in swap(trained, *globbed, "-o", tmp_path / "one").output
    for name in names:  # one pair in a pass gives what both in one gave
        np.testing.assert_allclose(
            pixels(tmp_path / "one" / name).astype(int), pixels(tmp_path / "out" / name), atol=1, err_msg=name
        )
    (tmp_path / "none").mkdir()
    (tmp_path / "other").mkdir()
    shutil.copyfile(crops[0], tmp_path / "other" / "9.png")
    for place, words in {"none": "holds no pictures", "nowhere*": "holds no pictures", "other": "same names"}.items():
        done = swap(trained, tmp_path / "ann", tmp_path / place, "--aligned")
        assert done.exit_code == 4 and words in done.output, place
    done = swap(trained, tmp_path / "ann", tmp_path / "bob", "--aligned", "--face-a", 1)
    assert done.exit_code == 2 and "take two photographs" in done.output


def test_one_photograph_is_swapped_with_each_of_a_folder_and_halves_are_done_again(
    trained: Path, crops: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "many").mkdir()
    for number in (1, 2, 3):
        shutil.copyfile(crops[1], tmp_path / "many" / f"{number}.png")
    arguments = (crops[0], tmp_path / "many", "--aligned", "--no-marks", "-o", tmp_path / "out")
    assert "3 of 3 pairs" in swap(trained, *arguments).output
    results = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert {path.name for path in results} == {f"{x}.png" for n in "123" for x in (f"ann_on_{n}", f"{n}_on_ann")}
    (tmp_path / "out/2_on_ann.png").unlink()  # killed between the two
    assert swap(trained, *arguments).exit_code == 0
    again = {path.name for path, time in results.items() if path.stat().st_mtime_ns != time}
    assert again == {"ann_on_2.png", "2_on_ann.png"}


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_fewer_bits_give_nearly_the_same(trained: Path, crops: tuple[Path, Path], tmp_path: Path, precision) -> None:
    for kind in ("fp32", precision):
        done = swap(trained, *crops, "--aligned", "--no-marks", "--precision", kind, "-o", tmp_path / kind)
        assert done.exit_code == 0, done.output
    for name in ("ann_on_bob.png", "bob_on_ann.png"):
        exact, found = (pixels(tmp_path / kind / name).astype(int) for kind in ("fp32", precision))
        assert 0 < np.abs(found - exact).mean() < 3

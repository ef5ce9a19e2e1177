"""Swapping photographs as a user does: both results in their places, marked; each failure a sentence and a code."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from typer.testing import CliRunner, Result

from codeswap.cli import app
from codeswap.data.align import align, quad_of
from codeswap.data.faces import Faces
from codeswap.models.codeswap import CodeSwap, load_codeswap, new_fusion
from codeswap.models.fusion import FusionConfig
from codeswap.models.quantizer import QuantizerConfig
from codeswap.models.vqgan import VQGAN, VQGANConfig
from codeswap.types import Detection
from codeswap.use import commands, credentials, photographs, watermark
from codeswap.use.errors import MissingModelError, NoFaceError, UnfitFaceError
from codeswap.use.int8 import Int8Conv, to_int8_
from codeswap.use.loading import load_identity
from codeswap.use.output import MIME
from codeswap.use.photographs import Face, paste

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


class Finds:
    """A detector that has found these faces; what it really finds is in test_packaged.py."""

    def __init__(self, *faces: Detection) -> None:
        self.faces = faces

    def detect(self, image: np.ndarray) -> list[Detection]:
        return list(self.faces)


def _face(x: float, y: float, side: float) -> Detection:
    """A detection whose eyes, nose and mouth stand where they do in a face of that box."""
    points = np.array([[0.3, 0.35], [0.7, 0.35], [0.5, 0.55], [0.35, 0.75], [0.65, 0.75]]) * side + [x, y]
    return Detection(np.array([x, y, x + side, y + side]), 0.99, points)


def test_the_face_is_chosen_from_the_left_or_the_largest() -> None:
    picture = np.zeros((300, 400, 3), np.uint8)
    detector = Finds(_face(250, 60, 120), _face(40, 80, 60), _face(180, 200, 10))
    at = {None: 250, 1: 40, 3: 250}
    for position, x in at.items():
        face = photographs.find(Path("p.png"), picture, detector, 32, position)
        assert np.allclose(face.quad, quad_of(_face(x, {250: 60, 40: 80}[x], {250: 120, 40: 60}[x]).points))
    for position, words in {4: "no face 4; 3 were found", 0: "no face 0"}.items():
        with pytest.raises(NoFaceError, match=words):
            photographs.find(Path("p.png"), picture, detector, 32, position)
    with pytest.raises(UnfitFaceError, match="the face is 10 px, at least 24"):
        photographs.find(Path("p.png"), picture, detector, 32, 2)
    with pytest.raises(NoFaceError, match=r"p\.png: no face was found"):
        photographs.find(Path("p.png"), picture, Finds(), 32, None)


@pytest.mark.parametrize("degrees", [-80, -30, 0, 40, 75])
def test_a_face_seen_from_the_side_is_refused(degrees: float) -> None:
    """Points of a head in proportions of a face (nose .6 of the eyes' distance before them), turned and projected."""
    head = np.array([[-0.5, 0, 0], [0.5, 0, 0], [0, 0.5, 0.6], [-0.4, 1, 0.1], [0.4, 1, 0.1]])
    yaw = np.deg2rad(degrees)
    x = head[:, 0] * np.cos(yaw) + head[:, 2] * np.sin(yaw)
    points = np.stack([x, head[:, 1]], axis=1) * 60 + [150, 100]
    detector = Finds(Detection(np.array([90, 60, 210, 180]), 0.99, points))
    picture = np.zeros((300, 300, 3), np.uint8)
    if abs(degrees) < 60:
        assert photographs.find("p.png", picture, detector, 32, None).crop.shape == (32, 32, 3)
    else:
        with pytest.raises(UnfitFaceError, match=r"p\.png: the face is seen from the side"):
            photographs.find("p.png", picture, detector, 32, None)


def test_the_face_is_chosen_by_a_picture_of_the_person(trained: Path, tmp_path: Path) -> None:
    """The two persons' own pictures stand side by side; what compares them here are their colours."""
    faces = Faces([trained / "data/shards/train/tiny"])
    people = [np.asarray(PILImage.fromarray(faces.read(index)).resize((120, 120))) for index in (0, 20)]
    picture = np.concatenate(people, axis=1)
    detector = Finds(_face(20, 30, 80), _face(140, 30, 80))

    def embed(crops: np.ndarray) -> np.ndarray:
        vectors = crops.reshape(len(crops), -1).astype(np.float64)
        vectors -= vectors.mean(axis=1, keepdims=True)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    for number, person in enumerate(people):
        reference = photographs.find(Path("r.png"), person, Finds(_face(20, 30, 80)), 32, None)
        found = photographs.find(Path("p.png"), picture, detector, 32, photographs.Like(reference.crop, embed))
        assert np.allclose(found.quad, quad_of(_face(20 + 120 * number, 30, 80).points))
    unit = load_identity(trained / "models/perception")(np.stack([faces.read(0), faces.read(20)]))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)
    with pytest.raises(MissingModelError, match="choose them by position"):
        load_identity(tmp_path)


@pytest.mark.parametrize("turn", [0.0, 0.5])
def test_a_crop_that_is_pasted_back_lands_where_it_was_taken_from(turn: float) -> None:
    """Smooth pictures survive the way into the crop and back; a wrong half pixel would not."""
    y, x = np.mgrid[:240, :320].astype(np.float64)
    picture = np.stack([127 + 100 * np.sin(x / 25), 127 + 100 * np.sin(y / 31), 127 + 60 * np.sin((x + y) / 40)], -1)
    picture = picture.round().astype(np.uint8)
    points = _face(110, 70, 90).points - [155, 115]
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    quad = quad_of(points @ rotation.T + [155, 115])
    for size in (96, 256):  # smaller than the face's square, and larger
        crop = align(picture, quad, size).pixels
        back = paste(picture, Face(quad, crop), crop, np.ones((size, size), np.float32), match_colour=False)
        difference = np.abs(back.astype(int) - picture)
        assert difference.max() <= 3 and difference.mean() < 0.4
        inverted = paste(picture, Face(quad, crop), 255 - crop, np.ones((size, size), np.float32), match_colour=False)
        changed = (inverted != picture).any(-1)
        assert changed[115, 155] and not changed[:3].any() and not changed[:, :3].any()


def test_colours_are_matched_inside_the_mask() -> None:
    rng = np.random.default_rng(0)
    target = rng.normal([180, 140, 120], [20, 10, 15], (64, 64, 3)).clip(0, 255).astype(np.uint8)
    swapped = rng.normal([100, 110, 150], [10, 20, 10], (64, 64, 3)).clip(0, 255).astype(np.uint8)
    low, high = -0.5, 63.5
    face = Face(np.array([[low, low], [low, high], [high, high], [high, low]]), target)
    result = paste(target, face, swapped, np.ones((64, 64), np.float32), match_colour=True)[16:48, 16:48]
    np.testing.assert_allclose(result.mean((0, 1)), [180, 140, 120], atol=4)
    np.testing.assert_allclose(result.std((0, 1)), [20, 10, 15], atol=3)


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


def test_eight_bits_convert_all_but_first_and_last_convolutions_and_padding_stays_zero() -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(16, 24, 3, padding=1)
    x = torch.rand(2, 16, 9, 9) * 3 - 1
    eight = Int8Conv(conv, float(x.min()), float(x.max()))
    with torch.no_grad():
        exact, found = conv(x), eight(x)
        assert (found - exact).abs().max() < 0.05 * exact.abs().max()
        torch.testing.assert_close(eight(10 * x), eight((10 * x).clamp(x.min(), x.max())))  # clamped, not wrapped
    config = VQGANConfig(image_size=32, ch=16, ch_mult=(1, 2), attn_res=(), z_ch=8, embed_dim=8, mid="residual")
    vqgan = VQGAN(config, QuantizerConfig(n_codes=16))
    fusion = new_fusion(FusionConfig(layers=1, width=16, heads=2, ffn=16), "ours", vqgan)
    model = CodeSwap(vqgan, fusion, None).eval().requires_grad_(False)
    wanted = {id(layer) for layer in (vqgan.encoder.conv_in, vqgan.encoder.conv_out, vqgan.decoder.conv_in)}
    to_int8_(model, torch.rand(2, 3, 32, 32) * 2 - 1)
    left = [
        layer for net in (vqgan.encoder, vqgan.decoder) for layer in net.modules() if type(layer) is torch.nn.Conv2d
    ]
    assert {id(layer) for layer in left} == wanted | {id(vqgan.decoder.conv_out)}
    assert sum(isinstance(layer, Int8Conv) for layer in model.modules()) > 10


@pytest.mark.parametrize("kept", [True, False])
def test_freed_memory_is_taken_again_without_new_pages_from_the_system(kept: bool) -> None:
    program = (
        "import resource, torch\n"
        "from codeswap.use.memory import keep_freed_memory\n"
        f"assert not {kept} or keep_freed_memory()\n"
        "def faults():\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def fill():\n"
        "    torch.empty(16 * 2**20).fill_(1.0)\n"  # 64 MB, 16,384 pages
        "for _ in range(8): fill()\n"  # the heap grows to what alignment needs
        "before = faults()\n"
        "for _ in range(5): fill()\n"
        "print(faults() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 3 * 16_384) == kept  # 5 of them without; at most a growth of the heap with

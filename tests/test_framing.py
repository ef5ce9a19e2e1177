"""Faces that show a smaller square than FFHQ's (`image.framing`): cut, seen, swapped and pasted where they belong; and
whatever is made for another framing is refused in words."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from pydantic import TypeAdapter
from typer.testing import CliRunner

from codeswap.cli import app
from codeswap.data.align import Cut, align, quad_of, whole
from codeswap.data.faces import Faces, to_float
from codeswap.data.manifest import read_manifest
from codeswap.data.shards import ImageConfig
from codeswap.data.sources import DatasetConfig
from codeswap.evaluate.judges import Judges
from codeswap.evaluate.runner import EvaluateConfig, evaluate
from codeswap.models.codeswap import load_vqgan
from codeswap.perception import packaged, roles
from codeswap.perception.boxes import WHOLE, Box, View
from codeswap.perception.dlib_resnet import DlibResNet
from codeswap.perception.roles import PerceptionConfig, PerceptionError, load
from codeswap.prepare.annotate import annotate
from codeswap.prepare.ingest import ingest, plan
from codeswap.prepare.perception import fill_roles
from codeswap.train.inputs import codebook_inputs
from codeswap.types import corner_of
from codeswap.use.loading import load_swapper
from codeswap.use.photographs import Face, aligned, paste
from codeswap.use.video import FrameSwapper
from tests.evaluation_world import models, shards

# Eyes level at y 100, 40 apart; mouth 50 below them: FFHQ's square is 10..190 by 15..195 (tests/test_align.py).
POINTS = np.array([[80, 100], [120, 100], [100, 125], [90, 150], [110, 150]], dtype=float)


def _smooth(side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(9 * x + 4 * y), np.sin(11 * y - 3 * x), np.sin(7 * (x + y))]
    return np.stack([127 + 100 * wave for wave in waves], axis=-1).round().astype(np.uint8)


def _image(pixels: np.ndarray) -> torch.Tensor:
    return to_float(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])


def test_the_square_by_hand() -> None:
    # four fifths of 180 are 144; a tenth of 180 is left out at each side, .9 * .2 of it above and .1 * .2 below
    np.testing.assert_allclose(quad_of(POINTS, 0.8), [[28, 47.4], [28, 191.4], [172, 191.4], [172, 47.4]])
    np.testing.assert_allclose(whole(100, 0.8), [[9.5, 17.5], [9.5, 97.5], [89.5, 97.5], [89.5, 17.5]])
    assert corner_of(1.0) == (0, 0)


def _sharded(folder: Path, framing: float, **source: object) -> Path:
    config = {"split": "train", "source": "folder", "root": str(folder / "raw"), "licence": "CC0"} | source
    made = TypeAdapter(DatasetConfig).validate_python(config)
    plan("set", made, folder / "plan.parquet")
    image, out = ImageConfig(size=80, framing=framing), folder / f"out{framing}" / "set"
    ingest("set", made, image, folder / "plan.parquet", folder / "run", out, None)
    return out


@pytest.mark.parametrize("is_aligned", [True, False])
def test_shards_hold_the_smaller_square(is_aligned: bool, tmp_path: Path, ray_is_running: None) -> None:
    (tmp_path / "raw").mkdir()
    side = 100 if is_aligned else 220
    PILImage.fromarray(_smooth(side)).save(tmp_path / "raw" / "face.png")
    header = "file," + ",".join(f"{axis}{number}" for number in range(5) for axis in "xy")
    points = POINTS / 2 if is_aligned else POINTS
    (tmp_path / "raw" / "points.csv").write_text(f"{header}\nface.png,{','.join(map(str, points.flatten()))}\n")
    out = _sharded(tmp_path, 0.8, aligned=is_aligned, landmarks="points.csv")
    quad = whole(100, 0.8) if is_aligned else quad_of(POINTS, 0.8)
    faces, (row,) = Faces([out]), read_manifest(out).to_pylist()
    assert faces.framing == 0.8 and faces.size == 80
    np.testing.assert_allclose(np.reshape(row["quad"], (4, 2)), quad, rtol=1e-6)
    where = (points - quad[0]) * 80 / (quad[2] - quad[0]) - 0.5
    np.testing.assert_allclose(np.reshape(row["landmarks"], (5, 2)), where, atol=1e-4)
    if is_aligned:  # 80 of its 100 pixels, as they are
        assert np.abs(faces.read(0).astype(int) - _smooth(100)[18:98, 10:90])[4:-4, 4:-4].max() <= 2


def test_rendered_faces_are_ffhqs(tmp_path: Path) -> None:
    made = TypeAdapter(DatasetConfig).validate_python({"split": "train", "source": "synthetic", "identities": 2})
    plan("set", made, planned := tmp_path / "plan.parquet")
    with pytest.raises(ValueError, match=r"image\.framing is 0\.8, but faces of 'set' are rendered in FFHQ's"):
        ingest("set", made, ImageConfig(framing=0.8), planned, tmp_path / "run", tmp_path / "out", None)


def test_a_network_finds_its_part_of_the_smaller_square() -> None:
    pixels, box = _smooth(100), Box(0.2, 0.3, 0.5)
    seen = View(box, 25, (0.0,), (255.0,))(_image(pixels))
    part = View(box.within(0.8), 25, (0.0,), (255.0,))(_image(pixels[18:98, 10:90]))
    torch.testing.assert_close(part, seen)


def test_networks_of_a_folder_look_at_its_framing(tmp_path: Path) -> None:
    """dlib's network with random weights, filled in as a file, sees the same face in both squares."""
    torch.manual_seed(0)
    packaged.save(packaged._dress("dlib_resnet", DlibResNet()), tmp_path / "dlib.safetensors")
    facts = {"architecture": "dlib_resnet", "file": "dlib.safetensors", "source": "a test", "licence": "none"}
    config = PerceptionConfig.model_validate({"identity_eval": facts})
    embeddings = []
    for framing, pixels in ((1.0, _smooth(100)), (0.8, _smooth(100)[18:98, 10:90])):
        fill_roles(config, tmp_path, tmp_path / "run", tmp_path / str(framing), framing)
        assert roles.framing_of(tmp_path / str(framing)) == framing
        embeddings.append(load(tmp_path / str(framing), "identity_eval")(_image(pixels)))
    torch.testing.assert_close(embeddings[1], embeddings[0], atol=1e-5, rtol=1e-3)
    again = load(tmp_path / "1.0", "identity_eval", 0.8)(_image(_smooth(100)[18:98, 10:90]))
    torch.testing.assert_close(again, embeddings[1])
    assert (load(tmp_path / "1.0", "identity_eval")(_image(_smooth(100)[18:98, 10:90])) - again).abs().max() > 1e-3


def test_a_network_that_sees_all_still_sees_all() -> None:
    network = torch.nn.Sequential(View(WHOLE, 8, (0.0,), (255.0,)))
    roles._frame(network, 0.8)
    assert network[0].box == WHOLE


def test_networks_trained_on_rendered_faces_are_refused(tmp_path: Path, trained: Path) -> None:
    config = PerceptionConfig.model_validate({"pose": {"train": "synthetic"}})
    with pytest.raises(PerceptionError, match=r"image\.framing is 0\.8, but pose would be trained on rendered faces"):
        fill_roles(config, tmp_path, tmp_path / "run", tmp_path / "out", 0.8)
    with pytest.raises(PerceptionError, match="holds our own network, which looks at FFHQ's square"):
        load(trained / "models/perception", "identity_train", 0.8)


def _reframe(card: Path, framing: float) -> None:
    """Says in the card of shards or of a codebook that they are of another framing."""
    content = json.loads(card.read_text())
    group = content["image"] if "image" in content else content["config"]["vqgan"]
    group["framing"] = framing
    card.write_text(json.dumps(content))


def test_trainings_refuse_what_was_made_for_another_framing(
    copy: Callable[..., Path], tiny: ModuleType, no_mlflow: None, tmp_path: Path
) -> None:
    root = copy("codebook", "swap", "mask")
    with pytest.raises(ValueError, match=r"image\.framing is 1\.0, vqgan\.framing 0\.8: give both the same"):
        tiny.train(root, ["codebook"], vqgan={"framing": 0.8})
    for card in (root / "data/shards/train/tiny/card.json", root / "data/shards/train/tiny/held_out/card.json"):
        _reframe(card, 0.8)
    with pytest.raises(PerceptionError, match=r"looks at faces of framing 1\.0, .*tiny has 0\.8: run the perception"):
        tiny.train(root, ["codebook"], vqgan={"framing": 0.8})
    with pytest.raises(PerceptionError, match="run the perception stage again"):
        annotate(root / "data/shards/train/tiny", root / "models/perception", tmp_path / "run", tmp_path / "out")


def test_a_codebook_of_another_framing_may_be_trained_on(
    copy: Callable[..., Path], tiny: ModuleType, no_mlflow: None
) -> None:
    root = copy("codebook", "swap", "mask")
    tiny.train(root, ["codebook"])
    (root / "models/codebook").rename(root / "start")
    _reframe(root / "start/card.json", 0.8)
    tiny.train(root, ["codebook"], codebook={"start_from": "start", "warm_up": 0})
    assert load_vqgan(root / "models/codebook").config.framing == 1.0
    assert codebook_inputs(root)


def test_evaluation_refuses_faces_of_another_framing(tmp_path: Path, judges: Judges) -> None:
    places = models(tmp_path / "models")._replace(shards=shards(tmp_path / "faces", 3, 2))
    _reframe(places.shards / "card.json", 0.8)
    with pytest.raises(ValueError, match=r"px and framing 0\.8, the model was trained for 16 px and 1\.0"):
        evaluate("ours", "faces", EvaluateConfig(), places, tmp_path / "metrics", tmp_path / "run")


def test_a_swap_is_cut_and_pasted_by_the_models_framing(copy: Callable[..., Path], tmp_path: Path) -> None:
    root = copy()
    _reframe(root / "models/codebook/card.json", 0.8)
    for name, face in (("ann", 0), ("bob", 9)):
        pixels = Faces([root / "data/shards/train/tiny"]).read(face)
        PILImage.fromarray(pixels).resize((100, 100)).save(tmp_path / f"{name}.png")
    words = ["swap", "ann.png", "bob.png", "--aligned", "--parts", "--no-marks", "-o", "out"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        done = CliRunner().invoke(app, [*words, "--models", str(root / "models")])
    assert done.exit_code == 0, done.output
    names = ("bob.png", "out/ann_on_bob.png", "out/ann_on_bob_crop.png")
    target, result, crop = (np.asarray(PILImage.open(tmp_path / name)) for name in names)
    np.testing.assert_array_equal(crop, align(target, whole(100, 0.8), len(crop)).pixels)
    changed = (result != target).any(axis=-1)
    assert changed[40:70, 30:70].mean() > 0.5
    changed[18:98, 10:90] = False
    assert not changed.any()


def test_a_frame_of_a_video_is_cut_and_pasted_by_the_models_framing(copy: Callable[..., Path]) -> None:
    root = copy()
    _reframe(root / "models/codebook/card.json", 0.8)
    swapper, faces = load_swapper(root / "models", "ours"), Faces([root / "data/shards/train/tiny"])
    frame = np.asarray(PILImage.fromarray(faces.read(9)).resize((200, 220)))
    result = FrameSwapper(swapper, faces.read(0), False)(frame, POINTS, True)
    changed = (result != frame).any(axis=-1)
    assert changed[100:160, 70:130].mean() > 0.5
    changed[47:192, 28:172] = False
    assert not changed.any()


def test_without_a_mask_the_ellipse_lies_where_the_face_is() -> None:
    picture = np.zeros((100, 100, 3), dtype=np.uint8)
    weights = []
    for framing in (1.0, 0.8):
        face = aligned("p.png", picture, Cut(100, framing))
        weights.append(paste(picture, face, np.full_like(picture, 255), None, False)[..., 0].astype(int))
        assert isinstance(face, Face) and face.framing == framing
    assert np.abs(weights[0] - weights[1])[30:80, 25:75].max() <= 3

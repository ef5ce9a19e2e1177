"""Rivals by ONNX: small graphs with the published files' signatures, so that what each is given can be read off."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from codeswap.evaluate.judges import Judges
from codeswap.evaluate.rivals import BORDER, RECIPES, TEMPLATES, OnnxConfig, OnnxSwapper, put_back
from codeswap.evaluate.runner import EvaluateConfig, evaluate
from codeswap.perception.boxes import FFHQ_512, Box
from codeswap.perception.roles import sha256_of
from tests.evaluation_world import models, shards

node = helper.make_node


def save(path: Path, nodes: list, inputs: dict[str, list], tensors: dict[str, np.ndarray], out: list) -> Path:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9), path)
    return path


def embedder(folder: Path) -> Path:
    """w600k_r50's signature: the mean colours of a 112 px face, 512 times."""
    nodes = [
        node("GlobalAveragePool", ["input.1"], ["mean"]),
        node("Reshape", ["mean", "shape"], ["flat"]),
        node("MatMul", ["flat", "spread"], ["output"]),
    ]
    spread = np.zeros((3, 512))
    spread[:, :3] = np.eye(3) * 5
    path = save(folder / "w600k_r50.onnx", nodes, {"input.1": [1, 3, 112, 112]}, {"spread": spread}, [1, 512])
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 3]), "shape"))
    onnx.save(model, path)
    return path


def converter(folder: Path) -> Path:
    """A crossface file: twice the embedding, so that unit length can be told from plain."""
    nodes = [node("Mul", ["input", "two"], ["output"])]
    return save(folder / "crossface.onnx", nodes, {"input": [1, 512]}, {"two": np.array(2.0)}, [1, 512])


def swapper(folder: Path, size: int, embedding: bool, emap: bool = False) -> Path:
    """Gives the target back as it was shown, plus the first number that it was told of the source."""
    shape = [1, 512] if embedding else [1, 3, *([112, 112] if size == 0 else [256, 256])]
    first = [node("Slice", ["source", "zero", "one", "axis"], ["first"])]
    if not embedding:
        first = [node("ReduceMean", ["source"], ["first"], keepdims=0)]
    nodes = [*first, node("Mul", ["first", "tenth"], ["small"]), node("Add", ["target", "small"], ["output"])]
    tensors = {"tenth": np.array([0.1])}
    path = save(
        folder / "swap.onnx",
        nodes,
        {"source": shape, "target": [1, 3, size or 256, size or 256]},
        tensors,
        [1, 3, size or 256, size or 256],
    )
    model = onnx.load(path)
    for name, value in (("zero", 0), ("one", 1), ("axis", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    if emap:
        model.graph.initializer.append(numpy_helper.from_array(3 * np.eye(512, dtype=np.float32), "buff2fs"))
    onnx.save(model, path)
    return path


def config(folder: Path, adapter: str) -> OnnxConfig:
    recipe = RECIPES[adapter]
    picture = recipe.source.endswith("picture")
    size = 0 if recipe.source == "arcface_picture" else recipe.size
    file = swapper(folder, size, not picture, emap=recipe.source == "emap")
    return OnnxConfig(
        adapter=adapter,
        file=file,
        embedder=None if picture else embedder(folder),
        converter=converter(folder) if recipe.source.startswith("converted") else None,
    )


# ArcFace's input is (x - 127.5) / 127.5 in its other reader here, but swappers' embedders take the units they were used
# with; the source's red is 0.6 of 1, so 0.2 in -1..1
RED, GREEN, BLUE = 0.6, 0.5, 0.5


@pytest.mark.parametrize("adapter", RECIPES)
def test_each_network_is_given_what_it_is_used_to(tmp_path: Path, adapter: str) -> None:
    recipe = RECIPES[adapter]
    rival = OnnxSwapper(config(tmp_path, adapter))
    source = torch.tensor([RED, GREEN, BLUE]).view(1, 3, 1, 1).expand(2, 3, 64, 64) * 2 - 1
    target = torch.full((2, 3, 64, 64), 0.4) * 2 - 1
    images, there = rival([("a", "b")] * 2, source, target)
    assert there.tolist() == [True, True] and images.shape == target.shape
    embedding = torch.tensor([RED * 2 - 1, GREEN * 2 - 1, BLUE * 2 - 1]) * 5  # what `embedder` gives
    unit = embedding / embedding.norm()
    known = {
        "emap": 3 * unit[0],
        "unit": unit[0],
        "converted": 2 * embedding[0],
        "converted_unit": unit[0],
        "arcface_picture": (RED + GREEN + BLUE) / 3,
        "ffhq_picture": (RED + GREEN + BLUE) / 3,
    }[recipe.source]
    shown = (0.4 - torch.tensor(recipe.mean)) / torch.tensor(recipe.std)
    given = shown + 0.1 * known
    expected = given * torch.tensor(recipe.std) + torch.tensor(recipe.mean) if recipe.scaled else given
    centre = (images[0, :, 32, 32] + 1) / 2
    torch.testing.assert_close(centre, expected.float().clamp(0, 1), atol=2e-3, rtol=1e-3)
    box = recipe.box
    outside = [(y, x) for y in (0, 63) for x in (0, 63) if not _inside(box, (x + 0.5) / 64, (y + 0.5) / 64)]
    for y, x in outside:
        assert torch.equal(images[0, :, y, x], target[0, :, y, x])


def _inside(box: Box, x: float, y: float) -> bool:
    return box.left <= x <= box.left + box.side and box.top <= y <= box.top + box.side


@pytest.mark.parametrize(
    ("adapter", "template"),
    [
        ("simswap_256", "arcface_112_v1"),
        ("ghost_256", "arcface_112_v1"),
        ("inswapper_128", "arcface_128"),
        ("hyperswap_256", "arcface_128"),
        ("hififace_256", "mtcnn_512"),
    ],
)
def test_a_recipe_s_box_puts_the_mean_face_where_its_template_has_it(adapter: str, template: str) -> None:
    box = RECIPES[adapter].box
    mapped = ((np.array(FFHQ_512) + 0.5) / 512 - [box.left, box.top]) / box.side
    assert np.abs(mapped - np.array(TEMPLATES[template])).max() < 0.035  # the mean face fits no template exactly


def test_a_result_goes_back_softly_into_its_box_only() -> None:
    target = torch.zeros(1, 3, 100, 100)
    back = put_back(torch.ones(1, 3, 50, 50), target, Box(0.2, 0.3, 0.5))[0, 0]
    assert back[:30].abs().sum() == 0 and back[80:].abs().sum() == 0 and back[:, :20].abs().sum() == 0
    assert back[:, 70:].abs().sum() == 0
    torch.testing.assert_close(back[55, 45], torch.tensor(1.0))
    border = BORDER * 50
    assert 0 < back[55, 20] < back[55, 20 + int(border / 2)] < back[55, 21 + int(border)] == 1


def test_a_result_that_is_its_target_changes_nothing() -> None:
    torch.manual_seed(0)
    target = torch.rand(1, 3, 64, 64)
    smooth = torch.nn.functional.avg_pool2d(target, 9, 1, 4)
    from codeswap.perception.boxes import crop

    box = RECIPES["simswap_256"].box
    back = put_back(crop(smooth, box, 256), smooth, box)
    assert (back - smooth).abs().mean() < 0.01


def test_a_rival_is_run_and_scored_by_one_command(tmp_path: Path, judges: Judges) -> None:
    places = models(tmp_path / "models")._replace(shards=shards(tmp_path / "faces", 4, 2))
    rival = config(tmp_path, "inswapper_128")
    evaluation = evaluate(
        "ours", "faces", EvaluateConfig(resamples=50, onnx={"inswapper": rival}), places, tmp_path / "m", tmp_path / "r"
    )
    assert evaluation is not None and evaluation.methods["inswapper"]["id_similarity"].n == evaluation.pairs
    assert evaluation.methods["inswapper"]["failures"].value == 0
    assert evaluation.rivals == {"inswapper": [sha256_of(path) for path in rival.files]}
    written = json.loads((tmp_path / "m/ours/faces.json").read_text())
    assert (
        written["methods"]["inswapper"]["pose_deg"]["value"] != written["methods"]["copy_target"]["pose_deg"]["value"]
    )


def test_what_is_missing_or_another_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"name w600k_r50\.onnx as `embedder`"):
        OnnxConfig(adapter="hyperswap_256", file=tmp_path / "x.onnx")
    with pytest.raises(ValidationError, match=r"crossface_\*\.onnx"):
        OnnxConfig(adapter="simswap_256", file=tmp_path / "x.onnx", embedder=tmp_path / "e.onnx")
    with pytest.raises(ValueError, match=r"x\.onnx does not exist"):
        OnnxSwapper(OnnxConfig(adapter="uniface_256", file=tmp_path / "x.onnx"))
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"x\.onnx cannot be loaded"):
        OnnxSwapper(OnnxConfig(adapter="uniface_256", file=tmp_path / "x.onnx"))
    with pytest.raises(ValueError, match=r"has the inputs \['input'\], expected source and target"):
        OnnxSwapper(OnnxConfig(adapter="uniface_256", file=converter(tmp_path)))
    plain = config(tmp_path, "hyperswap_256")
    with pytest.raises(ValueError, match=r"the last initializer of .*swap\.onnx is"):
        OnnxSwapper(plain.model_copy(update={"adapter": "inswapper_128"}))

"""A model outside of this pipeline: ONNX is the same swap, and MLflow registers, serves and gives it back."""

import base64
import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image as PILImage
from typer.testing import CliRunner

from codeswap.cli import app
from codeswap.models.codeswap import CodeSwap
from codeswap.models.fusion import FusionConfig
from codeswap.use.errors import MissingModelError
from codeswap.use.examples import examples
from codeswap.use.export import export, in_8_bits
from codeswap.use.loading import Swapper, load_swapper
from tests.evaluation_world import FUSION, ROOT, SIZE, tiny

pytestmark = pytest.mark.usefixtures("own_certificate")


def run(path: Path, a: torch.Tensor, b: torch.Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path))
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image_a": a.numpy(), "image_b": b.numpy()}), strict=True))


def expected(model: CodeSwap, a: torch.Tensor, b: torch.Tensor) -> dict[str, np.ndarray]:
    found = model.swap(a, b)
    parts = {"image_ab": found.image_ab, "image_ba": found.image_ba, "mask_b": found.mask_b, "mask_a": found.mask_a}
    return {name: part.numpy() for name, part in parts.items() if part is not None}


@pytest.mark.parametrize("variant", ["ours", "no_symmetry", "no_codebook", "hard"])
def test_the_graph_is_the_swap_for_any_number_of_pairs(tmp_path: Path, variant: str) -> None:
    fusion = FUSION if variant != "no_symmetry" else FusionConfig(**FUSION.model_dump())
    model, path = tiny(variant, fusion), tmp_path / "model.onnx"
    export(model, {"swap": "abc"}, path)
    for count in (1, 3):
        a, b = torch.rand(2, count, 3, SIZE, SIZE) * 2 - 1
        found, wanted = run(path, a, b), expected(model, a, b)
        assert found.keys() == wanted.keys()
        for name, values in wanted.items():
            np.testing.assert_allclose(found[name], values, atol=1e-4)
    (note,) = (prop.value for prop in onnx.load(path).metadata_props if prop.key == "codeswap")
    assert json.loads(note) == {"framing": "1.0", "precision": "fp32", "swap": "abc"}
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_trained_model_keeps_its_swap_in_8_bits(trained: Path, tmp_path: Path) -> None:
    swapper = load_swapper(trained / "models", "ours")
    faces = swapper.tensor(*examples(swapper.size, 6))
    a, b = faces[:3], faces[3:]
    wanted, sizes = expected(swapper.model, a, b), {}
    for precision, most in (("fp32", 1e-4), ("weights8", 0.02), ("dynamic8", 0.2), ("static8", 0.2)):
        path = tmp_path / f"{precision}.onnx"
        done = CliRunner().invoke(
            app, ["export", str(path), "--models", str(trained / "models"), "--precision", precision]
        )
        assert done.exit_code == 0, done.output
        sizes[precision] = path.stat().st_size
        assert np.abs(run(path, a, b)["image_ab"] - wanted["image_ab"]).mean() < most
    assert sizes["weights8"] < sizes["fp32"] and sizes["dynamic8"] < sizes["fp32"]  # the tiny model is mostly graph
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "static8.onnx").graph.initializer]
    whole = [array for array in arrays if array.dtype == np.int8 and array.ndim > 1]
    assert whole and max(np.abs(array.astype(int)).max() for array in whole) == 64  # two products fit into 16 bits


def test_8_bits_by_hand() -> None:
    values = np.array([[1.0, -2.0], [0.0, 0.0], [127.0, 63.4]], dtype=np.float32)
    scale, whole = in_8_bits(values)
    np.testing.assert_allclose(scale, [2 / 127, 1e-12, 1.0], rtol=1e-6)
    assert whole.tolist() == [[64, -127], [0, 0], [127, 63]] and whole.dtype == np.int8


@pytest.fixture
def registered(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """The tiny model in a registry of its own, by the function that the report stage calls; twice is once."""
    from codeswap.use.mlflow_model import register

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("CODESWAP_MLFLOW", raising=False)
    uri = register(trained / "models", "ours", {"images.id_retrieval": 0.25})
    assert uri == "models:/codeswap-ours/1" == register(trained / "models", "ours", {})
    return uri, tmp_path


def test_a_registered_model_is_served_and_loaded_by_its_uri(registered: tuple[str, Path], trained: Path) -> None:
    uri, folder = registered
    with sqlite3.connect(folder / "mlflow.db") as store:
        tags = dict(store.execute("select key, value from model_version_tags").fetchall())
        assert store.execute("select key, value from latest_metrics").fetchall() == [("images.id_retrieval", 0.25)]
    swapper = load_swapper(trained / "models", "ours")
    assert {"codebook", "swap", "mask"} <= tags.keys() and tags["swap"] == swapper.facts["swap"]

    faces = examples(256, 2)
    paths = [folder / f"{name}.png" for name in "ab"]
    for path, face in zip(paths, faces, strict=True):
        PILImage.fromarray(face).save(path)
    done = CliRunner().invoke(app, ["swap", *map(str, paths), "--aligned", "--models", uri, "-o", str(folder / "out")])
    assert done.exit_code == 0, done.output
    missing = CliRunner().invoke(app, ["swap", *map(str, paths), "--aligned", "--models", "models:/nothing/1"])
    assert missing.exit_code == 3 and "models:/nothing/1 cannot be had" in missing.output

    answer = served(uri, folder, [base64.b64encode(path.read_bytes()).decode() for path in paths])
    for name, pair in (("ab", "a_on_b"), ("ba", "b_on_a")):
        picture = np.asarray(PILImage.open(io.BytesIO(base64.b64decode(answer[name]))))
        assert np.array_equal(picture, np.asarray(PILImage.open(folder / "out" / f"{pair}.png")))


def served(uri: str, folder: Path, pictures: list[str]) -> dict[str, str]:
    """One request to `mlflow models serve`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = f"sqlite:///{folder / 'mlflow.db'}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": store, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "-p", str(port)]
    log = (folder / "serve.log").open("wb")
    server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        body = {"dataframe_split": {"columns": ["a", "b"], "data": [pictures]}, "params": {"aligned": True}}
        for _ in range(240):
            assert server.poll() is None, (folder / "serve.log").read_text()
            try:
                found = httpx.post(f"http://127.0.0.1:{port}/invocations", json=body, timeout=60)
                break
            except httpx.ConnectError:
                time.sleep(0.5)
        assert found.status_code == 200, found.text
        (row,) = found.json()["predictions"]
        return row
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.parametrize("photographs", [False, True])
def test_a_released_model_is_taken_where_nothing_was_trained(trained: Path, tmp_path: Path, photographs: bool) -> None:
    release = tmp_path / "models" / ("release/photographs" if photographs else "release")
    for kind in ("codebook", "swap", "mask"):
        folder = trained / "models" / kind
        (release / kind).parent.mkdir(parents=True, exist_ok=True)
        (release / kind).symlink_to(folder if kind == "codebook" else folder / "ours")
    found: Swapper = load_swapper(tmp_path / "models", "ours", photographs=photographs)
    assert found.facts == load_swapper(trained / "models", "ours").facts
    with pytest.raises(MissingModelError, match="there is no trained model"):
        load_swapper(tmp_path / "models", "ours", photographs=not photographs)

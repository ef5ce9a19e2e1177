"""The real launchers: two processes that really are two, killed and resumed; one after two; Ray."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PROGRAM = PROJECT / "tests" / "tiny_training.py"
CONFIGS = PROJECT / "configs" / "accelerate"


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": f"{PROJECT}:{PROJECT / 'tests'}", "CODESWAP_MLFLOW": "off", "OMP_NUM_THREADS": "1",
        "ACCELERATE_DISABLE_RICH": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)], env=environment, cwd=PROJECT, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip


def _launch(config: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return _run("accelerate.commands.launch", "--config_file", CONFIGS / f"{config}.yaml", PROGRAM, *arguments)


def _models(root: Path) -> dict[str, bytes]:
    files = ("codebook", "swap/ours", "mask/ours")
    return {
        f"{name}/{file}": (root / "models" / name / file).read_bytes()
        for name in files
        for file in ("model.safetensors", "curve.csv")
    }


@pytest.fixture(scope="module")
def together(tiny, tmp_path_factory):
    """Two worlds trained by two processes: one uninterrupted, one stopped in every stage and at last killed."""
    whole = tiny.make_world(tmp_path_factory.mktemp("whole"))
    broken = shutil.copytree(whole, tmp_path_factory.mktemp("broken") / "world")
    done = _launch("cpu2", whole)
    assert done.returncode == 0, done.stderr
    term, kill = int(signal.SIGTERM), int(signal.SIGKILL)
    stops = [f"codebook:24:{term}", f"codebook:40:{term}", f"swap-ours:32:{term}", f"mask-ours:16:{term}"]
    killed = _launch("cpu2", broken, "--stop", *stops, f"mask-ours:40:{kill}")
    assert killed.returncode != 0 and "stopped at sample" in killed.stdout, killed.stderr
    assert (broken / "models/swap/ours").exists() and not (broken / "models/mask/ours").exists()
    return whole, broken


def test_two_processes_stopped_and_killed_end_as_the_uninterrupted_two(together, tmp_path):
    whole, broken = together
    root = shutil.copytree(broken, tmp_path / "world")
    resumed = _launch("cpu2", root)
    assert resumed.returncode == 0, resumed.stderr
    assert "mask-ours: resuming at sample 32" in resumed.stdout
    expected = _models(whole)
    assert [name for name, data in _models(root).items() if data != expected[name]] == []


def test_what_two_began_one_goes_on_with_the_same_samples(together, tiny, tmp_path, no_mlflow):
    whole, broken = together
    root = shutil.copytree(broken, tmp_path / "world")
    tiny.train(root, ["mask"])
    lines = [(world / "models/mask/ours/curve.csv").read_text().splitlines() for world in (whole, root)]
    assert lines[0][:3] == lines[1][:3]  # the header and what both did before
    for ours, theirs in zip(lines[0][3].split(","), lines[1][3].split(","), strict=True):
        assert (ours, theirs) == ("", "") or float(ours) == pytest.approx(float(theirs), rel=1e-4, abs=1e-6)


def test_two_processes_train_as_one(together, trained):
    """The first log line, before roundings drift apart: the same samples, the same codes, the same losses."""
    tables = [(root / "models/swap/ours/curve.csv").read_text().splitlines() for root in (together[0], trained)]
    names = tables[0][0].split(",")
    for name, two, one in zip(names, tables[0][1].split(","), tables[1][1].split(","), strict=True):
        if two and name != "position":
            assert float(two) == pytest.approx(float(one), rel=0.05, abs=1e-4), name


def test_the_launcher_that_starts_one_of_two_is_caught(tmp_path):
    caught = _run("accelerate.commands.launch", "--cpu", "--num_processes", "2", PROGRAM, tmp_path / "none")
    assert caught.returncode != 0 and "configs/accelerate/cpu2.yaml" in caught.stderr


def test_every_launch_file_can_be_read():
    from accelerate.commands.config.config_args import load_config_from_file

    files = sorted(CONFIGS.glob("*.yaml"))
    assert {file.stem for file in files} >= {"cpu1", "cpu2", "gpu1", "multi_gpu", "multi_node", "deepspeed_zero2"}
    processes = {file.stem: load_config_from_file(str(file)).num_processes for file in files}
    assert processes["cpu1"] == processes["gpu1"] == 1 and processes["cpu2"] == 2 and processes["multi_gpu"] == 8


def test_ray_trains_the_same_stage_and_replaces_a_killed_worker(copy):
    root = copy("mask")
    done = _run(
        "codeswap.train.launch", "--workers", "2", "--failures", "1", "--storage", root / "ray", "tiny_training", root,
        "--stages", "mask", "--stop", f"mask-ours:40:{int(signal.SIGKILL)}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (root / "stopped-mask-ours-40").exists() and (root / "models/mask/ours/model.safetensors").exists()

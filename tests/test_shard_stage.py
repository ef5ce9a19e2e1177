"""The stage `shard` as a command: from params.yaml to shards, and what it says when it cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from codeswap.data.faces import Faces
from pipeline.shard import main

ROOT = Path(__file__).parent.parent


def write_params(folder: Path, **datasets: dict[str, object]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump({"image": {"size": 32}, "datasets": datasets}))


def test_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
                   ray_is_running: None) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_params(
        tmp_path,
        demo={"split": "test", "source": "synthetic", "identities": 3, "images_per_identity": 4, "shard_size": 5},
    )
    main("demo")
    out, err = capfd.readouterr()
    assert out.startswith("demo: 12 in, 12 kept, quarantined: none; 3 shards") and out.count("\n") == 1
    assert err == ""
    faces = Faces([tmp_path / "data" / "shards" / "test" / "demo"])
    assert len(faces) == 12 and len(faces.facts(0)["synthetic"]["identity"]) > 10
    assert not [path for path in (tmp_path / "runs" / "shard" / "demo").iterdir() if path.is_dir()]


def stage(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipeline.shard", "--dataset", name]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_bad_input_is_one_message_and_exit_code_1_before_any_work(tmp_path: Path) -> None:
    write_params(tmp_path, celeba={"split": "test", "source": "celebahq", "root": "nowhere"})
    done = stage(tmp_path, "celeba")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "CelebA-HQ-to-CelebA-mapping.txt" in done.stderr and "0.jpg ... 29999.jpg" in done.stderr
    assert not (tmp_path / "data").exists()

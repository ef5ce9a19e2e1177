"""An evaluation in parts: stopped anywhere it goes on, shared by processes it gives the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from codeswap.evaluate import judging
from codeswap.evaluate.judges import Judges
from codeswap.evaluate.parts import FEATURES, Parts, Team
from codeswap.evaluate.results import Evaluation
from codeswap.evaluate.runner import EvaluateConfig, evaluate
from codeswap.evaluate.scores import ScoreTable
from tests.evaluation_world import ROOT, models, perception, shards

CONFIG = EvaluateConfig(batch_size=3, part=4, resamples=50)


def run(folder: Path, root: Path) -> Evaluation | None:
    places = models(root / "models")._replace(shards=root / "faces")
    return evaluate("ours", "faces", CONFIG, places, folder, root / "run")


def numbers(evaluation: Evaluation | None) -> dict:
    assert evaluation is not None
    return {name: {k: v.value for k, v in found.items()} for name, found in evaluation.methods.items()}


def test_a_killed_evaluation_scores_only_what_is_missing(
    tmp_path: Path,
    judges: Judges,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shards(tmp_path / "faces", 6, 3)  # 12 pairs: three parts
    whole = numbers(run(tmp_path / "whole", tmp_path))
    scored = []
    judge = judging.judge_batch

    def dying(*args: object) -> dict:
        if len(scored) == 4:
            raise KeyboardInterrupt
        scored.append(len(args[2].pairs))
        return judge(*args)

    monkeypatch.setattr(judging, "judge_batch", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again", tmp_path)
    assert scored == [3, 1, 3, 1] and sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "00000.parquet",
        "00001.parquet",
    ]
    assert not (tmp_path / "again").exists()
    after = []
    monkeypatch.setattr(judging, "judge_batch", lambda *args: after.append(len(args[2].pairs)) or judge(*args))
    assert numbers(run(tmp_path / "again", tmp_path)) == whole
    assert after == [3, 1] and not (tmp_path / "run").exists()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shards(tmp_path / "data/shards/test/faces", 4, 3)
    (tmp_path / "params.yaml").write_text("evaluate: {resamples: 50, part: 2, batch_size: 2}\n")
    models(tmp_path / "models")
    perception(tmp_path / "models/perception")
    return tmp_path


def test_two_processes_of_the_launcher_give_the_numbers_of_one(project: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    stage = ["-m", "pipeline.evaluate", "--variant", "ours", "--testset", "faces"]
    metrics = project / "metrics/ours/faces.json"
    found = []
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    for command in ([sys.executable, *stage], [*launcher, str(ROOT / "configs/accelerate/cpu2.yaml"), *stage]):
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("pairs scored") == 1  # one process tells
        found.append(json.loads(metrics.read_text())["methods"])
        metrics.unlink()
    assert found[0] == found[1]


def test_processes_share_all_parts_and_none_twice(tmp_path: Path) -> None:
    parts = Parts(tmp_path, total=11, size=2)
    shares = [[number for number, _, _ in parts.open(Team(rank, 3))] for rank in range(3)]
    assert shares == [[0, 3], [1, 4], [2, 5]]
    assert list(parts.open(Team(2, 3)))[1] == (5, 10, 11)


def test_features_come_back_method_by_method_without_failures(tmp_path: Path) -> None:
    parts, rows = Parts(tmp_path, total=4, size=2), torch.arange(16.0).view(8, 2)
    for number in range(2):
        scores = ScoreTable(gallery_size=3)
        for name in ("swap", "paste"):
            there = torch.tensor([True, name == "paste"])
            scores.add(name, {"id_rank": torch.ones(2), "pose_deg": torch.tensor([1.0, 2.0])}, there)
        table = scores.table(["a", "b"], ["c", "d"], first=2 * number)
        flat = pa.array(rows[4 * number : 4 * number + 4].flatten().numpy())
        list(parts.open(Team()))
        parts.write(number, table.append_column(FEATURES, pa.FixedSizeListArray.from_arrays(flat, 2)))
    assert np.concatenate(list(parts.features("swap"))).tolist() == [[0, 1], [8, 9]]
    assert np.concatenate(list(parts.features("paste"))).tolist() == [[4, 5], [6, 7], [12, 13], [14, 15]]
    table = parts.scores()
    assert FEATURES not in table.schema.names and table["pair"].to_pylist() == [0, 1, 0, 1, 2, 3, 2, 3]
    again = ScoreTable.read(table, 3)
    assert again.columns("swap")["id_rank"].tolist() == [1, 4, 1, 4]
    assert again.columns("swap")["failed"].tolist() == [False, True, False, True]


def test_memory_does_not_grow_with_the_pairs(tmp_path: Path) -> None:
    """The 10,000-pair shape: what is kept of a pair in memory is bytes, not pictures or features."""
    script = """
import resource, sys
import numpy as np, pyarrow as pa, torch
from pathlib import Path
from codeswap.evaluate.metrics import FeatureMoments
from codeswap.evaluate.parts import FEATURES, Parts, Team
from codeswap.evaluate.scores import ScoreTable
total, width = int(sys.argv[2]), 512
parts = Parts(Path(sys.argv[1]), total, 250)
names = [f"score{i}" for i in range(16)]
for number, start, stop in parts.open(Team()):
    scores, n = ScoreTable(1000), stop - start
    for method in ("swap", "copy_target"):
        scores.add(method, {name: torch.rand(n) for name in ["id_rank", *names]}, torch.ones(n, dtype=torch.bool))
    table = scores.table([f"s{i}" for i in range(n)], [f"t{i}" for i in range(n)], start)
    flat = pa.array(np.random.rand(2 * n * width).astype(np.float32))
    parts.write(number, table.append_column(FEATURES, pa.FixedSizeListArray.from_arrays(flat, width)))
moments = FeatureMoments()
for rows in parts.features("swap"):
    moments.add(torch.from_numpy(rows))
ScoreTable.read(parts.scores(), 1000).estimates
assert moments.count == total
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    peak = []
    for total in (1_000, 10_000):
        command = [sys.executable, "-c", script, str(tmp_path / str(total)), str(total)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        peak.append(float(done.stdout))
    features = 2 * 9_000 * 512 * 4 / 2**20  # 35 MB that the longer list has more
    assert peak[1] - peak[0] < 0.7 * features

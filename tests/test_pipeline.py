"""The whole pipeline by `dvc repro` in a fresh repository: rendered faces to report, interrupted and repeated."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from codeswap.data.manifest import HELD_OUT, read_manifest

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_CONFIG": "configs/accelerate/cpu2.yaml",
    "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t",
}  # fmt: skip


def run(project: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=project, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the working tree with the tiny parameters, killed once in the middle of Stage 1, then reproduced."""
    place = tmp_path_factory.mktemp("project")
    files = run(ROOT, "git", "ls-files", "-co", "--exclude-standard").stdout.split()
    for file in files:
        needed = file.startswith("docs/reference/") or not file.startswith(("tests/", "docs/"))
        if (ROOT / file).is_file() and needed:
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, place / file)
    shutil.copy(ROOT / "tests" / "tiny.yaml", place / "params.yaml")
    run(place, "git", "init", "-q")
    run(place, "git", "add", "-A")
    run(place, "git", "commit", "-qm", "a user's own start")
    begun = subprocess.Popen(
        ["dvc", "repro"], cwd=place, env=ENVIRONMENT, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoint = place / "runs" / "codebook"
    while begun.poll() is None and not list(checkpoint.glob("-/*/*/checkpoint.json")):
        time.sleep(0.05)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()
    run(place, "dvc", "repro")
    return place


def stale(project: Path) -> set[str]:
    """Stages that `dvc repro` would run again, without the part after @."""
    return {name.split("@")[0] for name in json.loads(run(project, "dvc", "status", "--json").stdout)}


def test_everything_is_made(project: Path) -> None:
    for out in ("codebook", "swap/ours", "mask/ours"):
        card = json.loads((project / "models" / out / "card.json").read_text())
        assert card["intended_use"]
        assert list(card["licences"].values()) == ["rendered by CodeSwap, depicts nobody"]
    for testset in ("images", "videos"):
        scores = json.loads((project / "metrics" / "ours" / f"{testset}.json").read_text())
        assert {"swap", "swap_without_mask", "copy_target", "copy_source", "paste", "true_swap"} <= set(
            scores["methods"]
        )
        assert scores["methods"]["copy_target"]["background_l1"]["value"] == 0
    page = (project / "reports" / "index.html").read_text()
    assert "<table" in page and "No person, file or picture of a test set was found in a training set." in page
    assert not list((project / "runs").glob("*/*/*/checkpoint*")), "finished stages leave no training state"


def test_trainings_are_validated_on_persons_they_have_not_seen(project: Path) -> None:
    shards = project / "data/shards/train/train"
    seen, held_out = (set(read_manifest(folder)["identity"].to_pylist()) for folder in (shards, shards / HELD_OUT))
    assert len(held_out) == 1 and len(seen) == 15 and not seen & held_out
    for curve, metric in {"codebook": "val/psnr_nearest", "swap/ours": "val/identity_to_source"}.items():
        assert metric in (project / "models" / curve / "curve.csv").read_text().splitlines()[0].split(",")


def test_second_call_runs_nothing(project: Path) -> None:
    assert "Data and pipelines are up to date" in run(project, "dvc", "repro").stdout
    assert stale(project) == set()


def test_dvc_shows_metrics_and_plots(project: Path) -> None:
    shown = json.loads(run(project, "dvc", "metrics", "show", "--json").stdout)
    numbers = shown[""]["data"]["metrics/ours/images.summary.json"]["data"]
    assert numbers
    drawn = json.loads(run(project, "dvc", "plots", "show", "--json").stdout)["data"]["codebook"][0]
    points = drawn["content"]["data"]["values"]
    assert {point["position"] for point in points} == {"8", "16", "24"}
    assert {point["field"] for point in points} == {"l1", "code"}


def test_mlflow_holds_every_stage_with_its_lineage(project: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{project / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    runs = {run.info.run_name: run for run in found}  # the newest evaluation carries every test set of its model
    prepared = {f"{stage}-{name}" for stage in ("shard", "annotate") for name in ("train", "images", "videos")}
    prepared -= {"annotate-images", "annotate-videos"}
    prepared.add("survey--")
    assert prepared | {"codebook", "swap-ours", "mask-ours", "evaluate-ours", "report--"} <= set(runs)
    for name in ("codebook", "swap-ours", "mask-ours"):
        assert runs[name].info.status == "FINISHED"
        assert {"fingerprint", "stage", "git_commit", "parents"} <= set(runs[name].data.tags)
    testsets = {name.split(".")[0] for name in runs["evaluate-ours"].data.metrics}
    assert {"images", "videos"} <= testsets


@pytest.mark.parametrize(
    "group, key, value, rerun",
    [
        ("mask", "anchor", 0.2, {"mask"}),
        ("swap", "clip", 2.0, {"swap"}),
        ("evaluate", "resamples", 30, {"evaluate"}),
    ],
)
def test_a_changed_parameter_reruns_its_stage_only(
    project: Path, group: str, key: str, value: float, rerun: set[str]
) -> None:
    params = project / "params.yaml"
    before = params.read_text()
    tree = yaml.safe_load(before)
    tree[group][key] = value
    params.write_text(yaml.safe_dump(tree))
    try:
        assert stale(project) == rerun
    finally:
        params.write_text(before)


def test_touching_stage_3_code_leaves_stages_1_and_2(project: Path) -> None:
    code = project / "codeswap" / "train" / "mask.py"
    before = code.read_text()
    code.write_text(before + "\n# touched\n")
    try:
        assert stale(project) == {"mask"}
    finally:
        code.write_text(before)


def test_a_mistyped_parameter_is_one_clear_error(project: Path) -> None:
    params = project / "params.yaml"
    before = params.read_text()
    tree = yaml.safe_load(before)
    tree["mask"] |= {"sampels": 3, "lr": "fast"}
    params.write_text(yaml.safe_dump(tree))
    try:
        done = run(project, "python", "-m", "pipeline.train_mask", "--variant", "ours", check=False)
    finally:
        params.write_text(before)
    assert done.returncode == 1
    assert "mask.sampels" in done.stderr and "mask.lr" in done.stderr and "'fast'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_ablation_is_an_experiment_that_trains_the_new_variants_only(project: Path) -> None:
    """The README's way to Table 3. Last, since it leaves the project with two variants."""
    said = run(project, "dvc", "exp", "run", "--name", "table-3", "-S", "variants=[ours,hard]").stdout
    ran = set(re.findall(r"Running stage '(.+?)'", said))
    assert {"swap@hard", "mask@hard", "report"} <= ran
    assert not [stage for stage in ran if "@ours" in stage]
    assert yaml.safe_load((project / "params.yaml").read_text())["variants"] == ["ours", "hard"]
    shown = run(project, "dvc", "exp", "show", "--csv").stdout
    assert "table-3" in shown
    shown = json.loads(run(project, "dvc", "metrics", "show", "--json").stdout)[""]["data"]
    assert {"metrics/ours/images.summary.json", "metrics/hard/images.summary.json"} <= set(shown)
    report = (project / "reports" / "report.md").read_text()
    assert "w/o Q1 (hard quantisation)" in report and "paper ID R" in report

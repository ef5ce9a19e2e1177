"""MLflow runs as a user finds them, and the curve files that stand without MLflow."""

import hashlib

import mlflow
import pytest
from PIL import Image

from codeswap.train.tracking import EXPERIMENT, Curve, Tracker, flat, log_out, log_stage_run


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store for all tests: creating its tables takes seconds."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def client(store, monkeypatch):
    monkeypatch.chdir(store)
    monkeypatch.delenv("CODESWAP_MLFLOW", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return mlflow.MlflowClient(f"sqlite:///{store}/mlflow.db")


def _tracker(note=None) -> Tracker:
    return Tracker("swap-ours", {"swap": {"lr": 0.1, "weights": {"identity": 1.5}}}, {"stage": "swap"}, note)


def test_a_run_holds_parameters_metrics_pictures_and_card(client, store):
    tracker = _tracker()
    for position in (8, 16):
        tracker.log(position, {"identity": 1 / position, "total": 2.0})
    tracker.picture("pictures/swap-16.png", Image.new("RGB", (4, 4)))
    tracker.card("card.json", {"kind": "swap"})
    run_id = tracker.close()
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "swap-ours"
    assert client.get_experiment(run.info.experiment_id).name == EXPERIMENT
    assert run.data.params == {"swap.lr": "0.1", "swap.weights.identity": "1.5"}
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "identity")] == [(8, 1 / 8), (16, 1 / 16)]
    assert run.data.tags["stage"] == "swap"
    assert {f.path for f in client.list_artifacts(run_id)} == {"pictures", "card.json"}
    assert (store / "mlartifacts").is_dir()


def test_another_working_directory_has_another_store(client, tmp_path, monkeypatch):
    _tracker().close()
    monkeypatch.chdir(tmp_path)
    _tracker().close()
    runs = {}
    for place in (tmp_path, client.tracking_uri.removeprefix("sqlite:///").removesuffix("/mlflow.db")):
        there = mlflow.MlflowClient(f"sqlite:///{place}/mlflow.db")
        (experiment,) = [e for e in there.search_experiments() if e.name == EXPERIMENT]
        runs[str(place)] = {run.info.run_id for run in there.search_runs([experiment.experiment_id])}
    assert len(runs[str(tmp_path)]) == 1 and not set.intersection(*runs.values())


def test_a_resumed_training_continues_its_run(client, tmp_path):
    note = tmp_path / "mlflow_run_id"
    first = _tracker(note)
    first.log(8, {"total": 2.0})
    run_id = first.close("KILLED")
    assert client.get_run(run_id).info.status == "KILLED"
    second = _tracker(note)
    second.log(16, {"total": 1.0})
    assert second.close() == run_id
    assert [m.step for m in client.get_metric_history(run_id, "total")] == [8, 16]
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_run_that_the_store_does_not_know_starts_anew(client, tmp_path):
    note = tmp_path / "mlflow_run_id"
    note.write_text("0123456789abcdef0123456789abcdef")
    run_id = _tracker(note).close()
    assert run_id == note.read_text() != "0123456789abcdef0123456789abcdef"


def test_a_stage_that_is_no_training_is_one_call(client):
    run_id = log_stage_run("evaluate", "ours", {"seed": 1}, {"swap/id": 0.5}, {"fingerprint": "f"}, card={"a": 1})
    run = client.get_run(run_id)
    assert run.info.run_name == "evaluate-ours" and run.data.metrics == {"swap/id": 0.5}
    assert run.data.tags["variant"] == "ours" and run.data.tags["fingerprint"] == "f"


def test_a_store_that_is_away_warns_and_never_raises(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.warns(UserWarning, match="could not be reached"):
        tracker = _tracker()
        tracker.log(8, {"total": 1.0})
        assert tracker.close() is None


def test_mlflow_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("CODESWAP_MLFLOW", "off")
    tracker = _tracker()
    tracker.log(1, {"total": 1.0})
    assert tracker.ready() is None and tracker.close() is None


def test_flat_names_nested_parameters():
    assert flat({"a": {"b": 1, "c": {"d": None}}, "e": [1]}) == {"a.b": "1", "a.c.d": "None", "e": "[1]"}


def test_the_curve_forgets_what_is_done_again(tmp_path):
    curve = Curve(tmp_path / "curve.jsonl")
    for position in (8, 16, 24):
        curve.append(position, {"total": position / 8})
    with curve.path.open("a") as file:
        file.write('{"position": 32, "to')  # killed while writing
    curve.cut(16)
    curve.append(24, {"total": 9.0})
    curve.append(24, {"fixed/psnr": 20.0})
    assert [line["position"] for line in curve.lines()] == [8, 16, 24, 24]
    assert curve.csv() == ("position,fixed/psnr,total\n8,,1.0\n16,,2.0\n24,20.0,9.0\n")


def test_an_out_is_recorded_with_the_numbers_of_its_card_and_the_hashes_of_its_parents(client, tmp_path):
    card, parent = tmp_path / "out" / "card.json", tmp_path / "parent.json"
    card.parent.mkdir()
    card.write_text('{"faces": 12, "ok": true, "licences": {"CC0, free": 12}, "roles": {"pose": {"yaw": 2.5}}}')
    parent.write_text("{}")
    run = client.get_run(log_out("shard", "train", {"seed": 1}, "f00", card, {"shards": parent}))
    assert run.info.run_name == "shard-train"
    assert run.data.metrics == {"faces": 12.0, "licences.CC0_ free": 12.0, "roles.pose.yaw": 2.5}
    assert run.data.tags["parent.shards"] == hashlib.sha256(b"{}").hexdigest()
    assert run.data.tags["fingerprint"] == "f00"
    assert [f.path for f in client.list_artifacts(run.info.run_id)] == ["card.json"]

"""Stage 1 as a user meets it: an out that is whole, exact resuming in every phase, refusals that say why."""

import json
import math
import os
import shutil
import signal

import pytest
import torch

from codeswap.models.codeswap import load_vqgan
from codeswap.train.codebook import CodebookParams, train_codebook
from codeswap.train.lock import RunLockedError, lock_folder
from codeswap.train.schedule import TrainingConfig

pytestmark = pytest.mark.usefixtures("no_mlflow")


def test_the_out_is_whole_and_the_run_keeps_no_more_than_it(trained):
    out = trained / "models" / "codebook"
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "card.json", "curve.csv", "pictures"}
    card = json.loads((out / "card.json").read_text())
    assert {"kind", "config", "fingerprint", "lineage", "licences", "git_commit", "weights_sha256"} <= card.keys()
    assert card["licences"] == {"tiny": "CC0"}
    networks = json.loads((trained / "models" / "perception" / "card.json").read_text())["roles"]
    assert card["lineage"] == {"perception": {role: entry["sha256"] for role, entry in networks.items()}}
    run = trained / "runs" / "codebook" / "-" / "print"
    assert {path.name for path in run.iterdir()} == {"finished", "curve.jsonl", "lock"}
    assert load_vqgan(out).codebook.weight.isfinite().all()


def test_the_curve_has_each_phase_where_it_belongs(trained):
    header, *rows = (trained / "models/codebook/curve.csv").read_text().splitlines()
    names = header.split(",")
    table = {int(row.split(",")[0]): dict(zip(names, row.split(","), strict=True)) for row in rows}
    assert list(table) == [16, 32, 48, 64]
    assert table[16]["code"] == "" != table[32]["code"]  # no codes in the warm-up
    assert table[32]["lambda"] == "" != table[48]["lambda"]  # the discriminator starts at 32
    assert float(table[64]["l1"]) < float(table[16]["l1"])
    assert float(table[64]["codes_used"]) > 16


def test_stopped_in_every_phase_and_resumed_is_bit_for_bit_the_uninterrupted_run(tiny, trained, copy):
    root = copy("codebook")
    # without codes; at their start; with codes, between log lines and checkpoints; with the discriminator
    undo = tiny.stop_at(root, *(f"codebook:{position}:{signal.SIGTERM}" for position in (8, 16, 24, 40)))
    try:
        assert tiny.train(root, ["codebook"]) == 4
    finally:
        undo()
    for name in ("model.safetensors", "curve.csv"):
        assert (root / "models/codebook" / name).read_bytes() == (trained / "models/codebook" / name).read_bytes(), name


def test_a_damaged_newest_checkpoint_costs_only_the_way_from_the_one_before(tiny, trained, copy):
    root = copy("codebook")
    undo = tiny.stop_at(root, f"codebook:56:{signal.SIGTERM}")
    params = tiny.params(CodebookParams)
    try:
        with pytest.raises(SystemExit) as end:
            train_codebook(params, root, "print")
    finally:
        undo()
    assert end.value.code == 75
    newest = root / "runs/codebook/-/print/000000000056"
    (newest / "vqgan.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="vqgan.*has changed"):
        train_codebook(params, root, "print")
    model = "models/codebook/model.safetensors"
    assert (root / model).read_bytes() == (trained / model).read_bytes()


def test_a_finished_training_is_not_done_again_and_its_out_comes_back(tiny, trained, copy, capsys):
    root = copy()
    model = root / "models/codebook/model.safetensors"
    whole = model.read_bytes()
    params = tiny.params(CodebookParams)
    for damage in ("none", "removed", "damaged"):
        if damage == "removed":
            shutil.rmtree(model.parent)
        elif damage == "damaged":
            model.write_bytes(whole[:-1])
        train_codebook(params, root, "print")
        assert model.read_bytes() == whole and "finished already" in capsys.readouterr().out
    assert (root / "models/codebook/curve.csv").exists() and list((root / "models/codebook/pictures").glob("*.png"))
    assert not list((root / "runs/codebook/-/print").glob("0*")), "a finished run keeps no training state"
    shutil.rmtree(root / "runs")  # a fresh clone that has the out only
    train_codebook(params, root, "print")
    assert "finished already" in capsys.readouterr().out
    train_codebook(tiny.params(CodebookParams, codebook={"samples": 16}), root, "another")
    assert model.read_bytes() != whole


def test_two_runs_in_one_folder_are_refused_and_a_dead_owner_is_not(tiny, copy):
    root = copy("codebook")
    folder = root / "runs/codebook/-/print"
    held = lock_folder(folder)
    with pytest.raises(RunLockedError, match="in use by process"):
        lock_folder(folder)
    with pytest.raises(ValueError, match="the same training runs already"):
        train_codebook(tiny.params(CodebookParams), root, "print")
    os.close(held)  # what the system does when a process dies; the file stays
    assert (folder / "lock").exists()
    os.close(lock_folder(folder))


def test_a_term_that_is_not_finite_is_named_before_a_checkpoint_is_written(tiny, copy):
    root = copy("codebook")
    explosive = {"lr": 1e30, "schedule": "constant", "warm_up": 0, "checkpoint_every": 24}
    params = tiny.params(CodebookParams, codebook=explosive, quantizer={"init": "uniform", "update": "gradient"})
    with pytest.raises(FloatingPointError, match=r"l1.*not finite"):
        train_codebook(params, root, "print")
    assert not list((root / "runs/codebook/-/print").glob("0*"))
    assert not (root / "models/codebook").exists()


def test_the_papers_stage_1_has_none_of_the_extras(tiny, copy):
    root = copy("codebook")
    off = {
        "samples": 16, "warm_up": 0, "adversarial_from": 8, "ema": 0, "gradient": 0, "identity": 0, "expression": 0,
        "skin_weight": 0, "feature_weight": 0, "schedule": "constant",
    }  # fmt: skip
    plain = {"init": "uniform", "update": "gradient", "restart_below": 0, "soft_share": 0, "continuous_share": 0}
    train_codebook(tiny.params(CodebookParams, codebook=off, quantizer=plain), root, "print")
    header = (root / "models/codebook/curve.csv").read_text().splitlines()[0].split(",")
    assert set(header) - {"position", "codes_used", "perplexity", "restarted"} == {
        "l1", "perceptual", "code", "adversarial", "lambda", "discriminator", "val/psnr_nearest", "val/psnr_soft",
        "val/features", "val/identity_cosine", "val/codes_used", "val/perplexity",
    }  # fmt: skip


def test_annotations_of_another_network_are_refused(tiny, copy):
    root = copy("codebook")
    path = root / "models/perception/card.json"
    card = json.loads(path.read_text())
    card["roles"]["identity_train"]["sha256"] = "1" * 64
    path.write_text(json.dumps(card))
    with pytest.raises(ValueError, match="identity_train"):
        train_codebook(tiny.params(CodebookParams), root, "print")


def test_onecycle_is_torchs_as_a_function_of_samples():
    config = TrainingConfig(samples=800, batch=8, lr=0.1, schedule="onecycle", rise=0.3)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=101, pct_start=31 / 101)
    for step in range(0, 100, 10):
        while schedule.last_epoch < step:
            optimizer.step()
            schedule.step()
        assert math.isclose(config.lr_at(8 * step), optimizer.param_groups[0]["lr"], rel_tol=1e-6), step

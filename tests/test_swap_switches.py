"""Stage 2, off-paper: trained on from a model, with later weights, or against a discriminator of features."""

import json
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from codeswap.train.swap import SwapTraining

pytestmark = pytest.mark.usefixtures("no_mlflow")


def test_later_weights_take_over_and_bring_their_networks(tiny, copy):
    later = {"begins": 32, "weights": {"identity": 3.0, "pose": 0.5, "cycle": 2.0}}
    config = SwapTraining(weights={"identity": 1.0, "pose": 0.0, "features": 0.1}, later=later)
    assert config.weights_at(31) == config.weights and config.weights_at(32).identity == 3
    assert (config.weights_at(31).cycle, config.weights_at(32).cycle) == (1, 2)
    assert (config.ever.pose, config.ever.features, config.ever.identity) == (0.5, 0.1, 3)
    with pytest.raises(ValueError, match="identity_of differ"):
        SwapTraining(later={"begins": 1, "weights": {"identity_of": "person"}})
    root = copy("swap", "mask")
    models = []
    for stops in ((), (f"swap-ours:40:{signal.SIGTERM}",)):
        undo = tiny.stop_at(root, *stops)
        try:
            swap = {"weights": {"background": 0.1}, "later": later, "adversarial": 0.0, "ema": 0.9, "identity_moves": 1}
            assert tiny.train(root, ["swap"], swap=swap) == len(stops)
        finally:
            undo()
        models.append((root / "models/swap/ours/model.safetensors").read_bytes())
        header, *rows = (line.split(",") for line in (root / "models/swap/ours/curve.csv").read_text().splitlines())
        for place in ("models", "runs"):
            shutil.rmtree(root / place / "swap/ours")
    assert models[0] == models[1]
    logged = {name: [row[header.index(name)] != "" for row in rows if float(row[0]) in (16, 32, 48)] for name in
              ("pose", "background")}  # fmt: skip
    assert logged["pose"][-1] and not logged["pose"][0] and logged["background"][0] and not logged["background"][-1]


def test_a_discriminator_of_features_trains_in_both_stages_and_resumes(tiny, copy):
    root = copy("codebook", "swap", "mask")
    models = []
    for stops in ((), (f"codebook:48:{signal.SIGTERM}", f"swap-ours:32:{signal.SIGTERM}")):
        undo = tiny.stop_at(root, *stops)
        try:
            frozen, linear = {"frozen_features": True}, {"update": "linear", "restart_below": 0}
            stopped = tiny.train(root, ["codebook"], discriminator=frozen, quantizer=linear)
            assert stopped + tiny.train(root, ["swap"], discriminator=frozen) == len(stops)
        finally:
            undo()
        models.append(
            [(root / f"models/{stage}/model.safetensors").read_bytes() for stage in ("codebook", "swap/ours")]
        )
        for place in ("models/codebook", "models/swap", "runs/codebook", "runs/swap"):
            shutil.rmtree(root / place)
    assert models[0] == models[1]


def test_a_training_starts_from_a_trained_model(tiny, trained, copy):
    root = copy("swap", "mask")
    shutil.copytree(trained / "models/swap/ours", root / "start")
    begun = load_file(root / "start/model.safetensors")
    tiny.train(root, ["swap"], swap={"samples": 8, "lr": 1e-9, "weight_decay": 0.0, "start_from": "start"})
    ended = load_file(root / "models/swap/ours/model.safetensors")
    assert begun.keys() == ended.keys()
    for name in begun:
        torch.testing.assert_close(ended[name], begun[name], rtol=0, atol=1e-6)
    card = json.loads((root / "models/swap/ours/card.json").read_text())
    assert card["lineage"]["start"] == json.loads((root / "start/card.json").read_text())["weights_sha256"]


def test_averaged_weights_follow_the_trained_ones(tiny, trained, copy):
    root = copy("swap", "mask")
    shutil.copytree(trained / "models/swap/ours", root / "start")
    ended = []
    for decay in (0.0, 0.75):
        tiny.train(root, ["swap"], swap={"samples": 1, "ema": decay, "start_from": "start"})  # one step
        ended.append(load_file(root / "models/swap/ours/model.safetensors"))
        for place in ("models", "runs"):
            shutil.rmtree(root / place / "swap/ours")
    begun, (plain, averaged) = load_file(root / "start/model.safetensors"), ended
    assert any(not torch.equal(plain[name], begun[name]) for name in begun)
    for name in begun:
        torch.testing.assert_close(averaged[name], 0.75 * begun[name] + 0.25 * plain[name], rtol=3e-7, atol=1e-7)


def test_identity_is_judged_on_moved_pictures_and_nothing_else_is(tiny, copy):
    root = copy("swap", "mask")
    logged = []
    for moves in (0, 2):
        tiny.train(root, ["swap"], swap={"samples": 8, "log_every": 8, "identity_moves": moves})  # one step: same start
        header, row = ((root / "models/swap/ours/curve.csv").read_text().splitlines())[:2]
        logged.append(dict(zip(header.split(","), row.split(","), strict=True)))
        for place in ("models", "runs"):
            shutil.rmtree(root / place / "swap/ours")
    plain, moved = logged
    assert plain["identity"] != moved["identity"] and plain["expression"] == moved["expression"]


def test_a_model_of_other_sizes_variant_or_codebook_is_no_start(tiny, trained, copy):
    root = copy("swap", "mask")
    shutil.copytree(trained / "models/swap/ours", root / "start")
    start = {"swap": {"start_from": "start", "samples": 8}}
    with pytest.raises(ValueError, match=r"start holds a swap model of variant ours .* the training asks for hard"):
        tiny.train(root, ["swap"], "hard", **start)
    with pytest.raises(ValueError, match=r"ffn=16.* the training asks for ours .*ffn=32"):
        tiny.train(root, ["swap"], fusion={"ffn": 32}, **start)
    card = json.loads((root / "start/card.json").read_text())
    card["lineage"]["codebook"] = "0" * 64
    (root / "start/card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="made from the codebook model 000000000000"):
        tiny.train(root, ["swap"], **start)
    with pytest.raises(ValueError, match=r"none/model\.safetensors does not exist"):
        tiny.train(root, ["swap"], swap={"start_from": "none", "samples": 8})

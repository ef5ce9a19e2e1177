"""Stage 3: both phases train, resume and are told apart; a collapse is named."""

import json
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter

from codeswap.data import labels
from codeswap.data.spoil import soften
from codeswap.models.codeswap import load_codeswap, swap_with_features
from codeswap.train.mask import MaskParams, train_mask

pytestmark = pytest.mark.usefixtures("no_mlflow")


def _curve(root):
    header, *rows = (root / "models/mask/ours/curve.csv").read_text().splitlines()
    return {int(r.split(",")[0]): dict(zip(header.split(","), r.split(","), strict=True)) for r in rows}


def test_the_phases_follow_each_other(trained):
    curve = _curve(trained)
    assert list(curve) == [16, 32, 48]
    assert curve[16]["identity"] == "" != curve[48]["identity"]
    assert curve[16]["cross_entropy"] != "" == curve[48]["cross_entropy"]
    card = json.loads((trained / "models/mask/ours/card.json").read_text())
    parents = {
        name: json.loads((trained / "models" / name / "card.json").read_text()) for name in ("codebook", "swap/ours")
    }
    assert card["lineage"]["codebook"] == parents["codebook"]["weights_sha256"]
    assert card["lineage"]["swap"] == parents["swap/ours"]["weights_sha256"]


def test_the_whole_method_loads_and_blends(trained):
    models = trained / "models"
    model = load_codeswap(models / "codebook", models / "swap/ours", models / "mask/ours")
    with torch.no_grad():
        swap = model.swap(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
    assert swap.mask_b.min() > 0 and swap.mask_b.max() < 1 and not torch.equal(swap.image_ab, swap.naive_ab)


def test_stopped_in_both_phases_and_resumed_is_bit_for_bit(tiny, trained, copy):
    root = copy("mask")
    undo = tiny.stop_at(root, f"mask-ours:8:{signal.SIGTERM}", f"mask-ours:40:{signal.SIGTERM}")
    try:
        assert tiny.train(root, ["mask"]) == 2
    finally:
        undo()
    for name in ("model.safetensors", "curve.csv"):
        assert (root / "models/mask/ours" / name).read_bytes() == (trained / "models/mask/ours" / name).read_bytes()


def test_averaged_weights_follow_the_trained_ones_and_resume(tiny, copy):
    root = copy("mask")
    weights = []
    for changes, stops in (
        ({"samples": 1, "lr": 1e-30}, ()),
        ({"samples": 1}, ()),
        ({"samples": 1, "ema": 0.75}, ()),
        ({"ema": 0.9}, ()),
        ({"ema": 0.9}, (f"mask-ours:40:{signal.SIGTERM}",)),
    ):
        undo = tiny.stop_at(root, *stops)
        try:
            assert tiny.train(root, ["mask"], mask=changes) == len(stops)
        finally:
            undo()
        weights.append(load_file(root / "models/mask/ours/model.safetensors"))
        for place in ("models", "runs"):
            shutil.rmtree(root / place / "mask")
    begun, plain, averaged, whole, resumed = weights
    assert any(not torch.equal(plain[name], begun[name]) for name in begun)
    for name in begun:
        torch.testing.assert_close(averaged[name], 0.75 * begun[name] + 0.25 * plain[name], rtol=0, atol=1e-7)
        assert torch.equal(whole[name], resumed[name])


def test_supervision_finds_the_face_of_the_target_with_or_without_its_forehead_and_mouth(tiny, copy, monkeypatch):
    root = copy("mask")
    monkeypatch.setattr(labels, "OPEN", (-2.0, -1.0))  # all mouths pass for differently open
    monkeypatch.setattr(labels, "BROW", 0)  # or nothing is left of the low foreheads of so few pixels
    steps = {"samples": 160, "supervised": 160, "lr": 1e-2, "soften": 0.0, "cross_entropy_share": 0.5, "log_every": 40}
    steps |= {"validate_every": 160, "checkpoint_every": 160}
    covered = {}
    for name, kept in (("all", {}), ("forehead", {"forehead": "target"}), ("mouth", {"mouth": "target"})):
        params = tiny.params(MaskParams, mask=steps | kept, mask_generator={"kernel": 3})
        train_mask(params, "ours", root, name)
        curve = _curve(root)
        assert float(curve[160]["mask"]) < 0.8 * float(curve[40]["mask"])
        assert float(curve[160]["mask_iou"]) > 0.5  # a mouth and what is around it is much of so few pixels
        covered[name] = float(curve[160]["mask_mean"])
        shutil.rmtree(root / "models/mask")
    assert covered["forehead"] < 0.95 * covered["all"] and covered["mouth"] < 0.95 * covered["all"]


def test_a_collapsed_mask_raises_an_alarm(tiny, copy, capsys):
    root = copy("mask")
    empty = {
        "samples": 80, "supervised": 0, "lr": 1e-1, "unsupervised_lr": None, "anchor": 0.0, "coverage": 0.0,
        "weights": {"identity": 0.0, "background": 5.0, "reconstruction": 5.0}, "validate_every": 160,
        "checkpoint_every": 160,
    }  # fmt: skip
    train_mask(tiny.params(MaskParams, mask=empty), "ours", root, "empty")
    assert "ALARM mask: mean of M" in capsys.readouterr().err
    card = json.loads((root / "models/mask/ours/card.json").read_text())
    assert card["alarms"][0].startswith("mask:")


def test_both_sides_see_their_own_target(trained):
    model = load_codeswap(trained / "models/codebook", trained / "models/swap/ours")
    a, b = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    naive, target, from_target, from_swap = swap_with_features(model.vqgan, model.fusion, a, b)
    swap = model.swap(a, b)
    assert torch.equal(target, torch.cat([b, a]))
    torch.testing.assert_close(naive, torch.cat([swap.naive_ab, swap.naive_ba]), atol=1e-4, rtol=0)
    torch.testing.assert_close(from_target[0], torch.cat([model.vqgan.encoder_features(x)[1][0] for x in (b, a)]))
    assert [f.shape for f in from_target] == [f.shape for f in from_swap] and not naive.requires_grad


def test_soften_is_a_gaussian():
    mask = (torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    expected = gaussian_filter(mask.double().numpy(), 1.5, mode="nearest", truncate=3.0, axes=(2, 3))
    torch.testing.assert_close(soften(mask, 1.5).double(), torch.from_numpy(expected), atol=2e-3, rtol=0)
    assert soften(mask, 0.0) is mask

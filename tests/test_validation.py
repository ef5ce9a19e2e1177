"""Validation on held-out faces, the alarms it raises, the best weights it keeps, and steps that go wrong."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from codeswap.data.faces import Faces, to_float
from codeswap.models.vqgan import tokens
from codeswap.train import swap as swap_module
from codeswap.train.alarms import codebook_alarms, discriminator_alarms, mask_alarms, speed_alarms, swap_alarms
from codeswap.train.engine import Engine
from codeswap.train.machine import EngineConfig
from codeswap.train.swap import SwapParams, SwapTraining, train_swap
from codeswap.train.validation import Critics, HeldOut, validate_mask, validate_swap
from codeswap.types import SwappedCodes

pytestmark = pytest.mark.usefixtures("no_mlflow")


@pytest.fixture
def engine():
    engine = Engine(EngineConfig(device="cpu"), 0, 4)
    yield engine
    engine.close()


@pytest.fixture
def held_out(engine, trained) -> HeldOut:
    return HeldOut(engine, trained, Faces([trained / "data/shards/train/tiny"]), 8)


class Pixels:
    """A code space that loses nothing: every token is a pixel."""

    def __init__(self, image: Tensor) -> None:
        weight = tokens(image).flatten(0, 1)
        self.codebook = SimpleNamespace(
            weight=weight,
            nearest=lambda z: torch.zeros(z.shape[:2], dtype=torch.long),
            lookup=lambda codes: weight[codes],
        )

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z


class Answers(nn.Module):
    """A fusion module that answers with the share `of_source` of the source, the rest of the target."""

    def __init__(self, of_source: float) -> None:
        super().__init__()
        self.of_source, self.decoder = of_source, None

    def forward(self, z_a: Tensor, z_b: Tensor, codes: Tensor, noise: int | None = None) -> SwappedCodes:
        ab, ba = (self.of_source * x + (1 - self.of_source) * y for x, y in ((z_a, z_b), (z_b, z_a)))
        return SwappedCodes(ab, ba, None, None)


class Coarse(nn.Module):
    """An identity network for which different pictures are different persons."""

    def forward(self, x: Tensor) -> Tensor:
        cells = nn.functional.avg_pool2d(x, 4).flatten(1)
        return cells - cells.mean(dim=1, keepdim=True)


def test_held_out_faces_are_those_of_the_held_out_folder_with_another_persons(held_out, trained) -> None:
    faces = Faces([trained / "data/shards/train/tiny/held_out"])
    images = to_float(faces.images(np.arange(8), np.zeros(8, bool)))
    assert held_out.unseen and torch.equal(held_out.image, images)
    for number, target in enumerate(held_out.target):
        (other,) = (i for i in range(8) if torch.equal(images[i], target))
        assert faces.identity[other] != faces.identity[number]


def test_without_held_out_faces_it_says_that_it_shows_training_faces(engine, trained, tmp_path, capsys) -> None:
    faces = Faces([trained / "data/shards/train/tiny"])
    shown = HeldOut(engine, tmp_path, faces, 8)
    assert not shown.unseen and len(shown.image) == 8 and "no faces are held out" in capsys.readouterr().out


@pytest.mark.parametrize(("of_source", "alarm"), [(1.0, "exchange"), (0.0, "copy"), (0.4, None)])
def test_the_two_trivial_minima_raise_alarms(engine, held_out, of_source, alarm) -> None:
    critics = Critics(Coarse(), None, None, None, None)
    held_out.image = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    held_out.target = held_out.image.roll(3, 0)
    metrics, swaps = validate_swap(engine, critics, held_out, Pixels(held_out.image), Answers(of_source))
    assert metrics["val/exchange_ratio"] == pytest.approx(of_source, abs=0.01) and swaps.shape == (8, 3, 16, 16)
    late, early = (list(swap_alarms(SwapTraining(samples=100), position, metrics)) for position in (50, 10))
    assert [found.name for found in late] == ([alarm] if alarm else [])
    assert [found.name for found in early] == (["exchange"] if alarm == "exchange" else [])  # warm starts are copies
    assert all("Try: " in str(found) for found in late)


def test_a_mask_is_compared_with_the_parsed_face(engine, held_out) -> None:
    labels = torch.zeros(8, 32, 32, dtype=torch.uint8)
    labels[:, :16] = 1
    parsing = SimpleNamespace(label_map=lambda x: labels[: len(x)])
    critics = Critics(Coarse(), None, None, None, parsing)
    naive, mask = held_out.image, torch.zeros(8, 1, 32, 32)
    mask[:, :, :24] = 1.0
    metrics = validate_mask(engine, critics, held_out, [(naive, mask)])
    assert metrics["val/mask_mean"] == 0.75 and metrics["val/mask_iou"] == pytest.approx(2 / 3)
    assert metrics["val/mask_undecided"] == 0 and metrics["val/identity_to_source"] > metrics["val/identity_to_target"]


def test_a_mask_that_ends_at_the_brows_is_compared_with_what_lies_below(engine, held_out) -> None:
    labels = torch.zeros(8, 32, 32, dtype=torch.uint8)
    labels[:, :24] = 1
    labels[:, 8:10, 4:12] = 2  # a brow
    critics = Critics(Coarse(), None, None, None, SimpleNamespace(label_map=lambda x: labels[: len(x)]))
    naive, mask = held_out.image, torch.zeros(8, 1, 32, 32)
    mask[:, :, 6:24] = 1.0  # from two rows above the brow, three 64ths
    overlap = [
        validate_mask(engine, critics, held_out, [(naive, mask)], whose)["val/mask_iou"]
        for whose in ("source", "target")
    ]
    assert overlap == pytest.approx([3 / 4, 1.0])


def test_a_mask_that_leaves_open_mouths_to_the_target_is_compared_with_the_rest(engine, held_out) -> None:
    closed = torch.ones(8, 32, 32, dtype=torch.uint8)
    closed[:, 20:24, 8:24] = 12
    laughs = closed.clone()
    laughs[:, 21:23, 8:24] = 11
    parsing = SimpleNamespace(label_map=lambda x: closed if torch.equal(x, held_out.image) else laughs)
    critics = Critics(Coarse(), None, None, None, parsing)
    mask = torch.ones(8, 1, 32, 32)
    mask[:, :, 18:26, 6:26] = 0  # the laugh, and two pixels around it
    overlap = [
        validate_mask(engine, critics, held_out, [(held_out.image, mask)], mouth=whose)["val/mask_iou"]
        for whose in ("source", "target")
    ]
    assert overlap == pytest.approx([1 - 8 * 20 / 32**2, 1.0])


def test_alarms_of_log_lines() -> None:
    training = SwapTraining(samples=100)

    def names(alarms) -> list[str]:
        return [alarm.name for alarm in alarms]

    few = {"perplexity": 3.0, "codes_used": 5.0}
    assert names(codebook_alarms(training, 50, few, 1024)) == ["codes"]
    assert not names(codebook_alarms(training, 5, few, 1024)) and not names(codebook_alarms(training, 50, few, 32))
    assert names(discriminator_alarms({"discriminator": 0.02})) == ["discriminator"]
    assert not names(discriminator_alarms({"discriminator": 0.9})) and not names(discriminator_alarms({}))
    assert names(mask_alarms({"mask_mean": 0.9})) == names(mask_alarms({"mask_mean": 0.01})) == ["mask"]
    assert not names(mask_alarms({"mask_mean": 0.3}))
    assert names(speed_alarms([10.0] * 6 + [4.0])) == ["slow"]
    assert not names(speed_alarms([10.0] * 6 + [6.0])) and not names(speed_alarms([10.0, 1.0]))


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_weights_of_a_validation_become_the_out(tiny, copy, mode) -> None:
    root = copy("swap", "mask")
    often = {"samples": 32, "validate_every": 8, "adversarial": 0.0, "lr": 1e-2}
    metric = "val/expression"
    train_swap(tiny.params(SwapParams, swap=often | {"select": {"metric": metric, "mode": mode}}), "ours", root, "best")
    out = root / "models/swap/ours"
    header, *rows = (out / "curve.csv").read_text().splitlines()
    values = {int(row.split(",")[0]): float(row.split(",")[header.split(",").index(metric)] or "nan") for row in rows}
    position = {"max": max, "min": min}[mode](values, key=values.get)
    selected = json.loads((out / "card.json").read_text())["selected"]
    assert selected == {"metric": metric, "value": values[position], "position": position}
    best = load_file(out / "model.safetensors")
    train_swap(tiny.params(SwapParams, swap=often | {"samples": position}), "ours", root, "short")
    short = load_file(out / "model.safetensors")
    assert all(torch.equal(value, short[name]) for name, value in best.items())


def test_a_metric_that_there_is_not_is_named_with_those_there_are(tiny, copy) -> None:
    wrong = {"samples": 16, "validate_every": 16, "select": {"metric": "val/beauty"}}
    with pytest.raises(ValueError, match=r"select.metric 'val/beauty' is not among .*val/identity_to_source"):
        train_swap(tiny.params(SwapParams, swap=wrong), "ours", copy("swap", "mask"), "wrong")


@pytest.fixture
def bad_step(monkeypatch):
    """The third step's losses are not numbers."""
    terms, calls = swap_module.picture_terms, []

    def sometimes_bad(*arguments):
        calls.append(1)
        found = terms(*arguments)
        return found | {"identity": found["identity"] * float("nan")} if len(calls) == 3 else found

    monkeypatch.setattr(swap_module, "picture_terms", sometimes_bad)


def test_numbers_that_are_not_finite_name_the_batch_and_leave_the_checkpoint(tiny, copy, bad_step) -> None:
    root = copy("swap", "mask")
    with pytest.raises(FloatingPointError, match=r"'identity'.*not finite in the batch before sample 24;.*nonfinite"):
        train_swap(tiny.params(SwapParams), "ours", root, "bad")
    run = root / "runs/swap/ours/bad"
    listed = json.loads((run / "nonfinite-000000000024.json").read_text())
    assert "identity" in listed["terms"] and [row["position"] for row in listed["batch"]] == list(range(16, 24))
    assert all(row["a"].startswith("tiny-") and row["b"].startswith("tiny-") for row in listed["batch"])
    assert [path.name for path in run.glob("0*")] == ["000000000016"]


def test_a_budget_of_bad_steps_is_passed_over(tiny, copy, bad_step, capsys) -> None:
    root = copy("swap", "mask")
    train_swap(tiny.params(SwapParams, swap={"skip_nonfinite": 1}), "ours", root, "skips")
    assert "passed over, 1 of 1" in capsys.readouterr().err
    weights = load_file(root / "models/swap/ours/model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())
    assert "nan" not in (root / "models/swap/ours/curve.csv").read_text()


def test_a_second_bad_step_is_too_many_for_a_budget_of_one(tiny, copy, monkeypatch) -> None:
    terms = swap_module.picture_terms
    monkeypatch.setattr(
        swap_module, "picture_terms", lambda *a: {name: term * float("nan") for name, term in terms(*a).items()}
    )
    with pytest.raises(FloatingPointError, match="skip_nonfinite allows 1 such steps"):
        train_swap(tiny.params(SwapParams, swap={"skip_nonfinite": 1}), "ours", copy("swap", "mask"), "bad")

"""Checkpoints: everything comes back bit for bit, damage is named and skipped, nothing half-written is ever read."""

import json

import pytest
import torch
from torch import nn

from codeswap.train.checkpoints import CheckpointWriter
from codeswap.train.state import (
    FACTS,
    CheckpointError,
    TrainState,
    checkpoints,
    load_state,
    newest_intact,
    snapshot,
    verify,
    write_snapshot,
)


def _state(seed: int = 0, steps: int = 0) -> TrainState:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, betas=(0.5, 0.9))
    state = TrainState({"net": net}, {"net": optimizer})
    for step in range(steps):
        _train(state, step)
    return state


def _train(state: TrainState, step: int) -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    state.modules["net"](x).square().mean().backward()
    state.optimizers["net"].step()
    state.optimizers["net"].zero_grad()
    state.step, state.position = state.step + 1, state.position + 8
    state.sums["loss"] = state.sums.get("loss", torch.zeros(2)) + torch.tensor([0.1, 1.0])


class Owner:
    """Who knows whole states; one process does."""

    def module_state(self, module: nn.Module) -> dict:
        return {name: value.clone() for name, value in module.state_dict().items()}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict:
        return optimizer.state_dict()


def _taken(state: TrainState):
    return snapshot(state, Owner(), {"fingerprint": "print", "world": 1})


def _save(state: TrainState, folder):
    return write_snapshot(_taken(state), folder)


def test_a_restored_training_goes_on_bit_for_bit(tmp_path):
    uninterrupted = _state(steps=5)
    first = _state(steps=3)
    checkpoint = _save(first, tmp_path)
    resumed = _state(seed=99)
    load_state(resumed, checkpoint)
    assert (resumed.step, resumed.position) == (3, 24)
    for step in (3, 4):
        _train(resumed, step)
    for name, value in uninterrupted.modules["net"].state_dict().items():
        assert torch.equal(value, resumed.modules["net"].state_dict()[name]), name
    moments = uninterrupted.optimizers["net"].state_dict()["state"]
    for index, entries in resumed.optimizers["net"].state_dict()["state"].items():
        assert all(torch.equal(value, moments[index][name]) for name, value in entries.items())
    assert resumed.optimizers["net"].param_groups[0]["betas"] in ((0.5, 0.9), [0.5, 0.9])
    assert torch.equal(resumed.sums["loss"], uninterrupted.sums["loss"])


def test_an_optimizer_that_has_not_stepped_comes_back_empty(tmp_path):
    checkpoint = _save(_state(), tmp_path)
    resumed = _state(seed=1)
    load_state(resumed, checkpoint)
    assert not resumed.optimizers["net"].state_dict()["state"]


def test_checkpoint_json_says_what_is_there(tmp_path):
    checkpoint = _save(_state(steps=2), tmp_path)
    facts = json.loads((checkpoint / FACTS).read_text())
    assert {"step", "position", "world", "fingerprint", "git_commit", "sha256"} <= set(facts)
    assert set(facts["sha256"]) == {path.name for path in checkpoint.iterdir()} - {FACTS}
    assert not any(path.suffix in (".pkl", ".pt", ".bin") for path in checkpoint.iterdir())


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "facts"])
def test_damage_is_named_and_the_checkpoint_before_is_used(tmp_path, damage):
    state = _state(steps=1)
    good = _save(state, tmp_path)
    _train(state, 1)
    newest = _save(state, tmp_path)
    victim = newest / ("net.optimizer.safetensors" if damage != "facts" else FACTS)
    data = bytearray(victim.read_bytes())
    match damage:
        case "flip":
            data[-3] ^= 1
            victim.write_bytes(data)
        case "missing":
            victim.unlink()
        case "cut" | "facts":
            victim.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=newest.name):
        verify(newest, "print")
    with pytest.warns(UserWarning, match=newest.name):
        assert newest_intact(tmp_path, "print") == good


def test_without_an_intact_checkpoint_training_begins_at_the_beginning(tmp_path):
    assert newest_intact(tmp_path, "print") is None
    checkpoint = _save(_state(steps=1), tmp_path)
    (checkpoint / "net.safetensors").unlink()
    with pytest.warns(UserWarning, match="missing"):
        assert newest_intact(tmp_path, "print") is None


def test_a_half_written_checkpoint_is_not_one(tmp_path):
    partial = tmp_path / ".000000000008.partial"
    partial.mkdir()
    (partial / "net.safetensors").write_bytes(b"half")
    assert newest_intact(tmp_path, "print") is None
    assert _save(_state(steps=1), tmp_path).exists() and not partial.exists()


def test_only_the_newest_are_kept_and_milestones_for_good(tmp_path):
    state, writer = _state(), CheckpointWriter(tmp_path, keep=2, every=8, milestone=20)
    for step in range(8):
        _train(state, step)
        writer.put(_taken(state))
    writer.wait()
    assert [int(path.name) for path in checkpoints(tmp_path)] == [64, 56, 48, 40, 24]  # first at or after 20, 40 and 60
    writer.remove()
    assert [int(path.name) for path in checkpoints(tmp_path)] == [64, 40, 24]


def test_what_is_written_is_the_moment_of_the_snapshot_though_training_goes_on(tmp_path):
    state, expected = _state(steps=3), _state(steps=3)
    taken = _taken(state)
    _train(state, 3)
    checkpoint = write_snapshot(taken, tmp_path)
    resumed = _state(seed=9)
    load_state(resumed, checkpoint)
    assert resumed.position == 24 and torch.equal(resumed.sums["loss"], expected.sums["loss"])
    for name, value in expected.modules["net"].state_dict().items():
        assert torch.equal(value, resumed.modules["net"].state_dict()[name]), name
    moments = expected.optimizers["net"].state_dict()["state"]
    for index, entries in resumed.optimizers["net"].state_dict()["state"].items():
        assert all(torch.equal(value, moments[index][name]) for name, value in entries.items())


def test_a_full_disk_is_told_and_the_checkpoint_before_stays(tmp_path, monkeypatch):
    state, writer = _state(steps=1), CheckpointWriter(tmp_path, keep=2, every=8, milestone=None)
    writer.put(_taken(state))
    writer.wait()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("codeswap.train.state.save_file", full)
    _train(state, 1)
    writer.put(_taken(state))
    with pytest.raises(OSError, match="No space left"):
        writer.put(_taken(state))
    assert newest_intact(tmp_path, "print").name == "000000000008"


def test_a_checkpoint_of_another_run_or_shape_is_refused(tmp_path):
    checkpoint = _save(_state(steps=1), tmp_path)
    with pytest.raises(CheckpointError, match="belongs to run print"):
        verify(checkpoint, "other")
    lacking = TrainState({"net": _state().modules["net"], "discriminator": nn.Linear(1, 1)}, _state().optimizers)
    with pytest.raises(CheckpointError, match="discriminator"):
        load_state(lacking, checkpoint)
    narrower = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    with pytest.raises(CheckpointError, match="does not fit"):
        load_state(TrainState({"net": narrower}, {"net": torch.optim.Adam(narrower.parameters())}), checkpoint)

"""Muon beside AdamW: each does to its own parameters what torch's optimizer does, and resumes bit for bit."""

import json

import pytest
import torch
from torch import nn

from codeswap.train.engine import Engine
from codeswap.train.machine import EngineConfig
from codeswap.train.muon import MuonWithAdamW
from codeswap.train.schedule import set_lr
from codeswap.train.state import TrainState, load_state, snapshot, write_snapshot


@pytest.fixture
def engine():
    engine = Engine(EngineConfig(device="cpu"), 0, 4)
    yield engine
    engine.close()


def _module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)), nn.Linear(8, 3))


def _train(module: nn.Module, optimizers: list[torch.optim.Optimizer], steps: range) -> None:
    for step in steps:
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        module(x).square().mean().backward()
        for optimizer in optimizers:
            set_lr(optimizer, 1e-2 / (1 + step))
            optimizer.step()
        module.zero_grad()


def test_each_parameter_moves_as_under_its_own_optimizer(engine):
    ours, theirs = _module(), _module()
    both = engine.muon(ours, ours[1], 1e-2, (0.9, 0.98), 1e-2)
    _train(ours, [both], range(4))
    matrix = theirs[1][1].weight
    rest = [p for p in theirs.parameters() if p is not matrix]
    muon = torch.optim.Muon([matrix], lr=1e-2, weight_decay=1e-2, adjust_lr_fn="match_rms_adamw")
    _train(theirs, [muon, torch.optim.AdamW(rest, lr=1e-2, betas=(0.9, 0.98), weight_decay=1e-2)], range(4))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(ours[1][1].weight, _module()[1][1].weight)


def test_a_checkpoint_continues_bit_for_bit(tmp_path, engine):
    whole, first, second = _module(), _module(), _module()
    _train(whole, [engine.muon(whole, whole[1], 1e-2, (0.9, 0.98), 1e-2)], range(6))
    optimizer = engine.muon(first, first[1], 1e-2, (0.9, 0.98), 1e-2)
    _train(first, [optimizer], range(3))
    checkpoint = write_snapshot(
        snapshot(TrainState({"m": first}, {"m": optimizer}), engine, {"fingerprint": "f"}), tmp_path
    )
    again = engine.muon(second, second[1], 1e-2, (0.9, 0.98), 1e-2)
    load_state(TrainState({"m": second}, {"m": again}), checkpoint)
    _train(second, [again], range(3, 6))
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert len(json.loads((checkpoint / "checkpoint.json").read_text())["optimizers"]["m"]) == 2


def test_a_module_without_matrices_is_named():
    with pytest.raises(ValueError, match="empty parameter list"):
        MuonWithAdamW([], _module().parameters(), 1e-2, (0.9, 0.98), 0.0)

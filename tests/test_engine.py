"""The engine alone in one process; two processes are in test_launch.py and test_train_*.py."""

import os
import signal
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from codeswap.train.accelerate_launch import exit_code
from codeswap.train.engine import Engine, held
from codeswap.train.machine import EngineConfig
from codeswap.train.processes import LaunchError, check_launch


class Batch(NamedTuple):
    x: Tensor
    y: Tensor | None


@pytest.fixture
def make():
    engines = []

    def new(batch: int = 4, seed: int = 0, **config) -> Engine:
        engines.append(Engine(EngineConfig(device="cpu", **config), seed, batch))
        return engines[-1]

    yield new
    for engine in engines:
        engine.close()


def test_several_processes_asked_for_but_one_started_is_an_error():
    with pytest.raises(LaunchError, match="configs/accelerate/cpu2"):
        check_launch({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"})
    check_launch({"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"})
    check_launch({})


def test_a_process_whose_launcher_has_gone_ends_itself():
    program = "from codeswap.train.processes import end_with_launcher; end_with_launcher({'TORCHELASTIC_RUN_ID': 'x'})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "the launcher of this process has ended" in done.stderr


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(ValueError, match="batch 6 cannot be shared by 1 processes"):
        Engine(EngineConfig(device="cpu", accumulation=4), 0, 6)


def test_cuda_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(LaunchError, match="1 processes on this machine but"):
        Engine(EngineConfig(device="cuda"), 0, 4)


def test_accumulated_parts_make_the_step_of_the_whole_batch(make):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    weights = []
    for parts in (1, 4):
        engine = make(batch=8, accumulation=parts)
        with engine.initialising("net"):
            net = nn.Linear(3, 2)
        optimizer = engine.adam(net, 0.1, (0.9, 0.99))
        trained, optimizer = engine.prepare(net, optimizer, clip=0.5)
        before = net.weight.detach().clone()
        for number, part in enumerate(x.chunk(parts)):
            batch = engine.begin(Batch(part, None))
            assert engine.complete == (number == parts - 1)
            engine.step(trained(batch.x).square().mean(), trained, optimizer)
            assert torch.equal(net.weight, before) != engine.complete
        weights.append(net.weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1])


def test_randomness_is_a_function_of_seed_step_and_purpose(make):
    engine, other = make(seed=1), make(seed=2)

    def draw(engine: Engine, step: int, purpose: str) -> list[float]:
        return torch.rand(3, generator=engine.generator(step, purpose)).tolist()

    assert draw(engine, 5, "mix") == draw(engine, 5, "mix")
    assert len({tuple(draw(*case)) for case in [(engine, 5, "mix"), (engine, 6, "mix"), (engine, 5, "noise")]}) == 3
    assert draw(engine, 5, "mix") != draw(other, 5, "mix")


def test_initialising_leaves_the_global_generator_alone(make):
    engine = make()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with engine.initialising("net"):
        first = nn.Linear(2, 2).weight
    assert torch.equal(torch.rand(2), expected)
    with engine.initialising("net"):
        assert torch.equal(nn.Linear(2, 2).weight, first)


def test_compiling_that_does_not_work_is_said_and_training_goes_on(make, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    engine, net = make(compile=True), nn.Linear(2, 1)
    trained, _ = engine.prepare(net, engine.adam(net, 0.1, (0.9, 0.99)))
    assert trained(torch.ones(1, 2)).shape == (1, 1)
    assert "torch.compile does not work here, training goes on without it: no C++ compiler" in capsys.readouterr().out


def test_held_lets_gradients_through_but_not_in():
    judge, picture = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
    with held(judge):
        score = judge(picture).sum()
    score.backward()
    assert picture.grad is not None and judge.weight.grad is None and judge.weight.requires_grad


def test_a_signal_asks_to_stop_and_the_old_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    engine = Engine(EngineConfig(device="cpu"), 0, 4)
    engine.begin(Batch(torch.zeros(1), None))
    assert not engine.stopping(1)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert engine.stopping(1)
    with pytest.raises(KeyboardInterrupt):  # after a request to stop, Ctrl-C means now
        signal.raise_signal(signal.SIGINT)
    engine.close()
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_process_agrees_with_itself(make):
    engine, tensor = make(), torch.arange(3.0)
    assert torch.equal(engine.sum(tensor), tensor) and torch.equal(engine.gather(tensor), tensor)
    assert torch.equal(engine.rows(tensor), tensor)
    assert engine.on_main(lambda: "done") == "done"
    with pytest.raises(ValueError, match="why"):
        engine.on_main(lambda: (_ for _ in ()).throw(ValueError("why")))


def test_the_launcher_tells_a_requested_stop_from_a_failure() -> None:
    assert exit_code({75}) == exit_code({75, -15}) == 75
    assert exit_code({1}) == exit_code({75, 1}) == exit_code({-15}) == exit_code({-9, 75}) == 1


def test_precision_auto_is_bf16_only_where_the_processor_multiplies_in_it(monkeypatch):
    config = EngineConfig(precision="auto")
    for known, expected in (({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known)
        assert config.in_bf16(torch.device("cpu")) == expected
        engine = Engine(config, 0, 4)
        assert engine.autocast()._enabled == engine.bf16 == expected
        engine.close()
    assert EngineConfig(precision="bf16").in_bf16(torch.device("cpu"))
    assert not EngineConfig().in_bf16(torch.device("cpu"))

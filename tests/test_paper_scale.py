"""One real training pass of every network at the paper's size (minutes on a CPU, about 8 GiB)."""

import importlib.util
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks/paper_scale_step.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "parameters", "gflop"),
    [
        ("vqgan", 75_688_259, 684),
        ("discriminator", 2_765_633, 51.4),
        ("fusion", 13_536_864, 34.9),
        ("mask", 62_817, 5.1),
    ],
)
def test_one_step(network, parameters, gflop):
    spec = importlib.util.spec_from_file_location("paper_scale_step", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    step = benchmark.measure(network)
    assert step.parameters == parameters
    assert step.finite
    assert step.forward_gflop == pytest.approx(gflop, rel=0.01)

"""What a training costs: FLOPs counted by hand, shares of a step, plans by arithmetic, and the command's table."""

from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from codeswap.cli import app
from codeswap.config import load_params
from codeswap.models.codeswap import new_fusion
from codeswap.models.fusion import FusionConfig
from codeswap.models.quantizer import QuantizerConfig
from codeswap.models.vqgan import VQGAN, VQGANConfig
from codeswap.train.cost import Piece, Step, activations_of, cost, flops_of, swap_step
from codeswap.train.cost_table import Trainings, stage_steps
from codeswap.train.meter import Meter
from codeswap.train.plans import Cluster, Cost, plan
from codeswap.train.swap import SwapTraining

PROFILES = Path(__file__).parent.parent / "profiles"


def test_flops_and_activations_of_a_layer_by_hand() -> None:
    with torch.device("meta"):
        layer, x = nn.Linear(8, 4, bias=False), torch.zeros(2, 8)
    step = Step([Piece(lambda: layer(x).sum().backward(), 1.0)], [layer], [])
    assert flops_of(step) == 2 * (2 * 8 * 4) * 2  # the product, and the weight's gradient; x needs none
    assert activations_of(step) == 2 * 8 * 4  # x, 4 bytes each
    x.requires_grad_()
    assert activations_of(step) == 2 * 8 * 4  # the weight waits too now, but it is there anyway
    x.requires_grad_(False)
    halves = Step([Piece(lambda: layer(x).sum().backward(), 0.5)], [layer], [])
    assert flops_of(halves) == flops_of(step) / 2


def test_second_passes_and_triplets_cost_what_their_shares_say() -> None:
    config = VQGANConfig(image_size=32, ch=8, ch_mult=(1, 2), attn_res=(), z_ch=8, embed_dim=8)
    vqgan = VQGAN(config, QuantizerConfig(n_codes=16))
    sizes = FusionConfig(layers=1, width=16, heads=2, ffn=16)
    fusion = new_fusion(sizes, "ours", vqgan)

    def flops(**training: object) -> float:
        return flops_of(swap_step(SwapTraining(**training), vqgan, fusion, None))

    own = flops_of(swap_step(SwapTraining(), vqgan, new_fusion(sizes, "ours", vqgan, own_decoder=True), None))
    assert own > flops()  # gradients of the decoder's weights

    none = {"weights": {"cycle": 0.0}}
    full, plain = flops(), flops(**none)
    assert full > plain and flops(cycle_share=0.5) == pytest.approx((full + plain) / 2)
    assert plain < flops(triplets={"share": 0.5}, **none) < plain + plain / 2  # one picture is decoded, not two


def test_a_stage_that_trains_its_own_decoder_is_planned_with_it() -> None:
    kinds = Trainings.__annotations__.values()
    own = Trainings(*(load_params(PROFILES / "release_finish.yaml", kind) for kind in kinds))
    lent = own._replace(
        swap=own.swap.model_copy(update={"swap": own.swap.swap.model_copy(update={"own_decoder": False})})
    )
    with_it, without = (
        next(cost(name, *rest) for name, *rest in stage_steps(params, "ours", "meta") if name == "swap")
        for params in (own, lent)
    )
    assert with_it.trained > without.trained and with_it.flops > without.flops


def test_the_papers_stages_cost_teraflops() -> None:
    """METHOD counts 1.37 TFLOP for one swap of a pair at 512 px; Stage 3 runs just that and a small mask network, and
    without gradients up-sampling takes 4/9 of its share (layers.ConvUp)."""
    params = Trainings(*(load_params(PROFILES / "paper.yaml", kind) for kind in Trainings.__annotations__.values()))
    steps = {name: (training, step) for name, training, step in stage_steps(params, "ours", "meta")}
    found = {name: cost(name, *steps[name]) for name in ("swap", "mask")}
    assert found["mask"].flops == pytest.approx(1.27e12, rel=0.02)
    assert 2e12 < found["swap"].flops < 3e12 and found["swap"].trained < 20e6 < found["swap"].frozen
    assert found["swap"].samples == 32 * 600_000


def test_a_plan_is_arithmetic() -> None:
    one = Cost("swap", samples=1000, batch=8, trained=10, frozen=0, flops=100.0, activations=4)
    planned = plan(one, 2, Cluster(peak=100.0, used=0.5, link=1e9, price=3.0))
    assert planned.images_per_second == pytest.approx(1.0)  # 4 samples of 100 FLOP at 50 FLOP/s, on each of 2
    assert planned.days == pytest.approx(1000 / 86400) and planned.money == pytest.approx(1000 / 3600 * 2 * 3)
    assert (planned.ddp_bytes, planned.zero3_bytes) == (40, 60)  # 2 and 3 times 10 fp32 numbers, half of them sent
    assert (planned.ddp_memory, planned.zero2_memory, planned.zero3_memory) == (160 + 16, 100 + 16, 80 + 16)
    slow = plan(one, 2, Cluster(peak=100.0, used=0.5, link=1.0, price=3.0))
    assert slow.images_per_second == pytest.approx(8 / 40)  # a slow link is waited for
    assert plan(one, 3, Cluster()) is None


def test_the_command_prints_a_table_and_refuses_plainly() -> None:
    done = CliRunner().invoke(app, ["cost", "--params", str(PROFILES / "demo.yaml"), "--gpus", "1,3", "--measure"])
    assert done.exit_code == 0, done.output
    assert "codebook: 16,000 samples in batches of 8" in done.output and "of that rate" in done.output
    assert "3  the batch of 8 cannot be shared by so many" in done.output
    wrong = CliRunner().invoke(app, ["cost", "--params", "nowhere.yaml"])
    assert wrong.exit_code == 1 and "nowhere.yaml does not exist" in wrong.output
    wrong = CliRunner().invoke(app, ["cost", "--params", str(PROFILES / "demo.yaml"), "--variant", "mine"])
    assert wrong.exit_code == 1 and "there is no variant 'mine'" in wrong.output


def test_a_lap_tells_speed_memory_and_utilisation() -> None:
    meter = Meter(torch.device("cpu"), world=2, bf16=False)
    meter.flops = 1e6
    meter.step(8, samples=8, complete=True, terms={"loss": torch.tensor(1.0)})
    meter.step(16, samples=8, complete=True, terms={"loss": torch.tensor(float("nan"))})
    meter.step(24, samples=8, complete=True, terms={"loss": torch.tensor(float("inf"))})
    lap = meter.lap()
    assert int(meter.bad_at) == 16 and meter.speeds == [lap["speed/images_per_second"]]
    assert lap["speed/model_tflops"] == pytest.approx(lap["speed/images_per_second"] * 1e6 / 2 / 1e12)
    assert lap["speed/mfu"] > 0 and lap["speed/peak_memory_gb"] > 0.05

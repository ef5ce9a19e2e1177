"""The real launchers: two processes that really are two, killed and resumed; one after two; Ray."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import s3fs
import torch
from moto.server import ThreadedMotoServer
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from golden_curves import STAGES, differences, read

PROJECT = Path(__file__).resolve().parents[1]
PROGRAM = PROJECT / "tests" / "tiny_training.py"
CONFIGS = PROJECT / "configs" / "accelerate"


def _start(*command: str | Path) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": f"{PROJECT}:{PROJECT / 'tests'}", "CODESWAP_MLFLOW": "off", "OMP_NUM_THREADS": "1",
        "ACCELERATE_DISABLE_RICH": "1", "DS_ACCELERATOR": "cpu",
    }  # fmt: skip
    module = () if str(command[0]).endswith(".py") else ("-m",)
    return subprocess.Popen(
        [sys.executable, *module, *map(str, command)], env=environment, cwd=PROJECT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    started = _start(*command)
    out, err = started.communicate(timeout=400)
    return subprocess.CompletedProcess(command, started.returncode, out, err)


def _launch(config: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Options of the launcher itself (`--num_processes N`) come first."""
    options = arguments[:2] if arguments[0] == "--num_processes" else ()
    return _run(
        "accelerate.commands.launch", "--config_file", CONFIGS / f"{config}.yaml", *options, PROGRAM,
        *arguments[len(options) :],
    )  # fmt: skip


def _models(root: Path) -> dict[str, bytes]:
    files = ("codebook", "swap/ours", "mask/ours")
    return {
        f"{name}/{file}": (root / "models" / name / file).read_bytes()
        for name in files
        for file in ("model.safetensors", "curve.csv")
    }


@pytest.fixture(scope="module")
def together(tiny, tmp_path_factory):
    """Two worlds trained by two processes: one uninterrupted, one stopped in every stage and at last killed."""
    whole = tiny.make_world(tmp_path_factory.mktemp("whole"))
    broken = shutil.copytree(whole, tmp_path_factory.mktemp("broken") / "world")
    done = _launch("cpu2", whole)
    assert done.returncode == 0, done.stderr
    term, kill = int(signal.SIGTERM), int(signal.SIGKILL)
    stops = [f"codebook:24:{term}", f"codebook:40:{term}", f"swap-ours:32:{term}", f"mask-ours:16:{term}"]
    killed = _launch("cpu2", broken, "--stop", *stops, f"mask-ours:40:{kill}")
    assert killed.returncode != 0 and "stopped at sample" in killed.stdout, killed.stderr
    assert (broken / "models/swap/ours").exists() and not (broken / "models/mask/ours").exists()
    return whole, broken


def test_two_processes_stopped_and_killed_end_as_the_uninterrupted_two(together, tmp_path):
    whole, broken = together
    root = shutil.copytree(broken, tmp_path / "world")
    resumed = _launch("cpu2", root)
    assert resumed.returncode == 0, resumed.stderr
    assert "mask-ours: resuming at sample 32" in resumed.stdout
    expected = _models(whole)
    assert [name for name, data in _models(root).items() if data != expected[name]] == []


def test_what_two_began_one_goes_on_with_the_same_samples(together, tiny, tmp_path, no_mlflow):
    whole, broken = together
    root = shutil.copytree(broken, tmp_path / "world")
    tiny.train(root, ["mask"])
    lines = [(world / "models/mask/ours/curve.csv").read_text().splitlines() for world in (whole, root)]
    assert lines[0][:3] == lines[1][:3]  # the header and what both did before
    for ours, theirs in zip(lines[0][3].split(","), lines[1][3].split(","), strict=True):
        assert (ours, theirs) == ("", "") or float(ours) == pytest.approx(float(theirs), rel=1e-3, abs=1e-6)


def test_one_process_and_two_have_the_golden_curves(together, trained):
    assert differences(trained, STAGES) == [] and differences(together[0], STAGES) == []


@pytest.fixture(scope="module")
def untrained(together, tmp_path_factory):
    """`untrained("swap", "mask")`: the world of two processes without these stages."""

    def make(*stages: str) -> Path:
        root = shutil.copytree(together[0], tmp_path_factory.mktemp("world") / "world")
        for stage in stages:
            for place in ("models", "runs"):
                shutil.rmtree(root / place / stage)
        return root

    return make


@pytest.mark.parametrize(("stage", "zero"), [("codebook", 2), ("swap", 1), ("swap", 3)])
def test_zero_stops_goes_on_and_ends_with_the_weights_of_ddp(together, untrained, stage, zero):
    root = untrained(stage)
    at = {"codebook": "codebook:40", "swap": "swap-ours:32"}[stage]
    done = _launch(f"deepspeed_zero{zero}", "--num_processes", "2", root, "--stages", stage, "--stop", f"{at}:15")
    assert done.returncode == 0 and "stopped at sample" in done.stdout and "resuming at sample" in done.stdout
    assert differences(root, [stage]) == []
    place = {"codebook": "codebook", "swap": "swap/ours"}[stage]
    weights, expected = (load_file(world / "models" / place / "model.safetensors") for world in (root, together[0]))
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_a_run_goes_on_under_another_launcher(together, untrained):
    """Begun by DeepSpeed's ZeRO 2 on two processes, stopped, and ended by DDP on four."""
    root = untrained("swap")
    stop = ("--stop", f"swap-ours:32:{int(signal.SIGUSR1)}", "--once")
    begun = _launch("deepspeed_zero2", "--num_processes", "2", root, "--stages", "swap", *stop)
    assert begun.returncode == 1 and "stopped at sample 32" in begun.stdout, begun.stderr[-2000:]
    done = _launch("cpu2", "--num_processes", "4", root, "--stages", "swap")
    assert done.returncode == 0 and "resuming at sample 32" in done.stdout, done.stderr[-2000:]
    assert differences(root, ["swap"]) == []


# without what is relative to a process' own share of the batch
PLAIN = {
    "codebook": {"skin_weight": 0.0, "feature_weight": 0.0},
    "swap": {
        "weights": {"pose": 0.1, "background": 0.1, "cycle": 0.5},
        "later": {"begins": 24, "weights": {"pose": 0.1, "background": 0.1, "cycle": 1.0}},
    },
}


# of the nearest codes: where two are about as near, rounding (other on every processor) decides
COUNTED = {"perplexity", "val/perplexity"}


@pytest.mark.parametrize(("stage", "on"), [("codebook", 4), ("swap", 1)])
def test_stopped_on_two_processes_it_goes_on_with_the_same_losses_on_others(untrained, tmp_path, stage, on):
    name = {"codebook": "codebook", "swap": "swap-ours"}[stage]
    changes = ("--changes", json.dumps({stage: PLAIN[stage]}), "--stages", stage)
    whole, broken = untrained(stage), untrained(stage)
    assert _launch("cpu2", whole, *changes).returncode == 0
    assert _launch("cpu2", broken, *changes, "--stop", f"{name}:32:15", "--once").returncode == 1
    go_on = _launch("cpu2", "--num_processes", str(on), broken, *changes) if on > 1 else _run(PROGRAM, broken, *changes)
    assert go_on.returncode == 0 and "resuming at sample 32" in go_on.stdout, go_on.stderr[-2000:]
    place = {"codebook": "codebook", "swap": "swap/ours"}[stage]
    before, after = (read(world / "models" / place / "curve.csv") for world in (whole, broken))
    assert [line["position"] for line in before] == [line["position"] for line in after]
    for one, other in zip(before, after, strict=True):
        for term, value in one.items():
            near = 0.03 if term in COUNTED else 2e-3
            assert (value, other[term]) == ("", "") or float(other[term]) == pytest.approx(
                float(value), rel=near, abs=1e-5
            ), f"{term} at {one['position']}"


def test_stage_1_under_zero_3_says_what_to_use(untrained):
    refused = _launch("deepspeed_zero3", "--num_processes", "2", untrained("codebook"), "--stages", "codebook")
    assert refused.returncode != 0 and "deepspeed_zero2.yaml" in refused.stderr


def test_averaged_weights_under_zero_3_are_refused(untrained):
    root = untrained("swap", "mask")
    changes = json.dumps({"swap": {"ema": 0.9}})
    refused = _launch("deepspeed_zero3", "--num_processes", "2", root, "--stages", "swap", "--changes", changes)
    assert refused.returncode != 0 and "use ZeRO-2 or DDP, or swap.ema: 0" in refused.stderr
    assert not (root / "models/swap").exists()


def test_an_own_decoder_learns_alike_on_one_process_and_two_and_is_refused_under_zero_3(untrained):
    """Both processes' gradients reach a part that the wrapped module's forward pass does not run."""
    changes = ("--changes", json.dumps({"swap": PLAIN["swap"] | {"own_decoder": True}}), "--stages", "swap")
    refused = _launch("deepspeed_zero3", "--num_processes", "2", untrained("swap", "mask"), *changes)
    assert refused.returncode != 0 and "swap.own_decoder needs whole weights" in refused.stderr
    models = []
    for launch in (partial(_launch, "cpu2"), partial(_run, PROGRAM)):
        root = untrained("swap", "mask")
        done = launch(root, *changes)
        assert done.returncode == 0, done.stderr[-2000:]
        models.append(load_file(root / "models/swap/ours/model.safetensors"))
    begun = load_file(root / "models/codebook/model.safetensors")
    for name in (name for name in begun if name.startswith("decoder.") and begun[name].ndim == 4):
        two, one = (model[f"decoder.{name}"] for model in models)
        # Adam makes much of the rounding of small gradients; one process' gradients alone are half of the change apart
        assert (two - one).norm() < 0.15 * (one - begun[name]).norm(), name


@pytest.mark.parametrize(("config", "number"), [("cpu2", signal.SIGTERM), ("cpu1", signal.SIGUSR1)])
def test_a_preempted_launcher_has_its_checkpoint_written_and_ends_with_75(untrained, config, number):
    root = untrained("mask")
    command = ["codeswap.train.accelerate_launch", "--config_file", CONFIGS / f"{config}.yaml", PROGRAM, root]
    mark = root / "waits"
    begun = _start(*command, "--stages", "mask", "--once", "--wait", mark)
    while begun.poll() is None and not mark.exists():
        time.sleep(0.1)
    begun.send_signal(number)
    out, err = begun.communicate(timeout=200)
    assert begun.returncode == 75, err[-3000:]
    assert "stopped at sample" in out and list((root / "runs/mask/ours/print").glob("0*"))
    assert _launch("cpu2", root, "--stages", "mask").returncode == 0


def test_the_launcher_that_starts_one_of_two_is_caught(tmp_path):
    caught = _run("accelerate.commands.launch", "--cpu", "--num_processes", "2", PROGRAM, tmp_path / "none")
    assert caught.returncode != 0 and "configs/accelerate/cpu2.yaml" in caught.stderr


def test_every_launch_file_can_be_read():
    from accelerate.commands.config.config_args import load_config_from_file

    files = sorted(CONFIGS.glob("*.yaml"))
    assert {file.stem for file in files} >= {"cpu1", "cpu2", "gpu1", "multi_gpu", "multi_node", "deepspeed_zero2"}
    processes = {file.stem: load_config_from_file(str(file)).num_processes for file in files}
    assert processes["cpu1"] == processes["gpu1"] == 1 and processes["cpu2"] == 2 and processes["multi_gpu"] == 8


@pytest.fixture
def bucket(monkeypatch):
    """An object store's address, for Ray's bookkeeping."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem(endpoint_url=f"http://{host}:{port}").mkdir("runs")
    yield f"s3://runs/ray?scheme=http&endpoint_override={host}:{port}", f"http://{host}:{port}"
    server.stop()


def test_ray_trains_the_same_stage_replaces_a_killed_worker_and_keeps_its_books_elsewhere(copy, bucket):
    root, (address, endpoint) = copy("mask"), bucket
    done = _run(
        "codeswap.train.launch", "--workers", "2", "--failures", "1", "--storage", address, "tiny_training", root,
        "--stages", "mask", "--stop", f"mask-ours:40:{int(signal.SIGKILL)}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (root / "stopped-mask-ours-40").exists() and differences(root, ["mask"]) == []
    assert s3fs.S3FileSystem(endpoint_url=endpoint).find("runs/ray/tiny_training")

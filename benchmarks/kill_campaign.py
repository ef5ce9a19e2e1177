"""Kills a training at random moments, again and again, and compares what it ends with bit for bit.

    python -m benchmarks.kill_campaign [--kills 50] [--processes 1 2] [--seed 0]

The tiny training of the tests (three stages, every phase of each) is trained once uninterrupted. Then it is started
over and over in fresh worlds. A process SIGKILLs itself at a drawn event of its own: a step, or any operation on a file
or folder of its world, so inside checkpoints, while they are renamed, and between the last lines of the final write.
One in three is killed from outside after a drawn time instead. The same command goes on until the world is finished;
weights and curves must then be those of the uninterrupted training.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
STAGES = ("codebook", "swap/ours", "mask/ours")
CHILD = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import tiny_training
from codeswap.train.run import Run

root, at, counted = {root!r}, {at}, 0
KINDS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "shutil.copyfile")

def count(kind):
    global counted
    counted += 1
    if counted == at:
        print("killed at", kind, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

def hook(event, arguments):
    if event in KINDS and arguments and str(arguments[0]).startswith(root) and "/data/" not in str(arguments[0]):
        count(event + " " + str(arguments[0])[len(root):])

if os.environ.get("RANK", "0") == {rank!r}:
    sys.addaudithook(hook)
    add = Run.add
    def counted_add(self, state, terms):
        add(self, state, terms)
        count("step of " + self.name)
    Run.add = counted_add
tiny_training.train(tiny_training.Path(root), ["codebook", "swap", "mask"])
print("events", counted, flush=True)
"""


def run(root: Path, processes: int, at: int, rank: int, seconds: float | None) -> tuple[bool, str]:
    """One start of the training. Whether it came to its end, and its last words."""
    program = root.with_name("program.py")
    program.write_text(CHILD.format(tests=str(PROJECT / "tests"), root=str(root), at=at, rank=str(rank)))
    config = PROJECT / "configs" / "accelerate" / f"cpu{processes}.yaml"
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config)] if processes > 1 else []
    environment = os.environ | {"CODESWAP_MLFLOW": "off", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    child = subprocess.Popen(
        [sys.executable, *launcher, str(program)], env=environment, cwd=PROJECT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        out, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        out, _ = child.communicate()
        return False, "killed from outside"
    lines = [line for line in out.splitlines() if line.startswith(("killed at", "events"))]
    if child.returncode != 0 and not any(line.startswith("killed") for line in lines):
        raise SystemExit(f"the training ended with {child.returncode} though nobody killed it:\n{out[-3000:]}")
    return child.returncode == 0, lines[-1] if lines else ""


def result(root: Path) -> dict[str, bytes]:
    """Weights and curves of all stages."""
    names = [f"{stage}/{file}" for stage in STAGES for file in ("model.safetensors", "curve.csv")]
    return {name: (root / "models" / name).read_bytes() for name in names}


def campaign(folder: Path, processes: int, kills: int, draw: random.Random) -> Counter[str]:
    """Kills until `kills` are reached, and finishes the last world. Raises SystemExit at the first difference."""
    sys.path.insert(0, str(PROJECT / "tests"))
    import tiny_training

    fresh = tiny_training.make_world(folder / "fresh")
    whole = shutil.copytree(fresh, folder / "whole")
    begun = time.monotonic()
    _, said = run(whole, processes, 0, 0, None)
    took, events, expected = time.monotonic() - begun, int(said.split()[1]), result(whole)
    seen: Counter[str] = Counter()
    while seen["kills"] < kills:
        root = shutil.copytree(fresh, folder / f"world{seen['worlds']}")
        finished = False
        while not finished:
            outside = draw.random() < 1 / 3
            at, seconds = draw.randrange(1, max(events // 2, 2)), draw.uniform(0.3, 1.0) * took
            rank = draw.randrange(processes)
            finished, said = run(root, processes, 0 if outside else at, rank, seconds if outside else None)
            if not finished:
                seen["kills"] += 1
                what = said.removeprefix("killed at ").split()
                seen["  " + (" ".join(what[:1]) if "step" not in what else " ".join(what))] += 1
        different = [name for name, data in result(root).items() if data != expected[name]]
        if different:
            raise SystemExit(f"{processes} process(es): after {seen['kills']} kills these differ: {different}")
        seen["worlds"] += 1
        shutil.rmtree(root)
        print(f"{processes} process(es): {seen['kills']} kills, {seen['worlds']} worlds, all the same", flush=True)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="for each number of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for processes in options.processes:
        with tempfile.TemporaryDirectory() as folder:
            seen = campaign(Path(folder), processes, options.kills, random.Random(options.seed))
        print(f"{processes} process(es): {seen['kills']} kills in {seen['worlds']} worlds, bit for bit the same")
        for kind, count in seen.most_common():
            if kind.startswith("  "):
                print(f"{kind}: {count}")


if __name__ == "__main__":
    main()

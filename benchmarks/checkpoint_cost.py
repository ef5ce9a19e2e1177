"""How long a training waits for a checkpoint: the copy in memory, against writing and hashing it.

    python -m benchmarks.checkpoint_cost [--parameters 20000000] [--repeats 3]

The state is a network of so many parameters with Adam's two moments (the paper's Stage 2 trains 13.5 M, Stage 1
78.5 M).
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from codeswap.train.checkpoints import CheckpointWriter
from codeswap.train.engine import Engine
from codeswap.train.machine import EngineConfig
from codeswap.train.state import TrainState, snapshot, write_snapshot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=20_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    engine = Engine(EngineConfig(device="cpu"), 0, 1)
    layers = max(1, options.parameters // 1_000_000)
    net = nn.ModuleList(nn.Linear(1000, 1000) for _ in range(layers))
    optimizer = engine.adam(net, 1e-3, (0.9, 0.99))
    torch.stack([layer(torch.ones(1, 1000)).sum() for layer in net]).sum().backward()
    optimizer.step()
    folder = Path(tempfile.mkdtemp())
    writer = CheckpointWriter(folder, keep=1, every=1, milestone=None)
    copies, handed, written = [], [], []
    for number in range(options.repeats):
        state = TrainState({"net": net}, {"net": optimizer}, position=number)
        begun = time.perf_counter()
        taken = snapshot(state, engine, {"fingerprint": "f"})
        copies.append(time.perf_counter() - begun)
        writer.put(taken)
        handed.append(time.perf_counter() - begun)
        writer.wait()
        begun = time.perf_counter()
        write_snapshot(taken, folder / "again")
        written.append(time.perf_counter() - begun)
    size = sum(path.stat().st_size for path in (folder / "again").rglob("*") if path.is_file()) / options.repeats
    shutil.rmtree(folder)
    engine.close()
    count = sum(p.numel() for p in net.parameters())
    print(f"{count / 1e6:.1f} M parameters, {size / 1e6:.0f} MB, best of {options.repeats}")
    print(f"copy in memory          {min(copies):7.3f} s")
    print(f"the step waits          {min(handed):7.3f} s")
    print(f"writing and hashing     {min(written):7.3f} s   ({min(written) / min(handed):.1f} x what the step waits)")


if __name__ == "__main__":
    main()

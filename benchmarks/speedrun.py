"""Time to quality: CPU-seconds from nothing to a target on the ground-truth benchmark, for the paper's recipe and ours.

    dvc repro survey                          # in a clone with params.yaml = profiles/ablation.yaml: faces, networks
    python -m benchmarks.speedrun CLONE [--recipes literal ours] [--pairs 1000] [--retrieval 0.2] [--face-l1 0.5]

Every recipe trains Stage 1 and Stage 2 by the pipeline's own commands, one process on one thread, on the same faces
and networks. The naive swaps of each checkpoint are then judged on pairs of unseen persons: the target is reached when
their ID retrieval is at least `--retrieval` and their L1 to the true swap inside the face at most `--face-l1` of a
copy's. Seconds are of processor time of the whole process, imports included. A recipe ends after `--cap` times what
`ours` took, when that ran before. Each recipe of the ladder takes one more step from the paper's to ours.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch
import yaml
from safetensors.torch import load_file

from benchmarks.worlds import PAPERS_QUANTIZER, environment, make_world
from codeswap.config import load_params
from codeswap.data.faces import Faces
from codeswap.evaluate.judges import Judges
from codeswap.evaluate.metrics import masked_l1, retrieval_ranks
from codeswap.evaluate.protocol import ProtocolConfig, pairs_of
from codeswap.evaluate.stream import Pairs
from codeswap.models.codeswap import decoder_of, load_vqgan, new_fusion
from codeswap.models.vqgan import feature_map, tokens
from codeswap.train.swap import SwapParams

CHECKPOINTS = 8  # judged of a recipe
LONGER = 10  # times as many pairs for recipes of constant learning rate, which have no end of their own
# Groups of params.yaml as the paper has them (profiles/paper.yaml), at this profile's size of networks and pictures.
STAGE_1 = {
    "quantizer": PAPERS_QUANTIZER,
    "codebook": {"samples": 16_000, "batch": 32, "lr": 1e-4, "betas": [0.5, 0.9], "adversarial_from": 480},
}
NETWORKS = {"fusion": {"layers": 3, "width": 128, "heads": 4, "ffn": 256, "selector": "mlp", "side": "rel_bias"}}
STAGE_2 = {
    "batch": 32,
    "lr": 1e-4,
    "betas": [0.9, 0.99],
    "pairs": {"same": 0.2},
    "weights": {"reconstruction": 1.0, "identity": 1.5, "perceptual": 2e-3, "expression": 0.5, "cycle": 1.0},
}
FASTER = {  # optimiser and schedule alone
    "batch": 4,
    "lr": 2.5e-3,
    "betas": [0.9, 0.98],
    "optimizer": "muon",
    "weight_decay": 1e-4,
    "schedule": "onecycle",
    "clip": 1.0,
}
LADDER = {
    "literal": STAGE_1 | NETWORKS | {"swap": STAGE_2},
    "our Stage 1": NETWORKS | {"swap": STAGE_2},
    "and optimiser": NETWORKS | {"swap": STAGE_2 | FASTER},
    "and selector": {"swap": STAGE_2 | FASTER},
    "ours": {},
}


class Point(NamedTuple):
    """A checkpoint of Stage 2: pairs seen, processor seconds since the very beginning, and how it was judged."""

    position: int
    seconds: float
    retrieval: float
    face_l1: float  # as a share of a copy of the target's


def world(project: Path, place: Path, recipe: dict[str, dict], length: int) -> None:
    """A folder with the project's faces and networks, and its params.yaml with the recipe's groups in their places."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    params |= {name: group for name, group in recipe.items() if name != "swap"}
    swap = recipe.get("swap", params["swap"])
    every = max(swap["batch"], length // CHECKPOINTS)
    params["swap"] = swap | {"samples": length, "checkpoint_every": every, "log_every": every, "keep": 10**6}
    make_world(project, place, params)


def train(place: Path, stage: list[str], most: float) -> list[tuple[Path, float]]:
    """Runs a stage to its end or for `most` processor seconds; its checkpoints, copied, and the seconds at each.

    The last entry is the stage's folder and its whole time.
    """
    process = psutil.Popen(
        [sys.executable, "-m", *stage], cwd=place, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    seen: dict[str, tuple[Path, float]] = {}
    seconds = 0.0
    while process.poll() is None:
        time.sleep(0.2)
        try:
            seconds = sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            break
        for folder in sorted((place / "runs").glob("swap/*/*/0*")):
            if folder.name not in seen and (folder / "checkpoint.json").exists():
                kept = place / "kept" / folder.name
                shutil.copytree(folder, kept, dirs_exist_ok=True)
                seen[folder.name] = kept, seconds
        if seconds > most:
            process.terminate()
            process.wait()
    if process.wait() not in (0, 75, -15):
        raise SystemExit(process.stderr.read().decode())
    return [*seen.values(), (place, seconds)]


class Benchmark:
    """Pairs of unseen rendered persons, and what their naive swaps are worth."""

    def __init__(self, project: Path, count: int) -> None:
        self._judges = Judges.load(project / "models/perception", torch.device("cpu"))
        faces = Faces([project / "data/shards/test/images"])
        self._pairs = Pairs(
            faces, pairs_of(faces.manifest, ProtocolConfig(pairs=count)), self._judges, torch.device("cpu")
        )
        self._gallery = self._judges.identity(self._pairs.images(self._pairs.gallery))

    @torch.inference_mode()
    def judge(self, place: Path, weights: dict[str, torch.Tensor]) -> tuple[float, float]:
        """ID retrieval, and L1 to the true swap inside the face as a share of a copy of the target's."""
        vqgan = load_vqgan(place / "models/codebook")
        params = load_params(place / "params.yaml", SwapParams)
        fusion = new_fusion(params.fusion, "ours", vqgan, params.swap.own_decoder).eval()
        fusion.load_state_dict(weights)
        decoder = decoder_of(vqgan, fusion)
        seen, ours, copies = [], [], []
        with self._pairs.batches(0, len(self._pairs), 32) as stream:
            for batch in stream:
                z_a, z_b = (tokens(vqgan.encode(image)) for image in (batch.source, batch.target))
                codes = fusion(z_a, z_b, vqgan.codebook.weight).z_q_ab
                swap = decoder.decode(feature_map(codes)).clamp(-1, 1)
                seen.append(self._judges.identity(swap))
                region = batch.truth.region.float()
                ours.append(masked_l1(swap, batch.truth.image, region))
                copies.append(masked_l1(batch.target, batch.truth.image, region))
        ranks = retrieval_ranks(torch.cat(seen), self._gallery, self._pairs.answers)
        return (ranks == 1).float().mean().item(), (torch.cat(ours).mean() / torch.cat(copies).mean()).item()


def run(project: Path, name: str, benchmark: Benchmark, length: int, most: float) -> list[Point]:
    """Trains a recipe and judges its checkpoints, in order."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "world"
        world(project, place, LADDER[name], length)
        *_, (_, first) = train(place, ["pipeline.train_codebook"], most)
        if not (place / "models/codebook/card.json").exists():
            return []
        *checkpoints, (_, second) = train(place, ["pipeline.train_swap", "--variant", "ours"], most - first)
        points = []
        for folder, seconds in checkpoints:
            retrieval, face_l1 = benchmark.judge(place, load_file(folder / "fusion.safetensors"))
            points.append(Point(int(folder.name), first + seconds, retrieval, face_l1))
        if (last := place / "models/swap/ours/model.safetensors").exists():
            points.append(Point(length, first + second, *benchmark.judge(place, load_file(last))))
        return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--recipes", nargs="+", choices=LADDER, default=list(LADDER)[::-1])
    for option, default in (("pairs", 1000), ("cap", 4.0), ("retrieval", 0.2), ("face-l1", 0.5)):
        parser.add_argument(f"--{option}", type=type(default), default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    benchmark = Benchmark(options.project, options.pairs)
    length = yaml.safe_load((options.project / "params.yaml").read_text())["swap"]["samples"]
    ours = np.inf
    print(
        f"target: ID retrieval >= {options.retrieval}, face L1 <= {options.face_l1} of a copy of the target's",
        flush=True,
    )
    for name in options.recipes:
        constant = LADDER[name].get("swap", {}).get("schedule", "onecycle" if name == "ours" else "") != "onecycle"
        points = run(options.project, name, benchmark, length * (LONGER if constant else 1), options.cap * ours)
        reached = [p for p in points if p.retrieval >= options.retrieval and p.face_l1 <= options.face_l1]
        for point in points:
            print(
                f"  {name:14} {point.position:7,} pairs {point.seconds:7.0f} CPU-s: "
                f"ID retrieval {point.retrieval:.3f}, face L1 {point.face_l1:.3f}"
            )
        if name == "ours" and points:
            ours = points[-1].seconds
        verdict = f"reached after {reached[0].seconds:.0f} CPU-s" if reached else "not reached"
        if reached and name != "ours" and np.isfinite(ours):
            verdict += f", {reached[0].seconds / ours:.2f} times ours"
        print(f"{name}: {verdict}", flush=True)


if __name__ == "__main__":
    main()

"""A world so small that every training stage takes seconds, and a program that trains it (tests launch it).

python tiny_training.py ROOT [--stages codebook swap mask] [--stop STAGE:POSITION:SIGNAL ...] sends SIGNAL to the last
process, once, when the run STAGE has trained on POSITION samples. A stage that stops on a signal is started again.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file
from torch import Tensor

from codeswap.data.annotations import ANNOTATIONS, ROLES, VECTORS, Network, column, encode_labels, schema, write
from codeswap.data.manifest import CARD, HELD_OUT, MANIFEST, SCHEMA, write_card, write_rows
from codeswap.data.shards import ImageConfig, Sample, encode, write_shard
from codeswap.data.synthetic import attributes, identities, render
from codeswap.perception.networks import NetworkConfig, build
from codeswap.perception.roles import load, sha256_of
from codeswap.train.codebook import CodebookParams, train_codebook
from codeswap.train.mask import MaskParams, train_mask
from codeswap.train.processes import STOPPED, Stopped
from codeswap.train.run import Run
from codeswap.train.state import TrainState
from codeswap.train.swap import SwapParams, train_swap
from codeswap.types import Config

SIZE, PEOPLE, EACH = 32, 12, 4
OFF_PAPER = {"pose": 0.1, "background": 0.1, "features": 0.1, "embedding": 0.1}
OFTEN = {
    "batch": 8,
    "log_every": 16,
    "validate_every": 32,
    "checkpoint_every": 16,
    "pictures": 3,
    "validation": 8,
    "lr": 1e-3,
}
PARAMS = {
    "seed": 1,
    "engine": {"device": "cpu"},
    "vqgan": {
        "image_size": SIZE, "ch": 8, "ch_mult": [1, 2, 2], "n_res_enc": 1, "n_res_dec": 1, "attn_res": [8],
        "z_ch": 16, "embed_dim": 16,
    },
    "quantizer": {
        "n_codes": 32, "init": "kmeans", "update": "ema", "restart_below": 0.1, "soft_share": 0.3,
        "continuous_share": 0.2,
    },
    "discriminator": {"n_layers": 1, "ch": 8, "norm": "group"},  # BatchNorm's statistics are each process' own
    "codebook": OFTEN | {
        "samples": 64, "warm_up": 16, "warm_up_images": 16, "adversarial_from": 32, "ema": 0.9, "gradient": 0.5,
        "perceptual": 0.1, "identity": 0.1, "expression": 0.1, "skin_weight": 1.0, "feature_weight": 3.5,
        "schedule": "onecycle",
    },
    "fusion": {"layers": 1, "width": 16, "heads": 2, "ffn": 16},
    "swap": OFTEN | {
        "samples": 48, "adversarial": 0.1, "adversarial_from": 24, "cycle_share": 0.5,
        "clip": 1.0, "weight_decay": 1e-4, "both_directions": True, "triplets": {"share": 0.5},
        "weights": OFF_PAPER | {"cycle": 0.5}, "later": {"begins": 24, "weights": OFF_PAPER | {"cycle": 1.0}},
    },
    "mask_generator": {"width": 8},
    "mask": OFTEN | {"samples": 48, "supervised": 24, "soften": 1.0, "cross_entropy": 1.0, "unsupervised_lr": 5e-4},
}  # fmt: skip


def params(kind: type[Config], **changes: dict[str, object]) -> Config:
    """The Params of a stage; `changes` are merged into its groups (`swap={"clip": None}`)."""
    groups = {name: PARAMS[name] for name in kind.model_fields}
    for name, group in changes.items():
        groups[name] = PARAMS[name] | group
    return kind.model_validate(groups)


def write_set(folder: Path, image: Tensor, persons: Sequence[str]) -> list[dict[str, object]]:
    """A data set of three shards with these faces; its manifest's rows."""
    folder.mkdir(parents=True)
    rows, sizes = [], {}
    for shard, members in enumerate(np.array_split(np.arange(len(image)), 3)):
        name = f"{shard:05d}.tar"
        samples = [
            Sample(f"tiny-{i:03d}", encode(image[i].permute(1, 2, 0).numpy(), ImageConfig(size=SIZE)), {"n": int(i)})
            for i in members
        ]
        places = write_shard(folder / name, samples, ImageConfig(size=SIZE))
        for i, sample, place in zip(members, samples, places, strict=True):
            rows.append({
                "key": sample.key, "dataset": "tiny", "identity": persons[i], "split": "train", "source": str(i),
                "sha256": "0" * 64, "source_width": SIZE, "source_height": SIZE, "licence": "CC0", "shard": name,
                **place._asdict(),
            })  # fmt: skip
        sizes[name] = (folder / name).stat().st_size
    write_rows(folder / MANIFEST, rows, SCHEMA)
    write_card(folder / CARD, {"kind": "shards", "dataset": "tiny", "image": {"size": SIZE}, "shards": sizes})
    return rows


def make_world(root: Path) -> Path:
    """Shards, annotations and perception networks below `root`, in the formats of the real stages."""
    perception = root / "models" / "perception"
    perception.mkdir(parents=True)
    roles = {}
    with torch.random.fork_rng():
        for number, role in enumerate(("identity_train", "expression_train", "pose", "parsing", "perceptual")):
            torch.manual_seed(number)
            config = NetworkConfig(
                trunk=None if role == "parsing" else "strided", input_size=32, width=4, outputs=8, pose=True
            )
            save_file(build(role, config).state_dict(), perception / f"{role}.safetensors")
            roles[role] = {
                "architecture": "codeswap", "name": f"tiny_{role}", "file": f"{role}.safetensors",
                "sha256": sha256_of(perception / f"{role}.safetensors"), "config": config.model_dump(mode="json"),
                "metrics": {},
            }  # fmt: skip
    (perception / "card.json").write_text(json.dumps({"kind": "perception", "roles": roles}))

    count = PEOPLE * EACH
    image, labels = render(identities(0, PEOPLE, 5).repeat_interleave(EACH, 0), attributes(0, count, 5), SIZE)
    folder = root / "data" / "shards" / "train" / "tiny"
    rows = write_set(folder, image, [str(i // EACH) for i in range(count)])
    others, _ = render(identities(0, 4, 6).repeat_interleave(2, 0), attributes(0, 8, 6), SIZE)
    write_set(folder / HELD_OUT, others, [f"other {i // 2}" for i in range(8)])

    notes = root / "data" / "annotations" / "train" / "tiny"
    notes.mkdir(parents=True)
    networks = {role: Network(roles[role]["name"], roles[role]["sha256"]) for role in ROLES.values()}
    shown = image.float() / 127.5 - 1
    columns = {"key": pa.array([row["key"] for row in rows])}
    with torch.no_grad():
        for name in VECTORS:
            network = load(perception, ROLES[name])
            columns[name] = column(network(shown).numpy())
            columns[f"{name}_mirrored"] = column(network(shown.flip(-1)).numpy())
    columns["parsing"] = pa.array([encode_labels(one) for one in labels.numpy()], pa.binary())
    widths = {name: columns[name].type.list_size for name in VECTORS}
    fields = schema(widths, networks)
    write(notes / ANNOTATIONS, [pa.table(columns).cast(fields)], fields)
    write_card(notes / CARD, {"kind": "annotations"})
    return root


def stop_at(root: Path, *stops: str) -> Callable[[], None]:
    """Arms `stops` (STAGE:POSITION:SIGNAL), each once for `root`, also over several processes. Returns the undo."""
    add = Run.add
    wanted = {(stage, int(position)): int(number) for stage, position, number in (stop.split(":") for stop in stops)}

    def add_and_stop(self: Run, state: TrainState, terms: Mapping[str, Tensor]) -> None:
        add(self, state, terms)
        number = wanted.get((self.name, state.position))
        mark = root / f"stopped-{self.name}-{state.position}"
        if number is not None and self.engine.rank == self.engine.world - 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), number)

    Run.add = add_and_stop
    return lambda: setattr(Run, "add", add)


def wait_for_a_signal(mark: Path) -> None:
    """Has every run make the file `mark` after its first step, and go on only when it was asked to stop."""
    add = Run.add

    def add_and_wait(self: Run, state: TrainState, terms: Mapping[str, Tensor]) -> None:
        add(self, state, terms)
        mark.touch()
        while not self.engine._signal:
            time.sleep(0.05)

    Run.add = add_and_wait


def train(
    root: Path, stages: Sequence[str], variant: str = "ours", once: bool = False, **changes: dict[str, object]
) -> int:
    """Trains those of `stages` whose out is not there yet, again after every stop; how often they stopped.

    With `once` a stop is passed on instead.
    """
    name = f"print{hashlib.sha256(repr(changes).encode()).hexdigest()[:6]}" if changes else "print"
    calls = {
        "codebook": lambda: train_codebook(params(CodebookParams, **changes), root, name),
        "swap": lambda: train_swap(params(SwapParams, **changes), variant, root, name),
        "mask": lambda: train_mask(params(MaskParams, **changes), variant, root, name),
    }
    stopped = 0
    for stage in stages:
        out = root / "models" / stage / ("" if stage == "codebook" else variant)
        while not out.exists():
            try:
                calls[stage]()
            except Stopped as end:
                assert end.code == STOPPED
                if once:
                    raise
                stopped += 1
    return stopped


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--stages", nargs="+", default=["codebook", "swap", "mask"])
    parser.add_argument("--stop", nargs="*", default=[])
    parser.add_argument("--changes", type=json.loads, default={}, help="JSON, merged into the groups of parameters")
    parser.add_argument("--wait", type=Path, help="after the first step make this file and wait for a signal")
    parser.add_argument("--once", action="store_true", help="end where a signal stopped it, as the real stages do")
    options = parser.parse_args()
    stop_at(options.root, *options.stop)
    if options.wait:
        wait_for_a_signal(options.wait)
    train(options.root, options.stages, once=options.once, **options.changes)

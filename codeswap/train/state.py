"""What a training saves and restores: the whole list, in plain files, whole or not at all, checked when read."""

import json
import os
import shutil
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from codeswap.perception.roles import sha256_of
from codeswap.train.tracking import git_commit

FACTS = "checkpoint.json"


class CheckpointError(ValueError):
    """A checkpoint folder that is incomplete, damaged or of another run; the message names it and what is wrong."""


@dataclass(slots=True)
class TrainState:
    """Add to it and it is saved, restored and tested; nothing else is.

    `modules` are plain (never wrapped) modules, an EMA among them; `optimizers` belong to them by any name; `sums` are
    the metrics' running sums since the last log line. Randomness and data order follow from seed and `position`.
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, Optimizer] = field(default_factory=dict)
    position: int = 0  # samples seen by all processes together
    step: int = 0  # optimizer steps done
    sums: dict[str, Tensor] = field(default_factory=dict)


def _flatten(optimizer: Optimizer) -> tuple[dict[str, Tensor], list[dict[str, object]]]:
    whole = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().contiguous()
        for index, entries in whole["state"].items()
        for name, value in entries.items()
    }
    return tensors, whole["param_groups"]


def _restore(optimizer: Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, object]]) -> None:
    state: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state[int(index)][name] = value
    optimizer.load_state_dict({"state": dict(state), "param_groups": groups})


def save_state(state: TrainState, folder: Path, fingerprint: str, world: int, keep: int) -> Path:
    """Writes `folder/<position>`: beside, then renamed, so that it exists whole or not at all; keeps the `keep` newest.

    To be called by one process; every tensor that differs between processes has to be made equal before.
    """
    final = folder / f"{state.position:012d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, module in state.modules.items():
        tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
        save_file(tensors, partial / f"{name}.safetensors")
    groups = {}
    for name, optimizer in state.optimizers.items():
        tensors, groups[name] = _flatten(optimizer)
        save_file(tensors, partial / f"{name}.optimizer.safetensors")
    save_file({key: value.detach().cpu() for key, value in state.sums.items()}, partial / "sums.safetensors")
    facts = {
        "step": state.step,
        "position": state.position,
        "world": world,
        "fingerprint": fingerprint,
        "git_commit": git_commit(),
        "optimizers": groups,
        "sha256": {path.name: sha256_of(path) for path in sorted(partial.iterdir())},
    }
    with (partial / FACTS).open("w") as file:
        json.dump(facts, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in checkpoints(folder)[keep:]:
        shutil.rmtree(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first (damaged ones too)."""
    return sorted((path for path in folder.glob("[0-9]*") if path.is_dir()), reverse=True)


def verify(checkpoint: Path, fingerprint: str) -> dict[str, object]:
    """The facts of a checkpoint whose every file has the hash that was recorded. Raises CheckpointError."""
    try:
        facts = json.loads((checkpoint / FACTS).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{checkpoint}: {FACTS} cannot be read ({error})") from None
    if facts["fingerprint"] != fingerprint:
        raise CheckpointError(f"{checkpoint} belongs to run {facts['fingerprint']}, this is run {fingerprint}")
    for name, expected in facts["sha256"].items():
        path = checkpoint / name
        if not path.exists():
            raise CheckpointError(f"{checkpoint}: {name} is missing")
        if sha256_of(path) != expected:
            raise CheckpointError(f"{checkpoint}: {name} has changed since it was written (sha256 differs)")
    return facts


def newest_intact(folder: Path, fingerprint: str) -> Path | None:
    """The newest checkpoint that passes `verify`; damaged ones are named in a warning and skipped."""
    for checkpoint in checkpoints(folder):
        try:
            verify(checkpoint, fingerprint)
        except CheckpointError as error:
            warnings.warn(f"skipping a damaged checkpoint: {error}", stacklevel=2)
            continue
        return checkpoint
    return None


def load_state(state: TrainState, checkpoint: Path) -> None:
    """Fills `state` from a verified checkpoint.

    Raises CheckpointError when it holds other parts than `state`, or parts of other shapes.
    """
    facts = json.loads((checkpoint / FACTS).read_text())
    expected = {f"{name}.safetensors" for name in (*state.modules, "sums")}
    expected |= {f"{name}.optimizer.safetensors" for name in state.optimizers}
    if expected != set(facts["sha256"]):
        raise CheckpointError(f"{checkpoint} holds {sorted(facts['sha256'])}, this training needs {sorted(expected)}")
    try:
        for name, module in state.modules.items():
            module.load_state_dict(load_file(checkpoint / f"{name}.safetensors"), strict=True)
        for name, optimizer in state.optimizers.items():
            tensors = load_file(checkpoint / f"{name}.optimizer.safetensors")
            _restore(optimizer, tensors, facts["optimizers"][name])
        state.sums = load_file(checkpoint / "sums.safetensors")
    except (RuntimeError, SafetensorError) as error:  # load_state_dict reports shapes and keys as RuntimeError
        raise CheckpointError(f"{checkpoint} does not fit this training: {error}") from None
    state.position, state.step = facts["position"], facts["step"]

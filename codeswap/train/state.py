"""What a training saves and restores: the whole list, in plain files, whole or not at all, checked when read."""

import json
import os
import shutil
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

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
    skipped: int = 0  # of them, those passed over because a gradient was not finite
    sums: dict[str, Tensor] = field(default_factory=dict)


class Owner(Protocol):
    """Who knows the whole state of modules and optimizers, even when it is sharded (the Engine)."""

    def module_state(self, module: nn.Module) -> dict[str, Tensor]: ...

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, object]: ...


class Snapshot(NamedTuple):
    """A training's state at one moment, copied to the CPU: training may go on while it is written."""

    files: dict[str, dict[str, Tensor]]  # tensors by file name
    facts: dict[str, object]
    position: int


def snapshot(state: TrainState, owner: Owner, facts: Mapping[str, object]) -> Snapshot:
    """Copies the state; every process has to call it. `facts` are written beside it (`fingerprint` at least)."""
    files = {f"{name}.safetensors": owner.module_state(module) for name, module in state.modules.items()}
    groups = {}
    for name, optimizer in state.optimizers.items():
        files[f"{name}.optimizer.safetensors"], groups[name] = _flatten(owner.optimizer_state(optimizer))
    files["sums.safetensors"] = {key: value.detach().to("cpu", copy=True) for key, value in state.sums.items()}
    known = {"step": state.step, "position": state.position, "skipped": state.skipped}
    known |= {"git_commit": git_commit(), "optimizers": groups}
    return Snapshot(files, {**known, **facts}, state.position)


def _flatten(whole: Mapping[str, object]) -> tuple[dict[str, Tensor], list[dict[str, object]]]:
    tensors = {
        f"{index}.{name}": torch.as_tensor(value).detach().to("cpu", copy=True)
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


def write_snapshot(snapshot: Snapshot, folder: Path) -> Path:
    """Writes `folder/<position>`: beside, then renamed, so that it exists whole or not at all. One process calls it."""
    final = folder / f"{snapshot.position:012d}"
    partial = folder / f".{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, tensors in snapshot.files.items():
        save_file({key: value.contiguous() for key, value in tensors.items()}, partial / name)
    hashes = {path.name: sha256_of(path) for path in sorted(partial.iterdir())}
    with (partial / FACTS).open("w") as file:
        json.dump({**snapshot.facts, "sha256": hashes}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
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
    state.position, state.step, state.skipped = facts["position"], facts["step"], facts["skipped"]

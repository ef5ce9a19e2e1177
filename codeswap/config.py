"""params.yaml -> one stage's own parameters, all problems reported at once, and the fingerprint of a run."""

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError

from codeswap.types import Config

StageParams = TypeVar("StageParams", bound=Config)


class ParamsError(ValueError):
    """A params file that cannot be used; the message lists every problem."""


def _read(path: Path) -> dict[str, object]:
    if not path.exists():
        raise ParamsError(f"{path} does not exist: run from the project's root, or copy a file of profiles/ there")
    try:
        tree = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ParamsError(f"{path} holds {type(tree).__name__}, expected a mapping of parameter groups")
    return tree


def load_params(path: Path, stage: type[StageParams], dataset: str | None = None) -> StageParams:
    """The groups that `stage` declares, read from `path` and validated.

    A field named `dataset` is filled from `datasets.<dataset>` and `landmarks` from `perception.landmarks`; every other
    field from the group of its own name.
    Raises ParamsError naming each unknown, missing or mistyped key with the value found.
    """
    tree = _read(path)
    places = {"dataset": ["datasets", str(dataset)], "landmarks": ["perception", "landmarks"]}
    groups: dict[str, object] = {name: tree[name] for name in stage.model_fields if name in tree}
    if "dataset" in stage.model_fields:
        datasets = tree.get("datasets")
        known = sorted(datasets) if isinstance(datasets, dict) else []
        if dataset not in known:
            raise ParamsError(f"{path}: no dataset {dataset!r} under `datasets`; there are {known}")
        groups["dataset"] = datasets[dataset]
    perception = tree.get("perception")
    if "landmarks" in stage.model_fields and isinstance(perception, dict):
        groups["landmarks"] = perception.get("landmarks")
    try:
        return stage.model_validate(groups)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            where = [str(part) for part in problem["loc"]]
            where[:1] = places.get(where[0], where[:1])
            found = "" if problem["type"] == "missing" else f" (found {problem['input']!r})"
            lines.append(f"  {'.'.join(where)}: {problem['msg']}{found}")
        raise ParamsError(f"{path} has {len(lines)} problem(s):\n" + "\n".join(lines)) from None


def code_hash() -> str:
    """Sha-256 of every module of this project that the running program has imported."""
    digest = hashlib.sha256()
    for name in sorted(sys.modules):
        file = getattr(sys.modules[name], "__file__", None)
        if name.split(".")[0] in ("codeswap", "pipeline") and file:
            digest.update(name.encode() + Path(file).read_bytes())
    return digest.hexdigest()


def fingerprint(params: Config, inputs: Iterable[Path]) -> str:
    """Names a run by all that determines it: its parameters, its code and the given input files (cards, manifests).

    Twelve hex digits. Changed parameters, code or inputs give another run folder, so nothing stale is ever resumed.
    What only says how a machine does it (`machine` of a group) does not count: a run goes on elsewhere.
    """
    groups = {name: getattr(params, name) for name in type(params).model_fields}
    exclude = {name: set(group.machine) for name, group in groups.items() if isinstance(group, Config)}
    digest = hashlib.sha256(json.dumps(params.model_dump(mode="json", exclude=exclude), sort_keys=True).encode())
    digest.update(code_hash().encode())
    for path in sorted(inputs):
        digest.update(str(path).encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]

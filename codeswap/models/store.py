"""Model outs: a folder of `model.safetensors` and `card.json`, written whole and checked when read."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from codeswap.types import Config

WEIGHTS, CARD = "model.safetensors", "card.json"
Group = TypeVar("Group", bound=Config)
Module = TypeVar("Module", bound=nn.Module)


class StoredModelError(ValueError):
    """A model folder that cannot be used; the message says which, why, and how to get a good one."""


def save_model(folder: Path, state: Mapping[str, Tensor], card: Mapping[str, object]) -> str:
    """Writes a module's state dict and card beside `folder` and renames: whole or absent. Returns the weights' sha256.

    `card` needs at least `kind` (codebook, swap or mask) and `config`: every Config group that rebuilds the module,
    dumped by `model_dump(mode="json")`. Its `lineage` should name each parent model by this sha256, e.g.
    {"codebook": "..."} (`hashes_of`): `load_codeswap` compares. The sha256 is added to the card as `weights_sha256`.
    """
    missing = {"kind", "config"} - set(card)
    if missing:
        raise ValueError(f"the card of {folder} lacks {sorted(missing)}")
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    sha256 = hashlib.sha256(weights).hexdigest()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / WEIGHTS).write_bytes(weights)
    text = json.dumps({**card, "weights_sha256": sha256}, indent=2, sort_keys=True)
    (partial / CARD).write_text(text + "\n")
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old)
    else:
        os.replace(partial, folder)
    return sha256


class StoredModel(NamedTuple):
    """A model folder that has been read and whose hash fits its card."""

    folder: Path
    card: dict[str, object]
    weights: dict[str, Tensor]

    def _config(self, name: str) -> object:
        config = self.card["config"]
        if not isinstance(config, dict) or name not in config:
            raise StoredModelError(f"{self.folder / CARD} has no config.{name}: run the stage that makes it again")
        return config[name]

    def group(self, name: str, kind: type[Group]) -> Group:
        """The Config group `name` of the card."""
        try:
            return kind.model_validate(self._config(name))
        except ValidationError as error:
            raise StoredModelError(f"{self.folder / CARD}: config.{name} is not usable: {error}") from None

    def text(self, name: str) -> str:
        """A plain value of the card's config."""
        return str(self._config(name))

    def fill(self, module: Module) -> Module:
        """`module` with these weights; every name and shape must fit."""
        expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in self.weights.items()}
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if wrong:
            lines = [f"  {name}: expected {expected.get(name)}, found {found.get(name)}" for name in wrong[:5]]
            raise StoredModelError(
                f"{self.folder / WEIGHTS} does not fit the model its card describes ({len(wrong)} tensors):\n"
                + "\n".join(lines)
            )
        module.load_state_dict(self.weights)
        return module

    def check_parent(self, kind: str, parent: "StoredModel", *, or_same_codes: bool = False) -> None:
        """Raises StoredModelError when the card's lineage names another parent of this kind (naming none is fine).

        `or_same_codes`: a parent that has the named one's encoder and codes, and another decoder, is fine too.
        """
        lineage = self.card.get("lineage")
        named = lineage.get(kind) if isinstance(lineage, dict) else None
        fine = {parent.card["weights_sha256"], *(parent.card.get("same_codes_as", ()) if or_same_codes else ())}
        if named is not None and named not in fine:
            raise StoredModelError(
                f"{self.folder} was made from the {kind} model {str(named)[:12]}, but {parent.folder} holds "
                f"{str(parent.card['weights_sha256'])[:12]}: give the folder it was made from, or run `dvc repro`"
            )


def hashes_of(card: Mapping[str, Any]) -> str | dict[str, str]:
    """What a child's lineage names of a card: the sha256 of its weights; of face networks, that of each role's file."""
    return card.get("weights_sha256") or {role: entry["sha256"] for role, entry in card["roles"].items()}


def read_model(folder: Path, kind: str) -> StoredModel:
    """Reads and verifies a model folder of a kind. Raises StoredModelError on a missing, damaged or other file."""
    for name in (WEIGHTS, CARD):
        if not (folder / name).is_file():
            raise StoredModelError(f"{folder / name} does not exist: run the stage that makes it (`dvc repro`)")
    try:
        card = json.loads((folder / CARD).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoredModelError(f"{folder / CARD} is not valid JSON ({error}): run the stage again") from None
    if not isinstance(card, dict) or not {"kind", "config", "weights_sha256"} <= card.keys():
        raise StoredModelError(f"{folder / CARD} lacks kind, config or weights_sha256: run the stage again")
    if card["kind"] != kind:
        raise StoredModelError(f"{folder} holds a model of kind {card['kind']!r}, expected {kind!r}")
    data = (folder / WEIGHTS).read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != card["weights_sha256"]:
        raise StoredModelError(
            f"{folder / WEIGHTS} is damaged: sha256 {sha256[:12]}, its card says {str(card['weights_sha256'])[:12]}; "
            "run the stage again"
        )
    try:
        weights = load(data)
    except SafetensorError as error:
        raise StoredModelError(f"{folder / WEIGHTS} is no safetensors file: {error}") from None
    return StoredModel(folder, card, weights)

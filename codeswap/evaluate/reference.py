"""Curves of healthy runs, kept in the repository, for a user to lay a training beside."""

import json
import shutil
from pathlib import Path

from codeswap.evaluate.figures import read_curve

CARD = "card.json"


def write_references(models: Path, references: Path) -> list[str]:
    """Copies the curve of every training below `models`, with the parameters it had; their names.

    Raises ValueError when there is none.
    """
    found = sorted(models.glob("**/curve.csv"))
    if not found:
        raise ValueError(f"{models} holds no training's curve.csv: run `dvc repro` first")
    references.mkdir(parents=True, exist_ok=True)
    names = []
    for path in found:
        names.append("-".join(path.parent.relative_to(models).parts))
        shutil.copyfile(path, references / f"{names[-1]}.csv")
        config = json.loads((path.parent / CARD).read_text())["config"]
        (references / f"{names[-1]}.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    return names


def read_reference(reference: Path, model: Path) -> dict[str, list[tuple[float, float]]] | None:
    """The curve of a healthy run at `reference`(.csv, .json) if the training in folder `model` had its parameters."""
    curve, config = reference.with_suffix(".csv"), reference.with_suffix(".json")
    if not curve.exists() or not (model / CARD).exists():
        return None
    same = json.loads(config.read_text()) == json.loads((model / CARD).read_text())["config"]
    return read_curve(curve) if same else None

"""A finished training's out: kept whole in its run folder, and put where the pipeline wants it as often as it asks.

DVC removes a stage's out before it runs the stage. So a training that was killed after its last step, or is asked for
again, must neither be lost nor be done again.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file, save_file
from torch import Tensor

from codeswap.models.store import CARD, save_model
from codeswap.perception.roles import sha256_of
from codeswap.types import Config

FINISHED, BEST = "finished", "best"  # in the run folder
FACTS = "best.json"


def keep(folder: Path, weights: Mapping[str, Tensor], card: Mapping[str, object], curve: str, pictures: Path) -> None:
    """Writes the out (model, card, curve.csv, pictures) whole into run folder `folder`.

    Finished runs of the same training with other parameters or code make room for it.
    """
    made = folder / ".finished.partial"
    save_model(made, weights, card)
    (made / "curve.csv").write_text(curve)
    if pictures.exists():
        shutil.copytree(pictures, made / "pictures")
    made.rename(folder / FINISHED)
    for other in folder.parent.iterdir():
        if other != folder and (other / FINISHED).exists():
            shutil.rmtree(other)


class Select(Config):
    """Which weights become the out: those of the best validation instead of the last."""

    metric: str  # of the validation, such as val/identity_to_source
    mode: Literal["max", "min"] = "max"


def is_better(folder: Path, select: Select, metrics: Mapping[str, float]) -> bool:
    """Whether this validation beats the best one so far. Raises ValueError for a metric that there is not."""
    if select.metric not in metrics:
        raise ValueError(f"select.metric {select.metric!r} is not among the validation's: {sorted(metrics)}")
    facts = folder / BEST / FACTS
    if not facts.exists():
        return True
    change = metrics[select.metric] - json.loads(facts.read_text())["value"]
    return change > 0 if select.mode == "max" else change < 0


def keep_best(folder: Path, weights: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
    """Keeps weights as the best so far, whole or not at all."""
    made = folder / ".best.partial"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    save_file({name: value.contiguous() for name, value in weights.items()}, made / "model.safetensors")
    (made / FACTS).write_text(json.dumps(facts))
    shutil.rmtree(folder / BEST, ignore_errors=True)
    made.rename(folder / BEST)


def best(folder: Path) -> tuple[dict[str, Tensor], dict[str, object]] | None:
    """The best weights that were kept, and of which validation they are."""
    if not (folder / BEST / FACTS).exists():
        return None
    return load_file(folder / BEST / "model.safetensors"), json.loads((folder / BEST / FACTS).read_text())


def is_made(out: Path, fingerprint: str) -> bool:
    """Whether `out` is the whole result of the run `fingerprint`."""
    try:
        card = json.loads((out / CARD).read_text())
        return card["fingerprint"] == fingerprint and card["weights_sha256"] == sha256_of(out / "model.safetensors")
    except (OSError, ValueError, KeyError):
        return False


def put(folder: Path, out: Path) -> None:
    """Copies what `keep` kept to `out`, beside and renamed. The copy is not a link: DVC makes outs read-only."""
    made = out.with_name(f".{out.name}.made")
    shutil.rmtree(made, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder / FINISHED, made)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(made, out)

"""All perception roles -> models/perception: trained experts and files of real weights through one verified door."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from codeswap.perception.convert import note_of
from codeswap.perception.roles import CARD, PerceptionConfig, PerceptionError, RoleConfig, load, sha256_of, verify
from codeswap.prepare.experts import train_experts


def weight_files(config: PerceptionConfig, root: Path) -> list[Path]:
    """The weights files that roles name, those that exist: inputs of the run's fingerprint."""
    named = [root / role.file for role in config.filled().values() if role.file is not None]
    return [path for path in named if path.is_file()]


def fill_roles(config: PerceptionConfig, root: Path, run: Path, out: Path, framing: float = 1.0) -> dict[str, dict]:
    """Fills every role that `config` gives and writes `out` whole; returns the card's `roles`.

    Files are verified before any training. Finished experts wait in `run`, which is removed at the end. Every role is
    loaded once through the door that later stages use. `framing` is that of the faces they look at.
    Raises PerceptionError for a file that is absent, another one than its hash says, or not readable as its
    architecture, and for a role to be trained on faces of a smaller framing than FFHQ's.
    """
    filled = config.filled()
    if not filled:
        raise PerceptionError(
            "params.yaml fills no role under `perception`: give at least one `train: synthetic` or `file`"
        )
    if framing != 1 and (own := [role for role, entry in filled.items() if entry.train]):
        raise PerceptionError(
            f"image.framing is {framing}, but {', '.join(own)} would be trained on rendered faces, which have FFHQ's "
            "framing: fill them by files, or set it to 1.0"
        )
    given = {role: _given(role, entry, root) for role, entry in filled.items() if entry.file is not None}
    trained = train_experts(config.training, [role for role in filled if role not in given], run)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        roles = {role: _place(role, given.get(role) or trained[role], root, run, partial) for role in filled}
        (partial / CARD).write_text(
            json.dumps({"kind": "perception", "framing": framing, "roles": roles}, indent=2) + "\n"
        )
        for role in roles:
            load(partial, role)
        partial.chmod(0o755)
        shutil.rmtree(out, ignore_errors=True)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(run, ignore_errors=True)
    return roles


def _given(role: str, entry: RoleConfig, root: Path) -> dict[str, object]:
    path = root / str(entry.file)
    found = verify(role, path, entry.sha256)
    original = note_of(path).get("original_sha256", found)  # what others can compare: the publisher's file
    facts = entry.model_dump(include={"architecture", "file", "source", "licence"})
    name = entry.name or entry.architecture
    return {**facts, "name": name, "original_sha256": original, "config": {}, "metrics": {}}


def _place(role: str, entry: Mapping[str, object], root: Path, run: Path, folder: Path) -> dict[str, object]:
    """Puts a role's weights into `folder` as `<role>.safetensors`; the card entry with file name and sha256."""
    target = folder / f"{role}.safetensors"
    if "file" not in entry:
        shutil.copyfile(run / target.name, target)
        return {**entry, "file": target.name, "sha256": sha256_of(target)}
    from codeswap.perception import packaged  # readers of foreign formats, only needed by those who use them

    packaged.save(packaged.build(entry["architecture"], root / str(entry["file"])), target)
    return {**entry, "original": entry["file"], "file": target.name, "sha256": sha256_of(target)}


def summary(roles: Mapping[str, Mapping[str, object]]) -> str:
    """One line per role: what fills it and how well it does on persons it has not seen."""
    lines = []
    for role, entry in roles.items():
        metrics = entry["metrics"]
        known = ", ".join(f"{name} {value:.3g}" for name, value in metrics.items()) if isinstance(metrics, dict) else ""
        lines.append(f"{role}: {entry['name']}" + (f" ({known})" if known else ""))
    return "\n".join(lines)

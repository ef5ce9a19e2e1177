"""Pickled checkpoints -> safetensors, once, by an explicit command. No stage ever unpickles anything.

A pickle is a program. torch's weights-only unpickler runs none: it builds tensors, plain containers and what is on an
allow-list. Ours adds numpy arrays and, for training helpers that old scripts pickled beside their weights, an empty
class that takes their state and does nothing. Anything else is an error that names it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from safetensors import safe_open

from codeswap.perception.roles import sha256_of

_NOTE = "codeswap"  # the one key of the file's metadata: safetensors does not keep the order of several


class Ignored:
    """Stands for a training helper in a checkpoint; takes any state, has no behaviour."""

    def __setstate__(self, state: object) -> None:
        self.state = state


HELPERS = ("__main__.RecorderMeter", "__main__.RecorderMeter1", "main.RecorderMeter", "main.RecorderMeter1")  # POSTER++
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since numpy 2
_ARRAYS = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64)),
    *((np._core.multiarray._reconstruct, f"{module}._reconstruct") for module in _MULTIARRAY),
    *((np._core.multiarray.scalar, f"{module}.scalar") for module in _MULTIARRAY),
]


def read_pickle(path: Path) -> object:
    """What a torch checkpoint holds. Raises ValueError naming the file and what in it is not allowed."""
    allowed = [*_ARRAYS, *((Ignored, name) for name in HELPERS)]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), None)
        raise ValueError(
            f"{path} was not read: {reason or error or type(error).__name__}. Only tensors and plain data are "
            "unpickled; a file that needs more would have to run its own code"
        ) from None


def convert(architecture: str, files: Sequence[Path], out: Path) -> None:
    """Writes the network of `architecture`, from its publisher's file(s), to `out` (.safetensors), whole or not at all.

    The names and shapes of all tensors must be the architecture's. Raises ValueError naming the file.
    """
    from codeswap.perception import packaged

    if missing := [str(path) for path in files if not path.is_file()]:
        raise ValueError(f"{', '.join(missing)} does not exist")
    network = packaged.from_publisher(architecture, files)
    note = {
        "architecture": architecture,
        "original": [path.name for path in files],
        "original_sha256": sha256_of(files[0]),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    packaged.save(network, out, {_NOTE: json.dumps(note, sort_keys=True)})


def note_of(path: Path) -> dict[str, object]:
    """What `convert` noted in a file: architecture and the original's name and sha256; {} for another file."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    return json.loads(metadata.get(_NOTE, "{}"))

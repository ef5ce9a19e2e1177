"""What frozen networks say of each face, as it is and mirrored: made once, looked up by index afterwards.

An Arrow file and not Parquet, because training looks faces up one by one: the file is mapped, so nothing is read that
is not asked for, and all processes of a machine share the pages.
"""

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, UInt8
from PIL import Image as PILImage
from torch import Tensor

from codeswap.data.faces import Faces

ANNOTATIONS = "annotations.arrow"
VECTORS = ("identity", "expression", "pose")  # each with a second column `<name>_mirrored`
ROLES = {"identity": "identity_train", "expression": "expression_train", "pose": "pose", "parsing": "parsing"}


class Network(NamedTuple):
    """Which network spoke: its name and the hash of its weights."""

    name: str
    sha256: str


class AnnotationError(ValueError):
    """Annotations that do not belong to these faces or to these networks."""


def schema(widths: Mapping[str, int], networks: Mapping[str, Network]) -> pa.Schema:
    """Columns of the annotations file; `widths` of each of VECTORS, `networks` by role."""
    fields = [pa.field("key", pa.string(), nullable=False)]
    for name in VECTORS:
        kind = pa.list_(pa.float32(), widths[name])
        fields += [pa.field(column, kind, nullable=False) for column in (name, f"{name}_mirrored")]
    fields.append(pa.field("parsing", pa.binary(), nullable=False))  # png of the label map, as the face is
    return pa.schema(fields, {"networks": json.dumps({role: network._asdict() for role, network in networks.items()})})


def column(vectors: np.ndarray) -> pa.Array:
    """A float32 (n, width) array as a column of fixed lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).reshape(-1)), vectors.shape[1])


def encode_labels(labels: np.ndarray) -> bytes:
    """A uint8 (h, w) label map as png."""
    out = io.BytesIO()
    PILImage.fromarray(labels).save(out, "PNG")
    return out.getvalue()


def decode_labels(data: bytes) -> np.ndarray:
    """The uint8 (h, w) label map of `encode_labels`."""
    with PILImage.open(io.BytesIO(data)) as image:
        return np.array(image)


def write(path: Path, tables: Iterable[pa.Table], columns: pa.Schema) -> None:
    """Writes tables, one after another and one batch each, whole or not at all. The same rows give the same bytes."""
    partial = path.with_name(f".{path.name}.partial")
    with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, columns) as writer:
        for table in tables:
            writer.write_table(table.combine_chunks())
    os.replace(partial, path)


def read(path: Path) -> pa.Table:
    """The table of an annotations file, mapped. Raises FileNotFoundError, or pa.ArrowInvalid for a damaged one."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


class Vectors:
    """One annotation of all faces in both views, (n, 2, width) float32, in a mapped file: looked up, never loaded."""

    def __init__(self, table: pa.Table, name: str) -> None:
        columns = [table[column].chunks for column in (name, f"{name}_mirrored")]
        flat = [[chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in chunks] for chunks in columns]
        self._blocks = list(zip(*flat, strict=True))
        self._start = np.cumsum([0, *(len(block) for block, _ in self._blocks)])
        self.shape = (int(self._start[-1]), 2, columns[0][0].type.list_size if columns[0] else 0)

    def __getitem__(self, place: tuple[np.ndarray, np.ndarray]) -> Float[Tensor, "b width"]:
        """Rows of the faces at (index, view), view 0 as it is and 1 mirrored; a copy."""
        index, view = np.broadcast_arrays(*place)
        block = np.searchsorted(self._start, index, side="right") - 1
        rows = [self._blocks[b][v][i] for b, v, i in zip(block, view, index - self._start[block], strict=True)]
        return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, self.shape[2])

    def blocks(self) -> Iterator[tuple[int, Float[Tensor, "k 2 width"]]]:
        """(first index, rows) of all faces, piece by piece, to go through them once."""
        for start, views in zip(self._start, self._blocks, strict=False):
            yield int(start), torch.from_numpy(np.stack(views, axis=1))


class Annotations:
    """The annotations of `faces`, by the same index.

    Attributes: `identity` (n, 2, e), `expression` (n, 2, x) and `pose` (n, 2, 3) in degrees (yaw, pitch, roll),
    float32; view 0 is the face as it is, view 1 mirrored. `networks` by role.
    Raises AnnotationError when a file is missing, lists other faces, or was made by other networks than
    `networks` (role -> sha256 of the weights; None: whichever they are).
    """

    def __init__(self, folders: Sequence[Path], faces: Faces, networks: Mapping[str, str] | None):
        tables = []
        self.networks: dict[str, Network] = {}
        for folder in folders:
            table = _open(folder)
            made_by = {role: Network(**facts) for role, facts in json.loads(table.schema.metadata[b"networks"]).items()}
            for role, sha256 in (networks or {}).items():
                _check_network(folder, role, made_by.get(role), sha256)
            if self.networks and made_by != self.networks:
                raise AnnotationError(
                    f"{[str(path) for path in folders]} were made by different networks: "
                    f"{_remedy(folder)} for each of them"
                )
            self.networks = made_by
            tables.append(table.replace_schema_metadata(None))
        table = pa.concat_tables(tables)
        if not table["key"].equals(faces.key_column):
            raise AnnotationError(
                f"the annotations in {[str(path) for path in folders]} list {len(table)} faces, the manifests "
                f"{len(faces)}, or in another order: {_remedy(folders[0])}"
            )
        self.identity, self.expression, self.pose = (Vectors(table, name) for name in VECTORS)
        self._parsing = table["parsing"]

    def __len__(self) -> int:
        return len(self._parsing)

    def parsing(self, indices: np.ndarray, flips: np.ndarray) -> UInt8[Tensor, "b h w"]:
        """Label maps (ids of types.PARSING_LABELS) of the faces, mirrored where `flips`.

        Left and right ids are not exchanged by mirroring: every set of classes in use holds both.
        """
        maps = [decode_labels(self._parsing[index].as_py()) for index in indices.tolist()]
        mirrored = [labels[:, ::-1] if flip else labels for labels, flip in zip(maps, flips.tolist(), strict=True)]
        return torch.from_numpy(np.stack(mirrored))


def _open(folder: Path) -> pa.Table:
    path = folder / ANNOTATIONS
    try:
        return read(path)
    except FileNotFoundError:
        raise AnnotationError(f"{path} is missing: {_remedy(folder)}") from None
    except pa.ArrowInvalid as error:
        raise AnnotationError(f"{path} is damaged ({error}): {_remedy(folder)}") from None


def _check_network(folder: Path, role: str, found: Network | None, sha256: str) -> None:
    if found is None or found.sha256 != sha256:
        made = f"{found.name} ({found.sha256[:12]})" if found else "no network"
        raise AnnotationError(
            f"{folder} was annotated by {made} as {role}, but the network in that role is now {sha256[:12]}: "
            f"{_remedy(folder)}"
        )


def _remedy(folder: Path) -> str:
    return f"run `dvc repro annotate@{folder.name}`"

"""Frozen networks over every face and its mirror image, on Ray actors: one shard makes one part of the table."""

import shutil
import time
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from codeswap.data.annotations import ANNOTATIONS, ROLES, VECTORS, Network, column, encode_labels, read, schema, write
from codeswap.data.faces import Faces, to_float
from codeswap.data.manifest import CARD, write_card
from codeswap.perception.roles import card, check_framing, load
from codeswap.prepare.blocks import cluster, publish, run_blocks

# Of one batch. A processor is fastest while a layer fits its caches: 32 faces of 64 px took half as long as 256.
_PIXELS = {"cpu": 2**17, "cuda": 2**23}


class Summary(NamedTuple):
    """What was annotated, and how fast by this run."""

    faces: int
    seconds: float
    images_per_second: float

    def __str__(self) -> str:
        return f"{self.faces:,} faces in both views; {self.seconds:.1f} s, {self.images_per_second:,.0f} faces/s"


def annotate(shards: Path, perception: Path, run: Path, out: Path) -> Summary:
    """Annotates the faces of the data set folder `shards` with the networks in `perception`.

    Parts of finished shards stay in `run` until all are there, then the table is written to `out` in manifest order.
    Raises ValueError when the faces or a network cannot be read.
    """
    begun = time.perf_counter()
    faces = Faces([shards])
    check_framing(perception, faces.framing, shards)
    (name, sizes), *_ = faces.shards.items()
    networks = _networks(perception)
    run.mkdir(parents=True, exist_ok=True)
    open_blocks = [number for number in range(len(sizes)) if not _part(run, number).exists()]
    speed = 0.0
    if open_blocks:
        with cluster():
            arguments = (shards.resolve(), perception.resolve(), run.resolve(), networks)
            working = time.perf_counter()
            reports = run_blocks(_Annotator, arguments, open_blocks, name, holds=True)
            speed = sum(report["faces"] for report in reports) / (time.perf_counter() - working)
    table = run / "table"
    table.mkdir(exist_ok=True)
    parts = [_part(run, number) for number in range(len(sizes))]
    write(table / ANNOTATIONS, map(read, parts), read(parts[0]).schema)  # mapped: never all in memory
    facts = {role: network._asdict() for role, network in networks.items()}
    write_card(
        table / CARD,
        {"kind": "annotations", "dataset": name, "faces": len(faces), "size": faces.size, "networks": facts},
    )
    publish(table, out)
    shutil.rmtree(run)
    return Summary(len(faces), time.perf_counter() - begun, speed)


def _networks(perception: Path) -> dict[str, Network]:
    known = card(perception)["roles"]
    absent = [role for role in ROLES.values() if role not in known]
    if absent:
        raise ValueError(f"{perception} fills no role {absent}: name networks for them under `perception`")
    return {role: Network(known[role]["name"], known[role]["sha256"]) for role in ROLES.values()}


def _part(run: Path, number: int) -> Path:
    return run / f"{number:05d}.arrow"


class _Annotator:
    """Holds the networks in a Ray actor and annotates one shard at a time."""

    def __init__(self, shards: Path, perception: Path, run: Path, networks: dict[str, Network]):
        torch.set_num_threads(1)  # there is an actor for each processor
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.faces, self.run, self.expected = Faces([shards]), run, networks
        self.networks = {name: load(perception, role).to(self.device) for name, role in ROLES.items()}
        (sizes,) = self.faces.shards.values()
        self.bounds = [0, *accumulate(sizes)]

    @torch.inference_mode()
    def __call__(self, number: int) -> dict[str, float]:
        start, stop = self.bounds[number], self.bounds[number + 1]
        batch = max(1, _PIXELS[self.device.type] // self.faces.size**2)
        parts = [self._rows(np.arange(first, min(first + batch, stop))) for first in range(start, stop, batch)]
        widths = {name: parts[0].schema.field(name).type.list_size for name in VECTORS}
        columns = schema(widths, self.expected)
        write(_part(self.run, number), [pa.concat_tables(parts).cast(columns)], columns)
        return {"faces": stop - start}

    def _rows(self, indices: np.ndarray) -> pa.Table:
        image = to_float(self.faces.images(indices, np.zeros(len(indices), dtype=bool)).to(self.device))
        mirrored = image.flip(-1)
        columns: dict[str, pa.Array] = {"key": pa.array(self.faces.key_column.take(indices).to_pylist())}
        for name in VECTORS:
            for view, suffix in ((image, ""), (mirrored, "_mirrored")):
                columns[name + suffix] = column(_finite(self.networks[name](view), name).cpu().numpy())
        labels = self.networks["parsing"].label_map(image).cpu().numpy()
        columns["parsing"] = pa.array([encode_labels(one) for one in labels], pa.binary())
        return pa.table(columns)


def _finite(vectors: Tensor, name: str) -> Tensor:
    if not torch.isfinite(vectors).all():
        raise ValueError(f"the {name} network gave numbers that are not finite: its weights are damaged or unsuitable")
    return vectors.float()

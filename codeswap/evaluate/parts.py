"""An evaluation in parts: each is scored once, kept whole on disk, and never scored again after a stop.

Any number of processes, on one machine or on several that see the same folder, score every n-th part each; the first
waits for all. What a part keeps is one row for each pair and method: raw scores, and the features of Frechet and kernel
distances. Memory does not grow with the number of pairs.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FEATURES = "features"
PATIENCE = 6 * 3600  # seconds without any new part after which the first process gives the others up


class Team(NamedTuple):
    """This process among those that share the work, as launchers tell it (`RANK`, `WORLD_SIZE`)."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of_environment(cls) -> "Team":
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


class Parts:
    """The parts of `total` pairs, `size` pairs each, in a folder that belongs to exactly this evaluation."""

    def __init__(self, folder: Path, total: int, size: int) -> None:
        self.folder = folder
        self.ranges = [(start, min(start + size, total)) for start in range(0, total, size)]

    def open(self, team: Team) -> Iterator[tuple[int, int, int]]:
        """(number, first pair, end) of those parts of this process that have not been scored yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for number, (start, stop) in enumerate(self.ranges):
            if number % team.world == team.rank and not self._path(number).exists():
                yield number, start, stop

    def write(self, number: int, table: pa.Table) -> None:
        """Keeps a part, whole or not at all."""
        partial = self._path(number).with_suffix(".partial")
        pq.write_table(table, partial, compression="zstd")
        partial.replace(self._path(number))

    def wait(self) -> None:
        """Until every part is there. Raises TimeoutError when nothing has come for hours."""
        last, since = -1, time.monotonic()
        while (done := self.done) < len(self.ranges):
            if done > last:
                last, since = done, time.monotonic()
            if time.monotonic() - since > PATIENCE:
                raise TimeoutError(f"{self.folder}: {len(self.ranges) - done} part(s) did not come: run it again")
            time.sleep(0.2)

    @property
    def done(self) -> int:
        return sum(self._path(number).exists() for number in range(len(self.ranges)))

    def scores(self) -> pa.Table:
        """All parts' rows without features, in the order of the pair list within each method."""
        tables = [self._read(number) for number in range(len(self.ranges))]
        return pa.concat_tables(tables, promote_options="default").unify_dictionaries()

    def features(self, method: str) -> Iterator[np.ndarray]:
        """A method's features, (n, f) float32 of a part at a time; pairs without a result are left out."""
        for number in range(len(self.ranges)):
            table = pq.read_table(self._path(number), columns=["method", "failed", FEATURES])
            rows = table.filter(pa.compute.and_(pa.compute.equal(table["method"].cast(pa.string()), method),
                                                pa.compute.invert(table["failed"])))[FEATURES]  # fmt: skip
            if len(rows):
                flat = rows.combine_chunks().flatten().to_numpy()
                yield flat.reshape(len(rows), -1).copy()  # Arrow's own memory cannot be written to

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.parquet"

    def _read(self, number: int) -> pa.Table:
        names = [name for name in pq.read_schema(self._path(number)).names if name != FEATURES]
        return pq.read_table(self._path(number), columns=names)

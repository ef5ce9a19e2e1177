"""Checkpoints written beside the training: a step waits for the copy of its state, never for the disk."""

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from codeswap.train.state import Snapshot, checkpoints, write_snapshot


class CheckpointWriter:
    """Writes snapshots to `folder` one after another in a thread, and keeps the `keep` newest.

    With `milestone` the first checkpoint at or after each multiple of so many samples is kept for good; `every` is the
    number of samples between checkpoints. What goes wrong in the thread is raised by the next `put` or `wait`.
    """

    def __init__(self, folder: Path, keep: int, every: int, milestone: int | None) -> None:
        self._folder, self._keep, self._every, self._milestone = folder, keep, every, milestone
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def put(self, snapshot: Snapshot) -> None:
        """Has `snapshot` written once the one before is: at most one waits in memory."""
        self.wait()
        self._writing = self._thread.submit(self._write, snapshot)

    def wait(self) -> None:
        """Returns when everything is on disk. Raises what went wrong, an OSError of a full disk for example."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def remove(self) -> None:
        """Removes the checkpoints, but not the milestones."""
        self._keep_newest(0)

    def is_milestone(self, position: int) -> bool:
        return self._milestone is not None and position > 0 and position % self._milestone < self._every

    def _write(self, snapshot: Snapshot) -> None:
        write_snapshot(snapshot, self._folder)
        self._keep_newest(self._keep)

    def _keep_newest(self, count: int) -> None:
        passing = [path for path in checkpoints(self._folder) if not self.is_milestone(int(path.name))]
        for old in passing[count:]:
            shutil.rmtree(old)

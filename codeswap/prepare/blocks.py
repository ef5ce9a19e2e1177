"""Numbered blocks of work on Ray, each leaving a finished file, so that a killed stage goes on where it stopped."""

import errno
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

# Read by Ray when it is first imported; what the user has set stands.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning about a coming default

import ray
import ray.data
from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.util.annotations import RayDeprecationWarning

_OBJECT_STORE = 128 * 2**20  # bytes; blocks pass numbers only, pixels go from disk to disk
_STARTS = 3
_ON_ONE_MACHINE = {"max_restarts": 0, "max_task_retries": 0}


class BlockError(ValueError):
    """A block of work failed for a reason a user can mend; the message is the worker's."""


@runtime_checkable
class Worker(Protocol):
    """Does one block of work and leaves its result on disk; returns a few numbers about it."""

    def __call__(self, number: int) -> dict[str, float]: ...


@contextmanager
def cluster() -> Iterator[None]:
    """A Ray to work on: the one this process has, the cluster at RAY_ADDRESS, or a small one of its own."""
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    for handler in logging.getLogger("ray.data").handlers:  # the plan of every run, on the console
        handler.setLevel(logging.CRITICAL)
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        _start_own(num_cpus=len(os.sched_getaffinity(0)), **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def _start_own(**options: Any) -> None:
    """Starts a small Ray on this machine, again if a busy machine lets Ray's fixed 30 seconds for it pass.

    `local`: without it Ray would join whatever cluster was last started on this machine.
    """
    for attempt in range(_STARTS):
        try:
            ray.init("local", object_store_memory=_OBJECT_STORE, include_dashboard=False, **options)
            return
        except Exception as error:  # Ray raises no narrower class for this
            ray.shutdown()
            if "timed out during startup" not in str(error) or attempt == _STARTS - 1:
                raise


def run_blocks(
    make_worker: Callable[..., Worker], arguments: Sequence[object], blocks: Sequence[int], title: str, holds: bool
) -> Iterator[dict[str, float]]:
    """Calls `make_worker(*arguments)(number)` for every block on Ray; yields what it returns, as it comes.

    With `holds` the workers are actors that keep what they have loaded, on the GPUs if the cluster has any; else each
    block is a task on a CPU, which starts sooner. Must be used inside `cluster`. On a cluster, processes that die are
    replaced. Raises BlockError for the first ValueError or OSError of a worker, and for a process that died.
    """
    if not blocks:
        return
    data = ray.data.DataContext.get_current()
    data.enable_progress_bars = False
    rows = ray.data.from_items([{"block": number} for number in blocks], override_num_blocks=len(blocks))
    if holds:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        pool = ray.data.ActorPoolStrategy(size=min(gpus or int(resources["CPU"]), len(blocks)))
        # Restartable actors make Ray warn about its own library on stderr; on one machine, running the stage again does
        # the same. Ray 2.60 announces another way to say so, but has none yet.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RayDeprecationWarning)
            rows = rows.map_batches(
                _Actor,
                fn_constructor_args=(make_worker, tuple(arguments)),
                batch_size=1,
                compute=pool,
                num_cpus=1,
                num_gpus=1 if gpus else None,
                ray_remote_args_fn=dict if os.environ.get("RAY_ADDRESS") else _ON_ONE_MACHINE.copy,
            )
    else:
        rows = rows.map_batches(_task, fn_args=(make_worker, tuple(arguments)), batch_size=1, num_cpus=1)
    try:
        # disable=None: no bar where there is no terminal.
        for row in tqdm(rows.iter_rows(), total=len(blocks), desc=title, unit="block", disable=None, leave=False):
            if row["error"]:
                raise BlockError(f"{title}: {row['error']}. What is finished is kept: run again to go on")
            yield json.loads(row["report"])
    except (RayActorError, WorkerCrashedError, OutOfMemoryError) as error:
        raise BlockError(
            f"{title}: a worker process died ({type(error).__name__}), perhaps for want of memory. "
            "What is finished is kept: run again to go on"
        ) from None


def _task(
    batch: dict[str, np.ndarray], make_worker: Callable[..., Worker], arguments: tuple[object, ...]
) -> dict[str, Any]:
    return _report(make_worker(*arguments), batch)


class _Actor:
    """One process of the pool, which holds what its worker has loaded."""

    def __init__(self, make_worker: Callable[..., Worker], arguments: tuple[object, ...]):
        try:
            self.worker: Worker | str = make_worker(*arguments)
        except (ValueError, OSError) as error:
            self.worker = str(error)  # reported with the first block: an actor that cannot start is started for ever

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        if isinstance(self.worker, str):
            return {"error": [self.worker], "report": [""]}
        return _report(self.worker, batch)


def _report(worker: Worker, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    # Errors travel as values: Ray would wrap them in pages of its own, and log them on every node.
    try:
        return {"error": [""], "report": [json.dumps(worker(int(batch["block"][0])))]}
    except (ValueError, OSError) as error:
        return {"error": [str(error) or type(error).__name__], "report": [""]}


def publish(folder: Path, out: Path) -> None:
    """Moves a finished folder to `out`, which it replaces whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        shutil.rmtree(out)
    try:
        os.rename(folder, out)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = out.with_name(f".{out.name}.partial")  # another disk: copy beside it first
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(folder, beside)
        os.rename(beside, out)
        shutil.rmtree(folder)

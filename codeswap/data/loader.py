"""Batches in order, read ahead by threads. What a batch holds follows from its position alone."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

Batch = TypeVar("Batch")


def rank_slice(start: int, batch: int, rank: int, world: int) -> np.ndarray:
    """The positions that `rank` of `world` takes of the global batch that begins at `start`: every `world`-th.

    The first (last) share of every rank's batch then is the first (last) share of the global one, for any `world`:
    losses of a part of the batch are the same ones. Raises ValueError when the parts would be unequal.
    """
    if batch < 1 or not 0 <= rank < world or batch % world:
        raise ValueError(
            f"a global batch of {batch} cannot be cut into equal parts for rank {rank} of {world}: "
            "choose a batch size that is a multiple of the number of processes"
        )
    return np.arange(start + rank, start + batch, world)


def batches(
    fetch: Callable[[np.ndarray], Batch], start: int, batch: int, rank: int, world: int, prefetch: int, workers: int
) -> Iterator[tuple[int, Batch]]:
    """Endless (position after the batch, fetched), beginning at position `start`.

    Epochs leave no remainder: a batch that begins before an epoch's end goes on into the next one.
    `batch` is the global batch size. `fetch` is called with this rank's positions in up to `workers` threads, at most
    `prefetch` batches ahead; without workers, in the caller's thread. Results come in order, whatever finishes first,
    and what `fetch` raises is raised here, at its own batch. Close the iterator to stop reading ahead.
    """
    rank_slice(start, batch, rank, world)  # wrong arguments are reported now, not at the first batch
    if start < 0 or prefetch < 0 or workers < 0:
        raise ValueError(f"start {start}, prefetch {prefetch} and workers {workers} cannot be negative")
    return _read_ahead(fetch, start, batch, rank, world, prefetch, workers)


def _read_ahead(
    fetch: Callable[[np.ndarray], Batch], start: int, batch: int, rank: int, world: int, prefetch: int, workers: int
) -> Iterator[tuple[int, Batch]]:
    position = start
    if workers == 0:
        while True:
            fetched = fetch(rank_slice(position, batch, rank, world))
            position += batch
            yield position, fetched
    pool = ThreadPoolExecutor(workers, thread_name_prefix="faces")
    ahead: deque[Future[Batch]] = deque()
    submitted = start
    try:
        while True:
            while len(ahead) <= prefetch:
                ahead.append(pool.submit(fetch, rank_slice(submitted, batch, rank, world)))
                submitted += batch
            fetched = ahead.popleft().result()
            position += batch
            yield position, fetched
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

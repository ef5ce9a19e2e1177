"""Batches: in order whatever the threads do, cut among any number of ranks, resumed from one number."""

import threading
import time
from itertools import chain, islice

import numpy as np
import pytest

from codeswap.data.loader import batches, rank_slice


def take(
    count: int, start: int = 0, batch: int = 4, rank: int = 0, world: int = 1, prefetch: int = 3, workers: int = 4
):
    stream = batches(lambda positions: positions.tolist(), start, batch, rank, world, prefetch, workers)
    out = list(islice(stream, count))
    stream.close()
    return out


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_in_order_with_the_position_after_each_batch(workers: int) -> None:
    assert take(3, workers=workers) == [(4, [0, 1, 2, 3]), (8, [4, 5, 6, 7]), (12, [8, 9, 10, 11])]


def test_order_holds_when_early_batches_are_slow() -> None:
    def fetch(positions: np.ndarray) -> int:
        time.sleep(0.03 if positions[0] % 8 == 0 else 0)
        return int(positions[0])

    stream = batches(fetch, 0, 4, 0, 1, prefetch=4, workers=4)
    assert [first for _, first in islice(stream, 8)] == list(range(0, 32, 4))
    stream.close()


def test_any_number_of_ranks_covers_the_same_positions() -> None:
    alone = [fetched for _, fetched in take(3, batch=12)]
    for world in (2, 3, 4):
        ranks = [take(3, batch=12, rank=rank, world=world) for rank in range(world)]
        assert [[*chain.from_iterable(part[step][1] for part in ranks)] for step in range(3)] == alone


def test_resume_on_another_number_of_ranks_goes_on_with_the_sequence() -> None:
    position = take(2, batch=12, world=2)[-1][0]
    resumed = [take(1, start=position, batch=12, rank=rank, world=3)[0] for rank in range(3)]
    assert [*chain.from_iterable(fetched for _, fetched in resumed)] == list(range(24, 36))
    assert {after for after, _ in resumed} == {36}


def test_reads_ahead_no_further_than_asked() -> None:
    started = []
    stream = batches(lambda positions: started.append(int(positions[0])), 0, 1, 0, 1, prefetch=2, workers=8)
    next(stream)
    time.sleep(0.05)
    assert sorted(started) == [0, 1, 2]
    stream.close()


def test_closing_stops_the_threads() -> None:
    before = threading.active_count()
    stream = batches(lambda positions: positions, 0, 2, 0, 1, prefetch=4, workers=4)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_an_error_is_raised_at_its_own_batch() -> None:
    def fetch(positions: np.ndarray) -> int:
        if positions[0] == 8:
            raise ValueError("face 8 is damaged")
        return int(positions[0])

    stream = batches(fetch, 0, 4, 0, 1, prefetch=3, workers=2)
    assert [next(stream)[1], next(stream)[1]] == [0, 4]
    with pytest.raises(ValueError, match="face 8 is damaged"):
        next(stream)


def test_unequal_parts_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="batch of 8 cannot be cut into equal parts for rank 0 of 3"):
        batches(lambda positions: positions, 0, 8, 0, 3, 2, 2)
    with pytest.raises(ValueError, match="cannot be negative"):
        batches(lambda positions: positions, -1, 8, 0, 1, 2, 2)
    assert rank_slice(8, 8, 1, 2).tolist() == [12, 13, 14, 15]

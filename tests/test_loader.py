"""Batches: in order whatever the threads do, cut among any number of ranks, resumed from one number."""

import threading
import time
from itertools import chain, islice

import numpy as np
import pytest
import torch

from codeswap.data.loader import batches, rank_slice
from codeswap.data.order import OrderConfig, order_faces
from codeswap.data.pairs import PairConfig, Pairing
from codeswap.train.feeds import PairBatch, PairFeed, open_training_faces


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
        assert [sorted(chain.from_iterable(part[step][1] for part in ranks)) for step in range(3)] == alone
        for step, batch in enumerate(alone):  # the first of every rank's are the first of the global batch
            assert sorted(part[step][1][0] for part in ranks) == batch[:world]


def test_resume_on_another_number_of_ranks_goes_on_with_the_sequence() -> None:
    position = take(2, batch=12, world=2)[-1][0]
    resumed = [take(1, start=position, batch=12, rank=rank, world=3)[0] for rank in range(3)]
    assert sorted(chain.from_iterable(fetched for _, fetched in resumed)) == list(range(24, 36))
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
    assert rank_slice(8, 8, 1, 2).tolist() == [9, 11, 13, 15]


@pytest.fixture(scope="module")
def feed(trained) -> PairFeed:
    """Pairs of the tiny world: 48 faces, same pairs and mirror images among them."""
    source = open_training_faces(trained, "identity_train")
    order = order_faces(source.faces.shards, OrderConfig(window=2), 3)
    return PairFeed(source, Pairing(order, source.faces.identity, PairConfig(same=0.3), 3), parsing=True)


def _global(feed: PairFeed, start: int, steps: int, world: int, workers: int) -> PairBatch:
    """What all ranks together see in `steps` global batches of 12, in the order of the global batch."""
    streams = [batches(feed, start, 12, rank, world, 2, workers) for rank in range(world)]
    parts = [next(stream)[1] for _ in range(steps) for stream in streams]
    for stream in streams:
        stream.close()

    def joined(column: list[torch.Tensor]) -> torch.Tensor:  # rank r holds positions r, r + world, ...
        return torch.cat([torch.stack(column[i : i + world], 1).flatten(0, 1) for i in range(0, len(column), world)])

    return PairBatch(*(None if column[0] is None else joined(column) for column in zip(*parts, strict=True)))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_any_ranks_and_workers_see_the_same_pairs(feed: PairFeed, world: int, workers: int) -> None:
    """Images, mirror flags, same pairs, embeddings and labels; 60 pairs are more than an epoch of 48."""
    expected, found = _global(feed, 0, 5, 1, 0), _global(feed, 0, 5, world, workers)
    assert expected.same.any() and not expected.same.all()
    for name in ("image_a", "image_b", "parsing_a", "identity_a", "pose_b", "same"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_resuming_anywhere_on_other_ranks_equals_going_on(feed: PairFeed, stop: int) -> None:
    whole = _global(feed, 0, 5, 2, 2)
    resumed = _global(feed, 12 * stop, 5 - stop, 3, 1)
    assert torch.equal(resumed.image_b, whole.image_b[12 * stop :])


def test_every_face_once_an_epoch_to_the_last_whatever_the_batch(feed: PairFeed, trained) -> None:
    """The remainder rule: a global batch that begins before an epoch's end goes on into the next epoch."""
    faces = open_training_faces(trained, "identity_train").faces
    order = order_faces(faces.shards, OrderConfig(window=2), 3)
    stream = batches(order.at, 0, 7, 0, 1, 2, 1)
    seen = np.concatenate([next(stream)[1] for _ in range(14)])
    stream.close()
    epochs = seen[:48].tolist(), seen[48:96].tolist()
    assert all(sorted(epoch) == list(range(48)) for epoch in epochs) and epochs[0] != epochs[1]

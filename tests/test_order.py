"""The order of faces: exactly once an epoch, well mixed, and the same from whichever side one asks."""

import numpy as np
import pytest

from codeswap.data.order import BLOCK, Mix, Order, OrderConfig, key_of, order_faces, permute, scramble, uniform


@pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 1000])
def test_permute_is_a_permutation(size: int) -> None:
    out = permute(np.arange(size), np.asarray(size), np.asarray(key_of(1, "x")))
    assert sorted(out.tolist()) == list(range(size))


@pytest.mark.parametrize("size", [3, 7, 12])
def test_permute_shuffles_evenly_over_keys(size: int) -> None:
    keys = scramble(np.arange(8000))
    for value in range(size):
        counts = np.bincount(permute(np.full(8000, value), np.asarray(size), keys), minlength=size)
        assert np.abs(counts / 8000 * size - 1).max() < 0.2  # 5 standard deviations at size 12


def test_uniform_is_uniform_and_pure() -> None:
    draws = uniform(key_of(7, "flip"), np.arange(20_000))
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.01
    assert np.abs(np.histogram(draws, 10, (0, 1))[0] / 2000 - 1).max() < 0.1
    assert uniform(key_of(7, "flip"), np.array([123]))[0] == draws[123]


def test_every_face_once_an_epoch() -> None:
    order = Order([10, 0, 7, 25, 1], seed=3, window=2)
    for epoch in (0, 1, 10**9):
        seen = order.at(np.arange(order.total) + epoch * order.total)
        assert sorted(seen.tolist()) == list(range(43))


def test_epochs_and_seeds_differ() -> None:
    order = Order([50] * 8, seed=3)
    first, second = order.at(np.arange(400)), order.at(np.arange(400, 800))
    others = Order([50] * 8, seed=4).at(np.arange(400)), order.rekeyed("b").at(np.arange(400))
    for other in (second, *others):
        assert (first == other).mean() < 0.02


def test_a_position_does_not_depend_on_what_is_asked_with_it() -> None:
    order = Order([13, 20, 5], seed=9, window=2)
    positions = np.random.default_rng(0).integers(0, 10 * order.total, 200)
    together = order.at(positions)
    assert together.tolist() == [int(order.at(np.array([p]))[0]) for p in positions]
    assert order.at(positions.reshape(20, 10)).tolist() == together.reshape(20, 10).tolist()


def test_a_window_touches_few_shards_and_mixes_them() -> None:
    order = Order([100] * 12, seed=5, window=3)
    shards = order.at(np.arange(1200)) // 100
    for start in range(0, 1200, 300):
        assert len(set(shards[start : start + 300].tolist())) == 3
        assert all(len(set(shards[at : at + 50].tolist())) == 3 for at in range(start, start + 300, 50))


def test_neighbours_of_a_shard_are_far_apart() -> None:
    order = Order([1000] * 4, seed=2, window=4)
    gaps = np.abs(np.diff(order.at(np.arange(4000))))
    assert 1000 < gaps.mean() < 1700  # a random permutation of n has mean gap n / 3
    assert np.corrcoef(order.at(np.arange(4000)), np.arange(4000))[0, 1] < 0.05


class Counting(Order):
    """Counts the epochs that were laid out."""

    laid_out = 0

    def _lay_out(self, number: int):
        self.laid_out += 1
        return super()._lay_out(number)


def test_a_start_far_away_lays_out_one_epoch_and_no_other() -> None:
    order = Counting([3300] * 1000, seed=1)
    begun = order.laid_out
    assert order.at(np.arange(10**9, 10**9 + 32)).max() < order.total
    assert order.laid_out - begun == 1
    assert len(set(order.at(np.arange(10**12, 10**12 + 32)).tolist())) == 32
    assert order.laid_out - begun == 2


@pytest.mark.parametrize("window", [1, 4, 100])
def test_from_one_shard_to_the_whole_set_is_mixed_and_whole(window: int) -> None:
    """Two faces that lay side by side on disk: within the window they are as far apart as chance puts them."""
    order = Order([40] * 100, seed=1, window=window)
    seen = order.at(np.arange(4000))
    assert sorted(seen.tolist()) == list(range(4000))
    place = np.empty(4000, dtype=int)
    place[seen] = np.arange(4000)
    same_shard = np.abs(np.diff(place.reshape(100, 40), axis=1)).mean()
    assert same_shard == pytest.approx(40 * window / 3, rel=0.1)  # n / 3: a uniform shuffle of the window


def test_mix_keeps_shares_and_each_set_is_seen_once_in_its_epoch() -> None:
    order = order_faces({"few": [20, 10], "many": [100, 70]}, OrderConfig(mix={"few": 0.2, "many": 0.8}), seed=1)
    assert isinstance(order, Mix)
    seen = order.at(np.arange(5 * BLOCK))
    few, many = seen[seen < 30], seen[seen >= 30] - 30
    assert len(few) == BLOCK and len(many) == 4 * BLOCK  # exact, because whole blocks were asked for
    for part, size in ((few, 30), (many, 170)):
        counts = np.bincount(part, minlength=size)
        assert counts.max() - counts.min() <= 2  # whole epochs, and the part of a block at either end
    shares = [(seen[at : at + 100] < 30).mean() for at in range(0, len(seen), 100)]
    assert min(shares) > 0.05 and max(shares) < 0.4  # spread within the blocks, not one set after the other


def test_mix_is_pure_and_rekeys() -> None:
    order = Mix([Order([30], 1), Order([70], 2)], [1.0, 3.0], seed=5)
    positions = np.arange(3000)
    assert order.at(positions)[1234] == order.at(np.array([1234]))[0]
    assert (order.at(positions) == order.rekeyed("b").at(positions)).mean() < 0.1


def test_without_mix_all_sets_make_one_order() -> None:
    order = order_faces({"a": [3, 4], "b": [5]}, OrderConfig(window=2), seed=1)
    assert sorted(order.at(np.arange(12)).tolist()) == list(range(12))


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match="needs faces"):
        Order([0], seed=1)
    with pytest.raises(ValueError, match="count from 0, found -2"):
        Order([3], seed=1).at(np.array([1, -2]))
    with pytest.raises(ValueError, match=r"mix names \['ffqh'\] but the training sets are \['ffhq'\]"):
        order_faces({"ffhq": [3]}, OrderConfig(mix={"ffqh": 1.0}), seed=1)
    with pytest.raises(ValueError, match="positive weight"):
        Mix([Order([3], 1)], [0.0], seed=1)
    with pytest.raises(ValueError, match="less than 1 in 1000"):
        Mix([Order([3], 1), Order([3], 1)], [1.0, 1e-5], seed=1)

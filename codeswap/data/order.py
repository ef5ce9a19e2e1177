"""Which face is seen at which global position: a pure function of (seed, position, sizes of the shards).

Nothing here knows of ranks, workers or time, so a run resumes from one integer, and goes on with the same sequence on
another number of processes. Every lookup costs the same at position 0 and at position 10^12.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from pydantic import Field

from codeswap.types import Config

ROUNDS = 6  # Feistel rounds; four already pass for a pseudo-random permutation (Luby and Rackoff 1988)
_LOOKUP = 1_024  # positions looked up at once: numpy costs as much for a few as for hundreds
BLOCK = 1_000  # positions in which the shares of mixed data sets are exact


class OrderConfig(Config):
    """How an epoch is shuffled and data sets are mixed."""

    window: int = Field(4, ge=1)  # shards mixed with each other: a reader touches only these at a time
    mix: dict[str, float] | None = None  # share of each data set; None: every face once an epoch


@runtime_checkable
class Ordering(Protocol):
    """Anything that says which face stands at a position."""

    total: int

    def at(self, positions: np.ndarray) -> np.ndarray: ...

    def rekeyed(self, name: str) -> "Ordering": ...


def key_of(*parts: int | str) -> int:
    """A 63-bit key that depends on every part, and on nothing else (not on Python's own salted hash)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def scramble(numbers: np.ndarray) -> np.ndarray:
    """Finaliser of splitmix64 (Steele, Lea and Flood 2014): well mixed uint64 from any uint64, element by element."""
    x = numbers.astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(key: int, positions: np.ndarray) -> np.ndarray:
    """One float in [0, 1) for each position: a pure function of the key and the position."""
    numbers = scramble(scramble(positions.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)) ^ np.uint64(key))
    return (numbers >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(values: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """A keyed permutation of 0..size-1 applied to each value; `sizes` and `keys` may differ from element to element.

    An alternating Feistel network over the next power of two, walked until it lands below `size` (cycle walking, Black
    and Rogaway 2002): two walks on average. Six bits at least, because fewer do not shuffle evenly.
    """
    sizes, keys = (np.broadcast_to(array, values.shape).astype(np.uint64) for array in (sizes, keys))
    bits = np.maximum(np.frexp((sizes - np.uint64(1)).astype(np.float64))[1], 6).astype(np.uint64)
    low_bits = bits // np.uint64(2)
    low_mask, high_mask = ((np.uint64(1) << width) - np.uint64(1) for width in (low_bits, bits - low_bits))
    out = values.astype(np.uint64)
    pending = np.flatnonzero(sizes > 1)
    while pending.size:
        key, shift, lows, highs = keys[pending], low_bits[pending], low_mask[pending], high_mask[pending]
        low, high = out[pending] & lows, out[pending] >> shift
        for number in range(ROUNDS):
            salt = key + np.uint64(number * 0x2545F491_4F6CDD1D)
            if number % 2:
                low = (low ^ scramble(high + salt)) & lows
            else:
                high = (high ^ scramble(low + salt)) & highs
        out[pending] = (high << shift) | low
        pending = pending[out[pending] >= sizes[pending]]
    return out.astype(np.int64)


class _Epoch(NamedTuple):
    """The layout of one epoch: shards in their order, and the windows in which their faces are mixed."""

    number: int
    first: np.ndarray  # index of the first face of each shard
    start: np.ndarray  # place in the epoch where each shard starts
    window_start: np.ndarray
    window_size: np.ndarray
    window_key: np.ndarray


class Order:
    """Every face exactly once an epoch: shards in a keyed order, faces mixed within windows of a few shards.

    `sizes` are the numbers of faces of the shards, in manifest order: face i is the i-th face over all shards.
    Raises ValueError when there is no face at all or `window` is not positive.
    """

    def __init__(self, sizes: Sequence[int], seed: int, window: int = 4):
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.seed, self.window = seed, window
        self.total = int(self.sizes.sum())
        if self.total == 0 or window < 1 or (self.sizes < 0).any():
            raise ValueError(f"an order needs faces and a positive window, found sizes {sizes} and window {window}")
        self._first = np.cumsum(self.sizes) - self.sizes
        self._epoch = self._lay_out(0)
        self._looked_up = -1, np.empty(0, np.int64)  # the block of positions last looked up, and its faces

    def rekeyed(self, name: str) -> "Order":
        """The same faces in another order: the independent stream called `name`."""
        return Order(self.sizes.tolist(), key_of(self.seed, name), self.window)

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Index of the face at each global position (position // total is the epoch). Any shape, int64."""
        positions = np.asarray(positions, dtype=np.int64)
        if positions.size and positions.min() < 0:
            raise ValueError(f"positions count from 0, found {positions.min()}")
        blocks = positions // _LOOKUP
        if positions.size == 0 or (blocks != blocks.flat[0]).any():
            return self._at(positions)
        number = int(blocks.flat[0])
        block, faces = self._looked_up
        if block != number:
            # Threads may race here: each computes the same faces, and the slot only saves work.
            faces = self._at(np.arange(number * _LOOKUP, (number + 1) * _LOOKUP))
            self._looked_up = number, faces
        return faces[positions - number * _LOOKUP]

    def _at(self, positions: np.ndarray) -> np.ndarray:
        epochs, places = np.divmod(positions, self.total)
        out = np.empty_like(positions)
        for number in np.unique(epochs).tolist():
            here = epochs == number
            out[here] = self._within(number, places[here])
        return out

    def _within(self, number: int, places: np.ndarray) -> np.ndarray:
        epoch = self._epoch
        if epoch.number != number:
            epoch = self._epoch = self._lay_out(number)
        window = np.searchsorted(epoch.window_start, places, side="right") - 1
        start = epoch.window_start[window]
        mixed = start + permute(places - start, epoch.window_size[window], epoch.window_key[window])
        shard = np.searchsorted(epoch.start, mixed, side="right") - 1
        return epoch.first[shard] + (mixed - epoch.start[shard])

    def _lay_out(self, number: int) -> _Epoch:
        filled = np.flatnonzero(self.sizes)
        key = key_of(self.seed, number)
        shards = filled[np.argsort(uniform(key, filled), kind="stable")]
        sizes = self.sizes[shards]
        start = np.cumsum(sizes) - sizes
        window_start = start[:: self.window]
        window_size = np.diff(np.append(window_start, self.total))
        window_key = scramble(np.arange(len(window_start), dtype=np.uint64) + np.uint64(key))
        return _Epoch(number, self._first[shards], start, window_start, window_size, window_key)


class Mix:
    """Several orders interleaved in fixed shares; each of them still shows every face once in its own epoch.

    `BLOCK` positions hold exactly the rounded share of every order, in a keyed arrangement, so that the number of
    faces drawn from an order before any position is known without counting. `total` is the number of faces.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], seed: int):
        if len(orders) != len(weights) or min(weights, default=0) <= 0:
            raise ValueError(f"each of the {len(orders)} orders needs a positive weight, found {list(weights)}")
        self.orders, self.weights, self.seed = list(orders), list(weights), seed
        self.total = sum(order.total for order in orders)
        bounds = np.rint(np.cumsum(weights) / np.sum(weights) * BLOCK).astype(np.int64)
        self._start = np.concatenate([[0], bounds[:-1]])
        self._count = bounds - self._start
        if (self._count == 0).any():
            raise ValueError(f"weights {list(weights)} leave a data set less than 1 in {BLOCK}: raise the small ones")
        self._first = np.cumsum([0, *[order.total for order in orders[:-1]]])

    def rekeyed(self, name: str) -> "Mix":
        """The same faces and shares in another order."""
        return Mix([order.rekeyed(name) for order in self.orders], self.weights, key_of(self.seed, name))

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Index (over all orders, one after another) of the face at each global position."""
        positions = np.asarray(positions, dtype=np.int64)
        block, place = np.divmod(positions, BLOCK)
        keys = scramble(block.astype(np.uint64) + np.uint64(key_of(self.seed, "mix")))
        slot = permute(place, np.asarray(BLOCK), keys)
        which = np.searchsorted(self._start, slot, side="right") - 1
        inner = block * self._count[which] + slot - self._start[which]
        out = np.empty_like(positions)
        for number, order in enumerate(self.orders):
            here = which == number
            out[here] = self._first[number] + order.at(inner[here])
        return out


def order_faces(shards: Mapping[str, Sequence[int]], config: OrderConfig, seed: int) -> Order | Mix:
    """The order of training faces from the shard sizes of each data set (`Faces.shards`).

    Without `config.mix` every face of every set comes once an epoch; with it the sets are drawn in the given shares.
    Raises ValueError when `mix` does not name exactly the data sets there are.
    """
    if config.mix is None:
        return Order([size for sizes in shards.values() for size in sizes], seed, config.window)
    if set(config.mix) != set(shards):
        raise ValueError(f"mix names {sorted(config.mix)} but the training sets are {sorted(shards)}: name each once")
    orders = [Order(list(sizes), key_of(seed, name), config.window) for name, sizes in shards.items()]
    return Mix(orders, [config.mix[name] for name in shards], seed)

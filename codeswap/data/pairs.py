"""Which two faces meet at which position (METHOD §B.6): a pure function of (seed, position, order, identities)."""

from typing import NamedTuple

import numpy as np
from pydantic import Field, model_validator

from codeswap.data.order import Ordering, key_of, uniform
from codeswap.types import Config


class PairConfig(Config):
    """How the two faces of a training pair are drawn."""

    same: float = Field(0.2, ge=0, le=1)  # share of pairs of one image with itself (RAFSwap, UniFace, GHOST: 0.2)
    same_identity: float = Field(0.0, ge=0, le=1)  # share of pairs of one person in two different images
    with_sibling: float = Field(0.0, ge=0, le=1)  # share whose b is drawn from the faces with a sibling (triplets)
    flip: bool = True  # mirror each image with probability 1/2

    @model_validator(mode="after")
    def _shares_fit(self) -> "PairConfig":
        if self.same + self.same_identity > 1:
            raise ValueError(f"same {self.same} + same_identity {self.same_identity} exceed 1")
        return self


class Pairs(NamedTuple):
    """Faces `a` and `b` of each pair (int64 indices), where both are the same tensor, and which are mirrored.

    `sibling_b` is another picture of b's person, or b itself where there is none.
    """

    a: np.ndarray
    b: np.ndarray
    same: np.ndarray
    flip_a: np.ndarray
    flip_b: np.ndarray
    sibling_b: np.ndarray


class Pairing:
    """Pairs over an order. `identity` holds one code for each face, -1 where the person is unknown.

    `a` and `b` follow two independent orders, so that each face is once `a` and about once `b` an epoch. A same pair
    is literally the same tensor (same index, same flip); any other pair never has equal indices. A pair asked to share
    its identity falls back to two different images when the person has only one. `with_sibling` is for sets in which
    few persons have several images; those are then `b` more often than once an epoch.
    Raises ValueError when different pairs are wanted of a single face, or the identities do not fit the order.
    """

    def __init__(self, order: Ordering, identity: np.ndarray, config: PairConfig, seed: int):
        if len(identity) != order.total:
            raise ValueError(f"{len(identity)} identities were given for an order of {order.total} faces")
        if order.total < 2 and config.same < 1:
            raise ValueError(f"pairs of different faces need two faces, found {order.total}: use same=1 or more data")
        if config.same_identity > 0 and (identity < 0).all():
            raise ValueError("same_identity > 0 but no face has an identity: set it to 0 or use a labelled data set")
        self.config, self.total = config, order.total
        self._first, self._second = order, order.rekeyed("second of the pair")
        self._keys = {
            name: key_of(seed, name) for name in ("kind", "other", "flip a", "flip b", "sibling", "answered", "which")
        }
        self._by_identity = np.argsort(identity, kind="stable")
        self._rank = np.empty(self.total, dtype=np.int64)  # where each face stands in that sorting
        self._rank[self._by_identity] = np.arange(self.total)
        ordered = identity[self._by_identity]
        start = np.searchsorted(ordered, identity, side="left")
        self._start = start
        self._count = np.where(identity < 0, 1, np.searchsorted(ordered, identity, side="right") - start)
        self._answered = np.flatnonzero(self._count > 1)
        self.siblings = len(self._answered)  # faces that have another picture of their person
        if config.with_sibling > 0 and not self.siblings:
            raise ValueError("with_sibling > 0 but no person has two images: set it to 0 or use a labelled data set")

    def at(self, positions: np.ndarray) -> Pairs:
        """The pairs at the given global positions."""
        positions = np.asarray(positions, dtype=np.int64)
        kind = uniform(self._keys["kind"], positions)
        draw = uniform(self._keys["other"], positions)
        a, b = self._first.at(positions), self._second.at(positions)
        if self.config.with_sibling:
            which = self._answered[(uniform(self._keys["which"], positions) * self.siblings).astype(np.int64)]
            b = np.where(uniform(self._keys["answered"], positions) < self.config.with_sibling, which, b)

        # Rejecting an equal index without a loop: any of the others, uniformly.
        another = (a + 1 + (draw * (self.total - 1)).astype(np.int64)) % self.total
        b = np.where(a == b, another, b)

        same = kind < self.config.same
        related = ~same & (kind < self.config.same + self.config.same_identity) & (self._count[a] > 1)
        b = np.where(same, a, np.where(related, self._sibling(a, draw), b))

        flip_a = self.config.flip & (uniform(self._keys["flip a"], positions) < 0.5)
        flip_b = self.config.flip & (uniform(self._keys["flip b"], positions) < 0.5)
        sibling = self._sibling(b, uniform(self._keys["sibling"], positions))
        return Pairs(a, b, same, flip_a, np.where(same, flip_a, flip_b), sibling)

    def _sibling(self, faces: np.ndarray, draw: np.ndarray) -> np.ndarray:
        """Another face of each one's person, uniformly by `draw` in [0, 1); the face itself where there is no other."""
        count, start = self._count[faces], self._start[faces]
        step = 1 + (draw * (count - 1)).astype(np.int64)
        sibling = self._by_identity[np.where(count > 1, start + (self._rank[faces] - start + step) % count, 0)]
        return np.where(count > 1, sibling, faces)

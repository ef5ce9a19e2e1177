"""Pairs: shares as asked, same pairs literally the same, others never, all a function of position."""

import numpy as np
import pytest
from pydantic import ValidationError

from codeswap.data.order import Order
from codeswap.data.pairs import PairConfig, Pairing

PEOPLE = np.repeat(np.arange(100), 4)


def pairing(identity: np.ndarray = PEOPLE, seed: int = 0, **config: float) -> Pairing:
    return Pairing(Order([len(identity)], seed=11), identity, PairConfig(**config), seed)


def test_shares_and_flips() -> None:
    pairs = pairing().at(np.arange(20_000))
    assert abs(pairs.same.mean() - 0.2) < 0.015
    assert (pairs.a == pairs.b).tolist() == pairs.same.tolist()  # never equal by accident
    assert (pairs.flip_a == pairs.flip_b)[pairs.same].all()
    different = ~pairs.same
    assert abs(pairs.flip_a.mean() - 0.5) < 0.02 and abs(pairs.flip_b[different].mean() - 0.5) < 0.02
    assert abs((pairs.flip_a == pairs.flip_b)[different].mean() - 0.5) < 0.02  # independent


def test_both_sides_see_every_face() -> None:
    pairs = pairing(same=0.0).at(np.arange(400))
    assert sorted(pairs.a.tolist()) == list(range(400))
    assert len(set(pairs.b.tolist())) > 395  # a handful were replaced because they equalled a


def test_sides_are_independent() -> None:
    pairs = pairing(same=0.0).at(np.arange(8000))
    assert abs(np.corrcoef(pairs.a, pairs.b)[0, 1]) < 0.05


def test_same_identity() -> None:
    pairs = pairing(same=0.1, same_identity=0.5).at(np.arange(10_000))
    siblings = (PEOPLE[pairs.a] == PEOPLE[pairs.b]) & ~pairs.same
    assert (pairs.a != pairs.b)[siblings].all()
    assert abs(siblings.mean() - 0.5) < 0.03
    # Every other picture of the person is met about equally often.
    steps = ((pairs.b - pairs.a) % 4)[siblings]
    assert set(steps.tolist()) == {1, 2, 3} and np.bincount(steps)[1:].min() > 0.8 * siblings.sum() / 3


def test_an_unknown_or_single_person_has_no_sibling() -> None:
    identity = np.array([-1] * 10 + [0] + [1] * 9)
    pairs = pairing(identity, same=0.0, same_identity=1.0).at(np.arange(4000))
    assert (pairs.a != pairs.b).all()
    known = pairs.a > 10
    assert (identity[pairs.b[known]] == 1).all()
    assert len(set(pairs.b[~known].tolist())) == 20  # fell back to anyone else


def test_siblings_of_b_are_other_pictures_of_the_same_person() -> None:
    identity = np.array([-1] * 3 + [0] + [1] * 9 + [2] * 2)
    pairs = pairing(identity, same=0.2).at(np.arange(4000))
    several = np.bincount(identity + 1)[identity + 1] > 1
    several &= identity >= 0
    known = several[pairs.b]
    assert (identity[pairs.sibling_b] == identity[pairs.b])[known].all()
    assert (pairs.sibling_b != pairs.b)[known].all()
    assert (pairs.sibling_b == pairs.b)[~known].all()
    counts = np.bincount(pairs.sibling_b[pairs.b == 5])
    assert set(np.flatnonzero(counts)) == {4, 6, 7, 8, 9, 10, 11, 12}


def test_position_decides() -> None:
    whole = pairing(same_identity=0.3).at(np.arange(1000))
    part = pairing(same_identity=0.3).at(np.array([777, 5]))
    for everything, some in zip(whole, part, strict=True):
        assert some.tolist() == [everything[777], everything[5]]
    assert (pairing(seed=1).at(np.arange(1000)).same != whole.same).any()


def test_no_flip() -> None:
    pairs = pairing(flip=False).at(np.arange(100))
    assert not pairs.flip_a.any() and not pairs.flip_b.any()


def test_two_faces_are_enough_and_one_is_not() -> None:
    pairs = pairing(np.array([-1, -1])).at(np.arange(500))
    assert set(zip(pairs.a.tolist(), pairs.b.tolist(), strict=True)) == {(0, 0), (1, 1), (0, 1), (1, 0)}
    with pytest.raises(ValueError, match="need two faces, found 1"):
        pairing(np.array([0]))
    assert pairing(np.array([0]), same=1.0).at(np.arange(3)).b.tolist() == [0, 0, 0]


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValidationError, match="exceed 1"):
        PairConfig(same=0.7, same_identity=0.4)
    with pytest.raises(ValueError, match="no face has an identity"):
        pairing(np.full(5, -1), same_identity=0.1)
    with pytest.raises(ValueError, match="3 identities were given for an order of 5 faces"):
        Pairing(Order([5], 1), np.zeros(3, dtype=np.int64), PairConfig(), 0)


def test_a_share_of_b_has_siblings_where_few_have() -> None:
    identity = np.where(np.arange(400) < 40, np.arange(400) // 10, -1)  # 4 persons of 10 pictures among 360 strangers
    known = identity >= 0
    assert abs(known[pairing(identity, same=0.0).at(np.arange(8000)).b].mean() - 0.1) < 0.02
    pairs = pairing(identity, same=0.25, with_sibling=0.5).at(np.arange(20_000))
    assert abs(known[pairs.b[~pairs.same]].mean() - 0.55) < 0.02
    assert abs(pairs.same.mean() - 0.25) < 0.02 and (pairs.a != pairs.b)[~pairs.same].all()
    assert np.bincount(pairs.b[~pairs.same], minlength=400)[:40].min() > 130  # of about 210 each
    with pytest.raises(ValueError, match="no person has two images"):
        pairing(np.arange(400), with_sibling=0.5)

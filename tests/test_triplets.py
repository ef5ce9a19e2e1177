"""Triplets: what is spoilt and what is not, what counts, where the gradient goes, and that a swap can reach 0."""

import numpy as np
import pytest
import torch

from codeswap.data.spoil import Spoiling, another_look, mean_colour, spoil
from codeswap.train.engine import Engine
from codeswap.train.feeds import PairBatch, part_masks
from codeswap.train.machine import EngineConfig
from codeswap.train.swap import SwapParams, train_swap
from codeswap.train.triplets import TripletConfig, make_triplets, triplet_loss, triplet_terms

SIZE = 64


@pytest.fixture
def engine():
    engine = Engine(EngineConfig(device="cpu"), 0, 4)
    yield engine
    engine.close()


def _labels(n: int) -> torch.Tensor:
    labels = torch.zeros(n, SIZE, SIZE, dtype=torch.uint8)
    labels[:, 20:44, 20:44] = 1
    labels[:, 26:28, 24:30], labels[:, 30:33, 24:30], labels[:, 38:41, 28:36] = 2, 4, 12
    return labels


def _pairs(n: int) -> PairBatch:
    images = torch.randint(0, 256, (3, n, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    nothing = torch.zeros(n, 3)
    has = torch.ones(n)
    has[0] = 0
    return PairBatch(
        images[0], images[1], _labels(n), _labels(n), *[nothing] * 8, torch.zeros(n, dtype=torch.bool), images[2], has
    )


def _face(labels: torch.Tensor) -> torch.Tensor:
    return (labels > 0)[:, None].float()


def test_only_the_face_and_its_rim_are_spoilt():
    n, labels = 32, _labels(32)
    x = torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    how = Spoiling.draw(n, torch.Generator().manual_seed(2))
    spoilt = spoil(x, _face(labels), part_masks(labels), torch.zeros(n, 3, 1, 1), how)
    assert spoilt.min() >= -1 and spoilt.max() <= 1
    rim = 20 - 1 - 3 - 4  # the soft edge, then the warp: 3 pixels by growing and 4 by blurring
    outside = torch.ones(SIZE, SIZE, dtype=torch.bool)
    outside[rim : SIZE - rim, rim : SIZE - rim] = False
    torch.testing.assert_close(spoilt[:, :, outside], x[:, :, outside])
    inside = (spoilt - x)[:, :, 24:40, 24:40].abs().mean(dim=(1, 2, 3))
    assert (inside > 0.05).all()


def test_the_face_takes_on_the_tone_it_is_given():
    labels = _labels(1)
    x = torch.zeros(1, 3, SIZE, SIZE)
    tone = torch.tensor([0.5, -0.2, -0.6]).view(1, 3, 1, 1)
    still = Spoiling(torch.zeros(1, 16), torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 5, 5))
    spoilt = spoil(x, _face(labels), part_masks(labels), tone, still)
    torch.testing.assert_close(spoilt[:, :, 24:40, 24:40].mean(dim=(2, 3)), tone.flatten(1), rtol=0, atol=1e-5)
    assert torch.equal(spoilt[:, :, :10], x[:, :, :10])


def test_shape_moves_with_the_warp_and_stays_without():
    labels = _labels(1)
    x = _face(labels).expand(1, 3, SIZE, SIZE) * 2 - 1
    scalars = torch.zeros(1, 16)
    tone = mean_colour(x, _face(labels))
    still = spoil(x, _face(labels), part_masks(labels), tone, Spoiling(scalars, *_no_field()))
    torch.testing.assert_close(still, x, rtol=0, atol=1e-4)
    scalars[:, 8] = 1.0  # samples from further out: the face becomes narrower
    narrow = spoil(x, _face(labels), part_masks(labels), tone, Spoiling(scalars, *_no_field()))
    assert (narrow[0, 0, 32] > 0).sum() < (x[0, 0, 32] > 0).sum()


def _no_field() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 5, 5)


def test_an_empty_face_is_left_alone():
    x = torch.rand(2, 3, SIZE, SIZE)
    empty = torch.zeros(2, 1, SIZE, SIZE)
    how = Spoiling.draw(2, torch.Generator().manual_seed(2))
    torch.testing.assert_close(spoil(x, empty, empty.expand(2, 3, -1, -1), torch.zeros(2, 3, 1, 1), how), x)


def test_pseudo_targets_come_from_swaps_or_targets_and_carry_no_gradient(engine):
    pairs = _pairs(4)
    swaps = torch.full((4, 3, SIZE, SIZE), 0.25, requires_grad=True)
    own = make_triplets(engine, TripletConfig(share=1, own_swaps=1.0), pairs, swaps, step=3)
    real = make_triplets(engine, TripletConfig(share=1, own_swaps=0.0), pairs, swaps, step=3)
    corner = (slice(None), slice(None), slice(0, 8), slice(0, 8))
    assert torch.equal(own.target[corner], swaps[corner])
    torch.testing.assert_close(real.target[corner], real.answer[corner])
    assert not own.target.requires_grad and torch.equal(own.answer, pairs.image_b.float() / 127.5 - 1)
    again = make_triplets(engine, TripletConfig(share=1, own_swaps=0.0), pairs, swaps, step=3)
    other = make_triplets(engine, TripletConfig(share=1, own_swaps=0.0), pairs, swaps, step=4)
    assert torch.equal(again.target, real.target) and not torch.equal(other.target, real.target)


def test_a_face_without_another_picture_may_be_its_own_source_in_another_look(engine):
    pairs = _pairs(4)._replace(has_sibling_b=torch.tensor([0.0, 1.0, 1.0, 1.0]))
    pairs = pairs._replace(sibling_b=torch.where(torch.arange(4).view(4, 1, 1, 1) == 0, pairs.image_b, pairs.sibling_b))
    swaps = torch.zeros(4, 3, SIZE, SIZE)
    skipped = make_triplets(engine, TripletConfig(share=1), pairs, swaps, step=3)
    looked = make_triplets(engine, TripletConfig(share=1, alone="another_look"), pairs, swaps, step=3)
    assert skipped.valid.tolist() == [0, 1, 1, 1] and looked.valid.tolist() == [1, 1, 1, 1]
    assert torch.equal(looked.source[1:], skipped.source[1:]) and torch.equal(looked.target, skipped.target)
    assert not torch.equal(looked.source[0], looked.answer[0])


def test_a_source_of_one_picture_takes_the_geometry_of_the_pairs_other_face(engine):
    pairs = _pairs(4)._replace(has_sibling_b=torch.tensor([0.0, 1.0, 1.0, 1.0]))
    low = _labels(4)
    low[:, 38:41, 28:36], low[:, 41:44, 28:36] = 1, 12  # the other face's mouth is lower
    swaps = torch.zeros(4, 3, SIZE, SIZE)

    def source(alone: str, parsing_a: torch.Tensor) -> torch.Tensor:
        config = TripletConfig(share=1, alone=alone)
        return make_triplets(engine, config, pairs._replace(parsing_a=parsing_a), swaps, step=3).source

    look, same, other = (
        source("another_look", low),
        source("another_geometry", _labels(4)),
        source("another_geometry", low),
    )
    torch.testing.assert_close(same, look, rtol=0, atol=1e-4)  # nothing to move: mirrored, bent and lit as before
    assert (other[0] - look[0]).abs().max() > 0.01
    assert torch.equal(other[1:], look[1:])  # who has another picture keeps it


def test_a_source_of_one_picture_may_have_another_faces_surroundings(engine):
    pairs = _pairs(4)._replace(has_sibling_b=torch.tensor([0.0, 0.0, 1.0, 1.0]))
    black, white = torch.zeros_like(pairs.image_a), torch.full_like(pairs.image_b, 255)
    pairs = pairs._replace(image_a=black, image_b=white, sibling_b=white)

    def source(share: float) -> torch.Tensor:
        config = TripletConfig(share=1, alone="another_look", surroundings=share)
        return make_triplets(engine, config, pairs, torch.zeros(4, 3, SIZE, SIZE), step=3).source

    own, pasted = source(0.0), source(1.0)
    corner, centre = (..., slice(0, 8), slice(0, 8)), (..., slice(28, 36), slice(28, 36))
    assert (pasted[:2][corner] == -1).all() and (own[:2][corner] > -0.5).all()
    torch.testing.assert_close(pasted[:2][centre], own[:2][centre])  # the face is b's, in the same light
    assert torch.equal(pasted[2:], own[2:])  # who has another picture keeps it


def test_without_bend_only_the_tone_of_a_pseudo_target_is_spoilt(engine):
    face = _face(_labels(4)).expand(4, 3, SIZE, SIZE)
    pairs = _pairs(4)._replace(image_b=(face * 255).to(torch.uint8))
    swaps = torch.zeros(4, 3, SIZE, SIZE)
    edges = {}
    for bend in (0.0, 1.0):
        config = TripletConfig(share=1, own_swaps=0.0, bend=bend)
        target = make_triplets(engine, config, pairs, swaps, step=3).target
        edges[bend] = (target[:, 0] > -0.5) ^ (face[:, 0] > 0)
    assert edges[1.0].sum() > 3 * edges[0.0].sum()


def test_another_look_is_the_mirror_image_bent_and_lit_anew():
    ramp = torch.linspace(-0.5, 0.5, SIZE).expand(1, 3, SIZE, SIZE)
    still = Spoiling(torch.zeros(1, 16), torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 5, 5))
    torch.testing.assert_close(another_look(ramp, still), ramp.flip(-1), rtol=0, atol=1e-5)
    brighter = another_look(ramp, still._replace(scalars=torch.cat([torch.ones(1, 1), torch.zeros(1, 15)], dim=1)))
    assert (brighter > ramp.flip(-1)).all()
    bent = another_look(ramp, still._replace(warp=torch.ones(1, 2, 4, 4)))
    assert (bent - ramp.flip(-1)).abs().max() > 0.01


def test_terms_by_hand_and_a_row_without_sibling_counts_nothing(engine):
    pairs = _pairs(2)  # row 0 has no sibling
    config = TripletConfig(share=1, gradient=0.0, embedding=1.0, skin_weight=0.0, feature_weight=0.0)
    triplets = make_triplets(engine, config, pairs, torch.zeros(2, 3, SIZE, SIZE), step=0)
    z = torch.tensor([[[1.0, -1.0]], [[1.0, -1.0]]])

    def identity(image: torch.Tensor) -> torch.Tensor:  # zero for the answer, like the embeddings of these pairs
        return (image - triplets.answer).mean(dim=(2, 3))

    exact = triplet_terms(config, triplets, triplets.answer, z, z, identity)
    assert [term.item() for term in exact.values()] == [0.0, 0.0, 0.0]
    picture = (triplets.answer + torch.tensor([0.5, 0.1]).view(2, 1, 1, 1)).requires_grad_()
    codes = (z + torch.tensor([7.0, 2.0]).view(2, 1, 1)).requires_grad_()
    terms = triplet_terms(config, triplets, picture, codes, z, identity)
    assert terms["triplet"].item() == pytest.approx(0.1 / 2, rel=1e-4)
    assert terms["triplet_latent"].item() == pytest.approx(4.0 / 2 / z.var().item(), rel=1e-5)
    assert terms["triplet_embedding"].item() == pytest.approx(0.1**2 / 2 / 2, rel=1e-4)
    total = triplet_loss(config, terms)
    assert total.item() == pytest.approx(4 * 0.1 / 2 + 4.0 / 2 / z.var().item() + 0.1**2 / 4, rel=1e-4)
    total.backward()
    assert picture.grad[0].abs().max() == 0 and codes.grad[0].abs().max() == 0
    assert picture.grad[1].abs().min() > 0 and codes.grad[1].abs().min() > 0


def test_faces_without_a_known_person_are_refused(tiny, copy, monkeypatch):
    from codeswap.data.faces import Faces

    root = copy("swap", "mask")
    known = Faces.__init__

    def unknown(self, folders):
        known(self, folders)
        self.identity = np.full(len(self), -1)

    monkeypatch.setattr(Faces, "__init__", unknown)
    with pytest.raises(ValueError, match="triplets needs two pictures of a person"):
        train_swap(tiny.params(SwapParams), "ours", root, "none")
    alone = {"share": 0.5, "alone": "another_look"}
    train_swap(tiny.params(SwapParams, swap={"triplets": alone, "samples": 16}), "ours", root, "none")
    assert (root / "models/swap/ours/card.json").exists()

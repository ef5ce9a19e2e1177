"""Told the true swap: which picture that is, what its distance weighs, where the gradient goes, who may use it."""

import csv

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codeswap.data.faces import Faces, to_float
from codeswap.data.order import OrderConfig, order_faces
from codeswap.data.pairs import PairConfig, Pairing
from codeswap.data.synthetic import attributes, identities, mirror_attributes, mirror_identity, render
from codeswap.losses.image import lpips_distance
from codeswap.models.codeswap import load_vqgan
from codeswap.models.vqgan import tokens
from codeswap.perception.roles import load
from codeswap.train.feeds import PairFeed, open_training_faces
from codeswap.train.objective import Pictures
from codeswap.train.swap import SwapParams, train_swap
from codeswap.train.truth import TruthConfig, truth_terms

ROLES = ("identity_train", "expression_train", "pose")


@pytest.fixture
def rendered(tiny, monkeypatch):
    """The tiny world's faces with what they were rendered from."""
    count = tiny.PEOPLE * tiny.EACH
    people, looks = identities(0, tiny.PEOPLE, 5), attributes(0, count, 5)

    def facts(self, index):
        person, look = people[index // tiny.EACH], looks[index]
        return {"synthetic": {"identity": person.tolist(), "attributes": look.tolist()}}

    monkeypatch.setattr(Faces, "facts", facts)
    return people.repeat_interleave(tiny.EACH, 0), looks


@pytest.fixture
def feed(copy, rendered):
    source = open_training_faces(copy("swap", "mask"), *ROLES)
    order = order_faces(source.faces.shards, OrderConfig(), 0)
    pairing = Pairing(order, source.faces.identity, PairConfig(same=0.25), 0)
    return PairFeed(source, pairing, parsing=False, truth=True), pairing, source.faces.size


def test_a_pair_comes_with_both_true_swaps_as_it_is_shown(feed, rendered):
    pairs_of, pairing, size = feed
    people, looks = rendered
    positions = np.arange(32)
    batch, drawn = pairs_of(positions), pairing.at(positions)
    seen = set()
    for row in range(32):
        a, b, flip_a, flip_b = (int(part[row]) for part in (drawn.a, drawn.b, drawn.flip_a, drawn.flip_b))
        person = mirror_identity(people[a : a + 1]) if flip_a else people[a : a + 1]
        look = mirror_attributes(looks[b : b + 1]) if flip_b else looks[b : b + 1]
        picture, labels = render(person, look, size)
        assert torch.equal(batch.true_ab[row], picture[0]) and torch.equal(batch.true_parsing_ab[row], labels[0])
        if drawn.same[row]:
            assert (batch.true_ab[row].int() - batch.image_b[row].int()).abs().max() <= 2  # the face is its own swap
        seen.add((flip_a, flip_b))
    assert len(seen) == 4, "every kind of mirroring occurs"
    other = batch.exchanged()
    assert torch.equal(other.true_ab, batch.true_ba) and torch.equal(other.true_parsing_ba, batch.true_parsing_ab)
    assert len(batch.in_both_directions().true_ab) == 64


def test_distance_by_hand_and_its_gradient(feed, trained):
    pairs_of, _, _ = feed
    vqgan, batch = load_vqgan(trained / "models/codebook"), pairs_of(np.arange(3))
    truth = Pictures(to_float(batch.true_ab), to_float(batch.true_ba))
    latent = Pictures(*(tokens(vqgan.encode(image)) for image in truth))
    config = TruthConfig(image=2.0, gradient=0.5, latent=3.0)
    right = truth_terms(config, vqgan, batch, truth, latent)
    assert float(right["truth"]) == 0 and float(right["truth_latent"]) == pytest.approx(0, abs=1e-6)

    shifted = [(image + 0.25).requires_grad_() for image in truth]  # no edge moves: the gradient part stays 0
    moved = [(z + 0.5).detach().requires_grad_() for z in latent]
    found = truth_terms(config, vqgan, batch, Pictures(*shifted), Pictures(*moved))
    assert float(found["truth"]) == pytest.approx(0.25, rel=1e-5)
    spread = torch.cat(latent).var()
    assert float(found["truth_latent"]) == pytest.approx(0.25 / float(spread), rel=1e-4)
    total = config.total(found)
    assert float(total) == pytest.approx(2 * 0.25 + 3 * 0.25 / float(spread), rel=1e-4)
    total.backward()
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in (*shifted, *moved))
    assert all(parameter.grad is None for parameter in vqgan.parameters())


def test_features_of_the_swap_are_told_those_of_the_true_one(feed, trained):
    pairs_of, _, _ = feed
    vqgan, batch = load_vqgan(trained / "models/codebook"), pairs_of(np.arange(2))
    network = load(trained / "models/perception", "perceptual").eval().requires_grad_(False)
    truth = Pictures(to_float(batch.true_ab), to_float(batch.true_ba))
    latent = Pictures(*(tokens(vqgan.encode(image)) for image in truth))
    config = TruthConfig(image=0.0, latent=0.0, perceptual=3.0)

    right = truth_terms(config, vqgan, batch, truth, latent, network)
    assert float(right["truth_perceptual"]) == pytest.approx(0, abs=1e-6)
    blurred = Pictures(*(F.avg_pool2d(image, 3, 1, 1).requires_grad_() for image in truth))
    found = truth_terms(config, vqgan, batch, blurred, latent, network)
    with torch.no_grad():
        by_hand = lpips_distance(network(blurred.stacked), network(truth.stacked)).mean()
    assert float(found["truth_perceptual"]) == pytest.approx(float(by_hand), rel=1e-5) and by_hand > 0.01
    total = config.total(found)
    assert float(total) == pytest.approx(3 * float(by_hand), rel=1e-5)
    total.backward()
    assert all(part.grad.abs().sum() > 0 for part in blurred)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_features_weigh_more_than_background(feed, trained):
    pairs_of, _, _ = feed
    vqgan, batch = load_vqgan(trained / "models/codebook"), pairs_of(np.arange(2))
    truth = to_float(batch.true_ab)
    latent = tokens(vqgan.encode(truth))
    batch = batch._replace(true_ba=None, true_parsing_ba=None)

    def distance(where):
        wrong = truth + 0.2 * where[:, None]
        pictures, codes = Pictures(wrong, None), Pictures(latent, None)
        terms = truth_terms(TruthConfig(gradient=0), vqgan, batch, pictures, codes)
        return float(terms["truth"]) / float(where.mean())

    labels = batch.true_parsing_ab
    assert distance((labels == 4).float()) > distance((labels == 0).float())


@pytest.mark.parametrize("variant", ["ours", "no_symmetry"])
def test_a_training_is_told(tiny, copy, rendered, variant):
    root = copy("swap", "mask")
    params = tiny.params(SwapParams, swap={"truth": {}, "triplets": {"share": 0.0}, "samples": 16})
    train_swap(params, variant, root, "none")
    with (root / "models/swap" / variant / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["truth"]) > 0 and float(row["truth_latent"]) > 0 for row in rows if row["truth"])
    assert any(row["truth"] for row in rows)


def test_photographs_have_no_true_swap(tiny, copy):
    with pytest.raises(ValueError, match=r"swap\.truth: photographs have no true swap: set it to null"):
        train_swap(tiny.params(SwapParams, swap={"truth": {}, "samples": 16}), "ours", copy("swap", "mask"), "none")

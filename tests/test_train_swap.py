"""Stage 2: every variant of Table 3 trains, resumes and loads; its terms are what their names say."""

import json
import shutil
import signal
from typing import NamedTuple

import numpy as np
import pytest
import torch

from codeswap.data.faces import Faces
from codeswap.data.order import OrderConfig, order_faces
from codeswap.data.pairs import PairConfig, Pairing
from codeswap.models.codeswap import load_codeswap
from codeswap.perception.boxes import Box, View
from codeswap.perception.landmark_parsing import LandmarkParsing, Landmarks
from codeswap.train.engine import Engine
from codeswap.train.feeds import PairBatch, PairFeed, face_mask, open_training_faces, pixel_weights
from codeswap.train.machine import EngineConfig
from codeswap.train.objective import Calibration, Judges, Pictures, SwapWeights, load_judges, picture_terms
from codeswap.train.swap import SwapParams, train_swap
from codeswap.types import VARIANTS

pytestmark = pytest.mark.usefixtures("no_mlflow")


@pytest.fixture(scope="module")
def judges(trained):
    engine = Engine(EngineConfig(device="cpu"), 0, 4)
    yield load_judges(engine, trained / "models/perception", SwapWeights(features=1.0))
    engine.close()


def _pairs(judges: Judges, same: list[bool]) -> PairBatch:
    count = len(same)
    a, b = torch.randint(0, 256, (2, count, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    a = torch.where(torch.tensor(same)[:, None, None, None], b, a)
    x_a, x_b = a.float() / 127.5 - 1, b.float() / 127.5 - 1
    labels = torch.zeros(count, 32, 32, dtype=torch.uint8)
    labels[:, 8:24, 8:24] = 1
    with torch.no_grad():
        identity, expression = ([network(x) for x in (x_a, x_b)] for network in (judges.identity, judges.expression))
    pose = torch.zeros(count, 3)
    return PairBatch(a, b, labels, labels, *identity, *identity, *expression, pose, pose, torch.tensor(same))


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "ours"])
def test_every_variant_trains_and_swaps(tiny, copy, variant):
    root = copy("swap", "mask")
    short = {"samples": 16, "validate_every": 16, "adversarial": 0.0}
    tiny.train(root, ["swap"], variant, swap=short)
    model = load_codeswap(root / "models/codebook", root / "models/swap" / variant)
    with torch.no_grad():
        swap = model.swap(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
    assert swap.image_ab.isfinite().all()
    assert (swap.image_ba is None) == (variant == "no_symmetry")


def test_the_card_says_what_it_was_made_from(trained):
    card = json.loads((trained / "models/swap/ours/card.json").read_text())
    codebook = json.loads((trained / "models/codebook/card.json").read_text())
    assert card["lineage"]["codebook"] == codebook["weights_sha256"]
    assert card["calibration"].keys() == {"perceptual", "expression"}
    assert card["config"]["variant"] == "ours"


def test_stopped_before_and_after_the_discriminator_and_resumed_is_bit_for_bit(tiny, trained, copy):
    root = copy("swap", "mask")
    undo = tiny.stop_at(root, f"swap-ours:16:{signal.SIGUSR1}", f"swap-ours:40:{signal.SIGTERM}")
    try:
        assert tiny.train(root, ["swap"]) == 2
    finally:
        undo()
    for name in ("model.safetensors", "curve.csv"):
        assert (root / "models/swap/ours" / name).read_bytes() == (trained / "models/swap/ours" / name).read_bytes()


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_gumbel_noise_and_both_optimizers_resume_too(tiny, copy, optimizer):
    root = copy("swap", "mask")
    models, short = [], {"samples": 32, "adversarial": 0.0, "optimizer": optimizer}
    for stops in ((), (f"swap-gumbel:16:{signal.SIGTERM}",)):
        undo = tiny.stop_at(root, *stops)
        try:
            assert tiny.train(root, ["swap"], "gumbel", swap=short) == len(stops)
        finally:
            undo()
        models.append((root / "models/swap/gumbel/model.safetensors").read_bytes())
        for place in ("models", "runs"):
            shutil.rmtree(root / place / "swap/gumbel")
    assert models[0] == models[1]


def test_cached_latents_give_the_same_training_and_resume_bit_for_bit(tiny, trained, copy):
    models = []
    root = copy("swap", "mask")
    for stops in ((), (f"swap-ours:16:{signal.SIGTERM}", f"swap-ours:40:{signal.SIGTERM}")):
        undo = tiny.stop_at(root, *stops)
        try:
            assert tiny.train(root, ["swap"], swap={"cache_latents": True}) == len(stops)
        finally:
            undo()
        models.append((root / "models/swap/ours/model.safetensors").read_bytes())
        (run,) = (root / "runs/swap/ours").iterdir()
        assert not (run / "latents").exists(), "a finished run gives their room back"
        header, first, *_ = (root / "models/swap/ours/curve.csv").read_text().splitlines()
        for place in ("models", "runs"):
            shutil.rmtree(root / place / "swap/ours")
    assert models[0] == models[1]
    _, expected, *_ = (trained / "models/swap/ours/curve.csv").read_text().splitlines()
    for name, value, other in zip(header.split(","), first.split(","), expected.split(","), strict=True):
        assert (value, other) == ("", "") or float(value) == pytest.approx(float(other), rel=1e-3, abs=1e-6), name


def test_landmarks_are_the_targets_and_need_a_network_that_finds_them(trained, judges):
    engine = Engine(EngineConfig(device="cpu"), 0, 4)
    with pytest.raises(ValueError, match=r"weights\.landmarks needs landmarks, and the parsing network .* gives none"):
        load_judges(engine, trained / "models/perception", SwapWeights(landmarks=1.0))
    engine.close()
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(16, 136))
    finder = LandmarkParsing(Landmarks(View(Box(0.0, 0.0, 1.0), 64, (0.0,), (256.0,), "grey"), net))
    weights = SwapWeights(reconstruction=0, identity=0, perceptual=0, expression=0, cycle=0, landmarks=2.0, colour=1.0)
    pairs = _pairs(judges, [False, False])
    a, b = (x.float() / 127.5 - 1 for x in (pairs.image_a, pairs.image_b))
    exact = picture_terms(judges._replace(parsing=finder), weights, pairs, Pictures(b, a))
    assert exact.keys() == {"landmarks", "colour"} and max(term.item() for term in exact.values()) < 1e-3
    swapped = Pictures(a.clone().requires_grad_(), b.clone().requires_grad_())
    terms = picture_terms(judges._replace(parsing=finder), weights, pairs, swapped)
    assert min(term.item() for term in terms.values()) > 1e-3
    for term in terms.values():
        for gradient in torch.autograd.grad(term, swapped, retain_graph=True):
            assert gradient.isfinite().all() and gradient.any()


def test_accumulation_gives_nearly_the_same_training(tiny, trained, copy):
    """Not bit for bit: sums are taken in another order."""
    root = copy("swap", "mask")
    params = tiny.params(
        SwapParams, swap={"samples": 16, "adversarial": 0.0, "cycle_share": 1.0}, engine={"accumulation": 1}
    )
    curves = []
    for parts in (1, 2):
        params = params.model_copy(update={"engine": params.engine.model_copy(update={"accumulation": parts})})
        train_swap(params, "ours", root, f"parts{parts}")
        lines = (root / "models/swap/ours/curve.csv").read_text().splitlines()
        curves.append(dict(zip(lines[0].split(","), lines[1].split(","), strict=True)))
    for name in ("reconstruction", "identity", "expression", "background", "cycle"):  # means of samples
        assert float(curves[0][name]) == pytest.approx(float(curves[1][name]), rel=1e-3, abs=1e-7), name


def test_eq_9_has_the_printed_weights():
    terms = {"reconstruction": 1, "identity": 10, "perceptual": 100, "expression": 1000, "cycle": 10000}
    total = SwapWeights().total({name: torch.tensor(float(value)) for name, value in terms.items()})
    assert total.item() == pytest.approx(1 + 15 + 0.2 + 500 + 10000)
    off_paper = set(SwapWeights.model_fields) - set(terms) - {"identity_of", "identity_enough"}
    assert all(getattr(SwapWeights(), name) == 0 for name in off_paper)
    assert SwapWeights().identity_of == "picture" and SwapWeights().identity_enough == 1


def test_naming_by_trivial_swaps(judges):
    """METHOD J.5: a plain exchange has no identity and no reconstruction loss, a plain copy no attribute loss."""
    weights = SwapWeights(background=1.0, features=1.0)
    pairs = _pairs(judges, [True, False, False])
    a, b = pairs.image_a.float() / 127.5 - 1, pairs.image_b.float() / 127.5 - 1
    exchange = picture_terms(judges, weights, pairs, Pictures(ab=a, ba=b))
    copied = picture_terms(judges, weights, pairs, Pictures(ab=b, ba=a))
    assert exchange["identity"] < 1e-5 and exchange["reconstruction"] == 0
    assert exchange["perceptual"] > 1e-3 and exchange["background"] > 0.1 and exchange["expression"] > 1e-5
    for name in ("reconstruction", "background", "features"):
        assert copied[name] == 0, name
    assert copied["perceptual"] < 1e-4 and copied["expression"] < 2e-6 and copied["identity"] > exchange["identity"]
    one_sided = picture_terms(judges, weights, pairs, Pictures(ab=a, ba=None))
    assert one_sided["identity"] < 1e-5 and one_sided.keys() == exchange.keys()


def test_terms_without_weight_are_not_computed(judges):
    only = SwapWeights(reconstruction=0, perceptual=0, expression=0, cycle=0)
    pairs = _pairs(judges, [False])
    picture = pairs.image_b.float() / 127.5 - 1
    assert picture_terms(judges, only, pairs, Pictures(picture, picture)).keys() == {"identity"}


def test_the_identity_wanted_may_be_the_persons(trained):
    source = open_training_faces(trained, "identity_train")
    person, own = source.faces.identity, source.annotations.identity
    pairing = Pairing(order_faces(source.faces.shards, OrderConfig(), 0), person, PairConfig(flip=True), 0)
    places = np.arange(16)
    drawn = pairing.at(places)
    of_picture = PairFeed(source, pairing, parsing=False)(places)
    of_person = PairFeed(source, pairing, parsing=False, person=True)(places)
    assert torch.equal(of_picture.wanted_a, of_picture.identity_a) and len(set(drawn.flip_a.tolist())) == 2
    for row, (face, flip) in enumerate(zip(drawn.a, drawn.flip_a.astype(int), strict=True)):
        mean = own[np.flatnonzero(person == person[face]), np.asarray(flip)].mean(dim=0)
        torch.testing.assert_close(of_person.wanted_a[row], mean)
    assert torch.equal(of_person.identity_b, of_picture.identity_b)


def test_a_picture_of_nobody_known_keeps_its_own_identity(trained):
    source = open_training_faces(trained, "identity_train")
    nobody = source._replace(
        faces=Unknown(np.where(source.faces.identity == 1, -1, source.faces.identity), source.faces)
    )
    order = order_faces(source.faces.shards, OrderConfig(), 0)
    feed = PairFeed(nobody, Pairing(order, nobody.faces.identity, PairConfig(), 0), parsing=False, person=True)
    batch, drawn = feed(np.arange(64)), Pairing(order, nobody.faces.identity, PairConfig(), 0).at(np.arange(64))
    alone = torch.from_numpy(nobody.faces.identity[drawn.a] < 0)
    assert alone.any() and torch.equal(batch.wanted_a[alone], batch.identity_a[alone])
    assert not torch.equal(batch.wanted_a[~alone], batch.identity_a[~alone])


class Unknown(NamedTuple):
    """Faces with other persons."""

    identity: np.ndarray
    faces: Faces

    def images(self, indices: np.ndarray, flips: np.ndarray) -> torch.Tensor:
        return self.faces.images(indices, flips)


def test_calibration_band():
    assert Calibration(0.6, 0.6).fits and not Calibration(0.1, 0.2).fits and not Calibration(5.0, 2.0).fits


def test_pairs_in_both_directions(judges):
    pairs = _pairs(judges, [True, False])
    both = pairs.in_both_directions()
    assert torch.equal(both.image_a, torch.cat([pairs.image_a, pairs.image_b]))
    assert torch.equal(both.identity_b, torch.cat([pairs.identity_b, pairs.identity_a]))
    assert both.same.tolist() == [True, False, True, False]


def test_weights_of_regions_have_mean_one_and_masks_are_faces():
    parsing = torch.tensor([[[0, 1], [4, 17]]], dtype=torch.uint8)
    weights = pixel_weights(parsing, skin=1.0, features=3.0)
    assert weights.mean() == 1
    assert torch.equal(weights / weights[0, 0, 0, 0], torch.tensor([[[[1.0, 2.0], [4.0, 1.0]]]]))
    assert face_mask(parsing).tolist() == [[[[0.0, 1.0], [1.0, 0.0]]]]

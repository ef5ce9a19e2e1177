"""What is compared in an evaluation: the method's swap, baselines, rivals' results, the true swap, and how scores
become estimates."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from codeswap.data.faces import to_float
from codeswap.data.scenes import scenes
from codeswap.data.synthetic import attributes, identities, render
from codeswap.evaluate.baselines import face_of, paste, read_results, truth_of
from codeswap.evaluate.methods import Batch, eight_bits, exchange_error, pictures
from codeswap.evaluate.scores import ScoreTable, ranked_by_success, shown_pairs
from tests.evaluation_world import FUSION, SIZE, tiny


def batch(count: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    source, target = torch.rand(2, count, 3, SIZE, SIZE, generator=generator) * 2 - 1
    face = torch.zeros(count, 1, SIZE, SIZE, dtype=torch.bool)
    face[:, :, 4:12] = True
    return Batch([(f"s{i}", f"t{i}") for i in range(count)], source, target, face, None)


@pytest.mark.parametrize("variant", ["ours", "no_codebook", "no_symmetry", "hard", "gumbel"])
def test_judged_swap_is_the_method_s_swap(variant: str) -> None:
    model, some = tiny(variant), batch()
    made, swap = pictures(model, some, {}, 0.5), model.swap(some.source, some.target)
    torch.testing.assert_close(made.images["swap"], eight_bits(swap.image_ab), atol=1e-6, rtol=0)
    torch.testing.assert_close(made.images["swap_without_mask"], eight_bits(swap.naive_ab), atol=1e-6, rtol=0)
    assert ("swap_hard_codes" in made.images) == (variant not in ("hard", "no_codebook"))
    assert all(there.all() for there in made.there.values())


def test_argmax_row_is_what_the_hard_variant_does_with_the_same_weights() -> None:
    soft, hard, some = tiny("ours"), tiny("hard"), batch()
    hard.load_state_dict(soft.state_dict())
    expected = eight_bits(hard.swap(some.source, some.target).image_ab)
    torch.testing.assert_close(pictures(soft, some, {}, 0.5).images["swap_hard_codes"], expected, atol=0.02, rtol=0)


def test_a_swap_that_is_not_finite_is_no_result() -> None:
    model, some = tiny(), batch()
    some.source[1] = torch.nan
    made = pictures(model, some, {}, 0.5)
    assert made.there["swap"].tolist() == [True, False, True]
    assert made.images["swap"].isfinite().all()


def test_exchange_error_sees_a_broken_symmetry() -> None:
    some = batch()
    assert exchange_error(tiny(), some.source, some.target) == pytest.approx(0, abs=1e-5)
    broken = exchange_error(tiny(fusion=FUSION.model_copy(update={"side": "segment"})), some.source, some.target)
    assert broken is not None
    assert broken > 1e-4
    assert exchange_error(tiny("no_symmetry"), some.source, some.target) is None


def test_truth_is_the_source_s_identity_under_the_target_s_attributes() -> None:
    identity, attribute = identities(0, 2, 3), attributes(0, 2, 3)
    facts = [{"synthetic": {"identity": i.tolist(), "attributes": a.tolist()}} for i, a in zip(identity, attribute)]  # noqa: B905
    truth = truth_of(scenes(facts[:1]), scenes(facts[1:]), 32)
    image, labels = render(identity[:1], attribute[1:], 32)
    assert truth is not None
    torch.testing.assert_close(truth.image, to_float(image))
    assert (face_of(labels) <= truth.region).all()
    assert (truth.target_face <= truth.region).all()
    assert truth_of(scenes([{}]), scenes(facts[1:]), 32) is None
    with pytest.raises(ValueError, match="the shards were rendered from"):
        scenes([{"synthetic": {"identity": [0.5], "attributes": [0.5]}}])


def test_face_is_skin_and_features_not_hair_or_ears() -> None:
    labels = torch.tensor([[[0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 17]]], dtype=torch.uint8)
    assert face_of(labels)[0, 0, 0].int().tolist() == [0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 0, 0]


def test_paste_takes_the_source_inside_the_mask_only() -> None:
    some = batch(1)
    pasted = paste(some.source, some.target, some.face)
    assert torch.equal(pasted[:, :, 4:12], some.source[:, :, 4:12])
    assert torch.equal(pasted[:, :, :4], some.target[:, :, :4])


def test_results_of_another_size_are_resized_and_damaged_ones_fail(tmp_path: Path) -> None:
    PILImage.new("RGB", (64, 64), (255, 0, 127)).save(tmp_path / "a_b.png")
    (tmp_path / "c_d.png").write_bytes(b"\x89PNG nothing")
    images, there = read_results(tmp_path, [("a", "b"), ("c", "d"), ("e", "f")], 16)
    assert there.tolist() == [True, False, False]
    assert images.shape == (3, 3, 16, 16)
    torch.testing.assert_close(images[0, :, 8, 8], torch.tensor([1.0, -1.0, 0.0]), atol=0.01, rtol=0)


def test_failures_are_misses_and_otherwise_left_out() -> None:
    table = ScoreTable(gallery_size=9)
    there = torch.tensor([True, True, False, True])
    scores = {name: torch.ones(4) for name in ("id_rank", "id_rank_seen", "id_similarity", "id_similarity_seen")}
    pose = torch.tensor([1.0, 2.0, torch.inf, 3.0])
    scores["id_accepted"] = torch.ones(4)
    table.add("m", scores | {"id_similarity_to_target": torch.zeros(4), "pose_deg": pose}, there)
    found = table.estimates("m", seed=0, resamples=20)
    assert found["id_retrieval"].value == 0.75
    assert found["id_retrieval"].n == 4
    assert (found["pose_deg"].value, found["pose_deg"].n) == (2, 3)
    assert (found["id_closer"].value, found["id_closer"].n) == (1, 3)
    assert found["failures"].value == 1
    assert (found["id_accepted"].value, found["id_accepted"].n) == (0.75, 4)
    assert table.columns("m")["id_rank"].tolist() == [1, 1, 10, 1]


def test_shown_pairs_are_the_best_the_median_and_the_worst() -> None:
    gained = np.array([0.1, 0.9, 0.5, 0.3, 0.7, 0.2])
    zeros = np.zeros(6)
    scores = {"id_similarity": gained, "id_similarity_to_target": zeros, "pose_deg": 1 - gained, "expression_l2": zeros}
    order = ranked_by_success(scores)
    assert order.tolist()[:2] == [1, 4]
    assert shown_pairs(np.arange(20), 6).tolist() == [0, 1, 9, 10, 18, 19]
    assert shown_pairs(np.arange(20), 7).tolist() == [0, 1, 9, 10, 11, 18, 19]
    assert shown_pairs(np.arange(4), 9).tolist() == [0, 1, 2, 3]

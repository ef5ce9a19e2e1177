"""Each metric against hand values and against a library that is used by others (METHOD §J.12)."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from sklearn.metrics import jaccard_score, top_k_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity

from codeswap.evaluate.intervals import bootstrap_means, bootstrap_median
from codeswap.evaluate.metrics import (
    POSE_UNITS,
    FeatureMoments,
    background,
    colour_difference,
    cosine,
    expression_errors,
    frechet_distance,
    kernel_distance,
    mask_iou,
    masked_l1,
    masked_psnr,
    pose_error,
    retrieval_ranks,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moments(rows: torch.Tensor, batch: int = 7) -> FeatureMoments:
    taken = FeatureMoments()
    for part in rows.split(batch):
        taken.add(part)
    return taken


def test_retrieval_is_perfect_when_the_result_is_the_source() -> None:
    faces = noise(50, 16)
    assert retrieval_ranks(faces * 3, faces, torch.arange(50)).eq(1).all()


@pytest.mark.parametrize("k", [1, 5, 20])
def test_retrieval_agrees_with_scikit_learn(k: int) -> None:
    query, gallery, answer = noise(300, 8), noise(40, 8, seed=1), torch.arange(300) % 40
    ranks = retrieval_ranks(query, gallery, answer)
    expected = top_k_accuracy_score(answer, cosine_similarity(query, gallery), k=k, labels=np.arange(40))
    assert (ranks <= k).float().mean().item() == pytest.approx(expected)


def test_retrieval_rank_by_hand() -> None:
    gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    query = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert retrieval_ranks(query, gallery, torch.tensor([0, 1, 2])).tolist() == [1, 2, 3]


def test_a_network_that_sees_all_faces_alike_finds_nobody() -> None:
    same = torch.ones(6, 4)
    assert retrieval_ranks(same, same, torch.arange(6)).tolist() == [6] * 6


def test_a_result_that_is_not_finite_is_a_miss() -> None:
    faces = noise(4, 3)
    broken = faces.clone()
    broken[2, 1] = torch.nan
    assert retrieval_ranks(broken, faces, torch.arange(4)).tolist() == [1, 1, 5, 1]


def test_cosine_agrees_with_scikit_learn() -> None:
    x, y = noise(20, 6), noise(20, 6, seed=1)
    np.testing.assert_allclose(cosine(x, y), cosine_similarity(x, y).diagonal(), atol=1e-6)
    assert cosine(torch.zeros(1, 3), torch.ones(1, 3)).item() == 0


def test_pose_is_the_l2_of_three_angles_in_degrees() -> None:
    error = pose_error(torch.tensor([[3.0, 4.0, 12.0]]), torch.zeros(1, 3))
    assert error.item() == pytest.approx(13)
    assert POSE_UNITS["pose_rad"] * 180 == pytest.approx(math.pi)
    assert POSE_UNITS["pose_180"] * 180 == POSE_UNITS["pose_99"] * 99 == pytest.approx(1)


def test_expression_errors_by_hand() -> None:
    errors = expression_errors(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
    assert errors["expression_l2"].item() == pytest.approx(5)
    assert errors["expression_mse"].item() == pytest.approx(12.5)
    assert errors["expression_l2_unit"].item() == pytest.approx(math.sqrt(2))


def test_masked_l1_and_psnr_look_only_where_they_are_told() -> None:
    x, y = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    x[:, :, 0] = 0.1  # the upper row differs
    where = torch.zeros(2, 1, 4, 4)
    where[0, :, 0] = 1
    assert masked_l1(x, y, where)[0].item() == pytest.approx(0.1)
    assert masked_l1(x, y, 1 - where)[0].item() == 0
    assert masked_psnr(x, y, where)[0].item() == pytest.approx(20, abs=1e-4)
    assert masked_psnr(x, y, 1 - where)[0].item() == pytest.approx(100, abs=1e-4)
    assert masked_l1(x, y, where)[1].isnan()
    assert masked_psnr(x, y, where)[1].isnan()


def test_background_leaves_out_the_face_and_its_edge() -> None:
    face = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    face[..., 3, 3] = True
    assert background(face).sum().item() == 64 - 9
    wide = torch.zeros(1, 1, 256, 256, dtype=torch.bool)
    wide[..., 100, 100] = True
    assert background(wide).sum().item() == 256 * 256 - 9 * 9


def test_mask_iou_agrees_with_scikit_learn() -> None:
    mask, truth = noise(3, 1, 9, 9).sigmoid(), noise(3, 1, 9, 9, seed=1) > 0
    expected = [jaccard_score(t.flatten(), m.flatten() > 0.5) for m, t in zip(mask, truth, strict=True)]
    np.testing.assert_allclose(mask_iou(mask, truth), expected, atol=1e-6)
    assert mask_iou(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.bool)).item() == 1


def test_feature_moments_in_batches_equal_numpy() -> None:
    rows = noise(30, 5) + 40
    mean, covariance = moments(rows).mean_and_covariance()
    np.testing.assert_allclose(mean, rows.double().numpy().mean(axis=0))
    np.testing.assert_allclose(covariance, np.cov(rows.double().numpy(), rowvar=False), atol=1e-10)
    with pytest.raises(ValueError, match="at least two feature vectors, got 1"):
        moments(rows[:1]).mean_and_covariance()


def test_frechet_distance_equals_scipys_matrix_root() -> None:
    x, y = noise(200, 6), noise(150, 6, seed=1) * 1.5 + 0.3
    (mx, cx), (my, cy) = moments(x).mean_and_covariance(), moments(y).mean_and_covariance()
    root = scipy.linalg.sqrtm((cx @ cy).numpy()).real
    expected = float((mx - my).square().sum() + cx.trace() + cy.trace()) - 2 * np.trace(root)
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_equals_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    x, y = noise(60, 4), noise(80, 4, seed=1) + 1
    (mx, cx), (my, cy) = moments(x).mean_and_covariance(), moments(y).mean_and_covariance()
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(float(fid._compute_fid(mx, cx, my, cy)), rel=1e-9)


def test_frechet_distance_of_a_set_to_itself_is_zero_and_of_a_shift_its_square() -> None:
    rows = noise(40, 64)  # fewer rows than twice the width: a singular covariance must not break the root
    assert frechet_distance(moments(rows[:30]), moments(rows[:30])) == pytest.approx(0, abs=1e-5)
    wide = noise(400, 3)
    assert frechet_distance(moments(wide), moments(wide + 2)) == pytest.approx(12, abs=1e-4)


def test_colour_is_that_of_the_mean_where_it_is_told() -> None:
    x, y, where = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2), torch.zeros(2, 1, 2, 2)
    where[0, :, 0] = 1
    x[0, 0, 0], x[0, :, 1] = torch.tensor([0.2, 0.4]), 9.0
    y[0, 1, 0, 0] = 0.6
    found = colour_difference(x, y, where)
    assert found[0].item() == pytest.approx((0.3 + 0.3 + 0) / 3)
    assert found[1].isnan()


def test_groups_are_resampled_whole() -> None:
    values = noise(40, 1).numpy()
    alone, groups = np.repeat(values, 9, axis=0), np.repeat(np.arange(40), 9)
    (once,), (together,) = bootstrap_means(values, seed=1), bootstrap_means(alone, seed=1, groups=groups)
    assert together[:3] == pytest.approx(once[:3], rel=1e-5) and together.n == 360
    (as_if_independent,) = bootstrap_means(alone, seed=1)
    assert as_if_independent.high - as_if_independent.low < 0.5 * (once.high - once.low)
    middle, median = (bootstrap_median(x[:, 0], 1, groups=g) for x, g in ((values, None), (alone, groups)))
    assert median.value == pytest.approx(middle.value) and median.high - median.low == pytest.approx(
        middle.high - middle.low, rel=0.25
    )


def test_bootstrap_means_agree_with_scipy_and_repeat() -> None:
    values = np.random.default_rng(3).exponential(size=(200, 1))
    (found,) = bootstrap_means(values, seed=1)
    theirs = scipy.stats.bootstrap((values[:, 0],), np.mean, method="percentile", rng=5, n_resamples=4000)
    assert found is not None
    assert (found.value, found.n) == (pytest.approx(values.mean()), 200)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.03)
    assert bootstrap_means(values, seed=1) == [found]
    assert bootstrap_means(values, seed=2) != [found]


def test_bootstrap_leaves_out_what_was_not_measured() -> None:
    columns = np.array([[1.0, np.nan, 5.0], [1.0, np.nan, np.nan], [1.0, np.nan, 7.0], [1.0, np.nan, np.nan]])
    constant, nothing, half = bootstrap_means(columns, seed=0)
    assert constant == (1.0, 1.0, 1.0, 4)
    assert nothing is None
    assert half is not None
    assert (half.value, half.n) == (6.0, 2)
    assert 5 <= half.low <= half.high <= 7


def test_bootstrap_is_the_same_in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(50, 2))
    whole = bootstrap_means(values, seed=4)
    monkeypatch.setattr("codeswap.evaluate.intervals._CHUNK", 50 * 33)
    assert np.allclose(bootstrap_means(values, seed=4), whole)


@pytest.mark.parametrize("n", [1, 2, 9, 30])
def test_bootstrap_medians_are_numpys_medians_of_the_resamples(n: int) -> None:
    values = np.random.default_rng(n).integers(1, 40, size=n).astype(float)
    found = bootstrap_median(values, seed=7)
    places = np.random.default_rng(7).integers(n, size=(1000, n))
    low, high = np.quantile(np.median(values[places], axis=1), [0.025, 0.975])
    assert found == pytest.approx((np.median(values), low, high, n))


def test_kernel_distance_equals_torch_fidelity() -> None:
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = noise(120, 8), noise(90, 8, seed=1) * 1.3 + 0.2
    theirs = kid.kid_features_to_metric(
        x, y, kid_subsets=400, kid_subset_size=60, kid_kernel="poly", kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1, rng_seed=0, verbose=False,
    )  # fmt: skip
    mean, deviation = kernel_distance(x, y, seed=0, subsets=400, size=60)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=0.05)
    assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=0.2)


def _mmd(x: torch.Tensor, y: torch.Tensor) -> float:
    """The unbiased estimate, written out pair by pair."""

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a.double() @ b.double()) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kernel_distance_by_hand_and_for_too_few() -> None:
    x, y = noise(12, 3), noise(12, 3, seed=4) + 1
    assert kernel_distance(x, y, seed=0, subsets=1, size=12)[0] == pytest.approx(_mmd(x, y), rel=1e-6)
    with pytest.raises(ValueError, match="at least two feature vectors"):
        kernel_distance(x[:1], y, seed=0)


def test_frechet_distance_equals_torch_fidelity() -> None:
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    x, y = noise(200, 6), noise(150, 6, seed=1) * 1.5 + 0.3
    statistics = [
        {"mu": rows.double().numpy().mean(axis=0), "sigma": np.cov(rows.double().numpy(), rowvar=False)}
        for rows in (x, y)
    ]
    theirs = fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(float(theirs), rel=1e-6)

"""Eq. 9-13 by hand, and what each of them moves."""

import pytest
import torch

from codeswap.losses.detectors import exchange_ratio, is_copy, is_exchange
from codeswap.losses.swap import (
    LEAST_EYES,
    background_loss,
    chroma_loss,
    cycle_loss,
    embedding_loss,
    expression_loss,
    identity_loss,
    landmark_loss,
    perceptual_loss,
    reconstruction_loss,
    tone_loss,
)
from codeswap.train.objective import SwapWeights

EAST, NORTH, WEST = (torch.tensor([x]) for x in ([2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]))


def image(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 2, 2)


def test_objective_has_the_printed_weights():
    terms = [torch.tensor(x) for x in (1.0, 10.0, 1000.0, 100.0, 7.0)]
    names = ("reconstruction", "identity", "perceptual", "expression", "cycle")
    total = SwapWeights().total(dict(zip(names, terms, strict=True)))
    assert total.item() == pytest.approx(1 + 15 + 2 + 50 + 7)


def test_identity_by_hand():
    assert identity_loss(EAST, EAST).item() == pytest.approx(0)
    assert identity_loss(EAST, NORTH).item() == pytest.approx(1)
    assert identity_loss(EAST, EAST, NORTH, EAST).item() == pytest.approx(0.5)
    assert identity_loss(EAST, WEST, NORTH, NORTH).item() == pytest.approx(1)
    assert identity_loss(10 * EAST, EAST).item() == pytest.approx(0)  # length does not matter


def test_identity_beyond_enough_is_asked_for_no_more():
    near = torch.cat([EAST + 0.1 * NORTH, NORTH + 0.1 * EAST]).requires_grad_()  # cosines .989 and .067 to EAST
    loss = identity_loss(near, torch.cat([EAST, EAST]), enough=0.6)
    assert loss.item() == pytest.approx((0 + 0.6 - 0.2 / 9.04**0.5) / 2, rel=1e-5)
    loss.backward()
    assert near.grad[0].abs().max() == 0 and near.grad[1].abs().max() > 0


def test_reconstruction_by_hand():
    same = torch.tensor([True, False])
    ab, b, ba, a = image(0, 0), image(1, 100), image(0, 0), image(3, 100)
    assert reconstruction_loss(ab, b, ba, a, same=same).item() == pytest.approx((1 + 3) / 2 / 2)
    assert reconstruction_loss(ab, b, ba, a, same=same, normalise="same").item() == pytest.approx(2)
    assert reconstruction_loss(ab, b, same=same).item() == pytest.approx(1 / 2)
    for normalise in ("batch", "same"):
        none = torch.tensor([False, False])
        assert reconstruction_loss(ab, b, ba, a, same=none, normalise=normalise).item() == 0


def test_reconstruction_moves_equal_pairs_only():
    ab = image(0, 0).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reconstruction_loss(ab, image(1, 1), same=torch.tensor([True, False])), ab)
    assert gradient[0].any()
    assert not gradient[1].any()


def test_expression_is_a_plain_norm():
    x, y, zero = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2)
    assert expression_loss(zero, x).item() == pytest.approx(5)
    assert expression_loss(zero, x, zero, y).item() == pytest.approx(3)
    same = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(expression_loss(same, x), same)
    assert gradient.isfinite().all()


def test_perceptual_is_the_mean_of_both_sides():
    one, zero = torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    assert perceptual_loss([one], [zero]).item() == pytest.approx(4)
    assert perceptual_loss([one], [zero], [zero], [zero]).item() == pytest.approx(2, abs=1e-4)


def test_cycle_is_a_sum_and_its_targets_do_not_move():
    z_bab, z_b, z_aba, z_a = (torch.full((1, 2, 4), x, requires_grad=True) for x in (1.0, 0.0, 5.0, 2.0))
    loss = cycle_loss(z_bab, z_b, z_aba, z_a)
    assert loss.item() == pytest.approx(1 + 9)
    assert cycle_loss(z_bab, z_b).item() == pytest.approx(1)
    assert cycle_loss(z_bab, z_b, z_aba, z_a, norm="l2norm").item() == pytest.approx(2 + 6)
    gradients = torch.autograd.grad(loss, [z_bab, z_b, z_aba, z_a], allow_unused=True)
    assert [g is not None for g in gradients] == [True, False, True, False]


def test_background_counts_outside_only():
    ab, b, outside = torch.ones(1, 3, 1, 2), torch.zeros(1, 3, 1, 2), torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    assert background_loss(ab, b, outside).item() == 0.5


def test_landmarks_are_measured_in_distances_between_the_eyes():
    wanted = torch.zeros(2, 68, 2)
    wanted[0, 36:42, 0], wanted[0, 42:48, 0] = 0.3, 0.7
    wanted[1, 36:48, 0] = 0.5  # a profile: both eyes in one place
    points = wanted + torch.tensor([0.03, 0.04])
    points.requires_grad_()
    loss = landmark_loss(points, wanted)
    assert loss.item() == pytest.approx((0.05 / 0.4 + 0.05 / LEAST_EYES) / 2, rel=1e-4)
    loss.backward()
    assert points.grad.isfinite().all() and (points.grad.sum(dim=(0, 1)) > 0).all()
    assert landmark_loss(wanted, wanted).item() < 1e-4


def test_chroma_ignores_brightness_and_what_is_smaller_than_a_cell():
    b = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert chroma_loss(b + 0.5, b).item() < 1e-6
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[:, 0, ::2], stripes[:, 0, 1::2] = 0.4, -0.4
    assert chroma_loss(b + stripes, b).item() < 1e-6
    red = (b + torch.tensor([0.3, 0.0, 0.0]).view(1, 3, 1, 1)).requires_grad_()
    loss = chroma_loss(red, b)
    assert loss.item() == pytest.approx((0.2 + 0.1 + 0.1) / 3, rel=1e-4)
    loss.backward()
    assert (red.grad[:, 0] > 0).all() and (red.grad[:, 1:] < 0).all()


def test_tone_ignores_what_is_smaller_than_a_cell_and_punishes_what_is_far_off():
    b = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[:, :, ::2], stripes[:, :, 1::2] = 0.4, -0.4
    assert tone_loss(b + stripes, b).item() < 1e-6
    dark = b.clone()
    dark[..., :4, :8] -= 0.6  # two of 64 cells
    loss = tone_loss(dark.requires_grad_(), b)
    assert loss.item() == pytest.approx(0.36 * 2 / 64, rel=1e-4)
    loss.backward()
    assert (dark.grad[..., :4, :8] < 0).all() and not dark.grad[..., 8:, 8:].any()


def test_embedding_distance_sees_length():
    assert embedding_loss(2 * EAST, EAST).item() == pytest.approx(4 / 2 / 2)


def test_each_loss_moves_its_result():
    for loss in (identity_loss, expression_loss, embedding_loss):
        result = torch.randn(2, 5, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(result, torch.randn(2, 5)), result)
        assert gradient.any()


def test_detectors_know_the_two_trivial_minima():
    ratio = exchange_ratio(torch.tensor([0.0, 0.3, 0.9]), torch.tensor([0.5, 0.3, 0.1]))
    assert ratio.tolist() == pytest.approx([0.0, 0.5, 0.9])
    assert is_exchange(ratio).tolist() == [False, False, True]
    assert is_copy(ratio, torch.tensor([0.1, 0.1, 0.1])).tolist() == [True, False, False]
    assert is_copy(ratio, torch.tensor([0.5, 0.1, 0.1])).tolist() == [False, False, False]
    assert exchange_ratio(torch.zeros(1), torch.zeros(1)).item() == 0.0

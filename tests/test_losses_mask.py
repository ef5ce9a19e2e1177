"""Eq. 15 and the guards against empty and full masks."""

import pytest
import torch

from codeswap.losses.mask import binarisation_loss, coverage_loss, mask_loss, mask_statistics


def mask(*shares: float) -> torch.Tensor:
    return torch.tensor(shares)[:, None, None, None].expand(-1, 1, 2, 2).clone().requires_grad_()


def test_supervised_loss_is_the_mean_per_pixel():
    assert mask_loss(mask(0.25, 0.5), torch.ones(2, 1, 2, 2)).item() == pytest.approx((0.75 + 0.5) / 2)


def test_coverage_is_free_inside_its_band_and_judged_per_image():
    assert coverage_loss(mask(0.3, 0.6)).item() == 0
    # means of .0 and .8 average to an innocent .4: each must pay by itself
    assert coverage_loss(mask(0.0, 0.8)).item() == pytest.approx((0.1 + 0.2) / 2)


def test_coverage_pushes_empty_masks_up_and_full_masks_down():
    values = mask(0.0, 1.0, 0.3)
    (gradient,) = torch.autograd.grad(coverage_loss(values), values)
    assert (gradient[0] < 0).all()
    assert (gradient[1] > 0).all()
    assert not gradient[2].any()


def test_binarisation_by_hand():
    assert binarisation_loss(mask(0.0, 1.0)).item() == 0
    assert binarisation_loss(mask(0.2, 0.7)).item() == pytest.approx(0.25)


def test_statistics_by_hand():
    found = torch.tensor([0.95, 0.6, 0.2, 0.0]).view(1, 1, 2, 2)
    truth = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(1, 1, 2, 2)
    mean, iou, undecided = mask_statistics(found, truth)
    assert mean.item() == pytest.approx(1.75 / 4)
    assert iou.item() == pytest.approx(1 / 3)
    assert undecided.item() == pytest.approx(0.5)
    assert mask_statistics(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).iou.item() == 0

"""Eq. 4: values by hand, and which term carries beta, which only gradients tell."""

import pytest
import torch

from codeswap.losses.codebook import code_loss, codebook_loss, commitment_loss


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    z, z_q = torch.zeros(1, 2, 2, requires_grad=True), torch.tensor([[[3.0, 4.0], [0.0, 0.0]]], requires_grad=True)
    return z, z_q


@pytest.mark.parametrize(("norm", "value"), [("mse", 25 / 4), ("l2norm", 5 / 2)])
def test_values_by_hand(norm, value):
    z, z_q = pair()
    assert commitment_loss(z, z_q, norm).item() == pytest.approx(value, abs=1e-5)
    assert code_loss(z, z_q, norm).item() == pytest.approx(value, abs=1e-5)
    assert codebook_loss(z, z_q, norm=norm).item() == pytest.approx(1.25 * value, abs=1e-5)


def test_each_term_moves_one_side():
    for loss, moves_encoder, moves_codes in ((commitment_loss, True, False), (code_loss, False, True)):
        z, z_q = pair()
        dz, dq = torch.autograd.grad(loss(z, z_q), [z, z_q], allow_unused=True)
        assert (dz is not None, dq is not None) == (moves_encoder, moves_codes)


@pytest.mark.parametrize(("beta_on", "on_encoder", "on_codes"), [("codebook", 1.0, 0.25), ("commitment", 0.25, 1.0)])
def test_beta_weighs_the_term_that_the_paper_prints(beta_on, on_encoder, on_codes):
    z, z_q = pair()
    dz, dq = torch.autograd.grad(codebook_loss(z, z_q, beta=0.25, beta_on=beta_on), [z, z_q])
    direction = 2 * (z_q - z).detach() / z.numel()
    assert torch.allclose(dz, -on_encoder * direction)
    assert torch.allclose(dq, on_codes * direction)


def test_token_weights_have_mean_one():
    z, z_q = pair()
    weights = torch.tensor([[2.0, 6.0]])
    assert commitment_loss(z, z_q, weights=weights).item() == pytest.approx(12.5 * 2 / 8)
    assert commitment_loss(z, z_q, weights=10 * weights).item() == pytest.approx(12.5 * 2 / 8)


def test_unsquared_norm_has_a_finite_gradient_at_equality():
    z = torch.ones(1, 1, 2, requires_grad=True)
    (dz,) = torch.autograd.grad(commitment_loss(z, torch.ones(1, 1, 2), "l2norm"), z)
    assert dz.isfinite().all()

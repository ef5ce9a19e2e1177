"""Pixels, features, the adversarial pair and the adaptive weight."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from codeswap.losses.image import (
    adaptive_weight,
    autoencoder_loss,
    discriminator_loss,
    feature_mse,
    feature_norm,
    generator_loss,
    gradient_loss,
    l1_loss,
    last_layer_gradient_from_image,
    last_layer_gradients,
    lpips_loss,
)
from codeswap.models.quantizer import QuantizerConfig
from codeswap.models.vqgan import VQGAN, VQGANConfig


def test_l1_by_hand():
    image, target = torch.zeros(1, 3, 1, 2), torch.tensor([1.0, 3.0]).expand(1, 3, 1, 2)
    assert l1_loss(image, target).item() == 2.0
    assert l1_loss(image, target, torch.tensor([2.0, 0.0]).view(1, 1, 1, 2)).item() == 1.0


def test_gradient_loss_sees_edges_and_not_levels():
    flat = torch.zeros(1, 3, 2, 2)
    edge = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).expand(1, 3, 2, 2)
    assert gradient_loss(flat + 5, flat).item() == 0.0
    assert gradient_loss(edge, flat).item() == 1.0  # 1 to the right, 0 down
    weights = torch.tensor([[1.0, 3.0], [1.0, 1.0]]).view(1, 1, 2, 2)
    assert gradient_loss(edge, flat, weights).item() == 2.0  # the right pixel of each difference: 3 and 1


def test_lpips_by_hand():
    x = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)  # unit: .6, .8
    y = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1)  # unit: 0, 1
    assert lpips_loss([x], [y]).item() == pytest.approx(0.36 + 0.04)
    assert lpips_loss([x, x], [y, 7 * x], [torch.tensor([1.0, 0.0]), torch.ones(2)]).item() == pytest.approx(0.36)


def test_feature_norm_is_not_divided_by_the_number_of_features():
    x, y = torch.ones(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)
    assert feature_norm([x], [y]).tolist() == pytest.approx([6.0, 6.0])
    assert feature_norm([x, y], [y, y]).tolist() == pytest.approx([3.0, 3.0], abs=1e-5)
    same = y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(feature_norm([same], [y]).sum(), same)
    assert gradient.isfinite().all()


def test_feature_mse_is_relative_to_the_target():
    x, y = torch.full((1, 1, 2, 2), 30.0), torch.full((1, 1, 2, 2), 20.0)
    assert feature_mse([x], [y]).item() == pytest.approx(0.25)
    assert feature_mse([x / 100, y], [y / 100, y]).item() == pytest.approx(0.125, rel=1e-3)


def test_hinge_by_hand():
    real, fake = torch.tensor([0.5, 2.0]), torch.tensor([-3.0, 1.0])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * (0.25 + 1.0))
    assert generator_loss(fake).item() == 1.0


def test_vanilla_is_the_printed_log_form():
    real, fake = torch.tensor([0.3]), torch.tensor([-0.2])
    printed = math.log(torch.sigmoid(real)) + math.log(1 - torch.sigmoid(fake))
    assert discriminator_loss(real, fake, "vanilla").item() == pytest.approx(-printed / 2, abs=1e-6)
    assert generator_loss(fake, "vanilla").item() == pytest.approx(-math.log(torch.sigmoid(fake)), abs=1e-6)


@pytest.mark.parametrize("form", ["hinge", "vanilla"])
def test_generator_and_discriminator_pull_in_opposite_directions(form):
    fake = torch.zeros(1, requires_grad=True)
    (of_generator,) = torch.autograd.grad(generator_loss(fake, form), fake)
    (of_discriminator,) = torch.autograd.grad(discriminator_loss(torch.zeros(1), fake, form), fake)
    assert of_generator.item() < 0 < of_discriminator.item()


def test_adaptive_weight_of_a_two_layer_net_by_hand():
    last = nn.Linear(1, 1, bias=False)
    h = torch.tensor([[2.0]])
    reconstruction, adversarial = (3 * last(h)).sum(), (0.5 * last(h)).sum()  # gradients 6 and 1
    gradients = last_layer_gradients(reconstruction, adversarial, last.weight)
    assert [g.item() for g in gradients] == [6.0, 1.0]
    weight = adaptive_weight(*gradients)
    assert weight.item() == pytest.approx(6 / (1 + 1e-4))
    assert not weight.requires_grad
    reconstruction.backward()  # the graph is still there


def test_adaptive_weight_is_clamped_when_the_discriminator_is_flat():
    flat = torch.zeros(3)
    assert adaptive_weight(torch.full((3,), 1e9), flat).item() == 1e4
    assert adaptive_weight(torch.full((3,), 1e9), flat, maximum=1.0).item() == 1.0
    assert adaptive_weight(flat, flat).item() == 0.0


@pytest.mark.parametrize("knobs", [{}, {"patch": 2, "linear_shortcut": True, "norm": "none"}])
def test_the_weight_needs_no_graph_through_the_decoder(knobs):
    config = VQGANConfig(image_size=16, ch=8, ch_mult=(1, 2), attn_res=(), z_ch=8, embed_dim=8, **knobs)
    torch.manual_seed(0)
    vqgan, x = VQGAN(config, QuantizerConfig(n_codes=8)), torch.randn(2, 3, 16, 16)
    critic = nn.Conv2d(3, 1, 3)
    out = vqgan(x)

    first, second = (out.image - x).abs().mean(), -critic(out.image).square().mean()
    through_graph = last_layer_gradients(first, second, vqgan.last_layer.weight)

    image = out.image.detach().requires_grad_()
    losses = (image - x).abs().mean(), -critic(image).square().mean()
    at_image = [torch.autograd.grad(loss, image)[0] for loss in losses]
    folded = [last_layer_gradient_from_image(g, out.head, vqgan.last_layer) for g in at_image]
    for direct, indirect in zip(through_graph, folded, strict=True):
        assert torch.allclose(direct, indirect, atol=1e-6)

    weight = adaptive_weight(*folded)
    assert weight.item() == pytest.approx(adaptive_weight(*through_graph).item(), rel=1e-4)
    expected = torch.autograd.grad(first + weight * second, vqgan.encoder.conv_in.weight, retain_graph=True)[0]
    once = torch.autograd.grad((out.image * (at_image[0] + weight * at_image[1])).sum(), vqgan.encoder.conv_in.weight)[
        0
    ]
    assert torch.allclose(once, expected, atol=1e-6)


def test_objective_of_stage_1_and_its_start_without_a_discriminator():
    terms = [torch.tensor(x) for x in (1.0, 2.0, 3.0, 4.0)]
    assert autoencoder_loss(*terms, adaptive=0.5).item() == 8.5
    assert autoencoder_loss(*terms, adaptive=0.0).item() == 7.0  # before the discriminator starts


def test_only_the_intended_side_gets_gradients():
    image, target = torch.randn(1, 3, 4, 4, requires_grad=True), torch.randn(1, 3, 4, 4, requires_grad=True)
    (of_target,) = torch.autograd.grad(feature_mse([image], [target.detach()]), [target], allow_unused=True)
    assert of_target is None
    for loss in (l1_loss(image, target), gradient_loss(image, target), lpips_loss([image], [target])):
        (of_image,) = torch.autograd.grad(loss, image, retain_graph=True)
        assert of_image.any()
    assert F.l1_loss(image, target).item() == pytest.approx(l1_loss(image, target).item())

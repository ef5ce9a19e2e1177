"""PatchGAN: published sizes and receptive field, normalisations."""

import pytest
import torch

from codeswap.models.discriminator import DiscriminatorConfig, FeatureDiscriminator, PatchGAN, new_discriminator


@pytest.mark.parametrize(("n_layers", "count"), [(3, 2_765_633), (4, 6_960_961), (5, 11_156_289)])
def test_parameter_counts(n_layers, count):
    with torch.device("meta"):
        built = PatchGAN(DiscriminatorConfig(n_layers=n_layers))
    assert sum(p.numel() for p in built.parameters()) == count


@pytest.mark.parametrize(("n_layers", "field"), [(2, 34), (3, 70)])
def test_receptive_field(n_layers, field):
    patch_gan = PatchGAN(DiscriminatorConfig(n_layers=n_layers, ch=4, norm="none"))
    image = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = patch_gan(image)
    middle = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], image)
    assert gradient[0].abs().sum(0).any(0).sum() == field


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("spectral", [False, True])
def test_every_kind_gives_finite_gradients_to_the_image(norm, spectral):
    patch_gan = PatchGAN(DiscriminatorConfig(n_layers=2, ch=8, norm=norm, spectral=spectral))
    image = torch.randn(2, 3, 32, 32, requires_grad=True)
    logits = patch_gan(image)
    assert logits.shape == (2, 1, 6, 6)
    (gradient,) = torch.autograd.grad(logits.sum(), image)
    assert gradient.isfinite().all()
    assert gradient.any()


def test_samples_are_independent_only_without_batch_norm():
    x, y = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    y[0] = x[0]
    for norm, independent in (("group", True), ("batch", False)):
        patch_gan = PatchGAN(DiscriminatorConfig(n_layers=2, ch=8, norm=norm))
        assert torch.allclose(patch_gan(x)[0], patch_gan(y)[0], atol=1e-6) == independent


def test_spectral_norm_bounds_every_convolution():
    torch.manual_seed(0)
    patch_gan = PatchGAN(DiscriminatorConfig(n_layers=2, ch=8, norm="none", spectral=True))
    for _ in range(30):
        patch_gan(torch.randn(1, 3, 32, 32))
    for layer in patch_gan.layers:
        if isinstance(layer, torch.nn.Conv2d):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1.0, abs=0.05)


class _Maps(torch.nn.Module):
    """A picture's halves and quarters, as a network's feature maps."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, image):
        return [torch.nn.functional.avg_pool2d(image, size) * self.scale for size in (2, 4)]


def test_a_discriminator_of_frozen_features_sees_all_maps_and_passes_gradients_to_the_picture():
    network = _Maps()
    built, look = new_discriminator(DiscriminatorConfig(frozen_features=True, ch=8), network, 16)
    assert isinstance(built, FeatureDiscriminator)
    assert not {id(p) for p in network.parameters()} & {id(p) for p in built.parameters()}
    image = torch.randn(2, 3, 16, 16, requires_grad=True)
    logits = built(look(image))
    assert logits.shape == (2, 8 * 8 + 4 * 4)
    for part in logits.split([64, 16], dim=1):
        (gradient,) = torch.autograd.grad(part.sum(), image, retain_graph=True)
        assert gradient.isfinite().all() and gradient.any()


def test_what_a_discriminator_is_shown_is_the_picture_unless_features_are_asked_for():
    built, look = new_discriminator(DiscriminatorConfig(ch=4), _Maps(), 16)
    image = torch.randn(1, 3, 16, 16)
    assert isinstance(built, PatchGAN) and look(image) is image
    with pytest.raises(ValueError, match="needs the role `perceptual`"):
        new_discriminator(DiscriminatorConfig(frozen_features=True), None, 16)

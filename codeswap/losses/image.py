"""What makes a picture good: pixels, features, and the adversarial game of Stage 1 (Eq. 2 and 3, METHOD §A.4, §B.4)."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from codeswap.types import Image, Scalar

Features = Sequence[Float[Tensor, "b c _h _w"]]
PixelWeights = Float[Tensor, "b 1 h w"]


def l1_loss(image: Image, target: Image, weights: PixelWeights | None = None) -> Scalar:
    """Eq. (3), L_1: mean |I - I^|; `weights` per pixel are used as they are (give them mean 1)."""
    difference = (image - target).abs()
    return difference.mean() if weights is None else (difference * weights).mean()


def gradient_loss(image: Image, target: Image, weights: PixelWeights | None = None) -> Scalar:
    """Off-paper: L1 between the pixel differences to the right and to the lower neighbour; keeps edges sharp."""
    error = image - target
    right, down = (error[..., 1:] - error[..., :-1]).abs(), (error[..., 1:, :] - error[..., :-1, :]).abs()
    if weights is not None:
        right, down = right * weights[..., 1:], down * weights[..., 1:, :]
    return right.mean() + down.mean()


def lpips_loss(features: Features, target: Features, heads: Sequence[Float[Tensor, " _c"]] | None = None) -> Scalar:
    """Eq. (3), L_per as the cited code computes it: LPIPS.

    Channel-unit-normalised features, squared differences, weighted per channel by the learnt `heads` (all 1 without),
    mean over positions, sum over taps.
    """
    return lpips_distance(features, target, heads).mean()


def lpips_distance(
    features: Features, target: Features, heads: Sequence[Float[Tensor, " _c"]] | None = None
) -> Float[Tensor, " b"]:
    """`lpips_loss` of each image by itself."""
    total = features[0].new_zeros(len(features[0]))
    for tap, (x, y) in enumerate(zip(features, target, strict=True)):
        square = (_unit(x) - _unit(y)).square()
        weighted = square if heads is None else square * heads[tap][:, None, None]
        total = total + weighted.sum(dim=1).mean(dim=(1, 2))
    return total


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()


def feature_mse(features: Features, target: Features) -> Scalar:
    """Off-paper: mean squared difference per tap in units of the target's own mean square, averaged over taps."""
    taps = [
        (x - y).square().mean() / (y.detach().square().mean() + 1e-6) for x, y in zip(features, target, strict=True)
    ]
    return torch.stack(taps).mean()


def feature_norm(features: Features, target: Features) -> Float[Tensor, " b"]:
    """Eq. (3), L_per as printed: ||VGG(I) - VGG(I^)||_2 per image, not divided by the number of features.

    Mean over taps. Its size, hundreds on VGG16, is what lets Eq. 9's 2e-3 oppose a plain exchange (METHOD §B.4).
    """
    taps = [((x - y).flatten(1).square().sum(dim=1) + 1e-12).sqrt() for x, y in zip(features, target, strict=True)]
    return torch.stack(taps).mean(dim=0)


def generator_loss(fake: Tensor, form: Literal["hinge", "vanilla"] = "hinge") -> Scalar:
    """Eq. (3), L_adv, the generator's side: -mean D(I^), or the non-saturating -log D(I^) (`vanilla`)."""
    return -fake.mean() if form == "hinge" else F.softplus(-fake).mean()


def discriminator_loss(real: Tensor, fake: Tensor, form: Literal["hinge", "vanilla"] = "hinge") -> Scalar:
    """Eq. (3), L_adv, the discriminator's side, as a loss: hinge as in the cited code, or the printed logs (`vanilla`).

    Vanilla: -(log D(I) + log(1 - D(I^))) / 2 with D the sigmoid of the logits. Give detached fakes.
    """
    if form == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, maximum: float = 1e4, delta: float = 1e-4) -> Scalar:
    """Eq. (2), lambda: ||d(L_1 + L_per)/dw|| / (||dL_adv/dw|| + delta), clamped to [0, maximum], detached.

    The arguments are the two gradients at w, the decoder's last weight (`last_layer_gradients` or
    `last_layer_gradient_from_image`). The loop multiplies by its own weight and by 0 before the discriminator starts.
    """
    ratio = reconstruction.float().norm() / (adversarial.float().norm() + delta)
    return ratio.clamp(0.0, maximum).detach()


def last_layer_gradients(reconstruction: Scalar, adversarial: Scalar, last_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of both losses at the last layer's weight through the graph, which stays usable. Plain or DDP only."""
    (first,) = torch.autograd.grad(reconstruction, last_weight, retain_graph=True)
    (second,) = torch.autograd.grad(adversarial, last_weight, retain_graph=True)
    return first, second


def last_layer_gradient_from_image(image_gradient: Image, head: Tensor, last_layer: nn.Conv2d) -> Tensor:
    """The same gradient from the one at the image, without the graph (works where parameters are sharded, ZeRO 2-3).

    `head` is the last convolution's input (`Reconstruction.head`). A decoder that ends in depth-to-space has its
    gradient folded back first. Usage: take dL/dimage of each loss at a detached copy of the image, weigh them, and
    back-propagate once through `(image * (g_rec + lambda * g_adv)).sum()`.
    """
    patch = image_gradient.shape[-1] // head.shape[-1]
    gradient = F.pixel_unshuffle(image_gradient, patch)
    return torch.nn.grad.conv2d_weight(
        head.to(gradient.dtype),
        last_layer.weight.shape,
        gradient,
        stride=last_layer.stride,
        padding=last_layer.padding,
    )


def autoencoder_loss(l_1: Scalar, l_per: Scalar, l_adv: Scalar, l_code: Scalar, adaptive: Scalar | float) -> Scalar:
    """Eq. (2): L = L_1 + L_per + lambda L_adv + L_code."""
    return l_1 + l_per + adaptive * l_adv + l_code

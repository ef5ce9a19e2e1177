"""Stage 2, off-paper: rendered faces have true swaps, so a swap can be told what it should have been.

Photographs have none: there the triplets (train/triplets.py) make answers, and the source's face may be dressed as the
target's (data/dressed.py). What the true swap may say is a choice to be named beside every number: a recipe with it is
told more than Eq. 9 tells.
"""

from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor, nn
from torch.nn import functional as F

from codeswap.data.dressed import dressed
from codeswap.data.faces import to_float
from codeswap.losses.image import gradient_loss, l1_loss, lpips_loss
from codeswap.models.vqgan import VQGAN, tokens
from codeswap.train.feeds import PairBatch, pixel_weights
from codeswap.train.objective import Pictures
from codeswap.types import Config


class TruthConfig(Config):
    """What the distance to the true swap weighs in the loss; without this group it is not known at all."""

    # what stands for the true swap: that of rendered faces, or the source's face carried into the target's picture
    of: Literal["rendered", "dressed"] = "rendered"
    image: NonNegativeFloat = 4.0  # L1, weighted by region
    gradient: NonNegativeFloat = 0.5  # of `image`, on differences of neighbouring pixels
    latent: NonNegativeFloat = 1.0  # mean squared difference of codes and latent, in units of the latent's variance
    perceptual: NonNegativeFloat = 0.0  # LPIPS by the role `perceptual`: where pixels only blur, features ask for edges
    skin_weight: NonNegativeFloat = 2.0
    feature_weight: NonNegativeFloat = 2.0

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of `truth_terms`."""
        total = self.image * terms["truth"] + self.latent * terms["truth_latent"]
        return total + self.perceptual * terms["truth_perceptual"] if self.perceptual else total


@torch.no_grad()
def dress(pairs: PairBatch) -> PairBatch:
    """The pairs with dressed faces for true swaps, both ways; the parts of a face are where the target's are."""
    (a, labels_a), (b, labels_b) = (pairs.image_a, pairs.parsing_a), (pairs.image_b, pairs.parsing_b)
    sources, targets = to_float(torch.cat([a, b])), to_float(torch.cat([b, a]))
    own, other = torch.cat([labels_a, labels_b]), torch.cat([labels_b, labels_a])
    pictures = ((dressed(sources, own, targets, other) + 1) * 127.5).round().byte()
    true_ab, true_ba = pictures.chunk(2)
    return pairs._replace(true_ab=true_ab, true_ba=true_ba, true_parsing_ab=labels_b, true_parsing_ba=labels_a)


def truth_terms(
    config: TruthConfig,
    vqgan: VQGAN,
    pairs: PairBatch,
    swapped: Pictures,
    codes: Pictures,
    perceptual: nn.Module | None = None,
    maps: list[Tensor] | None = None,
) -> dict[str, Tensor]:
    """Distance of both directions' pictures (`swapped`) and codes to the true swaps and to their latents.

    `perceptual`: the network whose maps `config.perceptual` compares; `maps`: its maps of `swapped`, if they are there.
    """
    true = Pictures(pairs.true_ab, None if swapped.ba is None else pairs.true_ba)
    parsing = Pictures(pairs.true_parsing_ab, None if swapped.ba is None else pairs.true_parsing_ba)
    answer, seen = to_float(true.stacked), swapped.stacked
    weights = pixel_weights(parsing.stacked, config.skin_weight, config.feature_weight)
    image = l1_loss(seen, answer, weights)
    if config.gradient:
        image = image + config.gradient * gradient_loss(seen, answer, weights)
    with torch.no_grad():
        z = tokens(vqgan.encode(answer)).float()
    terms = {"truth": image, "truth_latent": F.mse_loss(codes.stacked.float(), z) / z.var()}
    if config.perceptual:
        with torch.no_grad():
            wanted = perceptual(answer)
        maps = perceptual(seen) if maps is None else maps
        terms["truth_perceptual"] = lpips_loss(maps, wanted, getattr(perceptual, "heads", None))
    return terms

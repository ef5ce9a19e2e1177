"""Stage 2, off-paper: swaps whose answer is known (triplets of source, pseudo-target and answer).

The source is another picture of b's person, the pseudo-target is b with its identity spoilt, and the answer is b: a
swapper that takes identity from the source and everything else from the target must return the real picture. The idea
of pseudo-targets is that of DreamID's triplet ID groups (arXiv 2504.14509); here they are made from the model's own
swaps and from spoilt pictures while training.
"""

from typing import Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from codeswap.data.faces import to_float
from codeswap.data.geometry import with_geometry_of
from codeswap.data.spoil import Spoiling, another_look, in_surroundings_of, mean_colour, spoil
from codeswap.losses.image import gradient_loss, l1_loss
from codeswap.losses.swap import embedding_loss
from codeswap.train.engine import Engine
from codeswap.train.feeds import PairBatch, face_mask, part_masks, pixel_weights
from codeswap.types import Config, Embedding, Image, Latent


class TripletConfig(Config):
    """Which part of the batch becomes triplets, and what they weigh in the loss."""

    share: float = Field(0.0, ge=0, le=1)  # of the pairs; 0 is the paper's objective
    own_swaps: float = Field(0.5, ge=0, le=1)  # share of the pseudo-targets made from I_ab instead of b
    # what a person with one picture has for a sibling: their picture mirrored, bent and lit anew; or that, and
    # before it moved towards the pose and expression of the pair's other face (data/geometry.py)
    alone: Literal["skip", "another_look", "another_geometry"] = "skip"
    # share of those sources that are given the hair and background of the pair's other face: the target's are wanted
    surroundings: float = Field(0.0, ge=0, le=1)
    bend: float = Field(1.0, ge=0, le=1)  # of the pseudo-target's change of shape
    image: NonNegativeFloat = 4.0  # L1, weighted by region
    gradient: NonNegativeFloat = 0.5  # of `image`, on differences of neighbouring pixels
    latent: NonNegativeFloat = 1.0  # mean squared difference of codes and latent, in units of the latent's variance
    embedding: NonNegativeFloat = 0.0  # raw identity embeddings of the swap and of the answer
    skin_weight: NonNegativeFloat = 2.0
    feature_weight: NonNegativeFloat = 2.0


class Triplets(NamedTuple):
    """Sources, pseudo-targets, answers (images in [-1, 1]), the answers' pixel weights, and which rows count (n).

    `identity` is the embedding of each answer.
    """

    source: Image
    target: Image
    answer: Image
    weights: Tensor
    valid: Tensor
    identity: Embedding


@torch.no_grad()
def make_triplets(engine: Engine, config: TripletConfig, pairs: PairBatch, swaps: Image, step: int) -> Triplets:
    """Of the first pairs, those with a `sibling_b` slot. `swaps` are I_ab of the batch; their gradient is not used."""
    n = len(pairs.sibling_b)
    answer, swaps = to_float(pairs.image_b[:n]), swaps[:n].detach().clamp(-1, 1)
    generator = engine.generator(step, "triplets")
    whole = n * engine.world
    how = Spoiling(*(engine.rows(drawn) for drawn in Spoiling.draw(whole, generator)))
    own = engine.rows(torch.rand(whole, generator=generator) < config.own_swaps)[:, None, None, None]
    tone = mean_colour(to_float(pairs.image_a[:n]), face_mask(pairs.parsing_a[:n]))
    parsing = pairs.parsing_b[:n]
    seen = torch.where(own, swaps, answer)
    target = spoil(seen, face_mask(parsing), part_masks(parsing), tone, how, config.bend)
    weights = pixel_weights(parsing, config.skin_weight, config.feature_weight)
    source, valid = to_float(pairs.sibling_b), pairs.has_sibling_b
    if config.alone != "skip":
        how = Spoiling(*(engine.rows(drawn) for drawn in Spoiling.draw(whole, generator)))
        look = source
        if config.surroundings:
            elsewhere = engine.rows(torch.rand(whole, generator=generator) < config.surroundings)
            pasted = in_surroundings_of(source, face_mask(parsing), to_float(pairs.image_a[:n]))
            look = torch.where(elsewhere[:, None, None, None], pasted, source)
        if config.alone == "another_geometry":
            share = engine.rows(torch.rand(whole, generator=generator))
            look = with_geometry_of(look, parsing, pairs.parsing_a[:n], share)
        source = torch.where(valid[:, None, None, None] > 0, source, another_look(look, how))
        valid = torch.ones_like(valid)
    return Triplets(source, target, answer, weights, valid, pairs.identity_b[:n])


def triplet_terms(
    config: TripletConfig, triplets: Triplets, picture: Image, codes: Latent, z: Latent, identity: nn.Module
) -> dict[str, Tensor]:
    """Distance of the swap (`picture`, its `codes`) to the answer and its latent `z`; rows without sibling count 0."""
    weights = triplets.weights * triplets.valid[:, None, None, None]
    image = l1_loss(picture, triplets.answer, weights)
    if config.gradient:
        image = image + config.gradient * gradient_loss(picture, triplets.answer, weights)
    error = (codes.float() - z.float()).square().mean(dim=(1, 2)) * triplets.valid
    terms = {"triplet": image, "triplet_latent": error.mean() / z.float().var()}
    if config.embedding:
        known = triplets.valid[:, None]
        terms["triplet_embedding"] = embedding_loss(identity(picture).float() * known, triplets.identity * known)
    return terms


def triplet_loss(config: TripletConfig, terms: dict[str, Tensor]) -> Tensor:
    """The weighted sum of `triplet_terms`."""
    loss = config.image * terms["triplet"] + config.latent * terms["triplet_latent"]
    return loss + config.embedding * terms["triplet_embedding"] if config.embedding else loss

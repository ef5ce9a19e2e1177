"""Eq. 9's terms on pictures, which Stage 2 and the second half of Stage 3 share, and the scales they need."""

from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from codeswap.data.faces import to_float
from codeswap.losses.image import feature_mse, feature_norm
from codeswap.losses.swap import (
    background_loss,
    chroma_loss,
    embedding_loss,
    expression_loss,
    identity_loss,
    landmark_loss,
    perceptual_loss,
    reconstruction_loss,
    tone_loss,
)
from codeswap.perception.landmark_parsing import LandmarkParsing
from codeswap.perception.roles import load
from codeswap.train.engine import Engine
from codeswap.train.feeds import PairBatch, face_mask
from codeswap.types import Config, Image

CALIBRATED = (1.0, 6.0)  # METHOD §B.4: where the two opponents of a plain exchange must lie together


class SwapWeights(Config):
    """Eq. 9 with the printed weights; the terms below are off-paper and off."""

    reconstruction: NonNegativeFloat = 1.0
    identity: NonNegativeFloat = 1.5
    perceptual: NonNegativeFloat = 2e-3
    expression: NonNegativeFloat = 0.5
    cycle: NonNegativeFloat = 1.0
    pose: NonNegativeFloat = 0.0  # mean squared difference of (yaw, pitch, roll) in units of 45 degrees
    background: NonNegativeFloat = 0.0  # L1 outside the face
    landmarks: NonNegativeFloat = 0.0  # distance of 68 landmarks to the target's, in distances between its eyes
    colour: NonNegativeFloat = 0.0  # chroma in 16ths of the picture to the target's
    tone: NonNegativeFloat = 0.0  # squared difference of colour in 8ths of the picture to the target's
    features: NonNegativeFloat = 0.0  # relative mean squared difference of perceptual features
    embedding: NonNegativeFloat = 0.0  # raw identity embeddings
    # what identity and embedding compare with: the picture, as Eq. 10, or the mean of its person's pictures
    identity_of: Literal["picture", "person"] = "picture"
    identity_enough: float = Field(1.0, gt=0, le=1)  # cosine beyond which identity is asked for no more

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Eq. (9): the weighted sum of those of `terms` that have a weight here, and what was added to them."""
        return torch.stack([getattr(self, name) * term for name, term in terms.items()]).sum()


class Judges(NamedTuple):
    """Frozen networks of the objective; None where no term asks for one."""

    identity: nn.Module
    expression: nn.Module
    perceptual: nn.Module | None
    pose: nn.Module | None
    parsing: nn.Module | None = None


def load_judges(engine: Engine, perception: Path, weights: SwapWeights, *, perceptual: bool = False) -> Judges:
    """The networks that `weights` needs (and `perceptual`, where another asks for it), on the device.

    Raises ValueError for a role that is not filled, or whose network does not tell what a term asks for.
    """
    parsing = engine.frozen(load(perception, "parsing")) if weights.landmarks else None
    if parsing is not None and not isinstance(parsing, LandmarkParsing):
        raise ValueError(
            f"weights.landmarks needs landmarks, and the parsing network {parsing.name} gives none: fill the role with "
            "architecture landmark_parsing, or set the weight to 0"
        )
    return Judges(
        engine.frozen(load(perception, "identity_train")),
        engine.frozen(load(perception, "expression_train")),
        engine.frozen(load(perception, "perceptual")) if perceptual or weights.perceptual or weights.features else None,
        engine.frozen(load(perception, "pose")) if weights.pose else None,
        parsing,
    )


def by_role(judges: Judges) -> dict[str, nn.Module | None]:
    """The networks by their role, for others who look with them."""
    roles = {"identity": "identity_train", "expression": "expression_train"}
    return {roles.get(name, name): network for name, network in judges._asdict().items()}


class Pictures(NamedTuple):
    """Both directions of a batch of swaps (float, [-1, 1]); `ba` is None in the one-sided variant."""

    ab: Image
    ba: Image | None

    @property
    def stacked(self) -> Image:
        """ab and ba along the batch, for networks that see them all at once."""
        return self.ab if self.ba is None else torch.cat([self.ab, self.ba])

    def pair(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """A network's answer to `stacked`, as (ab, ba)."""
        return (rows, None) if self.ba is None else tuple(rows.chunk(2))


def picture_terms(
    judges: Judges,
    weights: SwapWeights,
    pairs: PairBatch,
    swapped: Pictures,
    maps: list[Tensor] | None = None,
    glances: Image | None = None,
) -> dict[str, Tensor]:
    """The terms of Eq. (9) but the cycle, unweighted, of naive (Stage 2) or blended (Stage 3) pictures.

    Embeddings of the input faces come from the annotations. Only terms whose weight is above 0 are computed.
    `maps`: the perceptual network's of `swapped`, where another term has asked for them too. `glances`: what the
    identity network is shown instead of `swapped` (train/diversity.py).
    """
    seen = swapped.stacked
    wanted = Pictures(to_float(pairs.image_b), None if swapped.ba is None else to_float(pairs.image_a))
    terms = {}
    if weights.reconstruction:
        terms["reconstruction"] = reconstruction_loss(
            swapped.ab, wanted.ab, swapped.ba, wanted.ba, same=pairs.same.to(seen.device)
        )
    if weights.identity or weights.embedding:
        e_ab, e_ba = swapped.pair(judges.identity(seen if glances is None else glances).float())
        if weights.identity:
            terms["identity"] = identity_loss(
                e_ab, pairs.wanted_a, e_ba, pairs.wanted_b, enough=weights.identity_enough
            )
        if weights.embedding:
            terms["embedding"] = embedding_loss(e_ab, pairs.wanted_a)
            if e_ba is not None:
                terms["embedding"] = (terms["embedding"] + embedding_loss(e_ba, pairs.wanted_b)) / 2
    if weights.expression:
        x_ab, x_ba = swapped.pair(judges.expression(seen).float())
        terms["expression"] = expression_loss(x_ab, pairs.expression_b, x_ba, pairs.expression_a)
    if weights.pose:
        target = pairs.pose_b if swapped.ba is None else torch.cat([pairs.pose_b, pairs.pose_a])
        terms["pose"] = F.mse_loss(judges.pose(seen).float() / 45, target / 45)
    if weights.landmarks:
        find = judges.parsing.landmarks
        with torch.no_grad():
            points = find(wanted.stacked).float()
        terms["landmarks"] = landmark_loss(find(seen).float(), points)
    if weights.colour:
        terms["colour"] = chroma_loss(seen, wanted.stacked)
    if weights.tone:
        terms["tone"] = tone_loss(seen, wanted.stacked)
    if weights.background:
        parsing = pairs.parsing_b if swapped.ba is None else torch.cat([pairs.parsing_b, pairs.parsing_a])
        terms["background"] = background_loss(seen, wanted.stacked, 1 - face_mask(parsing))
    if weights.perceptual or weights.features:
        with torch.no_grad():
            reference = judges.perceptual(wanted.stacked)
        features = judges.perceptual(seen) if maps is None else maps
        if weights.perceptual:
            (f_ab, f_ba), (f_b, f_a) = _halves(features, swapped), _halves(reference, swapped)
            terms["perceptual"] = perceptual_loss(f_ab, f_b, f_ba, f_a)
        if weights.features:
            terms["features"] = feature_mse(features, reference)
    return terms


def _halves(features: list[Tensor], swapped: Pictures) -> tuple[list[Tensor], list[Tensor] | None]:
    if swapped.ba is None:
        return features, None
    first, second = zip(*(feature.float().chunk(2) for feature in features), strict=True)
    return list(first), list(second)


class Calibration(NamedTuple):
    """Weighted size of what opposes a plain exchange, between random different faces (METHOD §B.4)."""

    perceptual: float
    expression: float

    @property
    def fits(self) -> bool:
        return CALIBRATED[0] <= self.perceptual + self.expression <= CALIBRATED[1]


@torch.no_grad()
def calibrate(engine: Engine, judges: Judges, weights: SwapWeights, pairs: PairBatch) -> Calibration:
    """lambda_per V(I_a, I_b) + 0.5 ||X(I_a) - X(I_b)|| over `pairs`, printed with advice when outside [1, 6].

    The printed weights only make sense with features of a certain size: change the taps or the form of the networks'
    outputs then, not the weights.
    """
    different = ~pairs.same
    x_a, x_b = pairs.expression_a[different], pairs.expression_b[different]
    expression = weights.expression * (x_a - x_b).norm(dim=1).mean().item()
    perceptual = 0.0
    if weights.perceptual:
        values = [
            feature_norm(*(judges.perceptual(to_float(engine.to_device(image))) for image in both))
            for both in zip(pairs.image_a[different].split(32), pairs.image_b[different].split(32), strict=True)
        ]
        perceptual = weights.perceptual * torch.cat(values).mean().item()
    found = Calibration(perceptual, expression)
    if engine.main:
        text = f"calibration: perceptual {perceptual:.3f} + expression {expression:.3f} oppose a plain exchange"
        advice = "" if found.fits else "; Eq. 9 alone needs {:g}..{:g}: watch val/exchanged".format(*CALIBRATED)
        print(text + advice, flush=True)
    return found

"""Axis letters, tensor aliases and the base of every configuration group.

Axis letters used in annotations and as lower-case suffixes of local names:
b batch, h/w pixels, y/x rows and columns of a latent or feature map, n code positions (tokens) of one face,
d code width, k codes of the codebook, e width of an embedding, c channels. Images are RGB float in [-1, 1] unless a
docstring says otherwise.
"""

from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor

Image = Float[Tensor, "b 3 h w"]
Mask = Float[Tensor, "b 1 h w"]
FeatureMap = Float[Tensor, "b d y x"]
Latent = Float[Tensor, "b n d"]
Logits = Float[Tensor, "b n k"]
Codes = Int[Tensor, "b n"]
Codebook = Float[Tensor, "k d"]
Embedding = Float[Tensor, "b e"]
Flags = Bool[Tensor, " b"]
Scalar = Float[Tensor, ""]

VARIANTS = ("ours", "no_codebook", "no_symmetry", "hard", "gumbel")


def variant_of(name: str) -> tuple[str, int]:
    """`hard-2` -> ("hard", 2): a variant of Table 3 and which repetition of its training, 0 without a number.

    Repetitions differ by their seeds. Raises ValueError for another name.
    """
    variant, sign, number = name.partition("-")
    if variant not in VARIANTS or (sign and not (number.isdigit() and int(number) > 0)):
        raise ValueError(
            f"variant {name!r}: expected one of {', '.join(VARIANTS)}, and -1, -2 ... for repetitions with other seeds"
        )
    return variant, int(number or 0)


# Label ids of the 19-class face parsing used by the whole field (METHOD §D.5); every parsing network is mapped to it.
FACE_CLASSES = (1, 2, 3, 4, 5, 10, 11, 12, 13)
FEATURE_CLASSES = (2, 3, 4, 5, 10, 11, 12, 13)
PARSING_LABELS = {
    0: "background", 1: "skin", 2: "left brow", 3: "right brow", 4: "left eye", 5: "right eye", 6: "glasses",
    7: "left ear", 8: "right ear", 9: "earring", 10: "nose", 11: "inner mouth", 12: "upper lip", 13: "lower lip",
    14: "neck", 15: "necklace", 16: "cloth", 17: "hair", 18: "hat",
}  # fmt: skip
REGIONS = {"brows": (2, 3), "eyes": (4, 5), "nose": (10,), "mouth": (11, 12, 13), "skin": (1,)}  # of Fig. 8


class Config(BaseModel):
    """A group of parameters: immutable, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    machine: ClassVar[frozenset[str]] = frozenset()  # fields that say how something is computed, not what


class Detection(NamedTuple):
    """One face found in a picture; coordinates are source pixels, 0 = centre of the first pixel.

    `box` (4,) left, top, right, bottom; `score` 0..1; `points` (5, 2): the eye on the picture's left, the eye on its
    right, the nose, and the mouth's corners left, right.
    """

    box: np.ndarray
    score: float
    points: np.ndarray

    @property
    def side(self) -> float:
        """The shorter side of the box, in pixels."""
        return float(min(self.box[2] - self.box[0], self.box[3] - self.box[1]))


class Reconstruction(NamedTuple):
    """What Stage 1 makes of an image, with the latents its losses need.

    `head` is the detached input of the decoder's last convolution, for the adaptive weight of Eq. 2.
    """

    image: Image
    z: Latent
    z_q: Latent
    codes: Codes
    head: FeatureMap


class SwappedCodes(NamedTuple):
    """What Stage 2 makes of two faces' latents; `xy` = identity of x, everything else of y (METHOD §0).

    `ba` stands at side a's token positions and `ab` at side b's. `logits_*` is None without a code selector.
    A one-sided variant (`no_symmetry`) leaves the `ba` fields None.
    """

    z_q_ab: Latent
    z_q_ba: Latent | None
    logits_ab: Logits | None
    logits_ba: Logits | None


class Swap(NamedTuple):
    """The whole method's result in both directions: naive decodings, soft masks and the blended images (Eq. 14)."""

    image_ab: Image
    image_ba: Image | None
    naive_ab: Image
    naive_ba: Image | None
    mask_b: Mask | None
    mask_a: Mask | None


def corner_of(framing: float) -> tuple[float, float]:
    """Where the square of side `framing` (0..1] begins in FFHQ's of side 1: (left, top).

    It is in the middle, and most of what it leaves out is above: chins come near the lower border, and hair is the
    target's anyway.
    """
    return (1 - framing) / 2, (1 - framing) * 0.9

"""A pair of photographs to its two results: the one way that every command, page and service takes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from codeswap.use.loading import SwappedCrops, Swapper
from codeswap.use.photographs import Portrait, paste


class Swapped(NamedTuple):
    """Both photographs with the other's face, and the crops they were made of; `ba` is None where none is made."""

    ab: np.ndarray
    ba: np.ndarray | None
    crops: SwappedCrops


def swap_portraits(
    swapper: Swapper, pairs: Sequence[tuple[Portrait, Portrait]], match_colour: bool = False
) -> list[Swapped]:
    """All pairs in one pass of the networks, and each naive swap pasted where its target's face was."""
    found = swapper.swap_all([(a.face.crop, b.face.crop) for a, b in pairs])
    return [_pasted(pair, crops, match_colour) for pair, crops in zip(pairs, found, strict=True)]


def _pasted(pair: tuple[Portrait, Portrait], crops: SwappedCrops, match_colour: bool) -> Swapped:
    a, b = pair
    ab = paste(b.pixels, b.face, crops.naive_ab, crops.mask_b, match_colour)
    if crops.naive_ba is None:  # a model that swaps one way only
        return Swapped(ab, None, crops)
    return Swapped(ab, paste(a.pixels, a.face, crops.naive_ba, crops.mask_a, match_colour), crops)

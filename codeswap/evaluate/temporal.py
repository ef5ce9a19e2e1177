"""Video-like test sets: does one source on all frames of one video stay itself, and does it move as the target does?"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from codeswap.evaluate.intervals import bootstrap_means
from codeswap.evaluate.metrics import cosine
from codeswap.evaluate.protocol import PairList
from codeswap.evaluate.results import Estimate
from codeswap.types import Embedding, Image

METHODS = ("swap", "swap_without_mask", "copy_target", "paste", "true_swap")


class Clip(NamedTuple):
    """Places in a pair list's targets that are one video's frames in time, and the place whose source goes onto all."""

    frames: np.ndarray
    source: int


def clips(pairs: PairList, manifest: pa.Table, count: int) -> Iterator[Clip]:
    """The first `count` videos by name that have at least two frames among the targets. None for other test sets."""
    if pairs.shape != "videos":
        return
    columns = manifest.select(["key", "video", "frame"]).to_pylist()
    moment = {row["key"]: (row["video"] or row["key"], row["frame"] or 0) for row in columns}
    videos: dict[str, list[int]] = {}
    for place in sorted(range(len(pairs.targets)), key=lambda place: (moment[pairs.targets[place]], place)):
        videos.setdefault(moment[pairs.targets[place]][0], []).append(place)
    long = [places for _, places in sorted(videos.items()) if len(places) > 1]
    for places in long[:count]:
        yield Clip(np.array(places), places[0])


def steadiness(images: Image, targets: Image, identity: Embedding) -> dict[str, Tensor]:
    """Of one clip in time: the cosine of neighbouring frames' identities, and the mean absolute difference between
    the result's change from frame to frame and the target's (images in [-1, 1], the difference in 0..1).

    The true swap is not 0 in the second: another face changes otherwise. Its row is the value to come near to.
    """
    change = (images.diff(dim=0) - targets.diff(dim=0)).abs().mean() / 2
    return {"id_consistency": cosine(identity[1:], identity[:-1]).mean(), "flicker": change}


def estimates(scores: Sequence[Mapping[str, Tensor]], seed: int, resamples: int) -> dict[str, Estimate]:
    """Means of one method's `steadiness` over clips, with intervals over clips."""
    columns = torch.tensor([[float(value) for value in clip.values()] for clip in scores]).numpy()
    found = zip(scores[0], bootstrap_means(columns, seed, resamples), strict=True)
    return {
        name: Estimate(value=interval.value, low=interval.low, high=interval.high, n=interval.n)
        for name, interval in found
        if interval is not None
    }

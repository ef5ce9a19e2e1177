"""When a training looks sick: a plain sentence, and what usually helps. Training goes on; the user decides."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from codeswap.train.schedule import TrainingConfig

SHARE = 0.5  # of the validation pairs that are copies or exchanges
COPY_ALLOWED = 0.25  # share of the samples in which a copy is no alarm: a warm start begins as one
FEW_CODES = 0.02  # of the codebook, as perplexity
CODES_ALLOWED = 0.1  # share of the samples in which few codes are no alarm
WON = 0.1  # loss of a discriminator that is hardly ever wrong; undecided it is 1 (hinge) or .69 (vanilla)
MASK_RANGE = (0.05, 0.7)  # mean of M
SLOW, INTERVALS = 0.5, 5  # of the median speed of at least so many log intervals


class Alarm(NamedTuple):
    """What is wrong, under a short name by which it is told once, and what to try."""

    name: str
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name}: {self.text}. Try: {self.remedy}"


def codebook_alarms(
    training: TrainingConfig, position: int, metrics: Mapping[str, float], n_codes: int
) -> Iterator[Alarm]:
    """Of Stage 1's log line (`perplexity`, `codes_used`, `discriminator`); codes that have not begun give none."""
    perplexity = metrics.get("perplexity", 0.0)
    if 0 < perplexity < FEW_CODES * n_codes and position > CODES_ALLOWED * training.samples:
        yield Alarm(
            "codes",
            f"{metrics['codes_used']:.0f} of {n_codes} codes are used, as unevenly as {perplexity:.0f} would be",
            "quantizer.init: kmeans, quantizer.restart_below: 0.03, quantizer.update: ema",
        )
    yield from discriminator_alarms(metrics)


def discriminator_alarms(metrics: Mapping[str, float]) -> Iterator[Alarm]:
    """Of a log line's `discriminator` loss."""
    if metrics.get("discriminator", 1.0) < WON:
        yield Alarm(
            "discriminator",
            f"its loss is {metrics['discriminator']:.3f}: it is hardly ever wrong, and its gradient teaches nothing",
            "a later adversarial_from, a smaller adversarial weight, or a smaller discriminator",
        )


def swap_alarms(training: TrainingConfig, position: int, validated: Mapping[str, float]) -> Iterator[Alarm]:
    """Of Stage 2's validation: the two trivial minima of Eq. 9 (METHOD §B.4)."""
    if validated["val/exchanged"] > SHARE:
        yield Alarm(
            "exchange",
            f"{validated['val/exchanged']:.0%} of the validation pairs look like their source: a plain exchange",
            "larger weights.expression or weights.background (see the calibration line), pairs.same: 0.2",
        )
    if validated["val/copied"] > SHARE and position > COPY_ALLOWED * training.samples:
        yield Alarm(
            "copy",
            f"{validated['val/copied']:.0%} of the validation pairs are their target unchanged",
            "larger weights.identity, triplets.share: 1.0, or a longer training with a larger lr",
        )


def mask_alarms(metrics: Mapping[str, float]) -> Iterator[Alarm]:
    """Of Stage 3's log line (`mask_mean`)."""
    mean, (low, high) = metrics["mask_mean"], MASK_RANGE
    if not low <= mean <= high:
        yield Alarm(
            "mask",
            f"mean of M is {mean:.3f}, expected {low}..{high}: it collapsed",
            "larger mask.anchor, mask.coverage or mask.supervised; a larger weights.identity when it closed",
        )


def speed_alarms(speeds: Sequence[float]) -> Iterator[Alarm]:
    """Of the images per second of this process' log intervals, the newest last."""
    if len(speeds) > INTERVALS and speeds[-1] < SLOW * np.median(speeds[:-1]):
        yield Alarm(
            "slow",
            f"{speeds[-1]:.1f} images/s, usually {np.median(speeds[:-1]):.1f}",
            "look at speed/data_wait_share: if it is high the disk or engine.readers holds it up, else another process",
        )

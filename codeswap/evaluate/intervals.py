"""95 % intervals by the percentile bootstrap over pairs: vectorised, seeded, the same resamples for every method."""

from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
_CHUNK = 4_000_000  # resampled places held at once: 32 MB of weights whatever the number of pairs


class Interval(NamedTuple):
    """A value, its 95 % interval, and how many pairs it rests on."""

    value: float
    low: float
    high: float
    n: int


def _weights(n: int, resamples: int, seed: int, groups: np.ndarray | None = None) -> list[np.ndarray]:
    """How often each of n pairs occurs in each resample: chunks of (some resamples, n), together `resamples` rows.

    With `groups`, the number of each pair's group, whole groups are drawn.
    """
    if groups is not None:
        return [chunk[:, groups] for chunk in _weights(int(groups.max()) + 1, resamples, seed)]
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // n)
    chunks = []
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        places = generator.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        chunks.append(np.bincount(places.ravel(), minlength=count * n).reshape(count, n).astype(np.float32))
    return chunks


def bootstrap_means(
    columns: np.ndarray, seed: int, resamples: int = RESAMPLES, groups: np.ndarray | None = None
) -> list[Interval | None]:
    """Mean of each column of (n, m) with its interval; NaN = not measured for that pair. None for a column of NaN.

    `groups` (n,) numbers pairs that are drawn together, because they are no independent observations.
    """
    known = np.isfinite(columns)
    filled, counted = np.where(known, columns, 0.0).astype(np.float64), known.astype(np.float64)
    with np.errstate(invalid="ignore"):  # a resample without any known entry is NaN and left out by nanquantile
        weights = _weights(len(columns), resamples, seed, groups)
        draws = np.concatenate([(w @ filled) / (w @ counted) for w in weights])
    intervals: list[Interval | None] = []
    for column, kept in enumerate(known.T):
        if not kept.any():
            intervals.append(None)
            continue
        low, high = np.nanquantile(draws[:, column], [0.025, 0.975])
        intervals.append(Interval(float(columns[kept, column].mean()), float(low), float(high), int(kept.sum())))
    return intervals


def bootstrap_median(
    values: np.ndarray, seed: int, resamples: int = RESAMPLES, groups: np.ndarray | None = None
) -> Interval:
    """Median of (n,) finite values with its interval; `groups` as in `bootstrap_means`."""
    n, ordered = len(values), np.sort(values)
    order = np.argsort(values, kind="stable")
    medians = []
    for weights in _weights(n, resamples, seed, groups):
        seen = weights[:, order].cumsum(axis=1)
        drawn = seen[:, -1:]  # n, but for groups of unequal size
        lower = (seen > (drawn - 1) // 2).argmax(axis=1)  # place of the resample's middle value in sorted order
        upper = (seen > drawn // 2).argmax(axis=1)
        medians.append((ordered[lower] + ordered[upper]) / 2)
    low, high = np.quantile(np.concatenate(medians), [0.025, 0.975])
    return Interval(float(np.median(values)), float(low), float(high), n)

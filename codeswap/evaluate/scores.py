"""From pictures to numbers: one row of raw scores per pair and method, and the estimates made of all rows."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch
from jaxtyping import Int
from torch import Tensor

from codeswap.evaluate.intervals import Interval, bootstrap_means, bootstrap_median
from codeswap.evaluate.judges import Judgement
from codeswap.evaluate.methods import Batch
from codeswap.evaluate.metrics import (
    POSE_UNITS,
    background,
    colour_difference,
    cosine,
    expression_errors,
    mask_iou,
    masked_l1,
    masked_psnr,
    pose_error,
    retrieval_ranks,
)
from codeswap.evaluate.parts import FEATURES
from codeswap.evaluate.results import Estimate
from codeswap.types import Embedding, Image, Mask

_AS_THEY_ARE = (
    "id_similarity", "id_similarity_seen", "id_accepted", "id_distance", "expression_l2", "expression_mse",
    "expression_l2_unit", "pose_deg", "background_l1", "colour_l1", "l1_true_swap", "face_l1_true_swap",
    "psnr_true_swap", "face_psnr_true_swap", "perceptual_true_swap", "face_perceptual_true_swap",
    "id_similarity_true_swap", "face_id_similarity_true_swap", "expression_exact", "pose_exact_deg", "mask_mean",
    "mask_iou",
)  # fmt: skip


class Gallery(NamedTuple):
    """The identities among which a source has to be found, by both identity networks."""

    identity: Embedding
    identity_seen: Embedding


class Wanted(NamedTuple):
    """What a result is held against: its source, its target, the true swap if there is one, and the gallery entries
    of its source's identity."""

    source: Judgement
    target: Judgement
    true: Judgement | None
    answers: Int[Tensor, " b"]


def raw_scores(image: Image, seen: Judgement, wanted: Wanted, batch: Batch, gallery: Gallery) -> dict[str, Tensor]:
    """All scores of one method's images on one batch, (b,) each: identity against the source, the rest against the
    target, and where it is known against the true swap."""
    ours, theirs = (image + 1) / 2, (batch.target + 1) / 2
    region = batch.face if batch.truth is None else batch.truth.region
    scores = {
        "id_rank": retrieval_ranks(seen.identity, gallery.identity, wanted.answers),
        "id_similarity": cosine(seen.identity, wanted.source.identity),
        "id_similarity_to_target": cosine(seen.identity, wanted.target.identity),
        "id_rank_seen": retrieval_ranks(seen.identity_seen, gallery.identity_seen, wanted.answers),
        "id_similarity_seen": cosine(seen.identity_seen, wanted.source.identity_seen),
        **expression_errors(seen.expression, wanted.target.expression),
        "pose_deg": pose_error(seen.pose, wanted.target.pose),
        "background_l1": masked_l1(ours, theirs, background(region)),
    }
    if batch.truth is None:  # a rendered face's skin is its identity, and the true swap tells what it should be
        scores["colour_l1"] = colour_difference(ours, theirs, region.float())
    else:
        true, everywhere = (batch.truth.image + 1) / 2, torch.ones_like(batch.face, dtype=torch.float32)
        scores["l1_true_swap"] = masked_l1(ours, true, everywhere)
        scores["psnr_true_swap"] = masked_psnr(ours, true, everywhere)
        scores["face_l1_true_swap"] = masked_l1(ours, true, region.float())
        scores["face_psnr_true_swap"] = masked_psnr(ours, true, region.float())
        scores["id_similarity_true_swap"] = cosine(seen.identity, wanted.true.identity)
    return scores


def mask_scores(mask: Mask, batch: Batch) -> dict[str, Tensor]:
    """What the predicted mask is like, (b,) each."""
    return {"mask_mean": mask.mean(dim=(1, 2, 3)), "mask_iou": mask_iou(mask, batch.face)}


class ScoreTable:
    """Raw scores of some or all pairs, method by method, in the order of the pair list."""

    def __init__(self, gallery_size: int) -> None:
        self._gallery_size = gallery_size
        self._columns: dict[str, dict[str, list[np.ndarray]]] = {}

    @classmethod
    def read(cls, table: pa.Table, gallery_size: int) -> "ScoreTable":
        """From the rows that `table` gives, of one part or of all."""
        scores = cls(gallery_size)
        names = [name for name in table.schema.names if name not in ("pair", "source", "target", "method", FEATURES)]
        methods = table["method"].cast(pa.string())
        for method in methods.unique().to_pylist():
            rows = table.filter(pa.compute.equal(methods, method))
            columns = {name: rows[name].to_numpy() for name in names}
            scores._columns[method] = {
                name: [column if name == "failed" else column.astype(np.float64)]
                for name, column in columns.items()
                if name == "failed" or not np.isnan(column).all()
            }
        return scores

    def add(self, method: str, scores: Mapping[str, Tensor], there: Tensor) -> None:
        """The next pairs of `method`. Where there is no result, it is neither found nor accepted, and all other scores
        are unknown."""
        columns = self._columns.setdefault(method, {})
        there = there.cpu()
        columns.setdefault("failed", []).append((~there).numpy())
        for name, values in scores.items():
            missing = (
                self._gallery_size + 1 if name.startswith("id_rank") else 0.0 if name == "id_accepted" else torch.nan
            )
            kept = torch.where(there, values.detach().cpu().double(), missing)
            columns.setdefault(name, []).append(kept.numpy())

    def columns(self, method: str) -> dict[str, np.ndarray]:
        """All scores of a method so far, (n,) each."""
        return {name: np.concatenate(parts) for name, parts in self._columns[method].items()}

    @property
    def methods(self) -> list[str]:
        return list(self._columns)

    def table(self, sources: Sequence[str], targets: Sequence[str], first: int = 0) -> pa.Table:
        """One row per pair (counted from `first`) and method; a score that a method has not is null."""
        names = list(dict.fromkeys(name for columns in self._columns.values() for name in columns if name != "failed"))
        tables = []
        for method in self.methods:
            columns, n = self.columns(method), len(sources)
            scores = {name: columns.get(name, np.full(n, np.nan)) for name in names}
            tables.append(
                pa.table(
                    {
                        "pair": pa.array(range(first, first + n), pa.int32()),
                        "source": pa.array(sources, pa.string()),
                        "target": pa.array(targets, pa.string()),
                        "method": pa.array([method] * n, pa.string()).dictionary_encode(),
                        "failed": pa.array(columns["failed"], pa.bool_()),
                        **{name: pa.array(values, pa.float32(), from_pandas=True) for name, values in scores.items()},
                    }
                )
            )
        return pa.concat_tables(tables).unify_dictionaries()

    def estimates(
        self, method: str, seed: int, resamples: int, groups: np.ndarray | None = None
    ) -> dict[str, Estimate]:
        """Metrics of a method with intervals over pairs; the same seed resamples the same pairs for every method.

        `groups` numbers what is resampled as one: pairs of one target, which are no independent observations.
        """
        raw = self.columns(method)
        known = {name: raw[name] for name in _AS_THEY_ARE if name in raw}
        derived = {
            "id_retrieval": raw["id_rank"] == 1,
            "id_retrieval_top5": raw["id_rank"] <= 5,
            "id_closer": np.where(raw["failed"], np.nan, raw["id_similarity"] > raw["id_similarity_to_target"]),
            "id_retrieval_seen": raw["id_rank_seen"] == 1,
            **known,
            **{name: raw["pose_deg"] * unit for name, unit in POSE_UNITS.items()},
        }
        columns = np.stack([np.asarray(values, dtype=np.float64) for values in derived.values()], axis=1)
        means = dict(zip(derived, bootstrap_means(columns, seed, resamples, groups), strict=True))
        means["id_median_rank"] = bootstrap_median(raw["id_rank"], seed, resamples, groups)
        estimates = {name: _estimate(interval) for name, interval in means.items() if interval is not None}
        estimates["failures"] = Estimate(value=int(raw["failed"].sum()), n=len(raw["failed"]))
        return estimates


def _estimate(interval: Interval) -> Estimate:
    return Estimate(value=interval.value, low=interval.low, high=interval.high, n=interval.n)


def ranked_by_success(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pairs from best to worst: mean of a pair's places by identity gained (cosine to the source minus cosine to the
    target), by pose error and by expression error. A paste gains identity only, so it cannot lead by that alone."""
    gained = scores["id_similarity"] - scores["id_similarity_to_target"]
    columns = [np.nan_to_num(c, nan=np.inf) for c in (-gained, scores["pose_deg"], scores["expression_l2"])]
    places = [np.searchsorted(np.sort(column), column) for column in columns]  # equal scores share a place
    return np.argsort(np.mean(places, axis=0), kind="stable")


def shown_pairs(order: np.ndarray, count: int) -> np.ndarray:
    """A third of `count` pairs from the best end of `order`, a third around its median, the rest from the worst end."""
    count = min(count, len(order))
    third, middle = count // 3, len(order) // 2
    rest = count - 2 * third
    start = min(max(middle - rest // 2, third), len(order) - third - rest)
    return np.concatenate([order[:third], order[start : start + rest], order[len(order) - third :]])

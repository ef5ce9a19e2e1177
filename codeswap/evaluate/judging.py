"""Batches of pairs -> rows of scores: each method's picture, seen by the judges."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm

from codeswap.evaluate.judges import Judgement, Judges
from codeswap.evaluate.methods import Batch, eight_bits, pictures
from codeswap.evaluate.metrics import cosine
from codeswap.evaluate.parts import FEATURES, Parts, Team
from codeswap.evaluate.rivals import Rival
from codeswap.evaluate.scores import Gallery, ScoreTable, Wanted, mask_scores, raw_scores
from codeswap.evaluate.stream import Pairs
from codeswap.models.codeswap import CodeSwap


class Judged(NamedTuple):
    """One method on one batch: its scores (b,) each, its features, and which results there were."""

    scores: dict[str, Tensor]
    features: Tensor
    there: Tensor


def judge_parts(
    parts: Parts,
    team: Team,
    model: CodeSwap,
    judges: Judges,
    pairs: Pairs,
    rivals: Mapping[str, Rival],
    batch_size: int,
    temperature: float,
) -> None:
    """Scores those parts of this process that are still open; what is kept of a pair is a row of numbers a method."""
    mine = list(parts.open(team))
    if not mine:
        return
    gallery = gallery_of(judges, pairs, batch_size)
    total = sum(stop - start for _, start, stop in mine)
    with tqdm(total=total, unit="pair", disable=True if team.rank else None) as progress:
        for number, start, stop in mine:
            scores, features = ScoreTable(len(pairs.gallery)), dict[str, list[Tensor]]()
            for batch, answers in _batches(pairs, start, stop, batch_size):
                for name, judged in judge_batch(model, judges, batch, answers, gallery, rivals, temperature).items():
                    scores.add(name, judged.scores, judged.there)
                    features.setdefault(name, []).append(judged.features.cpu())
                progress.update(len(batch.pairs))
            sources, targets = zip(*pairs.names[start:stop], strict=True)
            rows = torch.cat([one for name in scores.methods for one in features[name]]).float().numpy()
            column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
            parts.write(number, scores.table(sources, targets, first=start).append_column(FEATURES, column))


def _batches(pairs: Pairs, start: int, stop: int, size: int) -> Iterator[tuple[Batch, Tensor]]:
    """Batches of the pairs `start` to `stop`, and the gallery entries that are right for them."""
    with pairs.batches(start, stop, size) as stream:
        for batch in stream:
            yield batch, pairs.answers[start : start + len(batch.pairs)]
            start += len(batch.pairs)


def judge_batch(
    model: CodeSwap,
    judges: Judges,
    batch: Batch,
    answers: Tensor,
    gallery: Gallery,
    rivals: Mapping[str, Rival],
    temperature: float,
) -> dict[str, Judged]:
    """All methods on one batch, by name. `temperature` is that of the soft codes of the `*_soft` row."""
    made = pictures(model, batch, rivals, temperature)
    known = {"copy_source": judges.judge(batch.source), "copy_target": judges.judge(batch.target)}
    true_maps = None
    if batch.truth is not None:
        true = eight_bits(batch.truth.image)
        known["true_swap"], true_maps = judges.judge(true), judges.maps(true)
    wanted = Wanted(known["copy_source"], known["copy_target"], known.get("true_swap"), answers)
    judged = {}
    for name, image in made.images.items():
        seen: Judgement = known[name] if name in known else judges.judge(image)
        scores = raw_scores(image, seen, wanted, batch, gallery) | judges.accepted(seen, wanted.source)
        if batch.truth is not None and true_maps is not None:
            scores["perceptual_true_swap"] = judges.perceptual_distance(judges.maps(image), true_maps)
            face_alone = torch.where(batch.truth.region, image, true)  # surrounded by the true swap
            scores["face_perceptual_true_swap"] = judges.perceptual_distance(judges.maps(face_alone), true_maps)
            scores["face_id_similarity_true_swap"] = cosine(judges.identity(face_alone), known["true_swap"].identity)
            scores |= judges.exact_errors(seen, batch.truth)
        if name == "swap" and made.mask is not None:
            scores |= mask_scores(made.mask, batch)
        judged[name] = Judged(scores, seen.features, made.there[name])
    return judged


def gallery_of(judges: Judges, pairs: Pairs, size: int) -> Gallery:
    """The gallery's identities, `size` pictures at a time."""
    parts: list[Sequence[Tensor]] = []
    for some in np.array_split(pairs.gallery, range(size, len(pairs.gallery), size)):
        image = pairs.images(some).to(pairs.answers.device)
        parts.append((judges.identity(image), judges.identity_seen(image)))
    return Gallery(*(torch.cat(column) for column in zip(*parts, strict=True)))

"""One variant on one test set: every method's pictures, judged pair by pair in batches, into the metrics file (§F)."""

import contextlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from pydantic import Field, JsonValue, PositiveFloat, PositiveInt
from torch import Tensor
from tqdm import tqdm

from codeswap.data.faces import Faces, to_float
from codeswap.data.loader import batches
from codeswap.data.pictures import grid, save_png
from codeswap.data.scenes import Scenes, scenes
from codeswap.evaluate import temporal
from codeswap.evaluate.baselines import Truth, check_results, truth_of
from codeswap.evaluate.judges import Judges
from codeswap.evaluate.methods import Batch, exchange_error, pictures
from codeswap.evaluate.metrics import FeatureMoments, frechet_distance
from codeswap.evaluate.protocol import PairList, ProtocolConfig, pairs_of, write_pairs
from codeswap.evaluate.results import Estimate, Evaluation, PairListFacts, write_evaluation
from codeswap.evaluate.scores import (
    Gallery,
    ScoreTable,
    Wanted,
    mask_scores,
    ranked_by_success,
    raw_scores,
    shown_pairs,
)
from codeswap.models.codeswap import CodeSwap, load_codeswap
from codeswap.types import Config, Image


class EvaluateConfig(Config):
    """How swaps are judged."""

    protocol: dict[str, ProtocolConfig] = Field({})  # of a test set for which the defaults do not fit
    results: dict[str, Path] = Field({})  # other methods: folder[/<test set>]/<source>_<target>.png
    batch_size: PositiveInt = 32  # pairs
    resamples: int = Field(1000, ge=20)  # of the bootstrap
    codebook_temperature: PositiveFloat = 0.5  # of the rows through soft codes, in mean nearest distances
    clips: int = Field(32, ge=0)  # videos on which steadiness in time is measured, one source for all frames
    exchange_pairs: PositiveInt = 8  # pairs on which swap(a, b) is compared with swap(b, a)
    shown_pairs: PositiveInt = 9  # columns of the picture grid


class EvaluateParams(Config):
    """All that the `evaluate` stage reads from params.yaml."""

    evaluate: EvaluateConfig = EvaluateConfig()


class Places(NamedTuple):
    """The folders an evaluation reads."""

    codebook: Path
    swap: Path
    mask: Path
    perception: Path
    shards: Path


Fetched = tuple[list[tuple[str, str]], Tensor, Tensor, Truth | None]


class Pairs:
    """The pairs of a test set as batches: reading is done ahead by a thread, in order."""

    def __init__(self, faces: Faces, pairs: PairList, judges: Judges, device: torch.device) -> None:
        self._faces, self._judges, self._device = faces, judges, device
        index = {key: row for row, key in enumerate(faces.keys)}
        self.names = list(zip(pairs.sources, pairs.targets, strict=True))
        self._sources = np.array([index[key] for key in pairs.sources])
        self._targets = np.array([index[key] for key in pairs.targets])
        self.gallery = np.array([index[key] for key in pairs.gallery])
        place = {key: row for row, key in enumerate(pairs.gallery)}
        self.answers = torch.tensor([place[key] for key in pairs.answers], device=device)

    def __len__(self) -> int:
        return len(self.names)

    def images(self, faces: np.ndarray) -> Image:
        """Faces by number, in [-1, 1]."""
        return to_float(self._faces.images(faces, np.zeros(len(faces), dtype=bool)))

    def batch(self, places: np.ndarray) -> Batch:
        """The pairs at `places` of the list."""
        return self._on_device(*self._fetch(places, places))

    def clip(self, clip: temporal.Clip) -> Batch:
        """All frames of one video as targets of one source."""
        return self._on_device(*self._fetch(np.full(len(clip.frames), clip.source), clip.frames))

    def batches(self, size: int) -> "contextlib.closing":
        """All pairs in order, `size` at a time; a context manager that yields the iterator."""

        def run():
            def fetch(places: np.ndarray) -> Fetched:
                return self._fetch(*[places[places < len(self)]] * 2)

            ahead = batches(fetch, 0, size, 0, 1, 2, 1)
            with contextlib.closing(ahead):
                for position, fetched in ahead:
                    yield self._on_device(*fetched)
                    if position >= len(self):
                        return

        return contextlib.closing(run())

    def _fetch(self, source_places: np.ndarray, target_places: np.ndarray) -> Fetched:
        sources, targets = self._sources[source_places], self._targets[target_places]
        truth = truth_of(self._scenes(sources), self._scenes(targets), self._faces.size)
        names = [(self.names[s][0], self.names[t][1]) for s, t in zip(source_places, target_places, strict=True)]
        return names, self.images(sources), self.images(targets), truth

    def _scenes(self, faces: np.ndarray) -> Scenes | None:
        return scenes([self._faces.facts(int(face)) for face in faces]) if len(faces) else None

    def _on_device(self, names: list[tuple[str, str]], source: Tensor, target: Tensor, truth: Truth | None) -> Batch:
        source, target = source.to(self._device), target.to(self._device)
        if truth is None:
            return Batch(names, source, target, self._judges.face(target), None)
        truth = Truth(*(part.to(self._device) for part in truth))
        return Batch(names, source, target, truth.target_face, truth)


def evaluate(variant: str, testset: str, config: EvaluateConfig, places: Places, out: Path) -> Evaluation:
    """Judges `variant` on `testset` and writes `<out>/<variant>/<testset>` .json, .summary.json, .pairs.parquet,
    .protocol.json and .grid.png. Raises ValueError for missing or unfitting models, faces, networks or results."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    faces = Faces([places.shards])
    pair_list = pairs_of(faces.manifest, config.protocol.get(testset, ProtocolConfig()))
    model = load_codeswap(places.codebook, places.swap, places.mask)
    model.to(device, memory_format=torch.channels_last)  # decoder 1.3 times faster on the CPU, more on GPUs
    if model.vqgan.config.image_size != faces.size:
        raise ValueError(
            f"{places.shards} holds faces of {faces.size} px, the model was trained for {model.vqgan.config.image_size}"
            " px: give both the same image.size"
        )
    judges = Judges.load(places.perception, device)
    pairs = Pairs(faces, pair_list, judges, device)
    rivals = {name: _folder(folder, testset) for name, folder in config.results.items()}
    for name, folder in rivals.items():
        check_results(name, folder, pairs.names)

    scores, moments = _judge_all(model, judges, pairs, rivals, config)
    methods = {name: scores.estimates(name, pair_list.seed, config.resamples) for name in scores.methods}
    for name, estimates in methods.items():
        if moments[name].count >= 2:
            distance = frechet_distance(moments[name], moments["copy_target"])
            estimates[judges.frechet_name] = Estimate(value=distance, n=moments[name].count)
    clips = temporal.clips(pair_list, faces.manifest, config.clips)
    for name, rows in _steadiness(model, judges, pairs, clips, config).items():
        methods[name] |= temporal.estimates(rows, pair_list.seed, config.resamples)
    few = pairs.batch(np.arange(min(config.exchange_pairs, len(pairs))))
    if (error := exchange_error(model, few.source, few.target)) is not None:
        methods["swap"]["exchange_error"] = Estimate(value=error, n=len(few.pairs))

    evaluation = Evaluation(
        variant=variant,
        testset=testset,
        pairs=len(pairs),
        pair_list_sha256=pair_list.sha256,
        protocol=PairListFacts(shape=pair_list.shape, seed=pair_list.seed, gallery=len(pair_list.gallery)),
        networks=judges.networks,
        methods=methods,
        models={kind: _card(getattr(places, kind)) for kind in ("codebook", "swap", "mask")},
        data={"faces": len(faces), "size": faces.size, "licences": dict(faces.licences)},
    )
    folder = out / variant
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{testset}.pairs.parquet.partial"
    pq.write_table(scores.table(pair_list.sources, pair_list.targets), partial, compression="zstd")
    partial.replace(folder / f"{testset}.pairs.parquet")
    write_pairs(folder / f"{testset}.protocol.json", pair_list)
    _write_grid(folder / f"{testset}.grid.png", model, pairs, scores, config)
    write_evaluation(out, evaluation)
    return evaluation


def _judge_all(
    model: CodeSwap, judges: Judges, pairs: Pairs, rivals: dict[str, Path], config: EvaluateConfig
) -> tuple[ScoreTable, dict[str, FeatureMoments]]:
    """Scores of every pair and feature moments of every method; what is kept per pair is a row of numbers."""
    gallery = _gallery(judges, pairs, config.batch_size)
    scores, moments, done = ScoreTable(len(pairs.gallery)), {}, 0
    with pairs.batches(config.batch_size) as stream, tqdm(total=len(pairs), unit="pair", disable=None) as progress:
        for batch in stream:
            made = pictures(model, batch, rivals, config.codebook_temperature)
            wanted = Wanted(
                source=judges.judge(batch.source),
                target=judges.judge(batch.target),
                answers=pairs.answers[done : done + len(batch.pairs)],
            )
            known = {"copy_source": wanted.source, "copy_target": wanted.target}
            for name, image in made.images.items():
                seen = known.get(name) or judges.judge(image)
                rows = raw_scores(image, seen, wanted, batch, gallery)
                if name == "swap" and made.mask is not None:
                    rows |= mask_scores(made.mask, batch)
                scores.add(name, rows, made.there[name])
                moments.setdefault(name, FeatureMoments()).add(seen.features[made.there[name]])
            done += len(batch.pairs)
            progress.update(len(batch.pairs))
    return scores, moments


def _steadiness(
    model: CodeSwap, judges: Judges, pairs: Pairs, clips: Iterable[temporal.Clip], config: EvaluateConfig
) -> dict[str, list[dict[str, Tensor]]]:
    """Scores in time, clip by clip, of the model and the baselines; empty for test sets without videos."""
    rows: dict[str, list[dict[str, Tensor]]] = {}
    for clip in clips:
        batch = pairs.clip(clip)
        made = pictures(model, batch, {}, config.codebook_temperature)
        for name in temporal.METHODS:
            if name in made.images:
                image = made.images[name]
                rows.setdefault(name, []).append(temporal.steadiness(image, batch.target, judges.identity(image)))
    return rows


def _gallery(judges: Judges, pairs: Pairs, size: int) -> Gallery:
    parts: list[Sequence[Tensor]] = []
    for some in np.array_split(pairs.gallery, range(size, len(pairs.gallery), size)):
        image = pairs.images(some).to(pairs.answers.device)
        parts.append((judges.identity(image), judges.identity_seen(image)))
    return Gallery(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _write_grid(path: Path, model: CodeSwap, pairs: Pairs, scores: ScoreTable, config: EvaluateConfig) -> None:
    """Best, median and worst pairs (`scores.ranked_by_success`) from left to right."""
    shown = shown_pairs(ranked_by_success(scores.columns("swap")), config.shown_pairs)
    batch = pairs.batch(shown)
    made = pictures(model, batch, {}, config.codebook_temperature)
    rows = {"source": batch.source, "target": batch.target}
    rows["swap, naive image"] = made.images.get("swap_without_mask", made.images["swap"])
    if made.mask is not None:
        rows |= {"mask": made.mask * 2 - 1, "swap": made.images["swap"]}
    if batch.truth is not None:
        rows |= {"true swap": batch.truth.image, "true swap, codebook": made.images["true_swap_through_codebook"]}
    rows["paste (no model)"] = made.images["paste"]
    save_png(path, grid(list(rows.values()), list(rows), scale=max(1, 128 // batch.target.shape[-1])))


def _folder(folder: Path, testset: str) -> Path:
    return folder / testset if (folder / testset).is_dir() else folder


def _card(folder: Path) -> JsonValue:
    return json.loads((folder / "card.json").read_text())

"""One variant on one test set: every method's pictures, judged part by part, into the metrics file (§F)."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from pydantic import Field, JsonValue, PositiveFloat, PositiveInt
from torch import Tensor

from codeswap.data.faces import Faces
from codeswap.evaluate import temporal
from codeswap.evaluate.baselines import check_results
from codeswap.evaluate.judges import Judges
from codeswap.evaluate.judging import judge_parts
from codeswap.evaluate.methods import exchange_error, pictures
from codeswap.evaluate.metrics import FeatureMoments, frechet_distance, kernel_distance
from codeswap.evaluate.panels import write_panels
from codeswap.evaluate.parts import Parts, Team
from codeswap.evaluate.protocol import ProtocolConfig, pairs_of, write_pairs
from codeswap.evaluate.results import Estimate, Evaluation, PairListFacts, write_evaluation
from codeswap.evaluate.rivals import OnnxConfig, OnnxSwapper, ResultFolder, Rival
from codeswap.evaluate.scores import ScoreTable, ranked_by_success, shown_pairs
from codeswap.evaluate.stream import Pairs
from codeswap.models.codeswap import CodeSwap, load_codeswap
from codeswap.perception.roles import sha256_of
from codeswap.types import Config

ALONE = Team(rank=0, world=1)
KERNEL_FEATURES = 10_000  # of a method, at most, for its kernel distance


class EvaluateConfig(Config):
    """How swaps are judged."""

    protocol: dict[str, ProtocolConfig] = Field({})  # of a test set for which the defaults do not fit
    results: dict[str, Path] = Field({})  # other methods: folder[/<test set>]/<source>_<target>.png
    onnx: dict[str, OnnxConfig] = Field({})  # other methods: their networks (evaluate/rivals.py)
    part: PositiveInt = 256  # pairs scored between two stops at most
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


def evaluate(
    variant: str, testset: str, config: EvaluateConfig, places: Places, out: Path, run: Path, team: Team = ALONE
) -> Evaluation | None:
    """Judges `variant` on `testset` and writes `<out>/<variant>/<testset>` .json, .summary.json, .pairs.parquet,
    .protocol.json, and the pictures of `panels.write_panels`.

    `run` keeps what has been scored until the end; the same evaluation goes on from there. All processes of a `team`
    score, the first writes; the others' answer is None. Raises ValueError for missing or unfitting models, faces,
    networks or results.
    """
    device = _device(team)
    faces = Faces([places.shards])
    pair_list = pairs_of(faces.manifest, config.protocol.get(testset, ProtocolConfig()))
    model = load_codeswap(places.codebook, places.swap, places.mask)
    model.to(device, memory_format=torch.channels_last)  # decoder 1.3 times faster on the CPU, more on GPUs
    made_for = model.vqgan.config
    if (made_for.image_size, made_for.framing) != (faces.size, faces.framing):
        raise ValueError(
            f"{places.shards} holds faces of {faces.size} px and framing {faces.framing}, the model was trained for "
            f"{made_for.image_size} px and {made_for.framing}: give both the same image.size and image.framing"
        )
    judges = Judges.load(places.perception, device, faces.framing)
    pairs = Pairs(faces, pair_list, judges, device)
    rivals = _rivals(config, testset, pairs)

    parts = Parts(run, len(pairs), config.part)
    begun, before = time.monotonic(), parts.done
    judge_parts(parts, team, model, judges, pairs, rivals, config.batch_size, config.codebook_temperature)
    if team.rank:
        return None
    parts.wait()
    fresh = min((parts.done - before) * config.part, len(pairs))
    print(f"{testset}: {fresh} pairs scored, {fresh / (time.monotonic() - begun):.1f} pairs/s", flush=True)
    scores = ScoreTable.read(parts.scores(), len(pair_list.gallery))
    targets_once, of_target = np.unique(pair_list.targets, return_inverse=True)
    together = of_target if len(targets_once) < len(pairs) else None
    methods = {name: scores.estimates(name, pair_list.seed, config.resamples, together) for name in scores.methods}
    targets = _Features.read(parts, "copy_target")
    for name in methods:
        if targets is not None and (found := _Features.read(parts, name)) is not None:
            methods[name] |= _distances(found, targets, judges, pair_list.seed)
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
        data={"faces": len(faces), "size": faces.size, "licences": dict(faces.licences), "manifests": faces.hashes},
        rivals={name: [sha256_of(path) for path in rival.files] for name, rival in config.onnx.items()},
    )
    folder = out / variant
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{testset}.pairs.parquet.partial"
    pq.write_table(scores.table(pair_list.sources, pair_list.targets), partial, compression="zstd")
    partial.replace(folder / f"{testset}.pairs.parquet")
    write_pairs(folder / f"{testset}.protocol.json", pair_list)
    _write_panels(folder, testset, model, judges, pairs, scores, config)
    write_evaluation(out, evaluation)
    parts.remove()
    return evaluation


class _Features(NamedTuple):
    """A method's features: their moments, and the first of them, as many as a kernel distance takes."""

    moments: FeatureMoments
    some: Tensor

    @classmethod
    def read(cls, parts: Parts, method: str) -> "_Features | None":
        """None for fewer than two pictures."""
        moments, rows, taken = FeatureMoments(), [], 0
        for part in parts.features(method):
            moments.add(torch.from_numpy(part))
            rows.append(part[: KERNEL_FEATURES - taken])
            taken += len(rows[-1])
        return None if moments.count < 2 else cls(moments, torch.from_numpy(np.concatenate(rows)))


def _distances(found: _Features, targets: _Features, judges: Judges, seed: int) -> dict[str, Estimate]:
    """Frechet and kernel distance of a method's pictures to the targets, by the `features` network."""
    kernel, deviation = kernel_distance(found.some, targets.some, seed)
    n = min(len(found.some), len(targets.some))
    return {
        judges.frechet_name: Estimate(value=frechet_distance(found.moments, targets.moments), n=found.moments.count),
        judges.kernel_name: Estimate(value=kernel, low=kernel - 2 * deviation, high=kernel + 2 * deviation, n=n),
    }


def _rivals(config: EvaluateConfig, testset: str, pairs: Pairs) -> dict[str, Rival]:
    """The other methods by name. Raises ValueError for a name that is taken and for files that are no results."""
    if twice := sorted(config.results.keys() & config.onnx.keys()):
        raise ValueError(f"evaluate.results and evaluate.onnx both name {', '.join(twice)}: call one of them otherwise")
    if config.onnx and pairs.framing != 1:
        raise ValueError(
            f"evaluate.onnx: {', '.join(config.onnx)} look for faces in FFHQ's square, {testset} has framing "
            f"{pairs.framing}: give pictures that were made outside by evaluate.results, or set image.framing to 1"
        )
    rivals: dict[str, Rival] = {}
    for name, root in config.results.items():
        folder = _folder(root, testset)
        check_results(name, folder, pairs.names)
        rivals[name] = ResultFolder(folder)
    return rivals | {name: OnnxSwapper(network) for name, network in config.onnx.items()}


def _device(team: Team) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", team.rank % torch.cuda.device_count())


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


def _write_panels(
    folder: Path,
    testset: str,
    model: CodeSwap,
    judges: Judges,
    pairs: Pairs,
    scores: ScoreTable,
    config: EvaluateConfig,
) -> None:
    """Best, median and worst pairs (`scores.ranked_by_success`) from left to right."""
    batch = pairs.batch(shown_pairs(ranked_by_success(scores.columns("swap")), config.shown_pairs))
    write_panels(folder, testset, model, judges, batch, pictures(model, batch, {}, config.codebook_temperature))


def _folder(folder: Path, testset: str) -> Path:
    return folder / testset if (folder / testset).is_dir() else folder


def _card(folder: Path) -> JsonValue:
    return json.loads((folder / "card.json").read_text())

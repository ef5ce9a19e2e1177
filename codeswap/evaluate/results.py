"""The metrics file: what one evaluation hands to the report, to `dvc metrics show` and to the reader (DESIGN §4)."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, JsonValue, ValidationError

from codeswap.data.manifest import write_bytes
from codeswap.types import Config


class Estimate(Config):
    """A number with its 95 % bootstrap interval over pairs (None where none is computed) and the pairs it rests on."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int


class NetworkName(Config):
    """Which file judged, and what of a face it was shown."""

    name: str
    sha256: str
    preprocessing: str = ""

    @property
    def identification(self) -> str:
        """What two evaluations must share: the file, and what it is shown."""
        return f"{self.sha256}/{hashlib.sha256(self.preprocessing.encode()).hexdigest()[:8]}"


class PairListFacts(Config):
    """Where the pairs come from; `pair_list_sha256` names the list itself."""

    shape: Literal["images", "identities", "videos"]
    seed: int
    gallery: int


class Evaluation(Config):
    """One variant on one test set. Shares are in 0..1, images in 0..1, angles in degrees."""

    variant: str
    testset: str
    pairs: int
    pair_list_sha256: str
    protocol: PairListFacts
    networks: dict[str, NetworkName]
    methods: dict[str, dict[str, Estimate]]
    models: dict[str, JsonValue] = Field({})  # the card of each model: config, fingerprint, lineage, licences
    data: dict[str, JsonValue] = Field({})  # dataset, size and licences of the test faces
    rivals: dict[str, list[str]] = Field({})  # sha256 of the files of other methods' networks

    @property
    def basis(self) -> dict[str, str]:
        """What two evaluations must share to stand in one table: the pair list, and who judges in each role."""
        return {"pair list": self.pair_list_sha256} | {
            role: n.identification for role, n in sorted(self.networks.items())
        }

    @property
    def configs(self) -> dict[str, JsonValue]:
        """The Config groups of all models, as their cards give them."""
        return {kind: card["config"] for kind, card in self.models.items() if isinstance(card, dict)}

    @property
    def parents(self) -> dict[str, str]:
        """The sha256 of each model's weights."""
        return {kind: str(card["weights_sha256"]) for kind, card in self.models.items() if isinstance(card, dict)}


class Measure(NamedTuple):
    """How a metric is printed and which way is better."""

    title: str
    better: Literal["higher", "lower", ""]
    style: Literal["share", "angle", "small", "plain", "decibel", "count"]
    meaning: str


MEASURES = {
    "id_retrieval": Measure("ID retrieval", "higher", "share", "source's identity ranked first in the gallery"),
    "id_retrieval_top5": Measure("top 5", "higher", "share", "source's identity among the first five"),
    "id_median_rank": Measure("median rank", "lower", "count", "median rank of the source's identity"),
    "id_similarity": Measure("ID similarity", "higher", "small", "cosine to the source"),
    "id_accepted": Measure("accepted", "higher", "share", "taken for the source's person by the judge's own limit"),
    "id_distance": Measure("ID distance", "lower", "small", "L2 to the source of the judge's raw embeddings"),
    "id_closer": Measure("nearer source", "higher", "share", "results nearer to the source than to the target"),
    "id_retrieval_seen": Measure("ID retrieval, seen", "higher", "share", "ID retrieval by the training network"),
    "id_similarity_seen": Measure("ID similarity, seen", "higher", "small", "cosine by the training network"),
    "expression_l2": Measure("expression", "lower", "plain", "L2 between result's and target's expression vectors"),
    "expression_mse": Measure("expression MSE", "lower", "small", "mean square of the same difference"),
    "expression_l2_unit": Measure("expression, unit", "lower", "small", "L2 of the unit-length expression vectors"),
    "pose_deg": Measure("pose (deg)", "lower", "angle", "L2 of yaw, pitch, roll to the target, degrees"),
    "pose_rad": Measure("pose (rad)", "lower", "small", "the same in radians"),
    "pose_180": Measure("pose / 180", "lower", "small", "the same in half turns"),
    "pose_99": Measure("pose / 99", "lower", "small", "the same over the bin range of the paper's pose network"),
    "background_l1": Measure("background L1", "lower", "small", "L1 to the target outside the face"),
    "colour_l1": Measure("colour", "lower", "small", "difference of the face's mean colour to the target's"),
    "l1_true_swap": Measure("L1 to true swap", "lower", "small", "L1 to the rendered true swap"),
    "face_l1_true_swap": Measure("face L1", "lower", "small", "L1 to the rendered true swap inside the face"),
    "psnr_true_swap": Measure("PSNR", "higher", "decibel", "PSNR to the rendered true swap, dB"),
    "face_psnr_true_swap": Measure("face PSNR", "higher", "decibel", "the same inside the face, dB"),
    "mask_mean": Measure("mean mask", "", "small", "mean of the predicted mask"),
    "mask_iou": Measure("mask IoU", "higher", "small", "predicted mask over 0.5 against the target's face"),
    "id_consistency": Measure("ID steadiness", "higher", "small", "cosine between a video's neighbouring results"),
    "flicker": Measure("flicker", "lower", "small", "L1 of the result's change in time to the target's change"),
    "exchange_error": Measure("exchange error", "lower", "plain", "largest difference of swap(a, b) and swap(b, a)"),
    "failures": Measure("failures", "lower", "count", "results missing or not finite: misses in retrieval"),
    "perceptual_true_swap": Measure("LPIPS", "lower", "small", "LPIPS by the perceptual network, to the true swap"),
    "id_similarity_true_swap": Measure("ID to true swap", "higher", "small", "cosine to the rendered true swap"),
    "face_perceptual_true_swap": Measure("face LPIPS", "lower", "small", "the same of the face alone"),
    "face_id_similarity_true_swap": Measure("face ID to true swap", "higher", "small", "the same of the face alone"),
    "expression_exact": Measure("expression, exact", "lower", "small", "error in the renderer's parameters, of 2"),
    "pose_exact_deg": Measure("pose, exact (deg)", "lower", "angle", "error in the renderer's angles"),
    "fid": Measure("FID", "lower", "plain", "Fréchet distance to the targets, Inception features"),
    "kid": Measure("KID", "lower", "small", "kernel distance to the targets, Inception features"),
}


def measure(name: str) -> Measure:
    """How to print metric `name`; `fd_<network>` and `kd_<network>` are distances in that network's features, never
    FID or KID."""
    if name.startswith("kd_"):
        return Measure(f"KD ({name[3:]})", "lower", "small", f"kernel distance to the targets, features of {name[3:]}")
    if name.startswith("fd_"):
        return Measure(f"FD ({name[3:]})", "lower", "plain", f"Fréchet distance to the targets, features of {name[3:]}")
    return MEASURES[name]


def comparable(evaluations: Sequence[Evaluation]) -> tuple[list[list[Evaluation]], list[str]]:
    """One test set's evaluations in groups that may stand in one table, and a sentence for each refused comparison."""
    groups: list[list[Evaluation]] = []
    for evaluation in evaluations:
        for group in groups:
            if group[0].basis == evaluation.basis:
                group.append(evaluation)
                break
        else:
            groups.append([evaluation])
    refused = []
    for group in groups[1:]:
        one, other = groups[0][0], group[0]
        names = sorted(one.basis.keys() | other.basis.keys())
        differs = [name for name in names if one.basis.get(name) != other.basis.get(name)]
        refused.append(
            f"NOT COMPARED: {', '.join(e.variant for e in group)} with {', '.join(e.variant for e in groups[0])} on "
            f"{one.testset}: they differ in {', '.join(differs)}. Evaluate all of them again (`dvc repro`)"
        )
    return groups, refused


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Writes `<folder>/<variant>/<testset>.json` and the flat `.summary.json` beside it."""
    path = folder / evaluation.variant / f"{evaluation.testset}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    summary = {
        f"{method}.{name}": round(estimate.value, 6)
        for method, estimates in evaluation.methods.items()
        for name, estimate in estimates.items()
    }
    for file, tree in ((path, evaluation.model_dump(mode="json")), (path.with_suffix(".summary.json"), summary)):
        write_bytes(file, (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode())


def read_evaluations(folder: Path) -> list[Evaluation]:
    """All metrics files below `folder`, by test set and variant (the paper's own first). Raises ValueError if one is
    damaged or there is none."""
    paths = [p for p in sorted(folder.glob("*/*.json")) if not p.name.endswith(".summary.json")]
    paths = [p for p in paths if not p.name.endswith(".protocol.json")]
    if not paths:
        raise ValueError(f"no metrics under {folder}: run `dvc repro` (or pipeline.evaluate) first")
    evaluations = []
    for path in paths:
        try:
            evaluations.append(Evaluation.model_validate_json(path.read_text()))
        except ValidationError as error:
            raise ValueError(f"{path} is no metrics file of this version, run its evaluation again: {error}") from None
    return sorted(evaluations, key=lambda e: (e.testset, order_of_variants(e.variant)))


def by_variant(evaluations: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """The trainings of each variant: `hard`, `hard-1` and `hard-2` are three of `hard`."""
    found: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        found.setdefault(re.sub(r"-\d+$", "", evaluation.variant), []).append(evaluation)
    return found


def order_of_variants(variant: str) -> tuple[bool, str]:
    """Sort key: `ours` first, then by name."""
    return (variant != "ours", variant)


def measured(evaluations: Iterable[Evaluation], names: Iterable[str]) -> list[str]:
    """Those of `names` that at least one method has, with the distances present in place of `fd` and `kd`."""
    present = {name for e in evaluations for estimates in e.methods.values() for name in estimates}
    kinds = {
        kind: sorted(name for name in present if name == official or name.startswith(f"{kind}_"))
        for kind, official in (("fd", "fid"), ("kd", "kid"))
    }
    return [name for wanted in names for name in kinds.get(wanted, [wanted]) if name in present]

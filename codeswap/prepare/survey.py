"""What is in the data sets, and what of the training faces is in the test sets too: numbers, lists and a contact sheet.

Read by the report from files (`survey.json`, `<set>.png`): preparation and evaluation never import each other.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt64
from PIL import Image as PILImage
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from codeswap.data.annotations import Annotations
from codeswap.data.faces import Faces, to_float
from codeswap.data.manifest import read_card, write_bytes
from codeswap.data.pictures import grid, save_png
from codeswap.perception.roles import load
from codeswap.types import Config

SURVEY = "survey.json"
KINDS = ("persons", "same_files", "near_pictures", "near_faces")  # of what two sets may share
_BATCH = 64
_SHEET = (6, 10)  # rows and columns of a contact sheet
_NAMED = 20  # of many findings, so many are named
_POSE_BINS = np.arange(-90, 91, 15)
_PERSON_BINS = np.array([1, 2, 3, 5, 10, 20, 50, 100, 1000, 10**9])
_SIDE_BINS = np.append(2 ** np.arange(4, 14), 10**9)
_CHUNK = 2**22  # hashes compared at once, times the test faces


class SurveyConfig(Config):
    """When two faces count as nearly the same picture, or as perhaps the same person."""

    near_bits: int = Field(4, ge=0, le=16)  # of 64 of the perceptual hash, which finds candidates ...
    near_correlation: float = Field(0.99, gt=0, le=1)  # ... and of the pixels: aligned faces have much alike
    near_cosine: float = Field(0.75, gt=0, le=1)  # of identity_train's embeddings


class SurveyParams(Config):
    """All that the `survey` stage reads from params.yaml."""

    survey: SurveyConfig = SurveyConfig()


class Look(NamedTuple):
    """What is known of every face of one set. `embeddings` goes through (first index, unit vectors (k, e))."""

    hashes: UInt64[np.ndarray, " n"]
    embeddings: Callable[[], Iterator[tuple[int, Tensor]]]
    pose: Float[np.ndarray, "n 3"]  # degrees: yaw, pitch, roll


def difference_hash(images: Tensor) -> UInt64[np.ndarray, " n"]:
    """64 bits of (n, 3, h, w) pictures: is each of 8x9 grey cells brighter than its right neighbour (dHash, Krawetz).

    It survives another size, format or brightness; small crops and edits change a few bits.
    """
    grey = images.float().mean(dim=1, keepdim=True)
    cells = F.interpolate(grey, (8, 9), mode="area")[:, 0]
    bits = (cells[:, :, 1:] > cells[:, :, :-1]).flatten(1).numpy()
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def look_at_annotated(faces: Faces, annotations: Annotations) -> Look:
    """Training faces: their embeddings stay in the mapped file; 20 bytes of memory for each face."""

    def embeddings() -> Iterator[tuple[int, Tensor]]:
        for start, rows in annotations.identity.blocks():
            yield start, F.normalize(rows[:, 0], dim=1)

    hashes = [difference_hash(images) for images in _batches(faces)]
    pose = [rows[:, 0].numpy() for _, rows in annotations.pose.blocks()]
    return Look(np.concatenate(hashes), embeddings, np.concatenate(pose))


@torch.inference_mode()
def look_at(faces: Faces, perception: Path) -> Look:
    """Test faces, which nothing has annotated: the networks are run."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    identity, pose = (load(perception, role).to(device) for role in ("identity_train", "pose"))
    hashes, vectors, poses = [], [], []
    for images in _batches(faces):
        x = to_float(images.to(device))
        hashes.append(difference_hash(images))
        vectors.append(F.normalize(identity(x).float(), dim=1).cpu())
        poses.append(pose(x).float().cpu().numpy())
    return Look(np.concatenate(hashes), lambda: iter([(0, torch.cat(vectors))]), np.concatenate(poses))


def _batches(faces: Faces) -> Iterator[Tensor]:
    for start in tqdm(range(0, len(faces), _BATCH), desc="survey", unit="batch", disable=None, leave=False):
        index = np.arange(start, min(start + _BATCH, len(faces)))
        yield faces.images(index, np.zeros(len(index), dtype=bool))


def survey(data: Path, perception: Path, config: SurveyConfig, out: Path) -> dict[str, object]:
    """Surveys every data set of `data`/shards and writes SURVEY and one contact sheet each to `out`.

    Training sets have to be annotated. Returns what was written. Raises ValueError when something cannot be read.
    """
    sets = {
        split: {folder.name: Faces([folder]) for folder in sorted((data / "shards" / split).glob("[!.]*"))}
        for split in ("train", "test")
    }
    looks = {name: look_at(faces, perception) for name, faces in sets["test"].items()}
    for name, faces in sets["train"].items():
        looks[name] = look_at_annotated(faces, Annotations([data / "annotations" / "train" / name], faces, None))
    out.mkdir(parents=True, exist_ok=True)
    described = {}
    for split, members in sets.items():
        for name, faces in members.items():
            described[name] = {"split": split} | _describe(faces, looks[name])
            save_png(out / f"{name}.png", contact_sheet(faces))
    leaks = [
        {"train": train, "test": test} | _leaks((known, looks[train]), (new, looks[test]), config)
        for train, known in sets["train"].items()
        for test, new in sets["test"].items()
    ]
    found = {"sets": described, "leaks": leaks, "config": config.model_dump(mode="json")}
    write_bytes(out / SURVEY, (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
    return found


def contact_sheet(faces: Faces) -> PILImage.Image:
    """Faces from evenly spaced places of the set, row by row."""
    rows, columns = _SHEET
    chosen = np.unique(np.linspace(0, len(faces) - 1, min(rows * columns, len(faces))).astype(np.int64))
    images = faces.images(chosen, np.zeros(len(chosen), dtype=bool))
    return grid(images.split(columns), scale=max(1, 96 // faces.size))


def _describe(faces: Faces, seen: Look) -> dict[str, object]:
    manifest = faces.manifest
    known = faces.identity[faces.identity >= 0]
    per_person = np.bincount(known)
    sides = pc.min_element_wise(manifest["source_width"], manifest["source_height"]).to_numpy()
    card = read_card(faces.folders[0])
    return {
        "faces": len(faces),
        "persons": int((per_person > 0).sum()),
        "faces_of_unknown_persons": int((faces.identity < 0).sum()),
        "faces_per_person": _histogram(per_person[per_person > 0], _PERSON_BINS),
        "source_side": _histogram(sides, _SIDE_BINS),
        "yaw": _histogram(seen.pose[:, 0], _POSE_BINS),
        "pitch": _histogram(seen.pose[:, 1], _POSE_BINS),
        "licences": dict(sorted(_counts(manifest["licence"]).items())),
        "quarantined": card.get("quarantined", {}),
    }


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()}


def _histogram(values: np.ndarray, edges: np.ndarray) -> dict[str, list[float]]:
    inside = np.clip(values, edges[0], edges[-1])
    counts, _ = np.histogram(inside, edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _leaks(train: tuple[Faces, Look], test: tuple[Faces, Look], config: SurveyConfig) -> dict[str, object]:
    """What both sets hold: persons by name, files by hash, pictures by perceptual hash, faces by embedding."""
    (known, seen), (new, looked) = train, test
    candidates = _near_pictures(seen.hashes, looked.hashes, config.near_bits)
    twins = [pair for pair in candidates if _correlation(new, known, *pair) >= config.near_correlation]
    nearest, where = _nearest(seen, torch.cat([rows for _, rows in looked.embeddings()]))
    alike = np.flatnonzero(nearest >= config.near_cosine)
    return {
        "persons": _same_persons(known, new),
        "same_files": _some(_common(known.manifest["sha256"], new.manifest["sha256"])),
        "near_pictures": _some([(_key(new, j), _key(known, i)) for j, i in twins]),
        "near_faces": _some([(_key(new, j), _key(known, where[j])) for j in alike[np.argsort(-nearest[alike])]]),
        "nearest_cosine": {
            "median": float(np.median(nearest)),
            "highest": float(nearest.max()),
        },
    }


def _key(faces: Faces, index: int) -> str:
    return faces.key_column[int(index)].as_py()


def _some(found: Sequence[object]) -> dict[str, object]:
    return {"count": len(found), "first": list(found[:_NAMED])}


def _same_persons(known: Faces, new: Faces) -> dict[str, object] | None:
    """Names that both sets use; None when names of the two sets do not mean the same persons."""
    origins = [read_card(faces.folders[0]).get("source", {}) for faces in (known, new)]
    of = [{key: origin.get(key) for key in ("source", "root")} for origin in origins]
    if origins[0].get("source") == "synthetic":
        of = [place | {"seed": origin.get("seed")} for place, origin in zip(of, origins, strict=True)]
    return _some(_common(known.manifest["identity"], new.manifest["identity"])) if of[0] == of[1] else None


def _common(one: pa.ChunkedArray, other: pa.ChunkedArray) -> list[str]:
    values = pc.unique(other).drop_null()
    return values.filter(pc.is_in(values, value_set=pc.unique(one).drop_null())).to_pylist()


def _near_pictures(known: np.ndarray, new: np.ndarray, bits: int) -> Iterator[tuple[int, int]]:
    """(test, training) faces whose hashes differ in at most `bits` bits; every pair is compared, by chunks."""
    step = max(1, _CHUNK // max(len(new), 1))
    for start in range(0, len(known), step):
        different = np.bitwise_count(new[:, None] ^ known[None, start : start + step])
        for j, i in zip(*np.nonzero(different <= bits), strict=True):
            yield int(j), start + int(i)


def _correlation(one: Faces, other: Faces, i: int, j: int) -> float:
    """Of two pictures' grey values at 32x32 pixels: 1 for the same picture in another size, format or brightness."""
    straight = np.zeros(1, dtype=bool)
    grey = [faces.images(np.array([n]), straight).float().mean(dim=1) for faces, n in ((one, i), (other, j))]
    small = [F.interpolate(picture[None], (32, 32), mode="area").flatten() for picture in grey]
    return float(torch.corrcoef(torch.stack(small))[0, 1])


def _nearest(known: Look, new: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Highest cosine of each test face to a training face, and to which."""
    best, where = torch.full((len(new),), -2.0), torch.zeros(len(new), dtype=torch.long)
    for start, rows in known.embeddings():
        value, index = (new @ rows.T).max(dim=1)
        better = value > best
        best, where = torch.where(better, value, best), torch.where(better, index + start, where)
    return best.numpy(), where.numpy()

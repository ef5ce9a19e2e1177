"""Who is swapped onto whom: pair lists as pure functions of a manifest and a seed (METHOD §E.4-E.5, §F.2).

A list can be written to a file, handed to the owner of another method, and read back; its SHA-256 names it everywhere.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveInt

from codeswap.data.manifest import write_bytes
from codeswap.types import Config

Shape = Literal["images", "identities", "videos"]


class ProtocolConfig(Config):
    """How the pairs of one test set are drawn; the defaults follow the manifest."""

    shape: Shape | None = None  # None: videos if the manifest names any, else identities if one has several images
    seed: int = 2024
    groups: PositiveInt | None = None  # draw this many identities or videos (CelebA-HQ: 1,000 of 6,217)
    per_group: PositiveInt | None = None  # draw this many images of each identity or frames of each video (FF++: 10)
    rounds: PositiveInt = 1  # times that each query is a target, each time with another source
    pairs: Annotated[int, Field(ge=2)] | None = None  # stop after this many pairs; None: all
    file: Path | None = None  # take a published list instead of drawing one


class PairList(NamedTuple):
    """`answers[i]` is the gallery entry that shows the person of `sources[i]`: the one retrieval has to find."""

    shape: Shape
    seed: int
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    answers: tuple[str, ...]
    gallery: tuple[str, ...]

    def text(self) -> str:
        """The list as JSON, one pair per line; the same list always gives the same bytes."""
        pairs = ",\n".join(json.dumps(pair) for pair in zip(self.sources, self.targets, self.answers, strict=True))
        gallery = ",\n".join(json.dumps(key) for key in self.gallery)
        return (
            f'{{"shape": "{self.shape}", "seed": {self.seed},\n"columns": ["source", "target", "answer"],\n'
            f'"pairs": [\n{pairs}\n],\n"gallery": [\n{gallery}\n]}}\n'
        )

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text().encode()).hexdigest()


def _chance(seed: int, purpose: str, item: object) -> int:
    """A number that stands for a draw: by SHA-256, so that no release of a random generator can change a list."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{item}".encode()).digest()[:8], "big")


def _shuffled(items: Sequence[str], seed: int, purpose: str) -> list[str]:
    return sorted(items, key=lambda item: (_chance(seed, purpose, item), item))


def derangement(groups: np.ndarray, permutation: np.ndarray, seed: int) -> np.ndarray:
    """`permutation` changed as little as needed for groups[p[i]] != groups[i] at every i.

    Each offending place trades with a drawn place that mends it without harming the other.
    Raises ValueError when one group holds more than half of all places, for then there is no such permutation.
    """
    codes, counts = np.unique(groups, return_counts=True)
    if counts.max() * 2 > len(groups):
        raise ValueError(
            f"{counts.max()} of {len(groups)} images belong to one person or video ({codes[counts.argmax()]}): "
            "no pairing can avoid it; add other people to the set"
        )
    permutation = permutation.copy()
    for place in np.flatnonzero(groups[permutation] == groups):
        if groups[permutation[place]] != groups[place]:
            continue  # an earlier trade has mended it
        fits = np.flatnonzero((groups[permutation] != groups[place]) & (groups[permutation[place]] != groups))
        other = fits[_chance(seed, "trade", place) % len(fits)]
        permutation[[place, other]] = permutation[[other, place]]
    return permutation


def draw_pairs(manifest: pa.Table, config: ProtocolConfig) -> PairList:
    """The pair list of a test set. Depends on the manifest's keys, identities, videos and frames, not on its row order.

    images: one image per identity; the gallery is these images themselves, so the target is a wrong answer in it.
    identities: one image per identity is the gallery and is never swapped; all others are queries.
    videos: the gallery is each video's first drawn frame; an answer is right when it shows the source's video.
    In every shape each query is a target once a round and a source once a round, never with itself, its identity or
    its video.
    """
    shape = config.shape or _shape_of(manifest)
    if shape == "videos" and not manifest.num_rows - manifest["video"].null_count:
        raise ValueError("protocol shape `videos`, but the manifest names no video: use `images` or `identities`")
    members = _members(manifest, "video" if shape == "videos" else "identity")
    seed, names = config.seed, sorted(members)
    if config.groups is not None:
        if config.groups > len(names):
            raise ValueError(f"protocol asks for {config.groups} identities or videos, the test set has {len(names)}")
        names = sorted(_shuffled(names, seed, "group")[: config.groups])
    keep = 1 if shape == "images" else config.per_group
    drawn = {name: _draw(members[name], keep, seed) for name in names}
    if shape == "identities":
        gallery = {name: _shuffled(keys, seed, "gallery")[0] for name, keys in drawn.items()}
        owner = {key: name for name, keys in drawn.items() for key in keys if key != gallery[name]}
    else:
        gallery = {name: keys[0] for name, keys in drawn.items()}
        owner = {key: name for name, keys in drawn.items() for key in keys}
    queries = list(owner)
    if len(set(owner.values())) < 2:
        raise ValueError(
            f"the test set gives {len(queries)} query images of fewer than two {shape}: nobody to swap with; "
            "a gallery image is never swapped, so `identities` needs two images of each person"
        )
    place = {key: number for number, key in enumerate(queries)}
    shuffled = np.array([place[key] for key in _shuffled(queries, seed, "source")])
    groups, order = np.array(list(owner.values())), _shuffled(queries, seed, "order")
    targets, sources = [], []
    for turn in range(min(config.rounds, len(queries) - 1)):  # turned on by one, so that every round has other sources
        permutation = derangement(groups, np.roll(shuffled, turn), seed)
        targets += order  # a shortened list is still spread over all groups
        sources += [queries[permutation[place[key]]] for key in order]
    targets, sources = targets[: config.pairs], sources[: config.pairs]
    answers = [gallery[owner[key]] for key in sources]
    return PairList(shape, seed, tuple(sources), tuple(targets), tuple(answers), tuple(gallery[name] for name in names))


def read_pairs(path: Path, known: Sequence[str]) -> PairList:
    """A list written by `write_pairs`. Raises ValueError if it is no such file or names keys the test set lacks."""
    try:
        tree = json.loads(path.read_text())
        columns = list(zip(*tree["pairs"], strict=True)) or [(), (), ()]
        sources, targets, answers = (tuple(map(str, column)) for column in columns)
        pairs = PairList(tree["shape"], int(tree["seed"]), sources, targets, answers, tuple(tree["gallery"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a pair list ({error}): write one with pipeline.pairs") from None
    missing = sorted({*sources, *targets, *pairs.gallery} - set(known))
    if missing:
        raise ValueError(f"{path} names {len(missing)} keys that the test set lacks, first {missing[:3]}: another set?")
    lost = sorted(set(answers) - set(pairs.gallery))
    if lost or not sources:
        raise ValueError(f"{path} has {len(sources)} pairs; {len(lost)} answers are not in its gallery {lost[:3]}")
    return pairs


def pairs_of(manifest: pa.Table, config: ProtocolConfig) -> PairList:
    """The published list that `config.file` names, or the list that `config` draws."""
    if config.file is None:
        return draw_pairs(manifest, config)
    return read_pairs(config.file, manifest["key"].to_pylist())


def write_pairs(path: Path, pairs: PairList) -> None:
    """Writes the list, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, pairs.text().encode())


def _shape_of(manifest: pa.Table) -> Shape:
    if manifest["video"].null_count < manifest.num_rows:
        return "videos"
    known = [name for name in manifest["identity"].to_pylist() if name is not None]
    return "identities" if len(set(known)) < len(known) else "images"


def _members(manifest: pa.Table, column: str) -> dict[str, list[str]]:
    """Keys of each identity or video, by frame and then by key; a face that belongs to none stands for itself."""
    rows = manifest.select(["key", column, "frame"]).to_pylist()
    members: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: (row["frame"] is not None, row["frame"] or 0, row["key"])):
        owner = f"key:{row['key']}" if row[column] is None else str(row[column])
        members.setdefault(owner, []).append(row["key"])
    return members


def _draw(keys: list[str], count: int | None, seed: int) -> list[str]:
    """`count` of `keys` without replacement (all when None or when there are fewer), in their order."""
    drawn = set(_shuffled(keys, seed, "image")[:count])
    return [key for key in keys if key in drawn]

"""Positions -> batches of faces (Stage 1) and of pairs (Stages 2 and 3), with what the annotations know of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from codeswap.data.annotations import Annotations, Vectors
from codeswap.data.faces import Faces, training_folders
from codeswap.data.labels import among, mouth_kept, without_forehead
from codeswap.data.order import Ordering, key_of, uniform
from codeswap.data.pairs import Pairing
from codeswap.data.scenes import scenes, true_swap
from codeswap.models.autoencoder import VQGANConfig
from codeswap.perception.roles import card, check_framing
from codeswap.types import FACE_CLASSES, FEATURE_CLASSES, Mask

T_co = TypeVar("T_co", covariant=True)
Side = tuple[np.ndarray, np.ndarray]  # faces by number, and which of them are mirrored
SKIN = 1
Whose = Literal["source", "target"]  # whose a swap shows


class Feed(Protocol[T_co]):
    """Positions -> a batch, and in words: which faces these are."""

    def __call__(self, positions: np.ndarray) -> T_co: ...

    def describe(self, positions: np.ndarray) -> list[dict[str, object]]: ...


class FaceBatch(NamedTuple):
    """Stage 1: image uint8 (b, 3, h, w); parsing labels uint8 (b, h, w); embeddings of the image as it is shown."""

    image: Tensor
    parsing: Tensor | None
    identity: Tensor
    expression: Tensor


class PairBatch(NamedTuple):
    """Stages 2 and 3: both faces of each pair (images uint8, labels uint8), their embeddings, and who is the same.

    `wanted_a` is the identity that a swap of a's is to have: a's own embedding, or its person's (see `PairFeed`).
    """

    image_a: Tensor
    image_b: Tensor
    parsing_a: Tensor | None
    parsing_b: Tensor | None
    identity_a: Tensor
    identity_b: Tensor
    wanted_a: Tensor
    wanted_b: Tensor
    expression_a: Tensor
    expression_b: Tensor
    pose_a: Tensor
    pose_b: Tensor
    same: Tensor
    sibling_b: Tensor | None = None  # another picture of b's person, of the first pairs only
    has_sibling_b: Tensor | None = None  # 1 where there is one, 0 where it is b itself
    latent_a: Tensor | None = None  # Stage 1's (b, n, d), where they are kept
    latent_b: Tensor | None = None
    true_ab: Tensor | None = None  # rendered faces: the true swaps and their labels, where they are asked for
    true_ba: Tensor | None = None
    true_parsing_ab: Tensor | None = None
    true_parsing_ba: Tensor | None = None

    def exchanged(self) -> "PairBatch":
        """The same pairs as (b, a), without siblings."""
        a_b = [(self[i + 1], self[i]) for i in range(0, PairBatch._fields.index("same"), 2)]
        return PairBatch(
            *(item for pair in a_b for item in pair),
            self.same,
            latent_a=self.latent_b,
            latent_b=self.latent_a,
            true_ab=self.true_ba,
            true_ba=self.true_ab,
            true_parsing_ab=self.true_parsing_ba,
            true_parsing_ba=self.true_parsing_ab,
        )

    def in_both_directions(self) -> "PairBatch":
        """Every pair as (a, b) and then as (b, a): twice as many pairs."""
        other = self.exchanged()
        return PairBatch(*(x if y is None else torch.cat([x, y]) for x, y in zip(self, other, strict=True)))


class TrainingFaces(NamedTuple):
    """All training sets with their annotations."""

    faces: Faces
    annotations: Annotations

    def check(self, vqgan: VQGANConfig) -> None:
        """Raises ValueError when Stage 1's model is for faces of another size or framing."""
        wrong = [
            f"image.{short} is {getattr(self.faces, short)}, vqgan.{name} {getattr(vqgan, name)}"
            for name, short in (("image_size", "size"), ("framing", "framing"))
            if getattr(vqgan, name) != getattr(self.faces, short)
        ]
        if wrong:
            raise ValueError(f"{'; '.join(wrong)}: give both the same, and train Stage 1 on these faces")


def open_training_faces(root: Path, *roles: str) -> TrainingFaces:
    """The training sets below `root`, annotated by exactly the networks of `roles` that lie there now.

    Raises ValueError when shards, annotations and networks do not belong together.
    """
    folders = training_folders(root / "data" / "shards" / "train")
    faces = Faces(folders)
    perception = root / "models" / "perception"
    check_framing(perception, faces.framing, folders[0])
    known = card(perception)["roles"]
    networks = {role: known[role]["sha256"] for role in roles}
    places = [root / "data" / "annotations" / "train" / folder.name for folder in folders]
    return TrainingFaces(faces, Annotations(places, faces, networks))


class FaceFeed:
    """Batches of single faces. Mirroring is a function of (seed, position)."""

    def __init__(self, source: TrainingFaces, order: Ordering, seed: int, flip: bool, parsing: bool) -> None:
        self._source, self._order, self._flip, self._parsing = source, order, flip, parsing
        self._key = key_of(seed, "flip")

    def __call__(self, positions: np.ndarray) -> FaceBatch:
        faces, annotations = self._source
        index = self._order.at(positions)
        flip = self._flip & (uniform(self._key, positions) < 0.5)
        return FaceBatch(
            faces.images(index, flip),
            annotations.parsing(index, flip) if self._parsing else None,
            annotations.identity[index, flip.astype(np.int64)],
            annotations.expression[index, flip.astype(np.int64)],
        )

    def describe(self, positions: np.ndarray) -> list[dict[str, object]]:
        """Which face stands at each position: its key, and whether it is mirrored."""
        index, flip = self._order.at(positions), self._flip & (uniform(self._key, positions) < 0.5)
        keys = self._source.faces.key_column.take(index).to_pylist()
        return [
            {"position": position, "face": key, "mirrored": mirrored}
            for position, key, mirrored in zip(positions.tolist(), keys, flip.tolist(), strict=True)
        ]


class PairFeed:
    """Batches of pairs; the first `siblings` of each batch with another picture of b's person, mirrored as b is.

    `person`: the identity wanted of a swap is the mean embedding of all pictures of its person instead of the one
    picture's. One picture's embedding also says something of its pose and light; their mean does not.
    `latents` gives Stage 1's latents of faces and views, where they are kept. `truth`: pairs of rendered faces come
    with their true swaps; raises ValueError when the faces are photographs. `forehead` "target": in the pairs' label
    maps the skin above the brows is no part of the face (data/labels.py), so that it stays as it is.
    """

    def __init__(
        self,
        source: TrainingFaces,
        pairing: Pairing,
        parsing: bool,
        siblings: int = 0,
        person: bool = False,
        latents: Callable[[np.ndarray, np.ndarray], Tensor] | None = None,
        truth: bool = False,
        forehead: Whose = "source",
    ) -> None:
        self._source, self._pairing, self._parsing, self._siblings = source, pairing, parsing, siblings
        self._latents, self._truth, self._forehead = latents, truth, forehead
        if truth and scenes([source.faces.facts(0), source.faces.facts(len(source.faces) - 1)]) is None:
            raise ValueError(
                "swap.truth: photographs have no true swap: set it to null, its `of` to dressed, or train on rendered "
                "faces"
            )
        self._persons = person_means(source.annotations.identity, source.faces.identity) if person else None

    def __call__(self, positions: np.ndarray) -> PairBatch:
        faces, annotations = self._source
        pairs = self._pairing.at(positions)
        sides = [(pairs.a, pairs.flip_a), (pairs.b, pairs.flip_b)]
        views = [(index, flip.astype(np.int64)) for index, flip in sides]
        n = self._siblings
        return PairBatch(
            *(faces.images(index, flip) for index, flip in sides),
            *(self._labels(index, flip) if self._parsing else None for index, flip in sides),
            *(annotations.identity[view] for view in views),
            *(self._wanted(*view) for view in views),
            *(annotations.expression[view] for view in views),
            *(annotations.pose[view] for view in views),
            torch.from_numpy(pairs.same),
            faces.images(pairs.sibling_b[:n], pairs.flip_b[:n]) if n else None,
            torch.from_numpy(pairs.sibling_b[:n] != pairs.b[:n]).float() if n else None,
            *(None if self._latents is None else self._latents(index, flip) for index, flip in sides),
            *(self._true_swaps(*sides) if self._truth else ()),
        )

    def describe(self, positions: np.ndarray) -> list[dict[str, object]]:
        """Which two faces meet at each position: their keys, and whether they are mirrored."""
        pairs, column = self._pairing.at(positions), self._source.faces.key_column
        rows = zip(
            positions.tolist(), column.take(pairs.a).to_pylist(), column.take(pairs.b).to_pylist(),
            pairs.flip_a.tolist(), pairs.flip_b.tolist(), strict=True,
        )  # fmt: skip
        names = ("position", "a", "b", "a_mirrored", "b_mirrored")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def _labels(self, index: np.ndarray, flip: np.ndarray) -> Tensor:
        labels = self._source.annotations.parsing(index, flip)
        return without_forehead(labels) if self._forehead == "target" else labels

    def _true_swaps(self, side_a: Side, side_b: Side) -> Iterator[Tensor]:
        """Pictures ab and ba, then their label maps."""
        faces = self._source.faces
        a, b = (
            scenes([faces.facts(face) for face in index.tolist()]).mirrored(torch.from_numpy(flip))
            for index, flip in (side_a, side_b)
        )
        (picture_ab, labels_ab), (picture_ba, labels_ba) = true_swap(a, b, faces.size), true_swap(b, a, faces.size)
        yield from (picture_ab, picture_ba, labels_ab, labels_ba)

    def _wanted(self, index: np.ndarray, flip: np.ndarray) -> Tensor:
        own, person = self._source.annotations.identity[index, flip], self._source.faces.identity[index]
        if self._persons is None:
            return own
        return torch.where(torch.from_numpy(person >= 0)[:, None], self._persons[np.maximum(person, 0), flip], own)


def person_means(embeddings: Vectors, person: np.ndarray) -> Tensor:
    """Mean of the embeddings of each person's pictures, view by view: (persons, 2, e).

    `person` codes each picture's person, -1 where unknown.
    """
    persons = int(person.max(initial=0)) + 1
    sums, counts = torch.zeros(persons, *embeddings.shape[1:]), torch.zeros(persons)
    for start, rows in embeddings.blocks():
        known = torch.from_numpy(person[start : start + len(rows)])
        sums.index_add_(0, known[known >= 0], rows[known >= 0])
        counts += torch.bincount(known[known >= 0], minlength=persons)
    return sums / counts.clamp(min=1)[:, None, None]


def face_mask(parsing: Tensor) -> Mask:
    """Labels (b, h, w) -> M_GT: 1 on skin, brows, eyes, nose and mouth, else 0 (METHOD §D.5)."""
    return among(parsing, FACE_CLASSES)[:, None].float()


def wanted_mask(own: Tensor, other: Tensor, mouth: Whose) -> Mask:
    """M_GT of swaps of faces labelled `own` onto `other` (b, h, w): `face_mask` of `other`.

    `mouth` "target": less the mouths that are the target's because only one of the two is open (data/labels.py).
    """
    return face_mask(other) * (1 - mouth_kept(own, other)) if mouth == "target" else face_mask(other)


def part_masks(parsing: Tensor) -> Tensor:
    """Labels (b, h, w) -> (b, 3, h, w): 1 on the brows, on the eyes, and on the lips."""
    return torch.stack([among(parsing, part) for part in ((2, 3), (4, 5), (12, 13))], dim=1).float()


def pixel_weights(parsing: Tensor, skin: float, features: float) -> Mask:
    """Labels (b, h, w) -> 1 + `skin` on skin, 1 + `features` on brows, eyes, nose and mouth, else 1; mean 1."""
    weights = 1 + skin * (parsing == SKIN).float() + features * among(parsing, FEATURE_CLASSES).float()
    return (weights / weights.mean())[:, None]

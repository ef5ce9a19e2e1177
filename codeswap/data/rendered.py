"""Rendered faces as a data set: `identities` x `images_per_identity` pictures, or short videos."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from codeswap.data.records import Raw, Record, Source
from codeswap.data.synthetic import attributes, identities, render

_CHUNK = 128  # faces rendered at once


class Synthetic(Source):
    """Faces of `data/synthetic.py`. Give a test set another `seed` than the training set: then they share nobody."""

    source: Literal["synthetic"]
    kind: Literal["images", "video"] = "images"
    identities: int = Field(100, ge=1)  # persons; of videos: one for each
    images_per_identity: int = Field(10, ge=1)  # pictures of a person, or frames of its video
    licence: str = "rendered by CodeSwap, depicts nobody"

    def missing(self) -> list[str]:
        return []

    def origin(self) -> str:
        return "nothing to fetch: the faces are rendered"

    def records(self, name: str) -> Iterator[Record]:
        """Source and key are the numbers of identity and image; frames of a video have both as `video` and `frame`."""
        video = self.kind == "video"
        for person in range(self.identities):
            for image in range(self.images_per_identity):
                key = f"{name}-{person:06d}-{image:04d}"
                clip, frame = (f"{person:06d}", image) if video else (None, None)
                yield Record(key, f"{person}/{image}", str(person), clip, frame, self.licence, None)

    def read(self, records: Sequence[Record], size: int) -> Iterator[Iterator[Raw]]:
        for start in range(0, len(records), _CHUNK):
            numbers = [tuple(map(int, record.source.split("/"))) for record in records[start : start + _CHUNK]]
            identity = torch.cat([identities(person, 1, self.seed) for person, _ in numbers])
            attribute = torch.cat([self._attribute(person, image) for person, image in numbers])
            pictures = render(identity, attribute, size)[0].permute(0, 2, 3, 1).numpy()
            for pixels, person, look in zip(pictures, identity, attribute, strict=True):
                parameters = {"identity": _floats(person), "attributes": _floats(look)}
                yield iter([Raw(pixels, hashlib.sha256(pixels.tobytes()).hexdigest(), synthetic=parameters)])

    def _attribute(self, person: int, image: int) -> Tensor:
        """(1, ATTRIBUTES): drawn afresh for each picture; in a video a smooth way between two drawn ends."""
        if self.kind == "images":
            return attributes(person * self.images_per_identity + image, 1, self.seed)
        start, end = attributes(2 * person, 2, self.seed)
        along = image / max(self.images_per_identity - 1, 1)
        return torch.lerp(start, end, 0.5 - 0.5 * math.cos(math.pi * along))[None]


def _floats(values: Tensor) -> list[float]:
    # The shortest decimals that give the same float32 back: exact, and half as long as those of a float64.
    return [float(str(value)) for value in values.numpy()]

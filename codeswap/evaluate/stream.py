"""The pairs of a test set as batches on a device, read ahead."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from codeswap.data.faces import Faces, to_float
from codeswap.data.loader import batches
from codeswap.data.scenes import Scenes, scenes
from codeswap.evaluate import temporal
from codeswap.evaluate.baselines import Truth, truth_of
from codeswap.evaluate.judges import Judges
from codeswap.evaluate.methods import Batch
from codeswap.evaluate.protocol import PairList
from codeswap.types import Image

Fetched = tuple[list[tuple[str, str]], Tensor, Tensor, Truth | None]


class Pairs:
    """The pairs of a test set as batches: reading is done ahead by a thread, in order."""

    def __init__(self, faces: Faces, pairs: PairList, judges: Judges, device: torch.device) -> None:
        self._faces, self._judges, self._device, self.framing = faces, judges, device, faces.framing
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

    def batches(self, start: int, stop: int, size: int) -> "contextlib.closing[Iterator[Batch]]":
        """Pairs `start` to `stop` in order, `size` at a time; a context manager that yields the iterator."""

        def run() -> Iterator[Batch]:
            def fetch(places: np.ndarray) -> Fetched:
                return self._fetch(*[start + places[places < stop - start]] * 2)

            ahead = batches(fetch, 0, size, 0, 1, 2, 1)
            with contextlib.closing(ahead):
                for position, fetched in ahead:
                    yield self._on_device(*fetched)
                    if position >= stop - start:
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

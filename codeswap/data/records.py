"""What every source of faces shares: its records, the pixels they give, and why one may be unusable."""

import hashlib
import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps
from pydantic import Field, model_validator

from codeswap.types import Config

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_LONGEST_KEY = 80  # a tar header has room for 100 characters with the suffix
_LARGEST_FILE = 2**29  # bytes of one picture; PIL itself refuses more than 179 million pixels


class Record(NamedTuple):
    """One input of a source. `wanted` faces are taken of it: one of a picture, several of a video."""

    key: str
    source: str  # relative to the source's root
    identity: str | None
    video: str | None
    frame: int | None
    licence: str
    points: list[float] | None  # landmarks x, y, x, y ... in the source's pixels, where they are known
    wanted: int = 1


class Raw(NamedTuple):
    """Decoded pixels, uint8 (h, w, 3) RGB, and the hash of what they were decoded from."""

    pixels: np.ndarray
    sha256: str
    frame: int | None = None  # of a video
    synthetic: dict[str, list[float]] | None = None  # parameters of a rendered face


class UnusableError(ValueError):
    """An input that gives no face; `reason` is one of a few fixed words."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Source(Config, ABC):
    """Where a data set's faces come from. The group `datasets.<name>` of params.yaml *is* one of its subclasses."""

    split: Literal["train", "test"]
    seed: int = 2024  # of everything drawn: the order of training faces, `limit`, frames of a video
    limit: int | None = Field(None, ge=1)  # use only so many records, drawn by the seed
    shard_size: int = Field(1000, ge=1)  # records of one shard
    validation: int = Field(0, ge=0)  # of a training set: about so many faces that no training sees, to validate on
    aligned: bool = True  # pictures are FFHQ-aligned squares already; else faces are detected and aligned
    min_size: int = Field(0, ge=0)  # shorter side of a usable picture; of the face's box where faces are detected

    @model_validator(mode="after")
    def _only_training_sets_are_validated(self) -> "Source":
        if self.validation and self.split == "test":
            raise ValueError("validation: faces are held out of training sets; a test set is never trained on")
        return self

    @abstractmethod
    def missing(self) -> list[str]:
        """Everything that is not where it should be, one line each."""

    @abstractmethod
    def origin(self) -> str:
        """Where to get the data and under which licence."""

    @abstractmethod
    def records(self, name: str) -> Iterator[Record]:
        """All inputs, in a fixed order, cheaply: nothing is decoded. `name` is the data set's."""

    @abstractmethod
    def read(self, records: Sequence[Record], size: int) -> Iterator[Iterator[Raw]]:
        """For each record the candidates to take `wanted` faces from, decoded as they are asked for.

        Advancing an inner iterator raises UnusableError when the input gives no pixels. Only a renderer needs `size`.
        """


def key_for(dataset: str, source: str) -> str:
    """A stable, printable, tar-safe name for `source` (relative path) of `dataset`.

    Letters, digits and underscores stay, folders are joined by dashes; where that loses anything, a part of the
    path's hash keeps names apart.
    """
    parts = source.rpartition(".")[0].split("/") if "." in source.rpartition("/")[2] else source.split("/")
    clean = [re.sub(r"[^A-Za-z0-9_]", "_", part) for part in parts]
    key = "-".join([dataset, *clean])
    if clean == parts and len(key) <= _LONGEST_KEY:
        return key
    return f"{key[: _LONGEST_KEY - 9]}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"


def read_picture(path: Path) -> Raw:
    """Decodes a photograph upright, in RGB. Raises UnusableError when it cannot be read."""
    try:
        if not path.is_file():  # a pipe would be waited for
            raise UnusableError("unreadable", "no regular file")
        if (size := path.stat().st_size) > _LARGEST_FILE:
            raise UnusableError("unreadable", f"{size:,} bytes, more than {_LARGEST_FILE:,}")
        data = path.read_bytes()
        with PILImage.open(io.BytesIO(data)) as image:
            if image.mode.startswith(("I", "F")):
                raise UnusableError("unreadable", f"{image.mode} pixels of more than 8 bits")
            pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, PILImage.DecompressionBombError) as error:
        if isinstance(error, UnusableError):
            raise
        detail = str(error).replace(str(path), path.name).split("<_io", maxsplit=1)[0]
        raise UnusableError("unreadable", detail or type(error).__name__) from None
    return Raw(pixels, hashlib.sha256(data).hexdigest())


def pictures_below(root: Path) -> Iterator[str]:
    """Relative paths of the pictures in a tree, folder by folder. Hidden files and other kinds are no inputs.

    Raises ValueError for a name that no table can hold.
    """
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up the tree
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        place = Path(folder).relative_to(root)
        for name in sorted(files):
            if name.lower().endswith(PICTURES) and not name.startswith("."):
                path = (place / name).as_posix()
                if not path.isascii() and path != path.encode(errors="replace").decode():
                    raise ValueError(f"{root}: the name of {path!r} is not UTF-8: rename it")
                yield path


def read_pictures(root: Path, records: Sequence[Record]) -> Iterator[Iterator[Raw]]:
    """`Source.read` of every source whose records are picture files below `root`."""
    return ((read_picture(root / path) for path in (record.source,)) for record in records)

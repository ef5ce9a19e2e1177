"""Faces on disk as one indexed collection: index -> pixels, by one positioned read."""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from codeswap.data.manifest import CARD, HELD_OUT, MANIFEST, read_card, read_manifest
from codeswap.data.remote import URL, RemoteShardError, ShardCache, remote_url
from codeswap.data.shards import DamagedShardError, Place, decode, read_facts, read_image

Read = TypeVar("Read")
_OPEN_SHARDS = 64  # open files of one thread; a window of the order touches only a few shards
_COLUMNS = ["key", "dataset", "identity", "licence", "shard", "offset", "size", "crc32"]


def training_folders(root: Path) -> list[Path]:
    """The data set folders below `root` (data/shards/train), sorted. Raises ValueError when there is none."""
    folders = sorted(path.parent for path in root.glob(f"[!.]*/{CARD}"))
    if not folders:
        raise ValueError(f"{root} holds no data set: run `dvc repro` for the `shard` stage of a training set")
    return folders


def held_out_folders(root: Path) -> list[Path]:
    """The folders of faces held out of the training sets below `root` (data/shards/train), sorted; maybe none."""
    return sorted(path.parent for path in root.glob(f"[!.]*/{HELD_OUT}/{CARD}"))


def to_float(image: UInt8[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 3 h w"]:
    """Pixels 0..255 -> -1..1."""
    return image.float() / 127.5 - 1


class _Shard:
    """A file descriptor that closes itself."""

    def __init__(self, number: int):
        self.number = number

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class _OpenFiles(threading.local):
    """The shards one thread has open, least recently used first: no lock, and no file closed under a reader."""

    def __init__(self) -> None:
        self.shards: OrderedDict[int, _Shard] = OrderedDict()


class Faces:
    """All faces of some data set folders, one after another in manifest order.

    Opening reads the manifests and compares the shards' sizes with the cards; it raises one ValueError that lists
    every missing or truncated shard. Shards that are not here are fetched when they are first read, where the
    environment names an object store (`data/remote.py`). `read`, `facts` and `images` may be called from threads.

    Attributes: `identity` int64 code of each face's person, -1 where unknown (the same name in two data sets is two
    persons); `shards` faces per shard of each data set, for the order; `licences` of each data set; `size` in pixels;
    `framing` is the side of the square that they show, of FFHQ's.
    """

    def __init__(self, folders: Sequence[Path]):
        if not folders:
            raise ValueError("no data set folder was given: name at least one")
        self.folders = list(folders)
        self.licences: dict[str, str] = {}
        self.shards: dict[str, list[int]] = {}
        self._paths: list[Path] = []
        self._remote: dict[Path, tuple[str, int]] = {}  # address and size of what is not on this machine
        self._open_files = _OpenFiles()
        problems, sizes, tables, identities, shards = [], {}, [], [], []
        people = 0
        for folder in self.folders:
            card, table = read_card(folder), read_manifest(folder, _COLUMNS)
            sizes[str(folder)] = card["image"]["size"], card["image"].get("framing", 1.0)
            for name, size in card["shards"].items():
                if not (folder / name).exists() and (url := remote_url(folder, name)):
                    self._remote[folder / name] = url, size
                elif problem := _check(folder / name, size):
                    problems.append(problem)
            names = table["shard"].dictionary_encode().combine_chunks()
            name = card["dataset"]
            if name in self.shards:
                raise ValueError(f"two of the folders {[str(path) for path in folders]} hold the data set {name!r}")
            self.licences[name] = ", ".join(sorted(set(table["licence"].unique().to_pylist())))
            self.shards[name] = np.bincount(names.indices, minlength=len(names.dictionary)).tolist()
            shards.append(names.indices.to_numpy() + len(self._paths))
            self._paths += [folder / name for name in names.dictionary.to_pylist()]
            persons = table["identity"].dictionary_encode().combine_chunks()
            identities.append(np.where(persons.is_null(), -1, persons.indices.fill_null(0).to_numpy() + people))
            people += len(persons.dictionary)
            tables.append(table)
        if problems:
            raise ValueError(f"{len(problems)} shard(s) are not what their card says:\n  " + "\n  ".join(problems))
        if len(set(sizes.values())) > 1:
            raise ValueError(f"data sets of different image sizes or framings cannot be read together: {sizes}")
        table = pa.concat_tables(tables)
        self.size, self.framing = next(iter(sizes.values()))
        self.key_column: pa.ChunkedArray = table["key"]
        self.identity: np.ndarray = np.concatenate(identities).astype(np.int64)
        self._shard: np.ndarray = np.concatenate(shards)
        self._offset, self._bytes, self._crc32 = (table[name].to_numpy() for name in ("offset", "size", "crc32"))
        if len(self) == 0:
            raise ValueError(f"the manifests of {[str(path) for path in folders]} list no face")

    def __len__(self) -> int:
        return len(self._shard)

    @cached_property
    def keys(self) -> list[str]:
        """The key of each face."""
        return self.key_column.to_pylist()

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The sha256 of each data set's manifest, which names every face's bytes: a model's `data`."""
        return dict(
            zip(
                self.shards,
                (hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest() for folder in self.folders),
                strict=True,
            )
        )

    @cached_property
    def _cache(self) -> ShardCache:
        return ShardCache.from_environment()

    @cached_property
    def manifest(self) -> pa.Table:
        """All columns of the manifests, one after another (read when first asked for)."""
        return pa.concat_tables([read_manifest(folder) for folder in self.folders])

    def encoded(self, index: int) -> bytes:
        """Face `index` as it is stored. Raises DamagedShardError naming the file."""
        return self._read(index, read_image)

    def read(self, index: int, into: np.ndarray | None = None) -> np.ndarray:
        """Face `index` as uint8 (h, w, 3) RGB, a jpg `into` an array when one is given. Raises DamagedShardError."""
        data = self.encoded(index)
        try:
            return decode(data, into)
        except ValueError as error:
            raise self._damaged(index, error) from None

    def facts(self, index: int) -> dict[str, object]:
        """What is known of face `index`: its manifest row, and for a rendered face `synthetic` parameters."""
        return self._read(index, partial(read_facts, key=self.key_column[index].as_py()))

    def images(self, indices: np.ndarray, flips: np.ndarray) -> UInt8[Tensor, "b 3 h w"]:
        """The faces at `indices`, mirrored where `flips`; `to_float` scales them.

        Decoded into place, so the memory format is torch's channels_last.
        """
        out = np.empty((len(indices), self.size, self.size, 3), dtype=np.uint8)
        for row, index, flip in zip(out, indices.tolist(), flips.tolist(), strict=True):
            pixels = self.read(index, row)
            if pixels.shape[:2] != (self.size, self.size):
                raise self._damaged(index, f"it is {pixels.shape[1]}x{pixels.shape[0]}, not {self.size} px square")
            if flip:
                row[:] = pixels[:, ::-1].copy()
            elif pixels.base is not row and pixels is not row:
                row[:] = pixels
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def _read(self, index: int, reader: Callable[[int, Place], Read]) -> Read:
        """What `reader` reads of a face. A cached copy of a remote shard that went bad is fetched again, once."""
        if not 0 <= index < len(self):
            raise IndexError(f"face {index} of {len(self)}")
        shard = int(self._shard[index])
        place = Place(int(self._offset[index]), int(self._bytes[index]), int(self._crc32[index]))
        try:
            return reader(self._descriptor(shard), place)
        except ValueError as error:
            remote = self._remote.get(self._paths[shard])
            if remote is None or isinstance(error, RemoteShardError):
                raise self._damaged(index, error) from None
        self._cache.discard(*remote)
        self._open_files.shards.pop(shard, None)
        try:
            return reader(self._descriptor(shard), place)
        except ValueError as error:
            raise self._damaged(index, f"{error}, and so it is at {remote[0]}") from None

    def _damaged(self, index: int, why: object) -> DamagedShardError:
        path, key = self._paths[self._shard[index]], self.key_column[index].as_py()
        return DamagedShardError(
            f"{path} is damaged: face {key!r}: {why}. Make it again with `dvc repro -f shard@{path.parent.name}`"
        )

    def _descriptor(self, number: int) -> int:
        shards = self._open_files.shards
        if number not in shards:
            path = self._paths[number]
            remote = self._remote.get(path)
            shards[number] = _Shard(self._cache.open(*remote) if remote else os.open(path, os.O_RDONLY))
            if len(shards) > _OPEN_SHARDS:
                shards.popitem(last=False)
        shards.move_to_end(number)
        return shards[number].number


def _check(path: Path, size: int) -> str | None:
    if not path.exists():
        return f"{path} is missing (and {URL} names no object store)"
    found = path.stat().st_size
    return None if found == size else f"{path} has {found:,} bytes, expected {size:,}"

"""Shards in an object store: each is fetched whole, once a machine, into a bounded folder that all processes share.

Where the shards lie is the environment's business, like DVC's remote and MLflow's store. Manifests and cards stay here.
"""

import hashlib
import os
import shutil
import time
from pathlib import Path

import fsspec
from filelock import FileLock

from codeswap.data.manifest import HELD_OUT

# Environment: any address fsspec knows (s3://..., gs://..., file://...), with <split>/<data set>/<shard> below it.
URL = "CODESWAP_SHARDS"
FOLDER = "CODESWAP_SHARD_CACHE"  # default runs/shards; put it on a disk of the machine
GIGABYTES = "CODESWAP_SHARD_CACHE_GB"
_DEFAULT_GIGABYTES = 50.0
_ATTEMPTS = 3
_ABANDONED = 3600  # seconds after which a file that nobody finished is removed


class RemoteShardError(ValueError):
    """A shard that cannot be had from the object store; the message names its address and what to do."""


def remote_url(folder: Path, shard: str) -> str | None:
    """Address of a shard of data set folder `data/shards/<split>/<name>`, or None when no object store is named."""
    base = os.environ.get(URL)
    place = "/".join(folder.parts[-3 if folder.name == HELD_OUT else -2 :])
    return f"{base.rstrip('/')}/{place}/{shard}" if base else None


class ShardCache:
    """Local copies of remote shards, at most `limit` bytes of them; the least recently opened go first.

    Safe for any number of processes on one machine: a shard is fetched under a lock of its own, to a temporary name.
    A shard that is removed while somebody reads it stays readable until it is closed.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def from_environment(cls) -> "ShardCache":
        """The cache that the environment describes. Raises ValueError when its size is no number."""
        text = os.environ.get(GIGABYTES, str(_DEFAULT_GIGABYTES))
        try:
            limit = float(text)
        except ValueError:
            raise ValueError(f"{GIGABYTES}={text!r}: expected a number of gigabytes") from None
        return cls(Path(os.environ.get(FOLDER, "runs/shards")), int(limit * 1e9))

    def open(self, url: str, size: int) -> int:
        """A file descriptor of the shard at `url`, which has `size` bytes; the caller closes it.

        Raises RemoteShardError when it cannot be fetched, has another size, or does not fit the cache.
        """
        if size > self.limit:
            raise RemoteShardError(
                f"{url} has {size:,} bytes, the cache holds {self.limit:,}: raise {GIGABYTES}, or make smaller shards"
            )
        path = self._path(url, size)
        while True:
            with FileLock(path.with_suffix(".lock")):
                if not path.exists():
                    self._make_room(size)
                    self._fetch(url, size, path)
                    self._make_room(0)  # others may have fetched at the same time
            try:
                descriptor = os.open(path, os.O_RDONLY)
                os.utime(path)  # modification time says when it was last opened
                return descriptor
            except FileNotFoundError:  # another process made room in between
                continue

    def discard(self, url: str, size: int) -> None:
        """Removes the local copy, so that the next `open` fetches it again."""
        path = self._path(url, size)
        with FileLock(path.with_suffix(".lock")):
            path.unlink(missing_ok=True)

    def _path(self, url: str, size: int) -> Path:
        return self.folder / f"{hashlib.sha256(f'{url} {size}'.encode()).hexdigest()[:32]}.tar"

    def _fetch(self, url: str, size: int, path: Path) -> None:
        partial = path.with_suffix(".partial")
        for attempt in range(_ATTEMPTS):
            try:
                with fsspec.open(url, "rb") as source, partial.open("wb") as target:
                    shutil.copyfileobj(source, target, 2**20)
                break
            except FileNotFoundError:
                raise RemoteShardError(f"{url} does not exist: copy data/shards there, or correct {URL}") from None
            except (OSError, ImportError, ValueError) as error:
                if attempt == _ATTEMPTS - 1 or not isinstance(error, OSError):
                    raise RemoteShardError(f"{url} cannot be read ({type(error).__name__}: {error})") from None
                time.sleep(2.0**attempt)
        if (found := partial.stat().st_size) != size:
            partial.unlink()
            raise RemoteShardError(f"{url} has {found:,} bytes, its card says {size:,}: copy the data set there again")
        os.replace(partial, path)

    def _make_room(self, size: int) -> None:
        """Removes what was opened longest ago until `size` bytes more fit."""
        with FileLock(self.folder / "room.lock"):
            for old in self.folder.glob("*.partial"):
                if time.time() - _stat(old)[0] > _ABANDONED:
                    old.unlink(missing_ok=True)
            copies = sorted((*_stat(path), path) for path in self.folder.glob("*.tar"))
            used = sum(bytes_ for _, bytes_, _ in copies)
            for _, bytes_, path in copies:
                if used + size <= self.limit:
                    return
                path.unlink(missing_ok=True)
                used -= bytes_


def _stat(path: Path) -> tuple[float, int]:
    """When it was last opened and how large it is; nothing for a file that has just gone."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        return time.time(), 0
    return facts.st_mtime, facts.st_size

"""Shards in an object store: a real S3-compatible server, a bounded cache, several processes, and what goes wrong."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import fsspec
import numpy as np
import pytest
import s3fs
import torch
from moto.server import ThreadedMotoServer

from codeswap.data.faces import Faces
from codeswap.data.remote import FOLDER, GIGABYTES, URL, RemoteShardError, ShardCache
from codeswap.data.shards import DamagedShardError

BUCKET = "faces"
EVERY = np.arange(48)
AS_IS = np.zeros(48, dtype=bool)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in (keys | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}).items():
            patch.setenv(name, value)
        s3fs.S3FileSystem().mkdir(BUCKET)
        yield f"s3://{BUCKET}"
    server.stop()


@pytest.fixture
def folder(server: str, tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of three shards that lie in the bucket only."""
    folder = tiny.make_world(tmp_path / "world") / "data/shards/train/tiny"
    store = s3fs.S3FileSystem()
    for shard in folder.glob("*.tar"):
        store.put(str(shard), f"{BUCKET}/train/tiny/{shard.name}")
        shard.rename(tmp_path / shard.name)
    monkeypatch.setenv(URL, server)
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    return folder


def _local(folder: Path, tmp_path: Path) -> torch.Tensor:
    for shard in tmp_path.glob("*.tar"):
        (folder / shard.name).write_bytes(shard.read_bytes())
    images = Faces([folder]).images(EVERY, AS_IS)
    for shard in folder.glob("*.tar"):
        shard.unlink()
    return images


def test_remote_faces_are_the_local_ones_and_are_fetched_once(folder: Path, tmp_path: Path) -> None:
    expected = _local(folder, tmp_path)
    assert torch.equal(Faces([folder]).images(EVERY, AS_IS), expected)
    copies = {path: path.stat().st_ino for path in (tmp_path / "cache").glob("*.tar")}
    assert len(copies) == 3
    assert torch.equal(Faces([folder]).images(EVERY, AS_IS), expected)
    assert {path: path.stat().st_ino for path in (tmp_path / "cache").glob("*.tar")} == copies


def test_the_cache_stays_below_its_limit_and_drops_what_was_opened_longest_ago(folder: Path, tmp_path: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in sorted(tmp_path.glob("*.tar"))}
    cache = ShardCache(tmp_path / "small", max(sizes.values()) * 2)
    addresses = {name: f"{os.environ[URL]}/train/tiny/{name}" for name in sizes}
    first, second, third = sizes

    def used(name: str) -> None:
        os.close(cache.open(addresses[name], sizes[name]))
        assert sum(path.stat().st_size for path in cache.folder.glob("*.tar")) <= cache.limit

    for moment, name in enumerate((first, second, first, third)):
        used(name)
        for path in cache.folder.glob("*.tar"):  # file times may be too coarse to order what happens here
            if path.stat().st_mtime > 1e9:
                os.utime(path, (moment, moment))
    kept = {path.read_bytes() for path in cache.folder.glob("*.tar")}
    assert kept == {(tmp_path / first).read_bytes(), (tmp_path / third).read_bytes()}


def test_a_shard_that_is_dropped_stays_readable_where_it_is_open(folder: Path, tmp_path: Path, monkeypatch) -> None:
    expected = _local(folder, tmp_path)
    monkeypatch.setenv(GIGABYTES, str(1.2 * max(path.stat().st_size for path in tmp_path.glob("*.tar")) / 1e9))
    faces = Faces([folder])
    assert torch.equal(faces.images(EVERY, AS_IS), expected)  # the cache holds one of three
    assert torch.equal(faces.images(EVERY, AS_IS), expected)


def test_processes_share_one_cache(folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np; from pathlib import Path; from codeswap.data.faces import Faces; "
        "print(int(Faces([Path(sys.argv[1])]).images(np.arange(48), np.zeros(48, bool)).sum()))"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = {run.communicate(timeout=120)[0].strip() for run in runs}
    assert answers == {str(int(_local(folder, tmp_path).sum()))}
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 3 and not list((tmp_path / "cache").glob("*.partial"))


def test_a_cached_copy_that_went_bad_is_fetched_again(folder: Path, tmp_path: Path) -> None:
    faces = Faces([folder])
    right, facts = faces.read(0), faces.facts(0)
    (first,) = (tmp_path / "cache").glob("*.tar")
    whole = first.read_bytes()
    first.write_bytes(bytes(len(whole)))  # the right size, as after a crash that lost the disk's last writes
    assert (Faces([folder]).read(0) == right).all() and first.read_bytes() == whole
    first.write_bytes(bytes(len(whole)))
    assert Faces([folder]).facts(0) == facts and first.read_bytes() == whole


def test_a_shard_that_is_bad_in_the_store_is_not_fetched_for_ever(folder: Path, tmp_path: Path) -> None:
    faces = Faces([folder])
    url, size = faces._remote[folder / "00000.tar"]
    with fsspec.open(url, "wb") as file:
        file.write(bytes(size))
    with pytest.raises(DamagedShardError, match=r"00000\.tar is damaged: .* and so it is at s3://faces"):
        faces.read(0)


def test_what_cannot_be_had_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ShardCache(tmp_path / "cache", 10**9)
    with pytest.raises(RemoteShardError, match=r"s3://faces/train/other/0\.tar does not exist: copy data/shards there"):
        cache.open("s3://faces/train/other/0.tar", 100)
    with pytest.raises(RemoteShardError, match=r"00000\.tar has [\d,]+ bytes, its card says 100"):
        cache.open("s3://faces/train/tiny/00000.tar", 100)
    with pytest.raises(RemoteShardError, match="raise CODESWAP_SHARD_CACHE_GB"):
        ShardCache(tmp_path / "cache", 10).open("s3://faces/train/tiny/00000.tar", 100)
    with pytest.raises(RemoteShardError, match="Protocol not known: nowhere"):
        cache.open("nowhere://faces/0.tar", 100)
    assert not list((tmp_path / "cache").glob("*.tar")) and not list((tmp_path / "cache").glob("*.partial"))
    monkeypatch.setenv(GIGABYTES, "much")
    with pytest.raises(ValueError, match="CODESWAP_SHARD_CACHE_GB='much': expected a number"):
        Faces([folder]).read(0)
    monkeypatch.delenv(URL)
    with pytest.raises(ValueError, match=r"00000\.tar is missing \(and CODESWAP_SHARDS names no object store\)"):
        Faces([folder])

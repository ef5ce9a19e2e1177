"""Shards: plain tars with the same bytes every time, read by offset, by tarfile and by stock WebDataset alike."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from pydantic import ValidationError

from codeswap.data.shards import (
    DamagedShardError,
    ImageConfig,
    Place,
    Sample,
    decode,
    encode,
    read_facts,
    read_image,
    stream,
    write_shard,
)


def picture(seed: int, size: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def samples(count: int, config: ImageConfig) -> list[Sample]:
    return [Sample(f"set-{i:03d}", encode(picture(i), config), {"key": f"set-{i:03d}", "n": i}) for i in range(count)]


@pytest.fixture
def shard(tmp_path: Path) -> tuple[Path, list[Place]]:
    path = tmp_path / "00000.tar"
    return path, write_shard(path, samples(5, ImageConfig()), ImageConfig())


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_encode_and_decode(kind: str) -> None:
    smooth = np.uint8(np.indices((32, 32)).sum(axis=0) * 3)[..., None] + np.uint8([0, 20, 40])
    back = decode(encode(smooth, ImageConfig(format=kind, quality=95)))
    assert back.dtype == np.uint8 and back.shape == (32, 32, 3)
    assert np.abs(back.astype(int) - smooth).max() <= (0 if kind == "png" else 8)


def test_jpegs_keep_full_colour_resolution() -> None:
    stripes = np.zeros((32, 32, 3), dtype=np.uint8)
    stripes[:, ::2, 0], stripes[:, 1::2, 2] = 255, 255
    back = decode(encode(stripes, ImageConfig(format="jpg", quality=95))).astype(int)
    assert np.abs(back - stripes).mean() < 20  # 4:2:0 would give mean 85: one violet


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path / name, samples(3, ImageConfig()), ImageConfig())
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in tar} == {(0, 0, 0, "")}
        assert tar.getnames()[:2] == ["set-000.png", "set-000.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar"]  # nothing temporary is left


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "00000.tar"
    path.write_bytes(b"finished before")

    def broken():
        yield samples(1, ImageConfig())[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(path, broken(), ImageConfig())
    assert path.read_bytes() == b"finished before"


def test_reading_by_offset(shard: tuple[Path, list[Place]]) -> None:
    path, places = shard
    file = os.open(path, os.O_RDONLY)
    for i in (4, 0, 2):
        assert (decode(read_image(file, places[i])) == picture(i)).all()
        assert read_facts(file, places[i], f"set-{i:03d}") == {"key": f"set-{i:03d}", "n": i}
    os.close(file)


def test_stock_webdataset_reads_the_same(shard: tuple[Path, list[Place]]) -> None:
    found = list(stream(shard[0].parent))
    assert [key for key, _, _ in found] == [f"set-{i:03d}" for i in range(5)]
    assert all((pixels == picture(facts["n"])).all() for _, pixels, facts in found)


_STOCK = """
import sys
import torch
import webdataset

shards = sorted(sys.argv[1:])
data = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=1, nodesplitter=webdataset.split_by_node)
data = data.shuffle(10).decode("rgb8").to_tuple("__key__", "png")
for (key,), (pixels,) in torch.utils.data.DataLoader(data, batch_size=1, num_workers=2):
    print(key, int(pixels.long().sum()))
"""


def test_stock_webdataset_on_two_nodes_of_two_workers_sees_every_face_once(tmp_path: Path) -> None:
    sums = {}
    for shard in range(8):
        samples = [
            Sample(f"set-{i:03d}", encode(picture(i), ImageConfig()), {}) for i in range(shard * 3, shard * 3 + 3)
        ]
        write_shard(tmp_path / f"{shard:05d}.tar", samples, ImageConfig())
        sums |= {f"set-{i:03d}": int(picture(i).sum()) for i in range(shard * 3, shard * 3 + 3)}
    shards = [str(path) for path in tmp_path.glob("*.tar")]
    nodes = [
        subprocess.run(
            [sys.executable, "-c", _STOCK, *shards], env=os.environ | {"RANK": str(rank), "WORLD_SIZE": "2"},
            check=True, capture_output=True, text=True, timeout=120,
        ).stdout.split("\n")[:-1]
        for rank in range(2)
    ]  # fmt: skip
    assert all(len(lines) == 12 for lines in nodes)
    found = [line.split() for lines in nodes for line in lines]
    assert len(found) == 24 and {key: int(value) for key, value in found} == sums


def test_damage_is_noticed(shard: tuple[Path, list[Place]]) -> None:
    path, places = shard
    file = os.open(path, os.O_RDWR)
    with pytest.raises(DamagedShardError, match=r"in a member called 'set-000\.png'"):
        read_image(file, places[1]._replace(offset=places[0].offset))
    with pytest.raises(DamagedShardError, match=r"should hold set-001\.json"):
        read_facts(file, places[0], "set-001")
    changed = os.pread(file, 1, places[1].offset + 200)[0] ^ 1
    os.pwrite(file, bytes([changed]), places[1].offset + 200)
    with pytest.raises(DamagedShardError, match=r"other bytes than were written .* called 'set-001\.png'"):
        read_image(file, places[1])
    os.truncate(path, places[3].offset + 10)
    with pytest.raises(DamagedShardError, match="the file ends inside it"):
        read_image(file, places[3])
    os.close(file)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_undecodable_bytes_are_a_value_error(kind: str) -> None:
    data = bytearray(encode(picture(0), ImageConfig(format=kind)))
    with pytest.raises(ValueError, match=r".+"):
        decode(b"no picture")
    if kind == "png":  # a flipped bit in the pixels; jpeg has no checksums
        data[len(data) // 2] ^= 1
        with pytest.raises(ValueError, match=r".+"):
            decode(bytes(data))
    with pytest.raises(ValueError, match=r".+"):
        decode(bytes(data[:30]))


def test_grey_and_transparent_pictures_become_rgb() -> None:
    out = io.BytesIO()
    PILImage.new("LA", (8, 8), (100, 0)).save(out, "PNG")
    assert decode(out.getvalue()).shape == (8, 8, 3)


def test_wrong_parameters_are_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 16"):
        ImageConfig(size=0)
    with pytest.raises(ValidationError, match="'png', 'jpg' or 'webp'"):
        ImageConfig(format="gif")

"""Faces on disk as one collection: indices over several data sets, mirrored views, and damage told by name."""

import io
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from codeswap.data.faces import Faces, to_float, training_folders
from codeswap.data.manifest import CARD, MANIFEST, SCHEMA, read_card, read_manifest, write_card, write_rows
from codeswap.data.shards import DamagedShardError, ImageConfig, Sample, encode, write_shard

SIZE = 16
Write = Callable[..., Path]


def picture(name: str, number: int) -> np.ndarray:
    seed = int.from_bytes(name.encode(), "little") % 2**32 + number
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a data set of two or more shards with people a, a, b, b, ..., every fifth face of nobody known."""

    def write_dataset(name: str, counts: tuple[int, ...] = (4, 3), size: int = SIZE, licence: str = "CC0") -> Path:
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        config, rows, number = ImageConfig(size=SIZE), [], 0
        for shard, count in enumerate(counts):
            file = f"{shard:05d}.tar"
            samples = [
                Sample(f"{name}-{i}", encode(picture(name, i), config), {"key": f"{name}-{i}", "number": i})
                for i in range(number, number + count)
            ]
            for sample, place in zip(samples, write_shard(folder / file, samples, config), strict=True):
                identity = None if number % 5 == 4 else "ab"[number // 2 % 2]
                rows.append({
                    "key": sample.key, "dataset": name, "identity": identity, "video": None, "frame": None,
                    "split": "train", "source": "x", "sha256": "", "source_width": SIZE, "source_height": SIZE,
                    "quad": None, "landmarks": None, "licence": licence, "shard": file,
                    **place._asdict(),
                })  # fmt: skip
                number += 1
        write_rows(folder / MANIFEST, rows, SCHEMA)
        sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.tar"))}
        write_card(folder / CARD, {"dataset": name, "image": {"size": size}, "shards": sizes})
        return folder

    return write_dataset


def test_one_index_over_several_sets(write: Write) -> None:
    faces = Faces([write("first"), write("second", (2, 2, 1), licence="MIT")])
    assert len(faces) == 12 and faces.size == SIZE
    assert faces.keys[6:9] == ["first-6", "second-0", "second-1"]
    assert faces.shards == {"first": [4, 3], "second": [2, 2, 1]}
    assert faces.licences == {"first": "CC0", "second": "MIT"}
    assert len(faces.manifest) == 12 and faces.manifest["dataset"][7].as_py() == "second"
    for index, (name, number) in {0: ("first", 0), 5: ("first", 5), 7: ("second", 0), 11: ("second", 4)}.items():
        assert (faces.read(index) == picture(name, number)).all()
        assert faces.facts(index)["number"] == number
    with pytest.raises(IndexError, match="face 12 of 12"):
        faces.read(12)


def test_people_of_two_sets_are_not_the_same(write: Write) -> None:
    identity = Faces([write("first"), write("second")]).identity
    assert identity[:7].tolist() == [0, 0, 1, 1, -1, 0, 1]
    assert identity[7:].tolist() == [2, 2, 3, 3, -1, 2, 3]


def test_images_are_mirrored_on_request(write: Write) -> None:
    faces = Faces([write("set")])
    out = faces.images(np.array([6, 1, 1]), np.array([False, False, True]))
    assert out.dtype == torch.uint8 and out.shape == (3, 3, SIZE, SIZE)
    assert (out[1].permute(1, 2, 0).numpy() == picture("set", 1)).all()
    assert torch.equal(out[2], out[1].flip(-1)) and not torch.equal(out[2], out[1])
    scaled = to_float(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 3, 1, 1))
    assert scaled.flatten().tolist() == [-1, -1, -1, 1, 1, 1]


def test_threads_read_the_same(write: Write) -> None:
    faces = Faces([write("set", (5,) * 8)])
    alone = [faces.read(index).tobytes() for index in range(40)]
    wrong: list[int] = []

    def read(seed: int) -> None:
        for index in np.random.default_rng(seed).permutation(40).tolist():
            if faces.read(index).tobytes() != alone[index]:
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_more_shards_than_open_files(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codeswap.data.faces._OPEN_SHARDS", 2)
    faces = Faces([write("set", (1,) * 6)])
    for index in (0, 1, 2, 3, 4, 5, 0, 3, 1):
        assert (faces.read(index) == picture("set", index)).all()


def test_missing_and_truncated_shards_are_all_named_at_opening(write: Write) -> None:
    folder = write("set", (2, 2, 2))
    (folder / "00000.tar").unlink()
    data = (folder / "00002.tar").read_bytes()
    (folder / "00002.tar").write_bytes(data[:-512])
    with pytest.raises(ValueError, match=r"(?s)2 shard.*00000\.tar is missing.*00002\.tar has .* bytes, expected"):
        Faces([folder])


def test_a_damaged_face_is_named_with_its_file(write: Write) -> None:
    folder = write("set")
    row = read_manifest(folder).to_pylist()[5]
    path = folder / row["shard"]
    data = bytearray(path.read_bytes())
    data[row["offset"] + row["size"] // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    faces = Faces([folder])
    assert (faces.read(4) == picture("set", 4)).all()
    with pytest.raises(DamagedShardError, match=r"00001\.tar is damaged: face 'set-5'.*dvc repro -f shard@set"):
        faces.images(np.array([4, 5]), np.array([False, False]))


def test_shards_of_another_run_are_noticed(write: Write) -> None:
    folder = write("set", (3,))
    path = folder / "00000.tar"
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:  # the same faces in another order
        for member, data in members[2:4] + members[:2] + members[4:]:
            tar.addfile(member, io.BytesIO(data))
    path.write_bytes(path.read_bytes()[: read_card(folder)["shards"]["00000.tar"]])
    faces = Faces([folder])
    with pytest.raises(DamagedShardError, match=r"face 'set-1': other bytes than were written .* called 'set-0\.png'"):
        faces.read(1)
    with pytest.raises(DamagedShardError, match=r"should hold set-1\.json"):
        faces.facts(1)


def test_sets_that_do_not_fit_together(write: Write) -> None:
    first, other = write("first"), write("other", size=32)
    with pytest.raises(ValueError, match="different image sizes"):
        Faces([first, other])
    with pytest.raises(ValueError, match="hold the data set 'first'"):
        Faces([first, first])
    with pytest.raises(ValueError, match="no data set folder"):
        Faces([])
    with pytest.raises(DamagedShardError, match="16x16, not 32 px square"):
        Faces([other]).images(np.array([0]), np.array([False]))


def test_training_folders(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no data set"):
        training_folders(tmp_path / "train")
    b, a = write("b"), write("a")
    (tmp_path / "train" / ".c.partial").mkdir()
    (tmp_path / "train" / ".c.partial" / CARD).write_text("{}")
    assert training_folders(tmp_path / "train") == [a, b]


def test_an_empty_set_is_refused(write: Write) -> None:
    with pytest.raises(ValueError, match="list no face"):
        Faces([write("empty", ())])

"""Ingest on Ray: nothing is lost silently, bytes do not depend on who wrote them, a killed run goes on."""

import os
import signal
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image as PILImage
from pydantic import TypeAdapter

from codeswap.data.align import apply, crop_transform, quad_of
from codeswap.data.faces import Faces, held_out_folders, training_folders
from codeswap.data.manifest import HELD_OUT, MANIFEST, read_card, read_manifest, read_quarantine
from codeswap.data.records import Source
from codeswap.data.shards import ImageConfig
from codeswap.data.sources import DatasetConfig
from codeswap.prepare import ingest as ingest_module
from codeswap.prepare.ingest import _ShardMaker, ingest, plan
from codeswap.types import Detection

IMAGE = ImageConfig(size=32)


def dataset(**config: object) -> Source:
    return TypeAdapter(DatasetConfig).validate_python({"split": "train", "shard_size": 4} | config)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Ten good pictures of two people and four bad ones."""
    rng = np.random.default_rng(0)
    for number in range(10):
        path = tmp_path / "raw" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(path)
    PILImage.new("RGB", (48, 40)).save(tmp_path / "raw" / "a" / "wide.png")
    PILImage.new("RGB", (20, 20)).save(tmp_path / "raw" / "a" / "small.png")
    (tmp_path / "raw" / "b" / "text.png").write_text("no picture")
    (tmp_path / "raw" / "b" / "empty.jpg").write_bytes(b"")
    return tmp_path / "raw"


def people(raw: Path, **config: object) -> Source:
    return dataset(source="folder", root=str(raw), licence="CC0", min_size=24, **config)


def run(tmp: Path, source: Source, name: str = "set") -> tuple[Path, ingest_module.Summary]:
    planned, out = tmp / "plan.parquet", tmp / "out" / name
    plan(name, source, planned)
    return out, ingest(name, source, IMAGE, planned, tmp / "run", out, None)


def test_every_input_is_in_the_manifest_or_in_the_quarantine(raw: Path, tmp_path: Path, ray_is_running: None) -> None:
    out, summary = run(tmp_path, people(raw))
    manifest, quarantine = read_manifest(out), read_quarantine(out)
    assert (summary.inputs, summary.kept) == (14, 10) and len(manifest) == 10
    assert {row["source"]: row["reason"] for row in quarantine.to_pylist()} == {
        "a/wide.png": "not_square", "a/small.png": "too_small", "b/text.png": "unreadable", "b/empty.jpg": "unreadable",
    }  # fmt: skip
    assert sorted(manifest["source"].to_pylist() + quarantine["source"].to_pylist()) == sorted(
        path.relative_to(raw).as_posix() for path in raw.rglob("*.*")
    )
    card = read_card(out)
    assert card["quarantined"] == summary.quarantined == {"not_square": 1, "too_small": 1, "unreadable": 2}
    assert card["licences"] == {"CC0": 10} and card["identities"] == 2 and card["inputs"] == 14
    text = str(summary)
    assert (
        "14 in, 10 kept, quarantined: 1 not_square, 1 too_small, 2 unreadable; 3 shards" in text
    )  # of four blocks, the last held bad pictures only
    assert not (tmp_path / "run").exists()  # a state on disk means an unfinished run


def test_faces_read_what_was_ingested(raw: Path, tmp_path: Path, ray_is_running: None) -> None:
    out, _ = run(tmp_path, people(raw))
    faces = Faces([out])
    row = faces.manifest.to_pylist()[3]
    source = PILImage.open(raw / row["source"]).resize((32, 32), PILImage.Resampling.LANCZOS)
    assert (faces.read(3) == np.asarray(source)).all()
    assert row["quad"] is None and (row["source_width"], row["source_height"]) == (48, 48)
    facts = faces.facts(3)
    assert facts["sha256"] == row["sha256"] and facts["identity"] == row["source"][0] and "offset" not in facts


def test_persons_held_out_for_validation_are_in_no_training_shard(tmp_path: Path, ray_is_running: None) -> None:
    source = dataset(source="synthetic", identities=40, images_per_identity=2, validation=5)
    out, summary = run(tmp_path, source)
    training, held_out = (read_manifest(folder) for folder in (out, out / HELD_OUT))
    assert len(held_out) == 4 and len(training) == summary.kept == 76  # whole persons: five faces would cut one
    people = [set(table["identity"].to_pylist()) for table in (training, held_out)]
    assert len(people[1]) == 2 and not people[0] & people[1] and len(people[0] | people[1]) == 40
    assert held_out_folders(out.parent) == [out / HELD_OUT] and training_folders(out.parent) == [out]
    assert Faces([out / HELD_OUT]).images(np.arange(4), np.zeros(4, bool)).shape == (4, 3, 32, 32)
    again, _ = run(tmp_path / "again", source)
    assert (again / HELD_OUT / MANIFEST).read_bytes() == (out / HELD_OUT / MANIFEST).read_bytes()


def test_a_set_too_small_to_hold_anybody_out_is_trained_on_whole(raw: Path, tmp_path: Path, ray_is_running) -> None:
    out, summary = run(tmp_path, people(raw, validation=64))
    assert summary.kept == 10 and not (out / HELD_OUT).exists()
    with pytest.raises(ValueError, match="a test set is never trained on"):
        people(raw, split="test", validation=1)


def test_bytes_do_not_depend_on_the_workers(raw: Path, tmp_path: Path, ray_is_running: None) -> None:
    out, _ = run(tmp_path / "ray", people(raw))
    planned, alone = tmp_path / "plan.parquet", tmp_path / "alone"
    (alone / "shards").mkdir(parents=True)
    (alone / "parts").mkdir()
    for number in reversed(range(plan("set", people(raw), planned))):  # one process, from the last to the first
        _ShardMaker("set", people(raw), IMAGE, planned, alone, tmp_path)(number)
    assert planned.read_bytes() == (tmp_path / "ray" / "plan.parquet").read_bytes()
    tars = sorted(path.name for path in out.glob("*.tar"))
    assert tars == sorted(path.name for path in (alone / "shards").iterdir()) == sorted(read_card(out)["shards"])
    for name in tars:
        assert (out / name).read_bytes() == (alone / "shards" / name).read_bytes()
    again, _ = run(tmp_path / "again", people(raw))
    for path in out.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_an_interrupted_run_makes_only_what_is_missing(raw: Path, tmp_path: Path, ray_is_running: None) -> None:
    whole, _ = run(tmp_path / "whole", people(raw))
    planned, state = tmp_path / "plan.parquet", tmp_path / "run"
    plan("set", people(raw), planned)
    (state / "shards").mkdir(parents=True)
    (state / "parts").mkdir()
    for number in (0, 2):
        _ShardMaker("set", people(raw), IMAGE, planned, state, tmp_path)(number)
    (state / "shards" / ".00001.tar.partial").write_bytes(b"killed while writing")
    before = {number: (state / "shards" / f"{number:05d}.tar").stat().st_mtime_ns for number in (0, 2)}
    out, summary = run(tmp_path, people(raw))
    assert {number: (out / f"{number:05d}.tar").stat().st_mtime_ns for number in (0, 2)} == before
    assert summary.inputs == 14
    for path in whole.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name


class KilledOnce(_ShardMaker):
    """Dies of SIGKILL in the middle of the second shard, the first time that anybody makes it."""

    def _faces(self, records, rejected):
        mark = self.run.parent / "killed"
        for number, face in enumerate(super()._faces(records, rejected)):
            if number == 1 and "00001" in str(self.made) and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield face

    def __call__(self, number: int) -> dict[str, float]:
        self.made = f"{number:05d}"
        return super().__call__(number)


def test_a_worker_that_is_killed_in_the_middle_of_a_shard_loses_nothing(
    raw: Path, tmp_path: Path, ray_is_running: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, planned = people(raw), tmp_path / "plan.parquet"
    plan("people", source, planned)
    ingest("people", source, IMAGE, planned, tmp_path / "calm" / "run", tmp_path / "calm" / "out", None)
    monkeypatch.setattr(ingest_module, "_ShardMaker", KilledOnce)
    ingest("people", source, IMAGE, planned, tmp_path / "hard" / "run", tmp_path / "hard" / "out", None)
    assert (tmp_path / "hard" / "killed").exists()
    calm, hard = (sorted((tmp_path / run / "out").iterdir()) for run in ("calm", "hard"))
    assert [path.name for path in calm] == [path.name for path in hard]
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(calm, hard, strict=True))


def test_a_set_without_a_usable_face_is_an_error(tmp_path: Path, ray_is_running: None) -> None:
    (tmp_path / "raw").mkdir()
    for number in range(5):
        (tmp_path / "raw" / f"{number}.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"none of 5 inputs gave a face: \{'unreadable': 5\}"):
        run(tmp_path, people(tmp_path / "raw"))
    assert not (tmp_path / "out").exists()


def test_unaligned_pictures_with_known_landmarks(tmp_path: Path, ray_is_running: None) -> None:
    points = np.array([[80, 100], [120, 100], [100, 125], [90, 150], [110, 150]], dtype=float)
    y, x = np.mgrid[:240, :300]
    light = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / 18) for px, py in points)
    (tmp_path / "raw").mkdir()
    PILImage.fromarray(np.uint8(np.clip(light, 0, 1) * 255)).convert("RGB").save(tmp_path / "raw" / "face.png")
    PILImage.new("RGB", (100, 100)).save(tmp_path / "raw" / "flat.png")
    header = "file," + ",".join(f"{axis}{number}" for number in range(5) for axis in "xy")
    rows = [f"face.png,{','.join(map(str, points.flatten()))}", "flat.png" + ",1" * 10]
    (tmp_path / "raw" / "points.csv").write_text("\n".join([header, *rows]))
    out, summary = run(tmp_path, people(tmp_path / "raw", aligned=False, landmarks="points.csv"))
    assert summary.quarantined == {"bad_landmarks": 1}
    (row,) = read_manifest(out).to_pylist()
    np.testing.assert_allclose(np.reshape(row["quad"], (4, 2)), quad_of(points), rtol=1e-6)
    crop_points = np.reshape(row["landmarks"], (5, 2))
    np.testing.assert_allclose(crop_points, apply(crop_transform(quad_of(points), 32), points), atol=1e-4)
    pixels = Faces([out]).read(0)
    for px, py in crop_points.round().astype(int):
        assert pixels[py, px, 0] > 100


def test_a_missing_detector_is_named_before_any_work(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"faces must be found first, but nothing fills perception\.landmarks"):
        run(tmp_path, people(raw, aligned=False))


class FindsBright:
    """Finds every bright 40 px square: a detector whose answer is known."""

    def detect(self, image: np.ndarray) -> list[Detection]:
        found = []
        for left in range(0, image.shape[1], 100):
            bright = np.argwhere(image[:, left : left + 100, 0] > 128)
            if len(bright):
                (top, x), (bottom, right) = bright.min(axis=0), bright.max(axis=0)
                box = np.array([left + x, top, left + right, bottom], dtype=float)
                side = box[2] - box[0]
                points = np.array([[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.35, 0.7], [0.65, 0.7]]) * side + box[:2]
                found.append(Detection(box, 1.0, points))
        return found


def test_the_largest_detected_face_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "_detector", lambda folder: FindsBright())
    picture = np.zeros((120, 300, 3), dtype=np.uint8)
    picture[30:70, 20:60], picture[20:90, 120:190] = 255, 255  # 40 px and 70 px
    (tmp_path / "raw").mkdir()
    PILImage.fromarray(picture).save(tmp_path / "raw" / "two.png")
    PILImage.fromarray(picture[:, :100]).save(tmp_path / "raw" / "one.png")
    PILImage.fromarray(picture[:20]).save(tmp_path / "raw" / "none.png")
    source = dataset(source="folder", root=str(tmp_path / "raw"), licence="CC0", min_size=50, aligned=False)
    planned = tmp_path / "plan.parquet"
    plan("set", source, planned)
    for name in ("shards", "parts"):
        (tmp_path / name).mkdir()
    assert _ShardMaker("set", source, IMAGE, planned, tmp_path, None)(0) == {"faces": 3}
    (row,) = ingest_module.pq.read_table(tmp_path / "parts" / f"00000.{MANIFEST}").to_pylist()
    rejected = ingest_module.pq.read_table(tmp_path / "parts" / "00000.quarantine.parquet").to_pylist()
    assert row["source"] == "two.png" and np.reshape(row["quad"], (4, 2)).mean(axis=0)[0] == pytest.approx(154.5, abs=1)
    assert {item["source"]: item["reason"] for item in rejected} == {"one.png": "small_face", "none.png": "no_face"}


def test_frames_without_a_face_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "_detector", lambda folder: FindsBright())
    place = tmp_path / "raw" / "original_sequences" / "youtube" / "c23" / "videos"
    place.mkdir(parents=True)
    for name, good in (("000.mp4", 8), ("001.mp4", 2)):
        with av.open(str(place / name), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 100, 100, "yuv420p"
            for number in range(20):
                frame = np.zeros((100, 100, 3), dtype=np.uint8)
                if number % 20 < 2 * good and number % 2:  # every other frame shows a face
                    frame[10:90, 10:90] = 230
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    source = dataset(source="ffpp", root=str(tmp_path / "raw"), videos=2, frames=4, split="test")
    planned = tmp_path / "plan.parquet"
    plan("ffpp", source, planned)
    for name in ("shards", "parts"):
        (tmp_path / name).mkdir()
    assert _ShardMaker("ffpp", source, IMAGE, planned, tmp_path, None)(0) == {"faces": 8}
    rows = ingest_module.pq.read_table(tmp_path / "parts" / f"00000.{MANIFEST}").to_pylist()
    rejected = ingest_module.pq.read_table(tmp_path / "parts" / "00000.quarantine.parquet").to_pylist()
    assert [row["key"] for row in rows] == [f"ffpp-000_{k}" for k in range(4)] + ["ffpp-001_0", "ffpp-001_1"]
    assert all(row["frame"] % 2 == 1 for row in rows) and len({(row["video"], row["frame"]) for row in rows}) == 6
    assert [item["source"].rsplit("#")[1] for item in rejected] == ["2", "3"]  # 8 asked for = 6 + 2
    assert {item["reason"] for item in rejected} == {"no_face"}

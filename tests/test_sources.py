"""Sources: official layouts in miniature, what is missing said at once, draws that nothing else disturbs."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from pydantic import TypeAdapter, ValidationError

from codeswap.data.records import Record, Source, UnusableError, key_for, read_picture
from codeswap.data.sources import DatasetConfig, MissingDataError, require
from codeswap.data.sources import listed as listing
from codeswap.data.synthetic import identities, render


def source(**config: object) -> Source:
    return TypeAdapter(DatasetConfig).validate_python({"split": "train"} | config)


def listed(name: str, dataset: Source) -> list[Record]:
    return [Record(**row) for row in listing(name, dataset).to_pylist()]


def put(path: Path, size: tuple[int, int] = (32, 32), colour: tuple[int, int, int] = (200, 100, 50)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.new("RGB", size, colour).save(path)
    return path


def paths(dataset: Source) -> set[str]:
    return {record.source for record in listed("set", dataset)}


# --- any folder


@pytest.fixture
def people(tmp_path: Path) -> Path:
    for person in ("ann", "bob", "cy"):
        for number in range(4):
            put(tmp_path / person / f"{number}.png")
    (tmp_path / "ann" / "notes.txt").write_text("no picture")
    put(tmp_path / ".thumbnails" / "0.png")
    return tmp_path


def folder(root: Path, **config: object) -> Source:
    return source(source="folder", root=str(root), licence="CC0", **config)


def test_folder_lists_pictures_and_people(people: Path) -> None:
    records = listed("set", folder(people))
    assert len(records) == 12
    assert {(record.source, record.identity, record.key) for record in records} >= {("bob/2.png", "bob", "set-bob-2")}
    assert {record.licence for record in records} == {"CC0"}
    assert {record.identity for record in listed("set", folder(people, identity="none"))} == {None}


def test_training_records_are_shuffled_by_the_seed_and_test_records_sorted(people: Path) -> None:
    train = [record.key for record in listed("set", folder(people))]
    assert train != sorted(train)
    assert train != [record.key for record in listed("set", folder(people, seed=1))]
    test = [record.key for record in listed("set", folder(people, split="test"))]
    assert test == sorted(train)


def test_more_data_does_not_disturb_what_was_drawn(people: Path) -> None:
    before = listed("set", folder(people, limit=5))
    put(people / "dora" / "0.png")
    after = [record for record in listed("set", folder(people)) if record.identity != "dora"]
    assert after[:5] == before


@pytest.mark.parametrize(
    "rule",
    [
        {"by": "identity", "pattern": "^b"},
        {"by": "file", "pattern": "[23].png$"},
        {"by": "file", "share": 0.3},
        {"by": "identity", "csv": "test.csv"},
    ],
)
def test_holdout_divides_a_folder(people: Path, rule: dict[str, object]) -> None:
    (people / "test.csv").write_text("identity,age\nbob,30\n")
    train, test = (paths(folder(people, split=split, holdout=rule)) for split in ("train", "test"))
    assert train and test and not train & test and len(train | test) == 12


def test_holdout_that_cannot_be_is_named(people: Path) -> None:
    (people / "test.csv").write_text("identity\nbbo\nann\n")
    with pytest.raises(MissingDataError, match=r"names that exist in the folder, found \['bbo'\]"):
        require("set", folder(people, holdout={"by": "identity", "csv": "test.csv"}))
    (people / "test.csv").write_text("person\nann\n")
    with pytest.raises(MissingDataError, match=r"\['identity'\] are absent, found \['person'\]"):
        require("set", folder(people, holdout={"by": "identity", "csv": "test.csv"}))
    with pytest.raises(MissingDataError, match=r"nowhere\.csv: a csv table"):
        require("set", folder(people, holdout={"by": "identity", "csv": "nowhere.csv"}))
    with pytest.raises(MissingDataError, match="selects 0 of 3 names"):
        require("set", folder(people, holdout={"by": "identity", "pattern": "zoe"}))
    with pytest.raises(ValidationError, match="no regular expression"):
        folder(people, holdout={"pattern": "("})
    with pytest.raises(ValidationError, match="exactly one of"):
        folder(people, holdout={"by": "file"})
    flat = people / "ann"
    with pytest.raises(MissingDataError, match="one sub-folder for each person"):
        require("set", folder(flat, holdout={"by": "identity", "share": 0.5}))


def test_known_landmarks_are_read_and_a_mistyped_table_is_named_by_line(people: Path) -> None:
    header = "file," + ",".join(f"{axis}{number}" for number in range(5) for axis in "xy")
    table = people / "points.csv"
    table.write_text(f"{header}\nann/0.png,1,2,3,4,5,6,7,8,9,10.5\n")
    points = {record.source: record.points for record in listed("set", folder(people, landmarks="points.csv"))}
    assert points["ann/0.png"] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10.5] and points["ann/1.png"] is None
    table.write_text(f"{header}\nann/0.png,1,2,3,4,5,6,7,8,9,ten\n")
    with pytest.raises(MissingDataError, match="line 2: could not convert string to float: 'ten'"):
        require("set", folder(people, landmarks="points.csv"))
    table.write_text(f"{header}\nann/0.png,1,2,3\n")
    with pytest.raises(MissingDataError, match=r"lines \[2\] are too short"):
        require("set", folder(people, landmarks="points.csv"))


def test_empty_and_absent_folders(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"(?s)nowhere: a folder of pictures.*put your own pictures there"):
        require("set", folder(tmp_path / "nowhere"))
    with pytest.raises(MissingDataError, match="at least one picture below it"):
        require("set", folder(tmp_path))
    with pytest.raises(ValueError, match="'my set': use letters"):
        require("my set", folder(tmp_path))


def test_links_back_up_the_tree_end(people: Path) -> None:
    (people / "ann" / "loop").symlink_to(people)
    assert len(listed("set", folder(people))) == 12


def test_keys_are_safe_and_different() -> None:
    assert key_for("set", "ann/0.png") == "set-ann-0"
    keys = {
        key_for("set", name) for name in ("a-b.png", "a/b.png", "a b.png", "a.b.png", "ä/b.png", "x" * 300 + ".png")
    }
    assert len(keys) == 6
    assert all(key.isascii() and len(key) <= 80 and "." not in key and "/" not in key for key in keys)


def test_two_files_of_one_name_are_refused(people: Path) -> None:
    put(people / "ann" / "0.jpg")
    with pytest.raises(ValueError, match=r"ann/0\.jpg and ann/0\.png differ by suffix only"):
        listed("set", folder(people))


def test_pictures_are_read_upright_in_rgb(tmp_path: Path) -> None:
    image = PILImage.new("RGB", (20, 10), (0, 0, 0))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").pixels.shape == (20, 10, 3)
    PILImage.new("L", (8, 8)).save(tmp_path / "grey.png")
    assert read_picture(tmp_path / "grey.png").pixels.shape == (8, 8, 3)


def test_what_cannot_be_read_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    whole = put(tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    PILImage.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(tmp_path / "deep.png")
    for name in ("text.png", "cut.jpg", "empty.png", "deep.png", "absent.png"):
        with pytest.raises(UnusableError) as caught:
            read_picture(tmp_path / name)
        assert caught.value.reason == "unreadable" and str(tmp_path) not in caught.value.detail


# --- the paper's sets


def test_ffhq(tmp_path: Path) -> None:
    for number in (0, 1, 999, 1000, 1001):
        put(tmp_path / "images1024x1024" / f"{number - number % 1000:05d}" / f"{number:05d}.png")
    points = [[float(i), float(i) + 0.5] for i in range(68)]
    facts = '{"0": {"metadata": {"license": "CC BY 2.0"}, "image": {"face_landmarks": %s}}}' % points  # noqa: UP031
    (tmp_path / "ffhq-dataset-v2.json").write_text(facts)
    records = {record.key: record for record in listed("ffhq", source(source="ffhq", root=str(tmp_path), last=1))}
    assert records["ffhq-00000"].source == "images1024x1024/00000/00000.png"
    assert records["ffhq-00000"].licence == "CC BY 2.0" and "NC-SA" in records["ffhq-00001"].licence
    assert records["ffhq-00000"].points[:4] == [0, 0.5, 1, 1.5] and len(records["ffhq-00000"].points) == 136
    assert paths(source(source="ffhq", root=str(tmp_path), first=999, last=1001)) == {
        "images1024x1024/00000/00999.png", "images1024x1024/01000/01000.png", "images1024x1024/01000/01001.png",
    }  # fmt: skip
    with pytest.raises(MissingDataError, match=r"(?s)00000/00002\.png.*\(997 in all\).*github\.com/NVlabs.*NC-SA"):
        require("ffhq", source(source="ffhq", root=str(tmp_path), last=999))


def test_vggface2hq(tmp_path: Path) -> None:
    put(tmp_path / "n000002" / "0001_01.jpg")
    put(tmp_path / "n000003" / "0001_01.jpg")
    put(tmp_path / "samples" / "x.jpg")
    records = listed("vgg", source(source="vggface2hq", root=str(tmp_path)))
    assert {(record.key, record.identity) for record in records} == {
        ("vgg-n000002-0001_01", "n000002"),
        ("vgg-n000003-0001_01", "n000003"),
    }
    (tmp_path / "n000009").mkdir()
    with pytest.raises(MissingDataError, match="pictures in n000009"):
        require("vgg", source(source="vggface2hq", root=str(tmp_path)))
    with pytest.raises(MissingDataError, match=r"(?s)n000002, n000003.*NNNNAI/VGGFace2-HQ"):
        require("vgg", source(source="vggface2hq", root=str(tmp_path / "nowhere")))


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    """12 pictures of 6 people."""
    for number in range(12):
        put(tmp_path / "CelebA-HQ-img" / f"{number}.jpg")
    mapping = ["idx          orig_idx     orig_file"] + [f"{i} {100 + i} {101 + i:06d}.jpg" for i in range(12)]
    (tmp_path / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(mapping) + "\n")
    (tmp_path / "identity_CelebA.txt").write_text("".join(f"{i:06d}.jpg {i % 6 + 50}\n" for i in range(200)))
    return tmp_path


def celebahq(root: Path, **config: object) -> Source:
    return source(source="celebahq", split="test", root=str(root), pictures=12, **config)


def test_celebahq_draws_one_picture_of_each_person(celeba: Path) -> None:
    records = listed("celeba", celebahq(celeba, identities=4))
    assert len(records) == 4 and len({record.identity for record in records}) == 4
    number = int(Path(records[0].source).stem)
    assert records[0].identity == str((number + 101) % 6 + 50)  # through the mapping, not by the picture's own number
    assert records == listed("celeba", celebahq(celeba, identities=4))
    draws = {tuple(record.key for record in listed("celeba", celebahq(celeba, identities=4, seed=s))) for s in range(5)}
    assert len(draws) > 1
    assert len(listed("celeba", celebahq(celeba, identities=None))) == 12


def test_celebahq_names_everything_missing(celeba: Path) -> None:
    with pytest.raises(MissingDataError, match="7 persons in the set, found 6"):
        require("celeba", celebahq(celeba, identities=7))
    (celeba / "CelebA-HQ-img" / "3.jpg").unlink()
    (celeba / "identity_CelebA.txt").unlink()
    with pytest.raises(MissingDataError, match=r"(?s)identity_CelebA\.txt: the table.*3\.jpg.*CelebAMask-HQ"):
        require("celeba", celebahq(celeba, identities=4))


def test_celebahq_names_the_line_of_a_mistyped_table(celeba: Path) -> None:
    path = celeba / "CelebA-HQ-to-CelebA-mapping.txt"
    path.write_text(path.read_text().replace("4 104 000105.jpg", "4 104"))
    with pytest.raises(MissingDataError, match="3 words a line; line 6 is '4 104'"):
        require("celeba", celebahq(celeba, identities=4))


def video(path: Path, frames: int) -> None:
    """A video whose frame i has the brightness 5 i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)  # with frames that are not stored in the order shown
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 5 * number, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def ffpp(root: Path, **config: object) -> Source:
    return source(source="ffpp", split="test", root=str(root), **config)


def test_ffpp_draws_frames_of_each_video(tmp_path: Path) -> None:
    place = tmp_path / "original_sequences" / "youtube" / "c23" / "videos"
    for number in range(2):
        video(place / f"{number:03d}.mp4", 40)
    dataset = ffpp(tmp_path, videos=2, frames=4, redraws=6)
    records = listed("ffpp", dataset)
    assert [(record.key, record.identity, record.video, record.wanted) for record in records] == [
        ("ffpp-000", "000", "000", 4),
        ("ffpp-001", "001", "001", 4),
    ]
    first, second = ([*candidates] for candidates in dataset.read(records, 64))
    numbers = [raw.frame for raw in first]
    assert len(numbers) == len(set(numbers)) == 10 and max(numbers) < 40  # wanted and redraws, each once
    assert numbers != [raw.frame for raw in second]  # another video, another draw
    assert [raw.frame for raw in next(dataset.read(records, 64))] == numbers
    assert all(abs(raw.pixels.mean() - 5 * raw.frame) < 2 for raw in first)  # the frame it says it is


def test_ffpp_damaged_and_missing_videos(tmp_path: Path) -> None:
    place = tmp_path / "original_sequences" / "youtube" / "c23" / "videos"
    place.mkdir(parents=True)
    (place / "000.mp4").write_bytes(b"no video" * 100)
    dataset = ffpp(tmp_path, videos=1)
    with pytest.raises(UnusableError, match=r"unreadable: 000\.mp4"):
        next(next(dataset.read(listed("ffpp", dataset), 64)))
    with pytest.raises(MissingDataError, match=r"(?s)001\.mp4, 002\.mp4.*\(2 in all\).*FaceForensics"):
        require("ffpp", ffpp(tmp_path, videos=3))


# --- rendered faces


def test_rendered_pictures_are_those_of_their_parameters() -> None:
    dataset = source(source="synthetic", identities=3, images_per_identity=2, seed=5)
    records = listed("demo", dataset)
    assert sorted(record.key for record in records) == [f"demo-{i:06d}-{j:04d}" for i in range(3) for j in range(2)]
    for record, candidates in zip(records, dataset.read(records, 32), strict=True):
        (raw,) = candidates
        identity = torch.tensor([raw.synthetic["identity"]], dtype=torch.float32)
        assert torch.equal(identity, identities(int(record.identity), 1, 5))  # the decimals are exact
        picture = render(identity, torch.tensor([raw.synthetic["attributes"]], dtype=torch.float32), 32)[0][0]
        assert (raw.pixels == picture.permute(1, 2, 0).numpy()).all()


def test_a_rendered_video_moves_smoothly() -> None:
    dataset = source(source="synthetic", kind="video", identities=2, images_per_identity=10, split="test")
    records = listed("demo", dataset)
    assert [(record.video, record.frame) for record in records[:2]] == [("000000", 0), ("000000", 1)]
    frames = [next(candidates).synthetic for candidates in dataset.read(records, 16)]
    assert len({tuple(frame["identity"]) for frame in frames[:10]}) == 1
    steps = np.diff([frame["attributes"] for frame in frames], axis=0)
    assert np.abs(steps[:9]).max() < 0.2 < np.abs(steps[9]).max()  # and the next video is another scene
    assert (np.sign(steps[:9]) == np.sign(steps[0])).all()


def test_unknown_sources_and_knobs_are_refused() -> None:
    with pytest.raises(ValidationError, match="'synthetic', 'folder', 'ffhq'"):
        source(source="celeba")
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        source(source="synthetic", rooot="x")
    with pytest.raises(ValidationError, match="licence"):
        source(source="folder", root="x")

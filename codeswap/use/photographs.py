"""Photographs as they are: find and align the face, and put a swapped one back where it was."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image as PILImage

from codeswap.data.align import Cut, align, crop_transform, cut_out, quad_of, resized
from codeswap.data.records import UnusableError, read_picture
from codeswap.perception.mtcnn import MTCNN, largest
from codeswap.types import Detection, corner_of
from codeswap.use.errors import NoFaceError, UnfitFaceError, UnreadableError

SMALLEST = 24  # pixels: a smaller face has nothing to give
PROFILE = 0.6  # how far the nose may stand from the eyes' middle, in distances of the eyes (docs/log.md)
STRIP = 1024  # rows pasted at a time
SEAM = 0.08  # of the crop's side, over which it fades out at its border


class Face(NamedTuple):
    """A face of a photograph: its square `quad` (4, 2) in the photograph's pixels, the crop, and `Cut.framing`."""

    quad: np.ndarray
    crop: np.ndarray
    framing: float = 1.0


class Portrait(NamedTuple):
    """A photograph, uint8 (h, w, 3), and its face."""

    pixels: np.ndarray
    face: Face


class Like(NamedTuple):
    """Whom a face is to resemble: an aligned uint8 (s, s, 3) crop, and what turns (n, s, s, 3) into unit vectors."""

    crop: np.ndarray
    embed: Callable[[np.ndarray], np.ndarray]


def read(path: Path) -> np.ndarray:
    """A photograph, upright, uint8 (h, w, 3) RGB. Raises UnreadableError."""
    if not path.exists():
        raise UnreadableError(f"{path} does not exist")
    try:
        return read_picture(path).pixels
    except UnusableError as error:
        raise UnreadableError(f"{path} cannot be read as a picture ({error.detail})") from None


def portrait(path: Path, detector: MTCNN | None, cut: Cut, choice: int | Like | None) -> Portrait:
    """A photograph and its face; without a detector it is an aligned crop already. Raises UseError."""
    pixels = read(path)
    return Portrait(pixels, face_in(path, pixels, detector, cut, choice))


def face_in(
    name: Path | str, pixels: np.ndarray, detector: MTCNN | None, cut: Cut, choice: int | Like | None = None
) -> Face:
    """The face of a picture called `name` in what is said; without a detector it is an aligned crop already."""
    return aligned(name, pixels, cut) if detector is None else find(name, pixels, detector, cut, choice)


def aligned(path: Path | str, pixels: np.ndarray, cut: Cut) -> Face:
    """A picture that is an FFHQ-aligned crop already, as the face of itself. Raises UnreadableError if not square."""
    height, width = pixels.shape[:2]
    if height != width:
        raise UnreadableError(f"{path} is {width}x{height}: --aligned takes square crops")
    crop = cut_out(pixels, cut)
    return Face(crop.quad, crop.pixels, cut.framing)


def find(path: Path | str, pixels: np.ndarray, detector: MTCNN, cut: Cut, choice: int | Like | None) -> Face:
    """The face at a position from the left (from 1), or most like another; without `choice` the largest sure one.

    Raises NoFaceError, UnfitFaceError.
    """
    found = sorted(detector.detect(pixels), key=lambda face: face.box[0])
    if not found:
        raise NoFaceError(f"{path}: no face was found")
    if isinstance(choice, int) and not 1 <= choice <= len(found):
        raise NoFaceError(f"{path}: there is no face {choice}; {len(found)} were found, counted from the left from 1")
    if isinstance(choice, Like):
        large = [face for face in found if face.side >= SMALLEST and not in_profile(face.points)] or found
        faces = [_aligned(path, pixels, face, cut) for face in large]
        vectors = choice.embed(np.stack([choice.crop, *(face.crop for face in faces)]))
        return faces[int(np.argmax(vectors[1:] @ vectors[0]))]
    return _aligned(path, pixels, largest(found) if choice is None else found[choice - 1], cut)


def _aligned(path: Path | str, pixels: np.ndarray, face: Detection, cut: Cut) -> Face:
    if face.side < SMALLEST:
        raise UnfitFaceError(f"{path}: the face is {face.side:.0f} px, at least {SMALLEST} are needed")
    if in_profile(face.points):
        raise UnfitFaceError(f"{path}: the face is seen from the side; choose another, or a picture with both eyes")
    try:
        quad = quad_of(face.points, cut.framing)
        return Face(quad, align(pixels, quad, cut.size).pixels, cut.framing)
    except ValueError as error:
        raise UnfitFaceError(f"{path}: the face cannot be aligned ({error})") from None


def in_profile(points: np.ndarray) -> bool:
    """Whether the (5, 2) points of a detected face show it from the side, where no method here was trained."""
    eyes = points[1] - points[0]
    nose = points[2] - (points[0] + points[1]) / 2
    return bool(abs(nose @ eyes) > PROFILE * (eyes @ eyes))


def paste(
    picture: np.ndarray, face: Face, swapped: np.ndarray, mask: np.ndarray | None, match_colour: bool
) -> np.ndarray:
    """The photograph with a naive swap (uint8 (s, s, 3)) of its `face` blended in by the model's `mask` (s, s).

    Outside the crop nothing changes, at its border the mask fades out; without a mask an ellipse is blended.
    `match_colour`: the swap takes the mean and the spread of the crop's colours inside the mask (Reinhard et al. 2001).
    """
    size = len(swapped)
    weight = (_ellipse(size, face.framing) if mask is None else mask) * _border(size)
    if match_colour:
        swapped = _recoloured(swapped, face.crop, weight)
    side = np.hypot(*(face.quad[3] - face.quad[0]))
    if side < size:  # shrunk before it is sampled, or it would alias
        size = max(round(side), 2)
        swapped = resized(swapped, size)
        weight = np.asarray(PILImage.fromarray(weight.astype(np.float32)).resize((size, size), PILImage.Resampling.BOX))
    result = picture.copy()
    low = np.maximum(np.floor(face.quad.min(axis=0)).astype(int), 0)
    high = np.ceil(face.quad.max(axis=0)).astype(int) + 1
    swapped, weight = PILImage.fromarray(swapped), PILImage.fromarray(weight.astype(np.float32))
    for top in range(low[1], min(high[1], len(result)), STRIP):  # a large photograph needs no more memory than strips
        part = result[top : min(top + STRIP, high[1]), low[0] : high[0]]
        if not part.size:
            break
        quad = face.quad - [low[0], top]
        inside = _warped(weight, quad, part.shape)[..., None]
        colours = _warped(swapped, quad, part.shape).astype(np.float32)
        blended = part * (1 - inside) + colours * inside
        part[:] = np.where(inside > 0, np.clip(np.rint(blended), 0, 255), part)
    return result


def _warped(crop: PILImage.Image, quad: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The crop where it belongs in a picture of `shape`, 0 elsewhere."""
    forward = crop_transform(quad, crop.width)
    linear = forward[:, :2]
    offset = forward[:, 2] + 0.5 - linear @ [0.5, 0.5]  # PIL counts from the outer corner of the first pixel
    data = (*linear[0], offset[0], *linear[1], offset[1])
    kind = PILImage.Resampling.BICUBIC if crop.mode == "RGB" else PILImage.Resampling.BILINEAR
    return np.asarray(crop.transform((shape[1], shape[0]), PILImage.Transform.AFFINE, data, kind))


def _border(size: int) -> np.ndarray:
    """1 inside, falling to 0 over SEAM at the crop's border."""
    distance = np.minimum(np.arange(size), np.arange(size)[::-1]) / max(SEAM * size, 1)
    ramp = np.clip(distance, 0, 1)
    return np.minimum(ramp[:, None], ramp[None]) ** 2 * (3 - 2 * np.minimum(ramp[:, None], ramp[None]))


def _ellipse(size: int, framing: float) -> np.ndarray:
    """Where a face lies in the crop, with a soft edge; the ellipse is given in FFHQ's square."""
    left, top = corner_of(framing)
    y, x = (np.mgrid[:size, :size] + 0.5) / size * framing + np.array([top, left])[:, None, None]
    radius = np.hypot((x - 0.5) / 0.36, (y - 0.55) / 0.42)
    return np.clip((1.1 - radius) / 0.2, 0, 1)


def _recoloured(swapped: np.ndarray, target: np.ndarray, weight: np.ndarray) -> np.ndarray:
    inside = weight > 0.5
    if inside.sum() < 16:
        return swapped
    source = swapped.astype(np.float32)
    mean, spread = source[inside].mean(axis=0), source[inside].std(axis=0) + 1e-3
    wanted = target[inside].astype(np.float32)
    moved = (source - mean) / spread * wanted.std(axis=0) + wanted.mean(axis=0)
    return np.clip(np.rint(moved), 0, 255).astype(np.uint8)

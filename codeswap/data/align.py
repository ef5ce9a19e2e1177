"""The FFHQ alignment (METHOD §E.2): from eyes and mouth to a square crop that every later stage expects.

A set of faces may show a smaller square of the same alignment (`quad_of`): more of its pixels are the face's.

Coordinates are pixels with centres at whole numbers, x to the right and y down, as detectors report them.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image as PILImage
from scipy.ndimage import gaussian_filter

from codeswap.types import corner_of

SUPERSAMPLING = 4  # FFHQ samples 4096 pixels for its 1024; after shrinking no more detail is left in the source


class Cut(NamedTuple):
    """How faces are cut out for a model: `size` in pixels, and `framing`, the square's side of FFHQ's."""

    size: int
    framing: float = 1.0


class Crop(NamedTuple):
    """An aligned face: uint8 (size, size, 3) pixels and the `quad` (4, 2) of the source they were taken from."""

    pixels: np.ndarray
    quad: np.ndarray


def quad_of(points: np.ndarray, framing: float = 1.0) -> np.ndarray:
    """The square to crop, (4, 2) float64: top left, bottom left, bottom right, top right as the face sees upright.

    `framing`: the square's side, of FFHQ's (`part_of`).

    `points` is (5, 2) in the order of `types.Detection` or (68, 2) in iBUG's. Raises ValueError when there is another
    number of points or when eyes and mouth coincide, so that no square is defined.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.shape == (5, 2):
        eye_left, eye_right, mouth = points[0], points[1], points[3:5].mean(axis=0)
    elif points.shape == (68, 2):
        eye_left, eye_right = points[36:42].mean(axis=0), points[42:48].mean(axis=0)
        mouth = (points[48] + points[54]) / 2
    else:
        raise ValueError(f"landmarks of shape {points.shape}, expected (5, 2) or (68, 2)")
    eyes, between = (eye_left + eye_right) / 2, eye_right - eye_left
    down = mouth - eyes
    x = between + np.array([down[1], -down[0]])
    length = np.hypot(*x)
    if not np.isfinite(points).all() or length < 1e-3 or np.hypot(*between) < 1e-3:
        raise ValueError(f"landmarks {points.round(1).tolist()} do not show where eyes and mouth are")
    x *= max(2.0 * np.hypot(*between), 1.8 * np.hypot(*down)) / length
    y = np.array([-x[1], x[0]])
    centre = eyes + 0.1 * down
    return part_of(np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y]), framing)


def part_of(quad: np.ndarray, framing: float) -> np.ndarray:
    """FFHQ's square `quad` (4, 2) cut down to the side `framing` of its own, in the middle and nearer to its foot."""
    if framing == 1:
        return quad
    (left, top), right, down = corner_of(framing), quad[3] - quad[0], quad[1] - quad[0]
    corner = quad[0] + left * right + top * down
    right, down = framing * right, framing * down
    return np.stack([corner, corner + down, corner + right + down, corner + right])


def whole(size: int, framing: float = 1.0) -> np.ndarray:
    """The square (4, 2) of a picture of `size` pixels that is an FFHQ-aligned crop already."""
    low, high = -0.5, size - 0.5
    return part_of(np.array([[low, low], [low, high], [high, high], [high, low]]), framing)


def cut_out(picture: np.ndarray, cut: Cut) -> Crop:
    """The face of a uint8 (s, s, 3) picture that is an FFHQ-aligned crop already."""
    quad = whole(len(picture), cut.framing)
    return Crop(resized(picture, cut.size), quad) if cut.framing == 1 else align(picture, quad, cut.size)


def crop_transform(quad: np.ndarray, size: int) -> np.ndarray:
    """The similarity (2, 3) that takes source pixels to pixels of the crop of `size`."""
    corner, right = quad[0], quad[3] - quad[0]
    down = quad[1] - quad[0]
    linear = np.stack([right / (right @ right), down / (down @ down)]) * size
    # A quad corner is the outer corner of the crop's first pixel, whose centre is 0.
    return np.column_stack([linear, -linear @ corner - 0.5])


def apply(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Moves points (n, 2) by an affine transform (2, 3)."""
    return points @ transform[:, :2].T + transform[:, 2]


def align(picture: np.ndarray, quad: np.ndarray, size: int) -> Crop:
    """The square `quad` of a uint8 (h, w, 3) picture as `size` pixels, with FFHQ's shrinking and blurred padding.

    Parts outside the picture are reflected, blurred and faded to the median colour (METHOD §E.2).
    """
    image, corners = PILImage.fromarray(picture), quad.copy()
    side = np.hypot(*(quad[3] - quad[0]))

    shrink = int(side / size * 0.5)
    if shrink > 1:
        smaller = (max(round(image.width / shrink), 1), max(round(image.height / shrink), 1))
        # Centres at whole numbers: scaling keeps the outer corner, which lies half a pixel before the first centre.
        corners = (corners + 0.5) * np.divide(smaller, image.size) - 0.5
        image = image.resize(smaller, PILImage.Resampling.LANCZOS)
        side /= shrink

    border = max(round(side * 0.1), 3)
    low, high = np.floor(corners.min(axis=0)).astype(int), np.ceil(corners.max(axis=0)).astype(int)
    box = (
        max(int(low[0]) - border, 0),
        max(int(low[1]) - border, 0),
        min(int(high[0]) + border, image.width),
        min(int(high[1]) + border, image.height),
    )
    if box[2] <= box[0] or box[3] <= box[1]:
        raise ValueError(f"the face's square {quad.round(1).tolist()} lies outside the picture")
    image, corners = image.crop(box), corners - box[:2]

    low, high = np.floor(corners.min(axis=0)).astype(int), np.ceil(corners.max(axis=0)).astype(int)
    pad = np.maximum(
        [border - low[0], border - low[1], high[0] - image.width + border, high[1] - image.height + border], 0
    )
    if pad.max() > border - 4:
        pad = np.maximum(pad, round(side * 0.3))
        image, corners = _padded(image, pad, side * 0.02), corners + pad[:2]

    # PIL counts from the outer corner of the first pixel, hence the half.
    fine = SUPERSAMPLING * size
    data = tuple((corners + 0.5).flatten().tolist())
    image = image.transform((fine, fine), PILImage.Transform.QUAD, data, PILImage.Resampling.BILINEAR)
    return Crop(np.asarray(image.resize((size, size), PILImage.Resampling.LANCZOS)), quad)


def _padded(image: PILImage.Image, pad: np.ndarray, blur: float) -> PILImage.Image:
    left, top, right, bottom = (int(side) for side in pad)
    pixels = np.pad(np.float32(image), ((top, bottom), (left, right), (0, 0)), "reflect")
    height, width = pixels.shape[:2]
    y, x = np.ogrid[:height, :width]
    outside = np.maximum(  # 0 well inside, 1 at the far edge of the padding
        1 - np.minimum(x / left, (width - 1 - x) / right), 1 - np.minimum(y / top, (height - 1 - y) / bottom)
    )[..., None].astype(np.float32)
    pixels += (gaussian_filter(pixels, [blur, blur, 0]) - pixels) * np.clip(outside * 3 + 1, 0, 1)
    pixels += (np.median(pixels, axis=(0, 1)) - pixels) * np.clip(outside, 0, 1)
    return PILImage.fromarray(np.uint8(np.clip(np.rint(pixels), 0, 255)))


def resized(picture: np.ndarray, size: int) -> np.ndarray:
    """An aligned square picture at `size` pixels, antialiased (Lanczos); itself when it has that size."""
    if picture.shape[0] == size:
        return picture
    return np.asarray(PILImage.fromarray(picture).resize((size, size), PILImage.Resampling.LANCZOS))

"""The FFHQ square: hand-computed corners, and pixels that land where the geometry says, to a fraction of a pixel."""

import numpy as np
import pytest

from codeswap.data.align import align, apply, crop_transform, quad_of, resized

# Eyes level at y 100, 40 apart; mouth 50 below them.
UPRIGHT = np.array([[80, 100], [120, 100], [100, 125], [90, 150], [110, 150]], dtype=float)


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def blobs(points: np.ndarray, width: int, height: int, sigma: float) -> np.ndarray:
    """A black picture with one soft white dot at each point."""
    y, x = np.mgrid[:height, :width]
    light = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2)) for px, py in points)
    return np.repeat(np.uint8(np.clip(light, 0, 1) * 255)[..., None], 3, axis=2)


def centre_near(picture: np.ndarray, point: np.ndarray, reach: int) -> np.ndarray:
    """Where the light around `point` is centred."""
    low = np.maximum(np.round(point).astype(int) - reach, 0)
    part = picture[low[1] : low[1] + 2 * reach + 1, low[0] : low[0] + 2 * reach + 1, 0].astype(float)
    y, x = np.mgrid[: part.shape[0], : part.shape[1]]
    return low + np.array([(x * part).sum(), (y * part).sum()]) / part.sum()


def test_corners_by_hand() -> None:
    # e = (100, 100), ee = (40, 0), em = (0, 50): x = (40 + 50, 0) -> (90, 0), because 1.8 * 50 > 2 * 40;
    # y = (0, 90), c = (100, 105).
    assert quad_of(UPRIGHT).tolist() == [[10, 15], [10, 195], [190, 195], [190, 15]]


def test_wide_eyes_decide_when_the_mouth_is_near() -> None:
    near = UPRIGHT.copy()
    near[3:, 1] = 120  # 2 * 40 > 1.8 * 20; c = (100, 102)
    assert quad_of(near).tolist() == [[20, 22], [20, 182], [180, 182], [180, 22]]


def test_turns_and_scales_with_the_face() -> None:
    np.testing.assert_allclose(quad_of(turned(UPRIGHT, 30) * 3), turned(quad_of(UPRIGHT), 30) * 3, atol=1e-9)


def test_68_points_give_the_square_of_their_eyes_and_mouth() -> None:
    points = np.full((68, 2), 1e3)
    points[36:42] = UPRIGHT[0] + np.array([[-5, 0], [5, 0], [0, -2], [0, 2], [-3, 1], [3, -1]])
    points[42:48] = UPRIGHT[1] + np.array([[-5, 0], [5, 0], [0, -2], [0, 2], [-3, 1], [3, -1]])
    points[48], points[54] = UPRIGHT[3], UPRIGHT[4]
    np.testing.assert_allclose(quad_of(points), quad_of(UPRIGHT))


@pytest.mark.parametrize(
    ("points", "message"),
    [(np.zeros((4, 2)), r"shape \(4, 2\)"), (np.ones((5, 2)), "do not show"), (UPRIGHT * np.nan, "do not show")],
)
def test_useless_landmarks_are_refused(points: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quad_of(points)


def test_crop_transform_takes_corners_to_outer_corners() -> None:
    quad = turned(quad_of(UPRIGHT), 20)
    corners = apply(crop_transform(quad, 64), quad)
    np.testing.assert_allclose(corners, [[-0.5, -0.5], [-0.5, 63.5], [63.5, 63.5], [63.5, -0.5]], atol=1e-9)


@pytest.mark.parametrize("degrees", [0, 17, -35])
@pytest.mark.parametrize("scale", [0.7, 1.0, 2.5, 6.0])  # enlarged, and shrunk by the Lanczos step before the crop
def test_landmarks_land_within_a_twentieth_of_a_pixel(degrees: float, scale: float) -> None:
    points = turned(UPRIGHT - 100, degrees) * scale + 220 * scale
    side = int(440 * scale)
    # Half a pixel off in any of the steps would show as 0.5 or more.
    crop = align(blobs(points, side, side, sigma=4 * scale), quad_of(points), 96)
    expected = apply(crop_transform(crop.quad, 96), points)
    found = np.stack([centre_near(crop.pixels, point, 5) for point in expected])
    np.testing.assert_allclose(found, expected, atol=0.05 if scale < 6 else 0.1)


def test_aligning_an_aligned_face_changes_nothing() -> None:
    points = apply(crop_transform(quad_of(UPRIGHT), 128), UPRIGHT)
    np.testing.assert_allclose(quad_of(points), [[-0.5, -0.5], [-0.5, 127.5], [127.5, 127.5], [127.5, -0.5]], atol=1e-9)
    y, x = np.mgrid[:128, :128]
    picture = np.uint8(np.stack([2 * x, 2 * y, 127 + 60 * np.sin(x / 9) * np.cos(y / 7)], axis=2))
    change = (align(picture, quad_of(points), 128).pixels.astype(int) - picture)[8:-8, 8:-8]
    assert np.abs(change).max() <= 3  # bilinear sampling flattens the waves a little
    assert not change[..., :2].any()  # half a pixel of shift would change the ramps by one


def test_padding_is_reflected_and_leaves_the_inside_alone() -> None:
    rng = np.random.default_rng(0)
    picture = np.uint8(rng.integers(0, 2, (200, 200, 1)) * 40 + np.array([200, 100, 50]))
    inside = align(np.pad(picture, ((200,) * 2, (200,) * 2, (0, 0))), quad_of(UPRIGHT) + 200, 90).pixels
    shifted = UPRIGHT - [70, 0]  # the square now starts at x = -60
    crop = align(picture, quad_of(shifted), 90).pixels
    outside = crop[:, :28].astype(float)
    assert np.abs(outside.mean(axis=(0, 1)) - picture.mean(axis=(0, 1))).max() < 15  # the picture's colours, not black
    assert outside.std(axis=(0, 1)).max() < inside.astype(float).std(axis=(0, 1)).max()  # and blurred


def test_a_face_outside_the_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="outside the picture"):
        align(np.zeros((50, 50, 3), dtype=np.uint8), quad_of(UPRIGHT) + 500, 64)


def test_resized_is_antialiased_and_keeps_its_own_size() -> None:
    checks = np.uint8((np.indices((64, 64)).sum(axis=0) % 2) * 255)[..., None].repeat(3, axis=2)
    assert resized(checks, 64) is checks
    assert np.abs(resized(checks, 16)[2:-2, 2:-2].astype(int) - 127).max() <= 1

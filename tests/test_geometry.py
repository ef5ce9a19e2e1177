"""One face's parts carried to where another's lie: what moves, what stays, and what is not there."""

import pytest
import torch

from codeswap.data.geometry import EDGE, anchors, with_geometry_of

SIZE = 64


def _face(mouth_y: int, mouth_h: int = 4) -> torch.Tensor:
    """A label map with skin, both eyes and a mouth around (32, mouth_y)."""
    labels = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    labels[:, 12:56, 16:48] = 1
    labels[:, 24:28, 20:28], labels[:, 24:28, 36:44] = 4, 5
    labels[:, mouth_y - mouth_h : mouth_y + mouth_h, 26:38] = 12
    return labels


def _painted(labels: torch.Tensor, label: int) -> torch.Tensor:
    return (labels == label).float()[:, None].expand(-1, 3, -1, -1) * 2 - 1


def _row_of(image: torch.Tensor) -> float:
    """Mean row of what is bright."""
    bright = (image[0, 0] + 1) / 2
    return ((torch.arange(SIZE) + 0.5) * bright.sum(dim=1)).sum().item() / bright.sum().item()


def test_anchors_are_the_middles_and_edges_of_parts():
    found = anchors(_face(40))
    assert found.points.shape == (1, 35, 2) and found.there.shape == (1, 35)
    mouth = found.points[0, 25:30] * SIZE
    assert mouth[0].tolist() == pytest.approx([32, 40])
    half = EDGE * (12**2 - 1) ** 0.5 / 12**0.5  # of a row of twelve pixels
    assert mouth[1].tolist() == pytest.approx([32 - half, 40], rel=1e-4)
    assert found.there[0].tolist() == [0] * 10 + [1] * 10 + [0] * 5 + [1] * 10  # neither brows nor a nose


def test_a_part_moves_to_where_the_others_is_and_the_rest_stays():
    own, other = _face(40), _face(46)
    mouth = _painted(own, 12)
    moved = with_geometry_of(mouth, own, other, torch.ones(1))
    assert _row_of(moved) == pytest.approx(46, abs=1.2)
    halfway = with_geometry_of(mouth, own, other, torch.full((1,), 0.5))
    assert _row_of(halfway) == pytest.approx(43, abs=0.8)
    eyes = _painted(own, 4)
    assert _row_of(with_geometry_of(eyes, own, other, torch.ones(1))) == pytest.approx(_row_of(eyes), abs=0.5)


def test_a_part_grows_as_the_others_is_larger():
    own, other = _face(42, mouth_h=2), _face(42, mouth_h=6)
    mouth = _painted(own, 12)
    opened = with_geometry_of(mouth, own, other, torch.ones(1))
    assert (opened > 0).sum() > 1.5 * (mouth > 0).sum()


def test_nothing_moves_without_a_share_or_a_part():
    own, other = _face(40), _face(46)
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(with_geometry_of(image, own, other, torch.zeros(1)), image, rtol=0, atol=1e-4)
    nobody = torch.zeros_like(own)
    torch.testing.assert_close(with_geometry_of(image, own, nobody, torch.ones(1)), image, rtol=0, atol=1e-4)

"""Faces lit from one side, and which are left as they are."""

import torch

from codeswap.data.evened import evened
from tests.drawn_faces import SIZE, drawn_face, drawn_labels


def _half_lit(labels: torch.Tensor, shade: float) -> torch.Tensor:
    """An even face with a beauty spot on either cheek, of which the left one is larger; its right half `shade` times as
    bright."""
    picture = drawn_face(labels, (0.8, 0.6, 0.5), 0.9)
    picture[..., 38:42, 20:24] = picture[..., 39:41, 42:44] = -0.8
    half = (torch.arange(SIZE) >= SIZE // 2) & (labels > 0)[:, None]
    return torch.where(half, (picture + 1) * shade - 1, picture)


def test_a_face_lit_from_one_side_has_its_brighter_half_twice():
    labels = drawn_labels()
    source = _half_lit(labels, 0.3)
    found = evened(source, labels)
    torch.testing.assert_close(found[..., :28], source[..., :28], atol=0.02, rtol=0)
    face = (slice(None), slice(None), slice(22, 52), slice(36, 46))
    torch.testing.assert_close(found[face], source.flip(-1)[face], atol=0.06, rtol=0)
    beyond = (labels == 0)[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(found[beyond], source[beyond])


def test_other_faces_are_not_evened():
    labels = drawn_labels()
    turned = labels.clone()
    turned[:, 26:36, 30:34], turned[:, 26:36, 33:37] = 1, 10  # its nose points aside
    narrow = labels.clone()
    narrow[:, 14:54, 40:48] = 0  # half of it is hidden
    for given, shade in ((labels, 0.75), (turned, 0.3), (narrow, 0.3)):
        source = _half_lit(given, shade)
        torch.testing.assert_close(evened(source, given), source)

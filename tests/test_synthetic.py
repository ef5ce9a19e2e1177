"""Rendered faces: numbers that stay, identity and attributes that do not mix, exact labels, exact mirrors."""

import numpy as np
import pytest
import torch
from PIL import Image

from codeswap.data import synthetic
from codeswap.data.synthetic_parameters import Attributes, Identity
from codeswap.types import FACE_CLASSES

NEUTRAL = {"yaw": 0.5, "pitch": 0.5, "roll": 0.5, "shift_x": 0.5, "shift_y": 0.5, "hair_fringe": 0.0, "hair_line": 1.0}


def person(number: int = 3, **fields: float) -> torch.Tensor:
    row = synthetic.identities(number, 1, seed=7)
    for name, value in fields.items():
        row[0, Identity._fields.index(name)] = value
    return row


def look(number: int = 3, **fields: float) -> torch.Tensor:
    row = synthetic.attributes(number, 1, seed=7)
    for name, value in (NEUTRAL | fields).items():
        row[0, Attributes._fields.index(name)] = value
    return row


def area(label: torch.Tensor, *ids: int) -> int:
    return int(torch.isin(label, torch.tensor(ids, dtype=torch.uint8)).sum())


def centre(label: torch.Tensor, number: int) -> tuple[float, float]:
    """x, y of a part's middle in [-1, 1], right and up."""
    rows, columns = torch.nonzero(label[0] == number, as_tuple=True)
    size = label.shape[-1]
    return (2 * columns.float().mean().item() + 1) / size - 1, 1 - (2 * rows.float().mean().item() + 1) / size


def test_a_number_is_always_the_same_person() -> None:
    all_at_once = synthetic.identities(0, 50, seed=3)
    assert torch.equal(synthetic.identities(20, 5, seed=3), all_at_once[20:25])
    assert not torch.equal(synthetic.identities(20, 5, seed=4), all_at_once[20:25])
    assert not torch.equal(synthetic.attributes(20, 5, seed=3)[:, :20], all_at_once[20:25, :20])
    assert all_at_once.shape == (50, synthetic.IDENTITY)


def test_parameters_are_uniform_and_independent() -> None:
    values = synthetic.identities(0, 4000, seed=0).numpy()
    assert values.min() >= 0 and values.max() < 1
    np.testing.assert_allclose(values.mean(0), 0.5, atol=0.03)
    np.testing.assert_allclose(values.std(0), 12**-0.5, atol=0.01)
    assert np.abs(np.corrcoef(values.T) - np.eye(synthetic.IDENTITY)).max() < 0.08


def test_rendering_does_not_depend_on_the_company() -> None:
    people, looks = synthetic.identities(0, 40, seed=0), synthetic.attributes(0, 40, seed=0)
    images, labels = synthetic.render(people, looks, 64)
    alone, label = synthetic.render(people[37:38], looks[37:38], 64)
    assert torch.equal(images[37:38], alone) and torch.equal(labels[37:38], label)
    assert images.dtype == labels.dtype == torch.uint8 and images.shape == (40, 3, 64, 64)


def test_the_parsing_has_the_promised_labels_and_every_face_its_parts() -> None:
    _, labels = synthetic.render(synthetic.identities(0, 60, seed=0), synthetic.attributes(0, 60, seed=0), 64)
    assert sorted(labels.unique().tolist()) == list(synthetic.LABELS)
    for label in labels:
        assert area(label, 1) > 300 and area(label, 10) > 8 and area(label, 12) > 5 and area(label, 16, 17, 0) > 500


def test_an_identity_change_stays_inside_the_face() -> None:
    """The true swap keeps background, hair and clothes: outside both faces the pictures are equal."""
    looks = synthetic.attributes(0, 24, seed=1)
    one, label_one = synthetic.render(synthetic.identities(0, 24, seed=1), looks, 64)
    two, label_two = synthetic.render(synthetic.identities(100, 24, seed=1), looks, 64)
    face = torch.isin(label_one, torch.tensor(FACE_CLASSES)) | torch.isin(label_two, torch.tensor(FACE_CLASSES))
    near = torch.nn.functional.max_pool2d(face[:, None].float(), 5, 1, 2)[:, 0] > 0  # antialiased borders, soft hair
    difference = (one.int() - two.int()).abs().amax(1)
    assert difference[~near].float().mean() < 0.5
    assert difference[face].float().mean() > 20


def test_size_only_changes_the_sampling() -> None:
    people, looks = synthetic.identities(0, 8, seed=2), synthetic.attributes(0, 8, seed=2)
    small, _ = synthetic.render(people, looks, 64)
    large, _ = synthetic.render(people, looks, 128)
    halved = torch.nn.functional.avg_pool2d(large.float(), 2)
    assert (halved - small).abs().mean() < 5


def test_a_mirrored_picture_has_mirrored_parameters() -> None:
    people, looks = synthetic.identities(0, 12, seed=5), synthetic.attributes(0, 12, seed=5)
    image, label = synthetic.render(people, looks, 64)
    mirrored, mirrored_label = synthetic.render(
        synthetic.mirror_identity(people), synthetic.mirror_attributes(looks), 64
    )
    assert (mirrored.flip(-1).int() - image.int()).abs().max() <= 1
    assert (mirrored_label.flip(-1) != label).float().mean() < 1e-3
    signs = torch.tensor([-1.0, 1.0, -1.0])
    torch.testing.assert_close(synthetic.pose_of(synthetic.mirror_attributes(looks)), synthetic.pose_of(looks) * signs)


@pytest.mark.parametrize(("angle", "axis"), [("yaw", 0), ("pitch", 1)])
def test_the_nose_points_where_the_pose_says(angle: str, axis: int) -> None:
    noses = [centre(synthetic.render(person(), look(**{angle: value}), 96)[1], 10)[axis] for value in (0.0, 0.5, 1.0)]
    assert noses[0] < noses[1] - 0.05 and noses[1] < noses[2] - 0.05
    assert synthetic.pose_of(look(**{angle: 1.0}))[0, axis] == {"yaw": 32, "pitch": 16}[angle]


def test_roll_turns_counter_clockwise() -> None:
    label = synthetic.render(person(), look(roll=1.0), 96)[1]
    assert centre(label, 12)[0] > centre(label, 2)[0] + 0.05  # mouth to the right of the brows


def test_expression_shows() -> None:
    def parts(**fields: float) -> torch.Tensor:
        return synthetic.render(person(moustache=0.0), look(**fields), 96)[1]

    assert area(parts(mouth_open=1.0), 12) > 1.5 * area(parts(mouth_open=0.0), 12)
    assert area(parts(eye_open=1.0), 4) > 3 * area(parts(eye_open=0.0), 4)
    assert centre(parts(brow_raise=1.0), 2)[1] > centre(parts(brow_raise=0.0), 2)[1] + 0.08
    assert synthetic.expression_of(look(mouth_open=1.0, gaze_y=0.0))[0, [0, 5]].tolist() == [1.0, -1.0]


def test_shapes_and_sizes_that_do_not_fit_are_refused() -> None:
    people, looks = synthetic.identities(0, 2, seed=0), synthetic.attributes(0, 3, seed=0)
    with pytest.raises(ValueError, match=r"expected \(b, 30\)"):
        synthetic.render(people, looks, 64)
    with pytest.raises(ValueError, match="too small"):
        synthetic.render(people, looks[:2], 4)
    with pytest.raises(ValueError, match="negative"):
        synthetic.identities(-1, 2, seed=0)


def test_contact_sheet_rows_are_persons_under_equal_attributes() -> None:
    sheet = synthetic.contact_sheet(2, 3, 32, seed=0)
    assert isinstance(sheet, Image.Image) and sheet.size == (96, 64)
    expected, _ = synthetic.render(synthetic.identities(1, 1, 0), synthetic.attributes(2, 1, 0), 32)
    cell = np.asarray(sheet)[32:, 64:]
    assert np.array_equal(cell, expected[0].permute(1, 2, 0).numpy())

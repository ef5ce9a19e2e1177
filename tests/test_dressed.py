"""A source's face dressed as the target's, and the target's forehead: what is whose, and that trainings are told so."""

import csv
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codeswap.data.dressed import dressed
from codeswap.data.faces import to_float
from codeswap.data.labels import last_row, mouth_kept, without_forehead
from codeswap.data.order import OrderConfig, order_faces
from codeswap.data.pairs import PairConfig, Pairing
from codeswap.train.feeds import PairBatch, PairFeed, face_mask, open_training_faces
from codeswap.train.truth import dress
from tests.drawn_faces import SIZE, drawn_face, drawn_labels

ROLES = ("identity_train", "expression_train", "pose")


def _rough(picture: torch.Tensor) -> torch.Tensor:
    """Skin is never even."""
    grain = torch.rand(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.8
    return grain * (picture + 1) - 1


def test_the_face_is_the_sources_in_the_targets_colours_and_the_rest_the_targets():
    own, other = drawn_labels(44), drawn_labels(48)
    source, target = drawn_face(own, (0.8, 0.6, 0.5), 0.9), drawn_face(other, (0.3, 0.2, 0.15), 0.1, lips=1.0)
    picture = (dressed(source, own, target, other) + 1) / 2
    torch.testing.assert_close(picture[..., :10, :], (target[..., :10, :] + 1) / 2)
    torch.testing.assert_close(picture[..., :8], (target[..., :8] + 1) / 2)
    cheek = picture[0, :, 30:36, 22:27].mean(dim=(1, 2))
    torch.testing.assert_close(cheek, torch.tensor([0.3, 0.2, 0.15]), atol=0.02, rtol=0)
    lips = picture[0].mean(dim=0)
    assert lips[45:47, 30:34].max() < 0.75 * cheek.mean()  # the source's are darker than skin, the target's are not
    dark = (lips[40:53, 28:36] < 0.85 * cheek.mean()).float().mean(dim=1)
    row = 40 + (dark * torch.arange(13)).sum() / dark.sum()
    assert 45 < row < 47.5  # from 44 over half of the way to 48


def test_a_beard_of_the_sources_stays_and_does_not_change_its_skin():
    labels = drawn_labels()
    bearded = drawn_face(labels, (0.8, 0.6, 0.5), 0.9)
    bearded[..., 38:54, 16:48] = -0.8
    target = drawn_face(labels, (0.5, 0.4, 0.3), 0.1)
    bearded, target = _rough(bearded), _rough(target)
    picture = (dressed(bearded, labels, target, labels) + 1) / 2
    cheek, chin = picture[0, :, 29:34, 22:27].mean(dim=(1, 2)), picture[0, :, 49:52, 28:36].mean()
    torch.testing.assert_close(cheek, torch.tensor([0.5, 0.4, 0.3]), atol=0.05, rtol=0)
    assert chin < 0.6 * cheek.mean()


def test_the_targets_light_falls_on_the_sources_face():
    labels = drawn_labels()
    source, target = drawn_face(labels, (0.6, 0.5, 0.4), 0.2), drawn_face(labels, (0.6, 0.5, 0.4), 0.2)
    target[..., 32:] = (target[..., 32:] + 1) * 0.6 - 1  # lit from the left
    picture = (dressed(source, labels, target, labels) + 1) / 2
    assert picture[0, :, 30:40, 40:44].mean() < 0.85 * picture[0, :, 30:40, 20:24].mean()


@pytest.mark.parametrize(("of_target", "expected"), [(2.0, 1.4), (1.2, 1.2), (0.5, 0.5)])
def test_contrast_goes_to_the_targets_but_is_not_raised_beyond_bounds(of_target, expected):
    """Grain is the contrast here; above the mouth all of it is, for light slopes farther than grain."""
    labels = drawn_labels()
    source = target = drawn_face(labels, (0.6, 0.5, 0.4), 0.2)
    source, target = (
        ((_rough(x) + 1) / (x + 1)) ** power * (x + 1) - 1 for x, power in ((source, 1), (target, of_target))
    )

    def grain(picture: torch.Tensor) -> float:
        return ((picture[0, 0, 29:36, 20:28] + 1) / 2).log().std().item()

    made = dressed(source, labels, target, labels)
    assert grain(made) == pytest.approx(expected * grain(source), rel=0.12)


def test_colours_that_lie_on_a_part_of_the_sources_skin_give_way_to_the_targets():
    labels = drawn_labels()
    source, target = drawn_face(labels, (0.6, 0.5, 0.4), 0.2), drawn_face(labels, (0.6, 0.5, 0.4), 0.2)
    source[:, 2, 36:46, 36:] = 0.4  # blue light on one cheek
    picture = (dressed(_rough(source), labels, _rough(target), labels) + 1) / 2
    torch.testing.assert_close(
        picture[0, :, 34:40, 41:45].mean(dim=(1, 2)), torch.tensor([0.6, 0.5, 0.4]), atol=0.1, rtol=0
    )


@pytest.mark.parametrize("whose", ["source", "target"])
def test_hair_of_another_colour_over_a_cheek_does_not_tint_the_skin_beside_it(whose):
    labels = drawn_labels()
    source, target = drawn_face(labels, (0.6, 0.5, 0.4), 0.2), drawn_face(labels, (0.7, 0.55, 0.4), 0.2)
    strand = torch.tensor([0.1, 0.5, 0.9]).view(1, 3, 1, 1) * 2 - 1
    (source if whose == "source" else target)[..., 24:36, 42:46] = strand
    picture = (dressed(_rough(source), labels, _rough(target), labels) + 1) / 2
    beside = picture[0, :, 30:35, 37:41].mean(dim=(1, 2))
    assert (beside / beside.mean() - torch.tensor([0.7, 0.55, 0.4]) / 0.55).abs().max() < 0.12
    if whose == "source":  # and what hides the source's cheek is not carried over
        hidden = picture[0, :, 28:34, 43:45].mean(dim=(1, 2))
        assert hidden[0] > hidden[2]


def _dark(picture: torch.Tensor, rows: slice, columns: slice) -> None:
    picture[..., rows, columns] = (picture[..., rows, columns] + 1) * 0.1 - 1


def _over(picture: torch.Tensor, rows: slice, columns: slice) -> float:
    """How bright a part is, in parts of the cheek."""
    return ((picture[0, :, rows, columns] + 1).mean() / (picture[0, :, 31:35, 19:27] + 1).mean()).item()


LENS = slice(23, 30), slice(19, 29)


def test_dark_glasses_of_the_sources_stay_dark_and_do_not_change_its_skin():
    labels = drawn_labels()
    source, target = (_rough(drawn_face(labels, skin, 0.2)) for skin in ((0.6, 0.5, 0.4), (0.8, 0.6, 0.5)))
    bare = dressed(source, labels, target, labels)
    _dark(source, *LENS), _dark(source, LENS[0], slice(35, 45))
    made = dressed(source, labels, target, labels)
    assert _over(made, slice(25, 28), slice(21, 27)) < 0.2  # 0.1 in the source's picture
    torch.testing.assert_close(made[..., 33:36, 17:29], bare[..., 33:36, 17:29], atol=0.08, rtol=0)


def test_dark_glasses_of_the_targets_stay_over_the_face_and_do_not_change_it():
    labels = drawn_labels()
    source, target = (_rough(drawn_face(labels, skin, 0.2)) for skin in ((0.6, 0.5, 0.4), (0.8, 0.6, 0.5)))
    source[:, 0, 36:54, 16:48] = 0.4
    bare = dressed(source, labels, target, labels)
    _dark(target, *LENS), _dark(target, LENS[0], slice(35, 45))
    made = dressed(source, labels, target, labels)
    lens = made[..., 25:28, 21:27], target[..., 25:28, 21:27]  # the eye behind it too
    torch.testing.assert_close(*lens, atol=0.02, rtol=0)
    torch.testing.assert_close(made[..., 33:46, 17:46], bare[..., 33:46, 17:46], atol=0.15, rtol=0)


def test_a_rim_of_the_targets_stays_where_a_wrinkle_does_not():
    labels = drawn_labels()
    source, target = (_rough(drawn_face(labels, skin, 0.2)) for skin in ((0.6, 0.5, 0.4), (0.8, 0.6, 0.5)))
    under = slice(30, 31), slice(20, 28)
    for share, kept in ((0.1, True), (0.75, False)):
        lined = target.clone()
        lined[:, :, under[0], under[1]] = (lined[:, :, under[0], under[1]] + 1) * share - 1
        line = _over(dressed(source, labels, lined, labels), *under)
        assert (line < 0.35) if kept else (line > 0.9)


def test_a_strand_above_the_brows_is_not_carried_over_and_a_brow_is():
    labels = drawn_labels()
    source, target = (_rough(drawn_face(labels, skin, 0.2)) for skin in ((0.6, 0.5, 0.4), (0.8, 0.6, 0.5)))
    for rows in (slice(16, 18), slice(20, 22)):  # hair, brows
        _dark(source, rows, slice(20, 28)), _dark(source, rows, slice(36, 44))
    made = dressed(source, labels, target, labels)
    assert _over(made, slice(16, 18), slice(21, 27)) > 0.85
    assert _over(made, slice(20, 22), slice(21, 27)) < 0.4
    without = torch.where((labels == 2) | (labels == 3), 1, labels)  # no brow is known: nothing is above one
    assert _over(dressed(source, without, target, without), slice(16, 18), slice(21, 27)) < 0.5


@pytest.mark.parametrize(("of_source", "of_target"), [(0, 2), (2, 0)])
def test_the_mouth_is_the_targets_where_only_one_is_open(of_source, of_target):
    own, other = drawn_labels(), drawn_labels()
    own[:, 45 : 45 + of_source, 28:36] = other[:, 45 : 45 + of_target, 28:36] = 11
    source, target = drawn_face(own, (0.6, 0.5, 0.4), 0.2), drawn_face(other, (0.6, 0.5, 0.4), 0.2, lips=0.9)
    for labels, picture in ((own, source), (other, target)):
        picture[(labels == 11)[:, None].expand(-1, 3, -1, -1)] = 0.9  # teeth
    middle = (..., slice(45, 47), slice(29, 35))
    torch.testing.assert_close(dressed(source, own, target, other)[middle], target[middle], atol=0.05, rtol=0)
    alike = dressed(source, own, target, own)[middle]
    assert (alike - source[middle]).abs().mean() < 0.5 * (target - source)[middle].abs().mean()


def test_how_much_of_the_targets_mouth_is_kept_goes_by_the_open_shares():
    closed, half, wide = drawn_labels(), drawn_labels(), drawn_labels()
    half[:, 44, 28:33] = 11  # 5 of the 48 pixels of a mouth
    wide[:, 44:46, 26:38] = 11
    targets = torch.cat([closed, half, wide, half])
    kept = mouth_kept(torch.cat([closed, closed, closed, half]), targets)
    expected = torch.tensor([0.0, (5 / 48 - 0.08) / (0.12 - 0.08), 1.0, 0.0])
    torch.testing.assert_close(kept.amax(dim=(1, 2, 3)), expected)
    around = F.max_pool2d(((targets == 11) | (targets == 12))[:, None].float(), 7, 1, 3)
    torch.testing.assert_close(kept, expected[:, None, None, None] * around)


def test_a_face_without_known_parts_is_the_targets():
    target = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    nothing = torch.zeros(2, SIZE, SIZE, dtype=torch.uint8)
    torch.testing.assert_close(dressed(-target, nothing, target, nothing), target)


def test_the_forehead_is_the_skin_more_than_three_64ths_above_the_brows():
    labels = torch.cat([drawn_labels(), drawn_labels()])
    labels[0, 10:14, 16:48] = 17  # hair
    labels[1][(labels[1] == 2) | (labels[1] == 3)] = 1
    found = without_forehead(labels)
    assert (found[0, 14:17] == 0).all() and torch.equal(found[0, 17:], labels[0, 17:])
    assert torch.equal(found[0, :14], labels[0, :14])  # hair stays hair
    assert torch.equal(found[1], labels[1])  # no brow is seen
    assert last_row(torch.stack([labels[0] == 10, labels[0] == 7])).tolist() == [35, -1]


def _feed(root, **options) -> PairFeed:
    source = open_training_faces(root, *ROLES)
    order = order_faces(source.faces.shards, OrderConfig(), 0)
    pairing = Pairing(order, source.faces.identity, PairConfig(same=0.0), 0)
    return PairFeed(source, pairing, parsing=True, **options)


def test_pairs_lose_the_forehead_of_both_faces(copy):
    root = copy("swap", "mask")
    whole, below = (_feed(root, forehead=whose)(np.arange(16)) for whose in ("source", "target"))
    for ours, theirs in ((below.parsing_a, whole.parsing_a), (below.parsing_b, whole.parsing_b)):
        assert torch.equal(ours, without_forehead(theirs))
        assert face_mask(ours).sum() < face_mask(theirs).sum()


def test_pairs_are_dressed_both_ways(copy):
    pairs: PairBatch = _feed(copy("swap", "mask"))(np.arange(4))
    told = dress(pairs)
    for picture, source, own, target, other in (
        (told.true_ab, pairs.image_a, pairs.parsing_a, pairs.image_b, pairs.parsing_b),
        (told.true_ba, pairs.image_b, pairs.parsing_b, pairs.image_a, pairs.parsing_a),
    ):
        assert picture.dtype == torch.uint8
        expected = dressed(to_float(source), own, to_float(target), other)
        torch.testing.assert_close(to_float(picture), expected, atol=1 / 127, rtol=0)
    assert torch.equal(told.true_parsing_ab, pairs.parsing_b) and torch.equal(told.true_parsing_ba, pairs.parsing_a)


@pytest.mark.usefixtures("no_mlflow")
@pytest.mark.parametrize("variant", ["ours", "no_symmetry"])
def test_a_training_on_photographs_is_told_and_resumes(tiny, copy, variant):
    root = copy("swap", "mask")
    models = []
    swap = {"truth": {"of": "dressed", "perceptual": 1.0}, "forehead": "target", "samples": 32}
    for stops in ((), (f"swap-{variant}:16:{signal.SIGTERM}",)):
        undo = tiny.stop_at(root, *stops)
        try:
            assert tiny.train(root, ["swap"], variant=variant, swap=swap) == len(stops)
        finally:
            undo()
        models.append((root / "models/swap" / variant / "model.safetensors").read_bytes())
        with (root / "models/swap" / variant / "curve.csv").open() as file:
            told = [row for row in csv.DictReader(file) if row["truth"]]
        assert told and all(float(row["truth"]) > 0 and float(row["truth_perceptual"]) > 0 for row in told)
        (root / "models/swap" / variant).rename(root / f"before-{len(models)}")
        (root / "runs/swap" / variant).rename(root / f"run-{len(models)}")
    assert models[0] == models[1]


@pytest.mark.parametrize("one_id", [True, False])
def test_a_face_in_a_mirror_keeps_its_eyes_and_brows(one_id):
    """Mirroring does not exchange ids (data/annotations.py): the target's left eye is not that across the nose."""
    own, other = drawn_labels(), drawn_labels()
    if one_id:  # as rendered faces have them
        own[own == 3], own[own == 5] = 2, 4
    source, target = drawn_face(own, (0.8, 0.6, 0.5), 0.9), drawn_face(other, (0.8, 0.6, 0.5), 0.1)
    for eye in (4, 5):
        source[(own == eye)[:, None].expand(-1, 3, -1, -1)] = -0.9
        target[(other == eye)[:, None].expand(-1, 3, -1, -1)] = -0.9
    straight = dressed(source, own, target, other)
    torch.testing.assert_close(dressed(source.flip(-1), own.flip(-1), target, other), straight)
    assert straight[0, :, 25:28, 22:26].max() < -0.5 < -0.1 < straight[0, :, 25:28, 30:34].min()

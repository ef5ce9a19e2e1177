"""What published networks are shown and answer; the real files are tested where they were fetched."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from codeswap.perception.boxes import ARCFACE_112, DLIB_150, FFHQ_512, Box, View, box_of, crop, resampling
from codeswap.perception.landmark_parsing import LandmarkParsing, Landmarks, draw_labels, inside
from codeswap.perception.mtcnn import MTCNN, _window, suppress
from codeswap.perception.packaged import Pose, build, save
from codeswap.perception.published import NETWORKS
from codeswap.perception.weights import default_folder
from codeswap.types import PARSING_LABELS


@pytest.mark.parametrize(("template", "size", "pixels"), [(ARCFACE_112, 112, 2.2), (DLIB_150, 150, 5.0)])
def test_mean_points_land_on_the_template(template: tuple, size: int, pixels: float) -> None:
    box = box_of(template, size)
    points = (torch.tensor(FFHQ_512) + 0.5) / 512
    landed = (points - torch.tensor(box[:2])) / box.side * size - 0.5
    assert (landed - torch.tensor(template)).abs().max() < pixels


def test_arcface_box_is_the_published_theta() -> None:
    """METHOD §B.8: theta = .748913 x - .002809, .748913 y - .016819 for affine_grid, align_corners=False."""
    box = box_of(ARCFACE_112, 112)
    assert box.side == pytest.approx(0.748913, abs=1e-5)
    assert 2 * box.left + box.side - 1 == pytest.approx(-0.002809, abs=2e-4)
    assert 2 * box.top + box.side - 1 == pytest.approx(-0.016819, abs=2e-4)


def test_crop_is_an_antialiased_resize() -> None:
    image = torch.rand(2, 3, 40, 40)
    whole = crop(image, Box(0, 0, 1), 16)
    expected = F.interpolate(image, size=(16, 16), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(whole[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], atol=1e-5, rtol=1e-5)
    assert torch.equal(crop(image, Box(0, 0, 1), 40), image)
    torch.testing.assert_close(crop(image, Box(0.25, 0.5, 0.5), 20), image[:, :, 20:, 10:30])
    assert crop(torch.ones(1, 3, 8, 8), Box(-0.5, -0.5, 2), 5).eq(1).all()
    assert resampling(64, 0.1, 0.7, 224, image).sum(1).allclose(torch.ones(224))


def test_view_orders_and_normalises() -> None:
    image = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 6, 6)
    box = Box(0.2, 0.2, 0.5)
    rgb = View(box, 4, (127.0,), (128.0,))(image)[0, :, 0, 0]
    assert rgb.tolist() == pytest.approx([-127 / 128, 0.5 / 128, 1.0])
    bgr = View(box, 4, (1.0, 2.0, 3.0), (1.0,), "bgr")(image)[0, :, 0, 0]
    assert bgr.tolist() == pytest.approx([254.0, 125.5, -3.0])
    grey = View(box, 4, (0.0,), (255.0,), "grey")(image)
    assert grey.shape == (1, 1, 4, 4) and grey.mean().item() == pytest.approx(0.587 / 2 + 0.114)


def test_pose_reads_bins_as_degrees() -> None:
    """A sure bin i is 3 i - 99 degrees (METHOD §J 12)."""

    class Bins(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return tuple(F.one_hot(torch.full((len(x),), i), 66) * 1e4 for i in (33, 40, 0))

    pose = Pose(View(Box(0, 0, 1), 8, (0.0,), (1.0,)), Bins())(torch.zeros(2, 3, 16, 16))
    assert pose.tolist() == [[0.0, 21.0, -99.0]] * 2


def face_points() -> Tensor:
    """68 points of a drawn face in units of the image: jaw a half circle, everything else at its place."""
    angle = torch.linspace(0, torch.pi, 17)
    jaw = torch.stack([0.5 - 0.3 * angle.cos(), 0.45 + 0.4 * angle.sin()], 1)

    def ring(x: float, y: float, rx: float, ry: float, count: int) -> Tensor:
        a = torch.pi + torch.arange(count) / count * 2 * torch.pi  # from the left over the top
        return torch.stack([x + rx * a.cos(), y + ry * a.sin()], 1)

    row = torch.tensor([-2.0, -1, 0, 1, 2])[:, None]
    step = torch.tensor([[0.03, 0.0]])
    brows = torch.cat([torch.tensor([[x, 0.38]]) + row * step for x in (0.36, 0.64)])
    ridge = torch.stack([torch.full((4,), 0.5), torch.linspace(0.45, 0.56, 4)], 1)
    nostrils = torch.tensor([[0.5, 0.6]]) + row * step * 0.6
    eyes = [ring(x, 0.45, 0.05, 0.025, 6) for x in (0.36, 0.64)]
    lips = [ring(0.5, 0.7, rx, ry, n) for rx, ry, n in ((0.12, 0.07, 12), (0.07, 0.03, 8))]
    return torch.cat([jaw, brows, ridge, nostrils, *eyes, *lips])[None]


def test_parts_are_drawn_where_the_points_are() -> None:
    labels = draw_labels(face_points().expand(2, -1, -1), 100, 100)
    assert labels.shape == (2, 100, 100) and labels.dtype == torch.uint8 and torch.equal(labels[0], labels[1])
    assert set(labels.unique().tolist()) == {0, 1, 2, 3, 4, 5, 10, 11, 12, 13} <= set(PARSING_LABELS)
    at = {(36, 45): 4, (64, 45): 5, (36, 38): 2, (64, 38): 3, (50, 57): 10, (50, 70): 11, (50, 65): 12, (50, 75): 13}
    at |= {(50, 30): 1, (50, 80): 1, (25, 50): 1, (5, 50): 0, (50, 95): 0, (50, 2): 0}
    assert {point: labels[0, point[1], point[0]].item() for point in at} == at


def test_winding_fills_a_folded_outline() -> None:
    square = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]])
    filled = inside(square, 8, 8)
    assert filled.sum() == 16 and filled[0, 2:6, 2:6].all()
    assert torch.equal(inside(square.flip(1), 8, 8), filled)
    assert torch.equal(inside(square.repeat(1, 2, 1), 8, 8), filled)  # twice around: even-odd would leave it empty


def test_parsing_fits_its_contract() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return face_points().flatten(1).expand(len(x), -1) + 0 * x.sum()

    parsing = LandmarkParsing(Landmarks(View(Box(0, 0, 1), 64, (0.0,), (256.0,), "grey"), Fixed()))
    image = torch.zeros(2, 3, 48, 64)
    logits, labels = parsing(image), parsing.label_map(image)
    assert logits.shape == (2, len(parsing.labels), 48, 64) and labels.shape == (2, 48, 64)
    assert torch.equal(parsing.labels[logits.argmax(1)].to(torch.uint8), labels)


def test_suppression_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [20, 20, 30, 30], [2, 2, 6, 6]])
    scores = torch.tensor([0.7, 0.9, 0.6, 0.8])
    assert suppress(boxes, scores, 0.5).tolist() == [1, 3, 2]
    assert suppress(boxes, scores, 0.5, of_smaller=True).tolist() == [1, 2]
    assert suppress(boxes[:0], scores[:0], 0.5).tolist() == []


def test_detector_takes_any_photograph_and_refuses_the_rest() -> None:
    torch.manual_seed(0)
    detector = MTCNN(thresholds=(0.0, 0.0, 0.0)).eval()  # untrained and unselective: all three stages run
    image = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    found = detector.detect(image)
    assert found and found[0].box.shape == (4,) and found[0].points.shape == (5, 2)
    assert MTCNN(thresholds=(1.0, 1.0, 1.0)).detect(image) == []
    assert detector.detect(image[:5, :5]) == []
    for wrong in (image[..., 0], image.astype(np.float32), np.dstack([image, image[..., :1]])):
        with pytest.raises(ValueError, match="expected an RGB uint8 image"):
            detector.detect(wrong)


def test_windows_go_on_with_the_edge() -> None:
    pixels = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    window = _window(pixels, [-2, 0, 2, 4], 4)[0, 0] * 128 + 127.5
    assert window[0].tolist() == pytest.approx([0, 0, 0, 1])
    assert _window(pixels, [5, 5, 9, 9], 4).shape == (1, 3, 4, 4)


def test_build_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no packaged architecture 'arcface'"):
        build("arcface", tmp_path / "x")
    with pytest.raises(ValueError, match="codeswap weights list"):
        build("faceplugin_feature", tmp_path / "fr_feature.onnx")
    save_file({"wrong": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="lacks its graph"):
        build("faceplugin_pose", tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="does not hold the weights of dlib_resnet"):
        build("dlib_resnet", tmp_path / "x.safetensors")
    save_file({"wrong": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="does not hold the weights of mobilenet_v2"):
        build("mobilenet_v2", tmp_path / "x.safetensors")


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.architecture)
def test_real_network(network, tmp_path: Path) -> None:
    """With the published files: one safetensors file is enough, any batch and size, gradients that are finite."""
    file = default_folder() / network.files[0].usable
    if not file.is_file():
        pytest.skip(f"{file} is not there: `codeswap weights fetch --only {network.architecture}`")
    built = build(network.architecture, file)
    save(built, tmp_path / "saved.safetensors")
    again = build(network.architecture, tmp_path / "saved.safetensors")
    assert not any(parameter.requires_grad for parameter in again.parameters()) and not again.training
    if network.architecture == "mtcnn":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        assert [face.score for face in again.detect(noise)] == [face.score for face in built.detect(noise)]
        return
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 48, 48, generator=generator).mul(2).sub(1).requires_grad_()
    result, reread = built(image), again(image)
    for ours, theirs in zip(*([r] if isinstance(r, Tensor) else r for r in (result, reread)), strict=True):
        assert torch.equal(ours, theirs) and len(ours) == 2 and torch.isfinite(ours).all()
    if network.architecture == "landmark_parsing":
        return
    single = built(image[1:])
    ours, alone = (r if isinstance(r, Tensor) else r[-1] for r in (result, single))
    torch.testing.assert_close(ours[1:], alone, atol=1e-3, rtol=1e-3)
    gradient = torch.autograd.grad(ours[1].square().sum(), image)[0]
    assert torch.isfinite(gradient).all() and gradient[1].abs().sum() > 0 and gradient[0].abs().sum() == 0
    built(torch.zeros(1, 3, 64, 64))

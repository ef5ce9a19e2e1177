"""Official networks: names, shapes and sizes against the published files', what they are shown, safe conversion."""

import collections
import importlib
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from codeswap.cli import app
from codeswap.evaluate.metrics import FeatureMoments, frechet_distance
from codeswap.losses.image import lpips_loss
from codeswap.perception.boxes import View
from codeswap.perception.convert import Ignored, note_of, read_pickle
from codeswap.perception.fecnet import InceptionResnetV1, Scrambled
from codeswap.perception.imagenet import VGGFeatures, vgg_state
from codeswap.perception.official_networks import converted, dress, empty
from codeswap.perception.packaged import build
from codeswap.perception.poster import PosterPP
from codeswap.perception.roles import preprocessing_of, sha256_of
from codeswap.perception.viewed import expectation

# architecture -> the published file's size in bytes (METHOD §H; None: not known) and parameters; some of its tensors
PUBLISHED = {
    "ir_se50": (175_367_323, 43_797_696),
    "hopenet": (95_924_799, 23_919_890),
    "bisenet": (53_289_463, 13_300_416),
    "arcface_iresnet50": (None, 43_590_848),
    "arcface_iresnet100": (None, 65_156_160),
    "cosface_sphere20": (None, 22_666_944),
    "poster_pp": (None, 58_316_594),
    "fecnet": (None, 30_829_639),
}
TENSORS = {
    "ir_se50": {"body.0.res_layer.5.fc1.weight": (4, 64, 1, 1), "output_layer.3.weight": (512, 25088)},
    "hopenet": {"fc_yaw.weight": (66, 2048), "fc_finetune.weight": (3, 2051), "layer4.2.bn3.bias": (2048,)},
    "bisenet": {
        "cp.arm16.conv_atten.weight": (128, 128, 1, 1),
        "conv_out32.conv_out.weight": (19, 64, 1, 1),
        "ffm.convblk.conv.weight": (256, 256, 1, 1),
    },
    "arcface_iresnet50": {"layer3.13.conv2.weight": (256, 256, 3, 3), "features.running_mean": (512,)},
    "arcface_iresnet100": {"layer3.29.bn3.bias": (256,), "layer2.12.prelu.weight": (128,)},
    "cosface_sphere20": {"layer3.2.conv1.weight": (256, 256, 3, 3), "layer1.0.bias": (64,), "fc.bias": (512,)},
    "poster_pp": {
        "VIT.pos_embed": (1, 148, 768),
        "attn1.relative_position_bias_table": (3025, 2),
        "ir_back.body3.13.res_layer.3.weight": (256, 256, 3, 3),
        "face_landback.conv_4.model.5.project.bn.weight": (128,),
        "VIT.blocks.1.conv.weight": (148, 148, 1),
        "VIT.eca_block.conv.weight": (1, 1, 5),
    },
    "fecnet": {
        "Inc.repeat_2.9.branch1.1.conv.weight": (128, 128, 1, 7),
        "dense.features.denseblock1.denselayer5.conv1.weight": (256, 768, 1, 1),
        "dense.classifier.2.weight": (16, 512),
    },
}


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_names_shapes_and_sizes_are_the_published_files(architecture: str) -> None:
    (size, parameters), some = PUBLISHED[architecture], TENSORS[architecture]
    with torch.device("meta"):
        network = empty(architecture)
    state = network.state_dict()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert {name: tuple(state[name].shape) for name in some} == some
    if size is not None:  # a checkpoint is its tensors and some bytes about each
        held = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        assert held < size < held + 400 * len(state)


def test_fecnets_trunk_fills_the_published_file() -> None:
    with torch.device("meta"):
        state = InceptionResnetV1().state_dict()
    held = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert held < 111_898_327 < held + 400 * len(state)  # 20180402-114759-vggface2.pt


def test_poster_uses_as_many_parameters_as_its_paper_counts() -> None:
    """43.7 M (Mao et al. 2023): what the file holds less what no gradient reaches."""
    network = PosterPP(logits=True).eval()
    network(torch.randn(1, 3, 224, 224)).sum().backward()
    used = sum(p.numel() for p in network.parameters() if p.grad is not None)
    assert used == pytest.approx(43.7e6, rel=0.01)


@pytest.mark.parametrize(
    ("architecture", "shape", "shown"),
    [
        ("cosface_sphere20", (2, 512), "112 px, rgb, mean 127.5 std 127.5"),
        ("ir_se50", (2, 512), "box 0.125,0.1367,0.7344 -> 112 px"),
        ("poster_pp", (2, 768), "224 px, rgb, mean 123.7,116.3,103.5"),
        ("fecnet", (2, 16), "224 px, bgr, mean 0 std 1"),
        ("hopenet", (2, 3), "box 0,0,1 -> 224 px"),
        ("bisenet", (2, 19, 64, 64), "box 0,0,1 -> 512 px"),
    ],
)
def test_networks_look_at_the_crop_and_pass_gradients(architecture: str, shape: tuple[int, ...], shown: str) -> None:
    torch.manual_seed(0)
    network = dress(architecture, empty(architecture)).eval().requires_grad_(False)
    image = (torch.rand(2, 3, 64, 64) * 2 - 1).requires_grad_()
    out = network(image)
    assert out.shape == shape and shown in preprocessing_of(network)
    (gradient,) = torch.autograd.grad(out[1].square().sum(), image)
    assert gradient.isfinite().all() and gradient[1].abs().sum() > 0 and gradient[0].abs().sum() == 0
    if architecture == "bisenet":
        labels = network.label_map(image.detach())
        assert labels.shape == (2, 64, 64) and labels.dtype == torch.uint8 and int(labels.max()) <= 18


def test_sphere20_sees_the_96_middle_columns_of_arcfaces_square() -> None:
    torch.manual_seed(0)
    network = empty("cosface_sphere20").eval()
    square = torch.randn(1, 3, 112, 112)
    assert torch.equal(network(square), network(square[..., 8:104]))


def test_fecnet_is_shown_pixels_read_as_planes() -> None:
    """The training script: `array(images).astype(float32).reshape(-1, 3, 224, 224)` of rows of BGR pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3)).astype(np.float32)
    expected = torch.from_numpy(pixels.reshape(-1, 3, 224, 224))
    assert torch.equal(Scrambled()(torch.from_numpy(pixels).permute(0, 3, 1, 2)), expected)


def test_a_bin_of_three_degrees_is_read_exactly() -> None:
    one_hot = torch.full((3, 66), -1e4)
    for row, place in enumerate((0, 33, 65)):
        one_hot[row, place] = 1e4
    assert expectation(one_hot).tolist() == [-99, 0, 96]


def test_lpips_is_that_of_its_authors() -> None:
    lpips = pytest.importorskip("lpips")
    torch.manual_seed(0)
    theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()  # its learnt heads, a random trunk
    trunk = {f"features.{n}": p for n, p in _trunk(theirs)}
    heads = torch.load(Path(lpips.__file__).parent / "weights/v0.1/vgg.pth", map_location="cpu", weights_only=True)
    ours = VGGFeatures()
    ours.load_state_dict(vgg_state(trunk, heads))
    x, y = torch.rand(2, 2, 3, 48, 48) * 2 - 1
    expected = theirs(x, y).mean()
    assert lpips_loss(ours(x), ours(y), ours.heads).item() == pytest.approx(expected.item(), rel=1e-4)
    assert lpips_loss(ours(x), ours(y)).item() != pytest.approx(expected.item(), rel=1e-2)


def _trunk(network: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters of lpips' five slices under torchvision's numbers, which its layers keep."""
    return [(name.split(".", 1)[1], value) for name, value in network.net.state_dict().items()]


class RecorderMeter:
    """As POSTER++'s main.py pickles it beside the weights."""

    def __init__(self) -> None:
        self.epoch_losses = np.zeros((3, 2), dtype=np.float32)
        self.best = 3.5


@pytest.fixture
def poster_script(monkeypatch: pytest.MonkeyPatch) -> type:
    """The class in a module called `main`, gone again when the checkpoint is read."""
    module = types.ModuleType("main")
    module.RecorderMeter = RecorderMeter
    monkeypatch.setattr(RecorderMeter, "__module__", "main")
    monkeypatch.setitem(sys.modules, "main", module)
    return RecorderMeter


def test_a_checkpoint_with_training_helpers_is_converted(tmp_path: Path, poster_script: type) -> None:
    torch.manual_seed(0)
    network = empty("bisenet")
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    file = tmp_path / "parsing.pth"
    torch.save({"epoch": 3, "state_dict": state, "recorder": poster_script(), "best_acc": torch.tensor(0.5)}, file)
    del sys.modules["main"]
    held = read_pickle(file)
    assert isinstance(held["recorder"], Ignored) and held["recorder"].state["best"] == 3.5

    with pytest.raises(ValueError, match=r"is a pickle.*codeswap weights convert bisenet"):
        build("bisenet", file)
    done = CliRunner().invoke(app, ["weights", "convert", "bisenet", str(file)])
    assert done.exit_code == 0, done.output
    out = tmp_path / "parsing.safetensors"
    assert str(out) in done.output and sha256_of(out) in done.output
    assert note_of(out) == {
        "architecture": "bisenet",
        "original": ["parsing.pth"],
        "original_sha256": sha256_of(file),
    }
    image = torch.rand(1, 3, 32, 32)
    built = build("bisenet", out)
    assert torch.equal(built(image), dress("bisenet", network).eval()(image))
    assert not any(parameter.requires_grad for parameter in built.parameters())
    assert leftovers(tmp_path) == ["parsing.pth", "parsing.safetensors"]


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Evil:
    """Unpickled as programs are."""

    def __reduce__(self) -> tuple:
        return (print, ("a program ran",))


def test_a_pickle_runs_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}, "evil": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pth", "plain.pkl"):
        done = CliRunner().invoke(app, ["weights", "convert", "hopenet", str(tmp_path / name)])
        assert done.exit_code == 1 and "was not read" in done.output and name in done.output
    assert "a program ran" not in capfd.readouterr().out
    assert leftovers(tmp_path) == ["evil.pth", "plain.pkl"]


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"fc_yaw.weight": torch.zeros(66, 2048)}, "Missing key"),
        ({"epoch": 3}, "it holds no state dict"),
        (collections.OrderedDict(), "it holds no state dict"),
    ],
)
def test_another_networks_file_is_refused(tmp_path: Path, held: object, message: str) -> None:
    file = tmp_path / "other.pkl"
    torch.save(held, file)
    done = CliRunner().invoke(app, ["weights", "convert", "hopenet", str(file)])
    assert done.exit_code == 1 and message in done.output and "other.pkl" in done.output
    assert leftovers(tmp_path) == ["other.pkl"]


def test_unknown_architectures_and_missing_files_are_named(tmp_path: Path) -> None:
    for arguments, message in ((["hopenet", "absent.pkl"], "absent.pkl does not exist"),):
        done = CliRunner().invoke(app, ["weights", "convert", *arguments])
        assert done.exit_code == 1 and message in done.output
    (tmp_path / "x.pkl").write_bytes(b"")
    done = CliRunner().invoke(app, ["weights", "convert", "resnet9000", str(tmp_path / "x.pkl")])
    assert done.exit_code == 1 and "resnet9000" in done.output and "hopenet" in done.output


def test_vgg16_takes_lpips_heads_from_a_second_file() -> None:
    with torch.device("meta"):
        state = {f"features.{n}": v for n, v in VGGFeatures().trunk.state_dict().items()}
    heads = {f"lin{tap}.model.1.weight": torch.full((1, width, 1, 1), 2.0) for tap, width in enumerate((64, 128, 256, 512, 512))}  # fmt: skip  # noqa: E501
    both, alone = converted("vgg16_lpips", [state, heads]), converted("vgg16_lpips", [state])
    assert float(both["head3"].mean()) == 2 and float(alone["head3"].mean()) == 1
    assert len(both) == 13 * 2 + 5


def test_fid_features_are_torch_fidelitys(tmp_path: Path) -> None:
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    file = tmp_path / "pt_inception.pth"
    state = _inception_state(fidelity)
    torch.save(state, file)
    done = CliRunner().invoke(app, ["weights", "convert", "fid_inception", str(file)])
    assert done.exit_code == 0, done.output
    network = build("fid_inception", file.with_suffix(".safetensors"))
    theirs = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(file))
    pixels = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    (expected,) = theirs(pixels)
    torch.testing.assert_close(network(pixels / 127.5 - 1), expected)
    assert len(load_file(file.with_suffix(".safetensors"))) == len(state)


def _inception_state(fidelity: types.ModuleType) -> dict[str, torch.Tensor]:
    """Names and shapes of FID's Inception from torch-fidelity's own class, with small random numbers."""
    made = fidelity.FeatureExtractorInceptionV3.__new__(fidelity.FeatureExtractorInceptionV3)
    load, made_load = torch.load, {}
    fidelity.torch.load = lambda *args, **kwargs: made_load
    try:
        fidelity.FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
        made.__init__("inception-v3-compat", ["2048"], "unused")
    finally:
        fidelity.torch.load = load
        del fidelity.FeatureExtractorInceptionV3.load_state_dict
    return made.state_dict()


def test_a_view_says_what_it_shows() -> None:
    from codeswap.perception.boxes import Box

    assert str(View(Box(0.25, 0.5, 0.5), 32, (127.5,), (128.0,), "grey")) == (
        "box 0.25,0.5,0.5 -> 32 px, grey, mean 127.5 std 128 of 255"
    )


def test_fid_of_two_folders_is_torch_fidelitys(tmp_path: Path) -> None:
    """The whole way, from pictures to the number, with FID's network under random weights."""
    fidelity = pytest.importorskip("torch_fidelity")
    extractor = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    file = tmp_path / "pt_inception.pth"
    torch.save(_inception_state(extractor), file)
    CliRunner().invoke(app, ["weights", "convert", "fid_inception", str(file)])
    network, generator = build("fid_inception", file.with_suffix(".safetensors")), np.random.default_rng(0)
    moments = []
    for name, light in (("real", 255), ("fake", 200)):
        (tmp_path / name).mkdir()
        pixels = generator.integers(0, light, (8, 48, 48, 3)).astype(np.uint8)
        for number, picture in enumerate(pixels):
            PILImage.fromarray(picture).save(tmp_path / name / f"{number}.png")
        moments.append(FeatureMoments())
        moments[-1].add(network(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1))
    theirs = fidelity.calculate_metrics(
        input1=str(tmp_path / "fake"), input2=str(tmp_path / "real"), fid=True, cuda=False, verbose=False,
        save_cpu_ram=True, batch_size=4, feature_extractor_weights_path=str(file), cache=False,
    )  # fmt: skip
    assert frechet_distance(*moments) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)

"""Published face networks as frozen torch modules that look at an FFHQ-aligned crop: one `build` for all of them.

Every network takes (b, 3, h, w) RGB in [-1, 1] of any size, crops and resizes for itself (boxes.View), has finite
gradients to the image (but the detector and the drawn parsing) and holds its weights as frozen parameters. Where the
files come from, their hashes and licences: `codeswap.perception.published`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from codeswap.perception import official_networks
from codeswap.perception.boxes import ARCFACE_112, DLIB_150, WHOLE, Box, View, box_of, crop
from codeswap.perception.convert import read_pickle
from codeswap.perception.dlib_resnet import MEAN as DLIB_MEAN
from codeswap.perception.dlib_resnet import DlibResNet, load_dlib_resnet
from codeswap.perception.inception import InceptionFeatures, load_inception
from codeswap.perception.landmark_parsing import LandmarkParsing, Landmarks
from codeswap.perception.mtcnn import MTCNN, load_mtcnn
from codeswap.perception.official_networks import IMAGENET_MEAN, IMAGENET_STD, Official
from codeswap.perception.onnx_reader import Graph, read_onnx
from codeswap.perception.published import PICKLES, companions_of
from codeswap.perception.tfjs_networks import FaceApiNet, FaceRes, load_faceapi, load_faceres
from codeswap.perception.viewed import Pose, Viewed
from codeswap.types import Image

Packaged = Literal[
    "faceplugin_feature", "dlib_resnet", "human_faceres", "faceapi_expression", "faceplugin_expression",
    "faceplugin_pose", "faceplugin_landmark", "landmark_parsing", "mobilenet_v2", "nsfwjs_inception", "mtcnn",
    "arcface_onnx",
]  # fmt: skip
Architecture = Packaged | Official
ARCHITECTURES: tuple[str, ...] = (*get_args(Packaged), *get_args(Official))

# Boxes of the aligned crop, in its 256ths; of those tried on labelled synthetic people the best or equal to it.
FACE_BOX = Box(34 / 256, 44 / 256, 188 / 256)
LANDMARK_BOX = Box(42 / 256, 67 / 256, 172 / 256)
CAFFE_BGR_MEAN = (103.939, 116.779, 123.68)
EXPRESSION_FEATURE = "1160"  # the 1,024 numbers before fr_expression's classifier
MOBILENET_TAPS = (1, 3, 6, 13)  # last blocks at strides 2, 4, 8 and 16
PERCEPTUAL_SIZE = 224  # larger images are shrunk to it


class MobileNetFeatures(nn.Module):
    """ImageNet features at strides 2, 4, 8, 16 of the whole crop: (b, 3, h, w) -> four (b, c, h', w')."""

    def __init__(self, trunk: nn.Sequential) -> None:
        super().__init__()
        self.trunk, self.input_size = trunk[: MOBILENET_TAPS[-1] + 1], PERCEPTUAL_SIZE
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Image) -> list[Tensor]:
        if min(image.shape[2:]) > self.input_size:
            image = crop(image, WHOLE, self.input_size)
        x, taps = ((image + 1) * 127.5 - self.mean) / self.std, []
        for index, block in enumerate(self.trunk):
            x = block(x)
            if index in MOBILENET_TAPS:
                taps.append(x)
        return taps


def build(architecture: Architecture, file: Path) -> nn.Module:
    """The network of one architecture with the weights of `file`, in eval mode and frozen.

    `file` is the publisher's file (see `codeswap weights list`; companions are looked for beside it) or a
    `.safetensors` of a module that was built here before (its state dict is complete, graphs included), which it must
    be where the publisher's is a pickle.
    Raises ValueError when a file is missing, damaged or of another network.
    """
    _known(architecture)
    if not file.is_file():
        raise ValueError(f"{file} does not exist: `codeswap weights list` says where {architecture} comes from")
    if file.suffix in PICKLES:
        raise ValueError(
            f"{file} is a pickle, which could hold a program: `codeswap weights convert {architecture} {file}` makes "
            f"{file.with_suffix('.safetensors').name} of it; name that file"
        )
    if file.suffix != ".safetensors":
        return from_publisher(architecture, [file])
    try:
        state = load_file(file)
        network = _dress(architecture, _empty(architecture, state))
        network.load_state_dict(state)
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{file} does not hold the weights of {architecture}: {error}") from error
    return network.eval().requires_grad_(False)


def from_publisher(architecture: Architecture, files: Sequence[Path]) -> nn.Module:
    """The network from the file(s) as they were published. Raises ValueError when they do not hold its weights."""
    _known(architecture)
    companions_of(files[0])
    try:
        network = _dress(architecture, _read(architecture, files))
    except (KeyError, RuntimeError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{files[0]} does not hold the weights of {architecture}: {error}") from error
    return network.eval().requires_grad_(False)


def _known(architecture: str) -> None:
    if architecture not in ARCHITECTURES:
        raise ValueError(f"there is no packaged architecture {architecture!r}; there are {', '.join(ARCHITECTURES)}")


def save(network: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a network of `build` as one safetensors file that `build` reads again; whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, partial, metadata)
    partial.replace(path)


def _read(architecture: Architecture, files: Sequence[Path]) -> nn.Module:
    file = files[0]
    match architecture:
        case "faceplugin_feature" | "faceplugin_pose" | "faceplugin_landmark" | "landmark_parsing" | "arcface_onnx":
            return read_onnx(file)
        case "faceplugin_expression":
            return read_onnx(file, [EXPRESSION_FEATURE])
        case "dlib_resnet":
            return load_dlib_resnet(file)
        case "human_faceres":
            return load_faceres(file)
        case "faceapi_expression":
            return load_faceapi(file, classes=7)
        case "mobilenet_v2":
            network = mobilenet_v2(weights=None)
            network.load_state_dict(official_networks.bare_state(read_pickle(file)))
            return network.features
        case "nsfwjs_inception":
            return load_inception(file)
        case "mtcnn":
            return load_mtcnn(file)
    state = official_networks.converted(architecture, [read_pickle(path) for path in files])
    network = official_networks.empty(architecture, state)
    network.load_state_dict(state)
    return network


def _empty(architecture: Architecture, state: Mapping[str, Tensor]) -> nn.Module:
    """The bare network that `state`, the state dict of a dressed one, belongs to, before its weights are loaded."""
    match architecture:
        case (
            "faceplugin_feature"
            | "faceplugin_pose"
            | "faceplugin_landmark"
            | "landmark_parsing"
            | "faceplugin_expression"
            | "arcface_onnx"
        ):
            prefix = "landmarks.net." if architecture == "landmark_parsing" else "net."
            inner = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            if "program" not in inner:
                raise ValueError(f"the saved {architecture} lacks its graph ({prefix}program): build it anew")
            return Graph.from_state(inner)
        case "dlib_resnet":
            return DlibResNet()
        case "human_faceres":
            return FaceRes()
        case "faceapi_expression":
            return FaceApiNet(classes=7)
        case "mobilenet_v2":
            return mobilenet_v2(weights=None).features
        case "nsfwjs_inception":
            return InceptionFeatures()
        case "mtcnn":
            return MTCNN()
    return official_networks.empty(architecture, state)


def _dress(architecture: Architecture, net: nn.Module) -> nn.Module:
    """`net` with the view it was trained on and the head that its role asks for."""
    match architecture:
        case "faceplugin_feature":
            return Viewed(View(box_of(ARCFACE_112, 112), 112, (127.0,), (128.0,)), net)
        case "arcface_onnx":
            return Viewed(View(box_of(ARCFACE_112, 112), 112, (127.5,), (127.5,)), net)
        case "dlib_resnet":
            return Viewed(View(box_of(DLIB_150, 150), 150, DLIB_MEAN, (256.0,)), net)
        case "human_faceres":
            return Viewed(View(FACE_BOX, 224, CAFFE_BGR_MEAN, (1.0,), "bgr"), net)
        case "faceapi_expression":
            return Viewed(View(FACE_BOX, 112, DLIB_MEAN, (255.0,)), net)
        case "faceplugin_expression":
            return Viewed(View(FACE_BOX, 224, (0.0,), (255.0,), "bgr"), net)
        case "faceplugin_pose":
            return Pose(View(FACE_BOX, 224, IMAGENET_MEAN, IMAGENET_STD), net)
        case "faceplugin_landmark" | "landmark_parsing":
            landmarks = Landmarks(View(LANDMARK_BOX, 64, (0.0,), (256.0,), "grey"), net)
            return landmarks if architecture == "faceplugin_landmark" else LandmarkParsing(landmarks)
        case "mobilenet_v2":
            return MobileNetFeatures(net)
        case "nsfwjs_inception":
            return Viewed(View(WHOLE, 299, (0.0,), (255.0,)), net)
        case "mtcnn":
            return net
    return official_networks.dress(architecture, net)

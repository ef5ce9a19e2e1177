"""Two small published networks whose weights come as TensorFlow.js files: face-api's dense net and HSE's MobileNet."""

from itertools import pairwise
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from codeswap.perception.tfjs_reader import convolution, depthwise, read_weights


def same_padding(x: Tensor, stride: int) -> Tensor:
    """TensorFlow's SAME for a 3 x 3 kernel: the odd pixel goes to the right and the bottom."""
    height, width = (max((-(-side // stride) - 1) * stride + 3 - side, 0) for side in x.shape[2:])
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


class Separable(nn.Module):
    """3 x 3 depthwise, then 1 x 1 convolution; TensorFlow's padding."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.depthwise = nn.Conv2d(width_in, width_in, 3, stride, groups=width_in, bias=False)
        self.pointwise = nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(same_padding(x, self.stride)))


class DenseBlock(nn.Module):
    """Four layers, each fed with the sum of those before it; the first one halves the resolution."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, width, 3, 2) if width_in == 3 else Separable(width_in, width, 2)
        self.conv1, self.conv2, self.conv3 = (Separable(width, width, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        total = F.relu(self.conv0(same_padding(x, 2) if isinstance(self.conv0, nn.Conv2d) else x))
        for layer in (self.conv1, self.conv2, self.conv3):
            total = total + layer(F.relu(total))
        return F.relu(total)


class FaceApiNet(nn.Module):
    """face-api.js's network (0.33 MB): (b, 3, 112, 112), (RGB 0..255 - mean) / 255 -> features (b, 256).

    `fc` is its published head: 7 expressions (neutral, happy, sad, angry, fearful, disgusted, surprised).
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 256)
        self.blocks = nn.ModuleList(DenseBlock(before, width) for before, width in pairwise(widths))
        self.fc = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return F.avg_pool2d(x, 7, 2).flatten(1)


def load_faceapi(manifest: Path, classes: int) -> FaceApiNet:
    """The network from a `*-weights_manifest.json` with its shard beside it."""
    found = read_weights(manifest)
    state = {"fc.weight": found.pop("fc/weights").t(), "fc.bias": found.pop("fc/bias")}
    for name, value in found.items():
        block, layer, kind = name.split("/")
        prefix = f"blocks.{block.removeprefix('dense')}.{layer}"
        match kind:
            case "filters":
                state[f"{prefix}.weight"] = convolution(value)
            case "depthwise_filter":
                state[f"{prefix}.depthwise.weight"] = depthwise(value)
            case "pointwise_filter":
                state[f"{prefix}.pointwise.weight"] = convolution(value)
            case "bias":
                state[f"{prefix}.bias" if name == "dense0/conv0/bias" else f"{prefix}.pointwise.bias"] = value
    network = FaceApiNet(classes)
    network.load_state_dict(state)
    return network


class FaceRes(nn.Module):
    """MobileNet v1 of HSE_FaceRec_tf, batch norm folded: (b, 3, 224, 224), BGR 0..255 - mean -> (b, 1024)."""

    LAYERS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2)
        self.depthwise, self.pointwise = nn.ModuleList(), nn.ModuleList()
        width = 32
        for wider, stride in self.LAYERS:
            self.depthwise.append(nn.Conv2d(width, width, 3, stride, groups=width))
            self.pointwise.append(nn.Conv2d(width, wider, 1))
            width = wider

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(same_padding(x, 2)))
        for spatial, mixing, (_, stride) in zip(self.depthwise, self.pointwise, self.LAYERS, strict=True):
            x = F.relu6(mixing(F.relu6(spatial(same_padding(x, stride)))))
        return x.mean((2, 3))


def load_faceres(model: Path) -> FaceRes:
    """The network from `faceres.json` with its shard beside it."""
    found = read_weights(model)
    state = {
        "stem.weight": convolution(found["conv1/convolution/merged_input"]),
        "stem.bias": found["conv1_bn/batchnorm_1/sub"],
    }
    for index in range(len(FaceRes.LAYERS)):
        name = f"conv_dw_{index + 1}"
        scale = found[f"{name}_bn/batchnorm_1/mul"].view(-1, 1, 1, 1)
        state[f"depthwise.{index}.weight"] = depthwise(found[f"{name}/depthwise_kernel"]) * scale
        state[f"depthwise.{index}.bias"] = found[f"{name}_bn/batchnorm_1/sub"]
        name = f"conv_pw_{index + 1}"
        state[f"pointwise.{index}.weight"] = convolution(found[f"{name}/convolution/merged_input"])
        state[f"pointwise.{index}.bias"] = found[f"{name}_bn/batchnorm_1/sub"]
    network = FaceRes()
    network.load_state_dict(state)
    return network

"""Inception v3 as the `nsfwjs` package carries it: 2,048 pooled features for Frechet distances.

Not the network of FID (other weights, 8 bits each, fine-tuned on another task): its distance is called by its own name.
"""

import re
from base64 import b64decode
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import Inception3
from torchvision.models.inception import BasicConv2d

from codeswap.perception.tfjs_reader import convolution, dequantised

ENTRY = re.compile(r'\{name:"([^"]+)",shape:\[([\d,]+)\],dtype:"float32",quantization:\{([^}]*)\}\}')
SHARD = re.compile(r'"([A-Za-z0-9+/]{16,}={0,2})"')


class WithoutPadding(nn.Module):
    """Turns an average over 3 x 3 that counted a border of zeros into Keras's average over real neighbours."""

    def forward(self, x: Tensor) -> Tensor:
        counted = F.avg_pool2d(torch.ones_like(x[:1, :1]), 3, 1, 1)
        return x / counted


class InceptionFeatures(nn.Module):
    """(b, 3, 299, 299) RGB in 0..1 -> (b, 2048): the global average of the last mixed block."""

    def __init__(self) -> None:
        super().__init__()
        trunk = Inception3(num_classes=1, aux_logits=False, transform_input=False, init_weights=False)
        trunk.fc = nn.Identity()
        for block in list(trunk.children()):
            if isinstance(getattr(block, "branch_pool", None), BasicConv2d):
                block.branch_pool = nn.Sequential(WithoutPadding(), block.branch_pool)
        self.trunk = trunk

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x)


def read_script(model: Path) -> dict[str, Tensor]:
    """Tensors of a Keras model that was packed as scripts: a manifest in a JavaScript literal, shards in base64."""
    text = model.read_text()
    entries = []
    for name, shape, quantisation in ENTRY.findall(text):
        facts = dict(pair.split(":") for pair in quantisation.split(","))
        entries.append(
            {
                "name": name,
                "shape": [int(side) for side in shape.split(",")],
                "quantization": {
                    "dtype": facts["dtype"].strip('"'), "scale": float(facts["scale"]), "min": float(facts["min"]),
                },
            }
        )  # fmt: skip
    shard = b""
    for name in re.findall(r'"(group\d+-shard\d+of\d+)"', text):
        found = SHARD.findall(model.with_name(f"{name}.min.js").read_text())
        if len(found) != 1:
            raise ValueError(f"{name}.min.js holds {len(found)} base64 texts, expected one: fetch the package again")
        shard += b64decode(found[0])
    return dequantised(shard, entries)


def load_inception(model: Path) -> InceptionFeatures:
    """The network from `model.min.js`, its shards beside it; Keras numbers the layers as torchvision orders them."""
    found = read_script(model)
    network = InceptionFeatures()
    layers = [layer for layer in network.modules() if isinstance(layer, BasicConv2d)]
    with torch.no_grad():
        for number, layer in enumerate(layers, start=1):
            kernel = convolution(found[f"conv2d_{number}/kernel"])
            if kernel.shape != layer.conv.weight.shape:
                raise ValueError(f"conv2d_{number} is {tuple(kernel.shape)}, expected {tuple(layer.conv.weight.shape)}")
            layer.conv.weight.copy_(kernel)
            layer.bn.bias.copy_(found[f"batch_normalization_{number}/beta"])
            layer.bn.running_mean.copy_(found[f"batch_normalization_{number}/moving_mean"])
            layer.bn.running_var.copy_(found[f"batch_normalization_{number}/moving_variance"])
    return network

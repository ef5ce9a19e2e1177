"""Weights of TensorFlow.js models (a manifest in JSON beside binary shards) as torch tensors, dequantised."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

TYPES = {"float32": "<f4", "float16": "<f2", "int32": "<i4", "uint8": "u1", "uint16": "<u2", "bool": "?"}


def dequantised(shard: bytes, entries: list[dict]) -> dict[str, Tensor]:
    """The tensors that `entries` of a weights manifest describe, in the layout they were stored in.

    Quantised values are stored as `value = stored * scale + min` in 8 or 16 bits, or as 16-bit floats.
    Raises ValueError when the bytes do not end where the entries do.
    """
    tensors, offset = {}, 0
    for entry in entries:
        quantisation = entry.get("quantization")
        stored = np.dtype(TYPES[quantisation["dtype"] if quantisation else entry["dtype"]])
        count = int(np.prod(entry["shape"], dtype=np.int64))
        if offset + count * stored.itemsize > len(shard):
            raise ValueError(f"{len(shard)} bytes of weights end inside of {entry['name']}: fetch the file again")
        values = np.frombuffer(shard, stored, count, offset).reshape(entry["shape"])
        offset += count * stored.itemsize
        if quantisation:
            values = values.astype(np.float32) * quantisation.get("scale", 1.0) + quantisation.get("min", 0.0)
        tensors[entry["name"]] = torch.from_numpy(
            np.asarray(values, dtype=np.float32 if values.dtype.kind == "f" else np.int64).copy()
        )
    if offset != len(shard):
        raise ValueError(f"{len(shard)} bytes of weights, but the manifest describes {offset}: fetch the file again")
    return tensors


def read_weights(manifest: Path) -> dict[str, Tensor]:
    """All tensors of a manifest file: a bare list of groups, or a model.json with `weightsManifest`."""
    tree = json.loads(manifest.read_text())
    tensors: dict[str, Tensor] = {}
    for group in tree if isinstance(tree, list) else tree["weightsManifest"]:
        shard = b"".join((manifest.parent / name).read_bytes() for name in group["paths"])
        tensors |= dequantised(shard, group["weights"])
    return tensors


def convolution(kernel: Tensor) -> Tensor:
    """A TensorFlow kernel (height, width, in, out) in torch's order (out, in, height, width)."""
    return kernel.permute(3, 2, 0, 1).contiguous()


def depthwise(kernel: Tensor) -> Tensor:
    """A TensorFlow depthwise kernel (height, width, in, 1) in torch's order (in, 1, height, width)."""
    return kernel.permute(2, 3, 0, 1).contiguous()

"""The whole inference as one ONNX graph, for runtimes without torch: both swaps of any number of pairs of crops.

Inputs `image_a`, `image_b` (b, 3, s, s) in [-1, 1]; outputs `image_ab`, `image_ba` (not clamped) and, with a mask
generator, `mask_b`, `mask_a` (b, 1, s, s). A model that swaps one way gives `image_ab` and `mask_b` only.
"""

import contextlib
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from codeswap.models.codeswap import CodeSwap
from codeswap.types import Image
from codeswap.use.errors import MissingModelError
from codeswap.use.examples import examples

Precision = Literal["fp32", "weights8", "dynamic8", "static8"]
_CALIBRATION = 8  # rendered faces on which the ranges of static8 are read
_LEAST = 1024  # numbers in a weight that is worth storing in 8 bits


class _Outputs(nn.Module):
    """`CodeSwap.swap` as a plain tuple, without what is None."""

    def __init__(self, model: CodeSwap) -> None:
        super().__init__()
        self.model = model

    def forward(self, image_a: Image, image_b: Image) -> tuple[Tensor, ...]:
        found = self.model.swap(image_a, image_b)
        wanted = (found.image_ab, found.image_ba, found.mask_b, found.mask_a)
        return tuple(part for part in wanted if part is not None)


def export(model: CodeSwap, facts: dict[str, str], path: Path, precision: Precision = "fp32") -> None:
    """Writes the graph, whole or not at all.

    `weights8` keeps large weights in 8 bits a number, one scale for each output channel, and computes in fp32: a
    quarter of the size. `dynamic8` also multiplies matrices in 8 bits (onnxruntime's dynamic quantisation); `static8`
    convolutions too, with ranges read on rendered faces: the fastest on processors that have instructions for it. Its
    weights have 7 bits, for others add pairs of products in 16 bits, where 8 and 8 overflow.
    Raises MissingModelError when a package for it is missing.
    """
    size, framing = model.vqgan.config.image_size, model.vqgan.config.framing
    one_way, masked = model.fusion.one_sided, model.mask_generator is not None
    outputs = ["image_ab"] + ([] if one_way else ["image_ba"])
    outputs += (["mask_b"] + ([] if one_way else ["mask_a"])) if masked else []
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    images = torch.zeros(2, 2, 3, size, size).unbind()
    many = torch.export.Dim("pairs", min=1, max=4096)
    model = _Outputs(model).eval().to(memory_format=torch.contiguous_format)
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                model,
                tuple(images),
                str(partial),
                input_names=["image_a", "image_b"],
                output_names=outputs,
                dynamic_shapes={"image_a": {0: many}, "image_b": {0: many}},
                external_data=False,
                dynamo=True,
            )
    except ModuleNotFoundError as error:
        raise MissingModelError(f"export needs the package {error.name}: pip install -e '.[onnx]'") from None
    if precision == "dynamic8":
        _dynamic(partial)
    if precision == "static8":
        _static(partial, size)
    _finish(partial, facts | {"framing": str(framing)}, precision)
    partial.replace(path)


@contextlib.contextmanager
def _quiet():
    """Without the exporter's progress and its warnings about its own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _dynamic(path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().setLevel(logging.ERROR)
    quantize_dynamic(
        str(path), str(path), weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul", "Gemm"]
    )


def _static(path: Path, size: int) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Faces(CalibrationDataReader):
        def __init__(self) -> None:
            pictures = examples(size, _CALIBRATION).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
            self._left = [pictures[[n, n + 1]][:, None] for n in range(0, _CALIBRATION, 2)]

        def get_next(self) -> dict[str, np.ndarray] | None:
            if not self._left:
                return None
            a, b = self._left.pop()
            return {"image_a": a, "image_b": b}

    logging.getLogger().setLevel(logging.ERROR)
    quant_pre_process(str(path), str(path), skip_symbolic_shape=True)
    quantize_static(
        str(path), str(path), Faces(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        reduce_range=True,
    )  # fmt: skip


def _finish(path: Path, facts: dict[str, str], precision: Precision) -> None:
    """Large weights in 8 bits where asked for, and what it was made of in the file's metadata."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(str(path))
    if precision == "weights8":
        graph, nodes = model.graph, []
        for tensor in list(graph.initializer):
            values = numpy_helper.to_array(tensor)
            if values.dtype != np.float32 or values.size < _LEAST or values.ndim < 2:
                continue
            scale, whole = in_8_bits(values)
            graph.initializer.remove(tensor)
            graph.initializer.extend(
                [
                    numpy_helper.from_array(whole, f"{tensor.name}_8"),
                    numpy_helper.from_array(scale, f"{tensor.name}_scale"),
                ]
            )
            inputs = [f"{tensor.name}_8", f"{tensor.name}_scale"]
            nodes.append(helper.make_node("DequantizeLinear", inputs, [tensor.name], axis=0))
        kept = list(graph.node)
        del graph.node[:]
        graph.node.extend([*nodes, *kept])
    note = model.metadata_props.add()
    note.key, note.value = "codeswap", json.dumps({"precision": precision, **facts}, sort_keys=True)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def in_8_bits(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 (n, ...) -> (scales (n,), int8 (n, ...)): symmetric, one scale for each entry of the first axis."""
    flat = np.abs(values).reshape(len(values), -1).max(axis=1)
    scale = np.maximum(flat / 127, 1e-12).astype(np.float32)
    whole = np.rint(values / scale.reshape(-1, *[1] * (values.ndim - 1)))
    return scale, np.clip(whole, -127, 127).astype(np.int8)

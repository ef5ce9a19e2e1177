"""Published ONNX networks as plain torch modules: read once, no ONNX runtime, gradients to the input, any batch size.

Only the operators that frozen face CNNs are made of are known; another one is an error that names it. The graph is
kept as a JSON text in the state dict (buffer `program`), so one safetensors file holds the network whole.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


class Step(NamedTuple):
    """One ONNX node. Integer operands (shapes, axes) are already in `attributes` under their input's name."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, object]


class Program(NamedTuple):
    input: str
    outputs: list[str]
    steps: list[Step]


# Operands that newer operator sets pass as an input and older ones as an attribute.
SHAPE_OPERANDS = {"Reshape": {1: "shape"}, "ReduceMean": {1: "axes"}, "Split": {1: "split"}, "Pad": {1: "pads"}}


def read_onnx(path: Path, outputs: Sequence[str] = ()) -> "Graph":
    """The network of an ONNX file, cut to what `outputs` (names of values; the file's own outputs if empty) need.

    Raises ValueError when the file is no ONNX model, has another number of inputs than one, lacks one of `outputs`,
    or uses an operator that is not known here.
    """
    import onnx  # only conversion needs it: a converted network loads from safetensors
    from google.protobuf.message import DecodeError
    from onnx import AttributeProto, helper, numpy_helper

    try:
        graph = onnx.load(str(path)).graph
    except DecodeError as error:
        raise ValueError(f"{path} is no ONNX model ({error}): fetch it again") from None
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise ValueError(f"{path} has the inputs {inputs}; expected exactly one image")
    wanted = list(outputs) or [value.name for value in graph.output]
    steps = []
    for node in graph.node:
        attributes = {
            a.name: numpy_helper.to_array(a.t) if a.type == AttributeProto.TENSOR else helper.get_attribute_value(a)
            for a in node.attribute
        }
        if node.op_type == "Constant":
            constants[node.output[0]] = np.asarray(attributes["value"])
            continue
        names = [*node.input]
        for index, name in reversed(SHAPE_OPERANDS.get(node.op_type, {}).items()):
            if len(names) > index:
                if (operand := names.pop(index)) not in constants:
                    raise ValueError(f"{path}: {node.op_type} is only known here if its operand {operand} is constant")
                attributes[name] = constants[operand].tolist()
        plain = {key: value.decode() if isinstance(value, bytes) else value for key, value in attributes.items()}
        plain = {
            key: list(value) if not isinstance(value, int | float | str) else value for key, value in plain.items()
        }
        steps.append(Step(node.op_type, names, [*node.output], plain))
    steps = _needed(steps, wanted, str(path))
    used = {name for step in steps for name in step.inputs}
    tensors = {name: torch.from_numpy(np.array(constants[name])) for name in constants if name in used}
    return Graph(Program(inputs[0], wanted, steps), tensors)


def _needed(steps: list[Step], wanted: list[str], what: str) -> list[Step]:
    missing = set(wanted) - {name for step in steps for name in step.outputs}
    if missing:
        raise ValueError(f"{what} computes no value named {sorted(missing)}: is it another version of the file?")
    needed, kept = set(wanted), []
    for step in reversed(steps):
        if needed & set(step.outputs):
            needed |= set(step.inputs)
            kept.append(step)
    return kept[::-1]


class Graph(nn.Module):
    """Runs a Program: (b, 3, h, w) -> its output, or a tuple of its outputs. Weights are frozen parameters.

    torch.fx turns the steps into straight-line code that frees each intermediate value after its last use.
    """

    program: Tensor

    def __init__(self, program: Program, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        text = json.dumps([program.input, program.outputs, [list(step) for step in program.steps]])
        self.register_buffer("program", torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy()))
        self.body = _compile(program, tensors)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Graph":
        """The graph that a state dict of this class describes, with that state's weights."""
        source, outputs, steps = json.loads(state["program"].numpy().tobytes())
        program = Program(source, outputs, [Step(*step) for step in steps])
        names = sorted({name for step in program.steps for name in step.inputs})
        tensors = {name: state[key] for name in names if (key := f"body.{_attribute(name)}") in state}
        return cls(program, tensors)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.body(x)


def _attribute(name: str) -> str:
    return "tensor_" + "".join(letter if letter.isalnum() else "_" for letter in name)


def _compile(program: Program, tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    holder = nn.Module()
    graph = fx.Graph()
    values: dict[str, fx.Node] = {program.input: graph.placeholder("x")}
    for name, tensor in tensors.items():
        if hasattr(holder, _attribute(name)):
            raise ValueError(f"two tensors of the graph are both called {_attribute(name)}")
        holder.register_parameter(_attribute(name), nn.Parameter(tensor.clone(), requires_grad=False))
        values[name] = graph.get_attr(_attribute(name))
    for step in program.steps:
        operands = [values[name] if name else None for name in step.inputs]
        values |= dict(zip(step.outputs, _emit(graph, step, operands), strict=True))
    found = [values[name] for name in program.outputs]
    graph.output(found[0] if len(found) == 1 else tuple(found))
    return fx.GraphModule(holder, graph)


def _even(pads: Sequence[int]) -> tuple[int, int] | None:
    """ONNX pads (top, left, bottom, right) as torch's symmetric (vertical, horizontal), or None."""
    top, left, bottom, right = pads
    return (top, left) if (top, left) == (bottom, right) else None


def _emit(graph: fx.Graph, step: Step, operands: list[fx.Node | None]) -> list[fx.Node]:
    a, x = step.attributes, operands[0]
    call = graph.call_function
    if a.get("auto_pad", "NOTSET") != "NOTSET" or a.get("ceil_mode", 0):
        raise ValueError(f"operator {step.op} with {a} is not known here: only explicit pads, rounded down")
    pads = a.get("pads", [0, 0, 0, 0])
    match step.op:
        case "Conv":
            padding = _even(pads)
            if padding is None:
                x, padding = call(F.pad, (x, [pads[1], pads[3], pads[0], pads[2]])), (0, 0)
            bias = operands[2] if len(operands) > 2 else None
            options = (a.get("strides", [1, 1]), padding, a.get("dilations", [1, 1]), a.get("group", 1))
            return [call(torch.conv2d, (x, operands[1], bias, *options))]
        case "BatchNormalization":
            scale, shift, mean, variance = operands[1:]
            return [call(F.batch_norm, (x, mean, variance, scale, shift, False, 0.0, a.get("epsilon", 1e-5)))]
        case "Relu":
            return [call(F.relu, (x,))]
        case "PRelu":
            return [call(_prelu, (x, operands[1]))]
        case "Sigmoid" | "Tanh":
            return [call(torch.sigmoid if step.op == "Sigmoid" else torch.tanh, (x,))]
        case "Add" | "Sub" | "Mul" | "Div":
            function = {"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div}[step.op]
            return [call(function, (x, operands[1]))]
        case "MaxPool" | "AveragePool":
            padding = _even(pads)
            if padding is None or (step.op == "AveragePool" and any(padding) and not a.get("count_include_pad", 0)):
                raise ValueError(f"{step.op} with pads {pads} is not known here")
            pool = F.max_pool2d if step.op == "MaxPool" else F.avg_pool2d
            return [call(pool, (x, a["kernel_shape"], a.get("strides", [1, 1]), padding))]
        case "GlobalAveragePool":
            return [call(torch.mean, (x, [2, 3], True))]
        case "ReduceMean":
            return [call(torch.mean, (x, a["axes"], bool(a.get("keepdims", 1))))]
        case "Gemm":
            if a.get("alpha", 1.0) != 1.0 or a.get("beta", 1.0) != 1.0 or a.get("transA", 0):
                raise ValueError(f"Gemm with {a} is not known here: only x W + b or x W^T + b")
            weight = operands[1] if a.get("transB", 0) else call(torch.t, (operands[1],))
            return [call(F.linear, (x, weight, operands[2] if len(operands) > 2 else None))]
        case "Flatten" if a.get("axis", 1) == 1:
            return [call(torch.flatten, (x, 1))]
        case "Reshape":
            return [_reshape(graph, x, a["shape"])]
        case "Transpose" if a["perm"][0] == 0:
            return [call(torch.permute, (x, a["perm"]))]
        case "Concat" if a["axis"] != 0:
            return [call(torch.cat, ([*operands], a["axis"])) if len(operands) > 1 else x]
        case "Split" if a.get("axis", 0) != 0:
            parts = call(torch.split, (x, a["split"], a["axis"]))
            return [call(_item, (parts, index)) for index in range(len(step.outputs))]
        case "Pad" if not any(pads) and a.get("mode", "constant") == "constant":
            return [x]
        case "Identity" | "Dropout":
            return [x] * len(step.outputs)
    raise ValueError(f"operator {step.op} with {a} is not known here: see codeswap/perception/onnx_reader.py")


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    # F.prelu's backward also makes the slope's gradient: on the CPU three times as slow as this sum for frozen slopes.
    return torch.addcmul(F.relu(x) * (1 - slope), x, slope)


def _item(parts: tuple[Tensor, ...], index: int) -> Tensor:
    return parts[index]


def _reshape(graph: fx.Graph, x: fx.Node, shape: list[int]) -> fx.Node:
    """Exporters bake the batch size of one into the shape: the first axis stays the batch whatever its size."""
    if shape[0] not in (0, 1, -1) or 0 in shape[1:] or (shape[0] == -1 and -1 in shape[1:]):
        raise ValueError(f"Reshape to {shape} is not known here: its first axis must be the batch")
    if -1 not in shape[1:]:
        return graph.call_function(torch.reshape, (x, [-1, *shape[1:]]))
    # -1 is taken by an inner axis: flatten it first, then its size follows from the others.
    flat = graph.call_function(torch.flatten, (x, 1))
    return flat if len(shape) == 2 else graph.call_function(torch.unflatten, (flat, 1, shape[1:]))

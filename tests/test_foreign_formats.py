"""Readers of others' files (ONNX, dlib, TensorFlow.js, scripts) on tiny ones made here."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file, save_file
from torch import Tensor

from codeswap.perception.boxes import ARCFACE_112, box_of, crop
from codeswap.perception.dlib_resnet import DlibResNet, load_dlib_resnet, tensor_header
from codeswap.perception.inception import WithoutPadding, read_script
from codeswap.perception.onnx_reader import Graph, read_onnx
from codeswap.perception.packaged import build
from codeswap.perception.tfjs_networks import Separable, same_padding
from codeswap.perception.tfjs_reader import convolution, depthwise, dequantised, read_weights


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def onnx_file(path: Path, nodes: list, tensors: dict[str, np.ndarray], size: int = 8, opset: int = 9) -> Path:
    """A model with a baked-in batch of one, as published ones have it."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), path)
    return path


@pytest.fixture(params=[9, 15], ids=["opset9", "opset15"])
def shuffled(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Every construct of the published graphs: uneven pads, PReLU, channel shuffle, splits, baked batch of one."""
    node, new = helper.make_node, request.param > 9
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3], pads=[0, 0, 1, 1], strides=[2, 2]),
        node("PRelu", ["c", "slope"], ["p"]),
        # The reference evaluator normalises by the batch's own statistics in old operator sets.
        node("BatchNormalization", ["p", "g", "s", "m", "v"], ["n"]) if new else node("Identity", ["p"], ["n"]),
        node("MaxPool", ["n"], ["k"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1]),
        node("Concat", ["n", "k"], ["cat"], axis=1),
        node("Constant", [], ["five"], value=numpy_helper.from_array(np.array([1, 2, 4, 4, 4]))),
        node("Reshape", ["cat", "five"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=[0, 2, 1, 3, 4]),
        node("Constant", [], ["four"], value=numpy_helper.from_array(np.array([1, -1, 4, 4]))),
        node("Reshape", ["t", "four"], ["u"]),
        node(
            "Split", ["u", "halves"] if new else ["u"], ["left", "right"], axis=1, **({} if new else {"split": [4, 4]})
        ),
        node("Add", ["left", "right"], ["sum"]),
        node("GlobalAveragePool", ["sum"], ["pooled"]),
        node("Reshape", ["pooled", "flat"], ["f"]),
        node("Gemm", ["f", "w2", "b2"], ["y"], transB=1),
        node("Exp", ["y"], ["unused"]),
    ]
    tensors = {"w": random(4, 3, 3, 3), "b": random(4), "slope": random(4, 1, 1), "g": random(4), "s": random(4)}
    tensors |= {
        "m": random(4),
        "v": abs(random(4)) + 0.5,
        "flat": np.array([1, -1]),
        "w2": random(5, 4),
        "b2": random(5),
    }
    tensors["halves"] = np.array([4, 4])
    return onnx_file(tmp_path / "shuffled.onnx", nodes, tensors, opset=request.param)


def test_onnx_graph_equals_the_reference_for_any_batch(shuffled: Path) -> None:
    network = read_onnx(shuffled)
    x = torch.from_numpy(random(3, 3, 8, 8, seed=1)).requires_grad_()
    y = network(x)
    reference = ReferenceEvaluator(str(shuffled))
    expected = [reference.run(None, {"x": image[None].detach().numpy()})[0] for image in x]
    torch.testing.assert_close(y.detach(), torch.from_numpy(np.concatenate(expected)), atol=1e-5, rtol=1e-5)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    gradient = torch.autograd.grad(y[1].sum(), x)[0]
    assert gradient[1].abs().sum() > 0 and gradient[0].abs().sum() == 0


def test_onnx_graph_travels_in_its_state_dict(shuffled: Path, tmp_path: Path) -> None:
    network = read_onnx(shuffled)
    save_file(network.state_dict(), tmp_path / "graph.safetensors")
    again = Graph.from_state(load_file(tmp_path / "graph.safetensors"))
    x = torch.from_numpy(random(2, 3, 8, 8))
    assert torch.equal(again(x), network(x))


def test_onnx_graph_is_cut_to_the_wanted_value(shuffled: Path) -> None:
    features = read_onnx(shuffled, ["f"])
    assert features(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    assert not any("w2" in name for name in features.state_dict())
    with pytest.raises(ValueError, match=r"no value named \['embedding'\]"):
        read_onnx(shuffled, ["embedding"])


@pytest.mark.parametrize(
    ("node", "what"),
    [
        (helper.make_node("Erf", ["x"], ["y"]), "Erf"),
        (helper.make_node("Reshape", ["x", "s"], ["y"]), r"Reshape to \[6, 32\]"),
        (helper.make_node("Reshape", ["x", "computed"], ["y"]), "only known here if its operand computed is constant"),
        (helper.make_node("Concat", ["x", "x"], ["y"], axis=0), "Concat"),
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], pads=[0, 0, 1, 1]), "MaxPool with pads"),
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], auto_pad="SAME_UPPER"), "explicit pads"),
    ],
)
def test_unknown_operators_are_named(tmp_path: Path, node: onnx.NodeProto, what: str) -> None:
    path = onnx_file(tmp_path / "odd.onnx", [node], {"s": np.array([6, 32])})
    with pytest.raises(ValueError, match=what):
        read_onnx(path)


def test_a_file_that_is_no_onnx_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "page.onnx").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"page\.onnx"):
        read_onnx(tmp_path / "page.onnx")


def dlib_blob(network: DlibResNet, scales: list[Tensor], shifts: list[Tensor]) -> bytes:
    """The tensors of `network` as dlib writes them, with what stands between them; `b"\\x01\\x02"` is bait."""
    data = b"\x01\x01\x01\rloss_metric_2\x01\x02"
    for layer, scale, shift in zip(network.convolutions(), scales, shifts, strict=True):
        filters = torch.cat([layer.weight.flatten(), layer.bias]).numpy()
        data += b"\x01\x05con_4" + tensor_header(len(filters), 1) + filters.tobytes()
        data += b"\x01\x07affine_" + tensor_header(2 * len(scale), 1) + torch.cat([scale, shift]).numpy().tobytes()
    return data + b"\x01\x02fc" + tensor_header(256, 128) + network.embedding.weight.t().contiguous().numpy().tobytes()


def test_dlib_file_is_read_in_order_and_folded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = DlibResNet().requires_grad_(False)
    scales = [torch.rand(layer.out_channels) + 0.5 for layer in source.convolutions()]
    shifts = [torch.randn(layer.out_channels) for layer in source.convolutions()]
    path = tmp_path / "net.dat"
    path.write_bytes(dlib_blob(source, scales, shifts))
    network = load_dlib_resnet(path)
    for layer, original, scale, shift in zip(
        network.convolutions(), source.convolutions(), scales, shifts, strict=True
    ):
        x = torch.randn(1, layer.in_channels, 7, 7)
        expected = original(x) * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
        torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(network.embedding.weight, source.embedding.weight)
    assert network(torch.randn(2, 3, 150, 150)).shape == (2, 128)

    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"tensor 58 of 59 \(256 x 128 floats\)"):
        load_dlib_resnet(path)


def test_tensorflow_weights_are_dequantised(tmp_path: Path) -> None:
    eight = {
        "name": "a",
        "shape": [2, 2],
        "dtype": "float32",
        "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1},
    }
    half = {"name": "b", "shape": [2], "dtype": "float32", "quantization": {"dtype": "float16"}}
    plain = {"name": "c", "shape": [], "dtype": "int32"}
    shards = [bytes([0, 2, 4, 255]) + np.array([1.5, -2], "<f2").tobytes()[:2], np.array([-2], "<f2").tobytes()]
    shards[1] += np.array(7, "<i4").tobytes()
    for index, shard in enumerate(shards):
        (tmp_path / f"part{index}.bin").write_bytes(shard)
    groups = [{"paths": ["part0.bin", "part1.bin"], "weights": [eight, half, plain]}]
    for name, tree in (("list.json", groups), ("model.json", {"weightsManifest": groups})):
        (tmp_path / name).write_text(json.dumps(tree))
        found = read_weights(tmp_path / name)
        assert found["a"].tolist() == [[-1.0, 0.0], [1.0, 126.5]]
        assert found["b"].tolist() == [1.5, -2.0] and found["c"].item() == 7
    with pytest.raises(ValueError, match="the manifest describes 4"):
        dequantised(bytes(5), [eight])
    with pytest.raises(ValueError, match="end inside of a"):
        dequantised(bytes(3), [eight])


def test_tensorflow_kernels_and_padding() -> None:
    assert convolution(torch.zeros(3, 5, 2, 7)).shape == (7, 2, 3, 5)
    assert depthwise(torch.zeros(3, 5, 2, 1)).shape == (2, 1, 3, 5)
    padded = same_padding(torch.ones(1, 1, 4, 5), 2)
    assert padded.shape == (1, 1, 5, 7) and padded[0, 0, 0].tolist() == [0, 1, 1, 1, 1, 1, 0]
    assert Separable(2, 3, 2)(torch.zeros(1, 2, 6, 6)).shape == (1, 3, 3, 3)


def test_scripts_are_read_as_weights(tmp_path: Path) -> None:
    (tmp_path / "model.min.js").write_text(
        '!function(){x={weightsManifest:[{paths:["group1-shard1of2","group1-shard2of2"],weights:[{name:"conv2d_1/kernel",'
        'shape:[1,1,2,8],dtype:"float32",quantization:{min:-.5,scale:.25,dtype:"uint8"}}]}]}}'
    )
    (tmp_path / "group1-shard1of2.min.js").write_text('module.exports="AAECAwQFBgcICQoL"')
    (tmp_path / "group1-shard2of2.min.js").write_text('module.exports="DA0ODw=="')
    with pytest.raises(ValueError, match="holds 0 base64 texts"):
        read_script(tmp_path / "model.min.js")
    (tmp_path / "group1-shard1of2.min.js").write_text('module.exports="AAECAwQFBgcICQoLDA0ODw=="')
    (tmp_path / "model.min.js").write_text((tmp_path / "model.min.js").read_text().replace(',"group1-shard2of2"', ""))
    kernel = read_script(tmp_path / "model.min.js")["conv2d_1/kernel"]
    assert kernel.shape == (1, 1, 2, 8) and kernel.flatten()[:4].tolist() == [-0.5, -0.25, 0.0, 0.25]


def test_keras_average_counts_no_padding() -> None:
    x = torch.ones(1, 1, 4, 4)
    torch.testing.assert_close(WithoutPadding()(F.avg_pool2d(x, 3, 1, 1)), x)


def test_an_arcface_onnx_file_is_read_and_shown_its_template(tmp_path: Path) -> None:
    """insightface's recognition files: one image in, ReLUs with slopes, batch norms, a matrix product out."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c", "g", "s", "m", "v"], ["n"]),
        helper.make_node("PRelu", ["n", "slope"], ["p"]),
        helper.make_node("GlobalAveragePool", ["p"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w2", "b2"], ["y"], transB=1),
    ]
    tensors = {"w": random(4, 3, 3, 3), "b": random(4), "slope": random(4, 1, 1), "g": random(4), "s": random(4)}
    tensors |= {"m": random(4), "v": abs(random(4)) + 0.5, "w2": random(512, 4), "b2": random(512)}
    file = onnx_file(tmp_path / "w600k_r50.onnx", nodes, tensors, size=112, opset=15)
    network = build("arcface_onnx", file)
    image = torch.rand(2, 3, 96, 96) * 2 - 1
    shown = crop(image, box_of(ARCFACE_112, 112), 112)
    reference = ReferenceEvaluator(str(file))
    expected = np.concatenate([reference.run(None, {"x": one[None].numpy()})[0] for one in shown])
    torch.testing.assert_close(network(image), torch.from_numpy(expected), atol=1e-4, rtol=1e-4)

from __future__ import annotations

import nets
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from agmc_onnx.graph.shapes import Shape, evaluate_node, infer_shapes


def test_shape_says_what_is_fixed() -> None:
    shape = Shape((1, 3, 16), (2, 3, 24))
    assert (shape.rank, shape.is_static) == (3, False)
    assert [shape.is_fixed(dim) for dim in range(3)] == [False, True, False]
    assert Shape((), ()).is_static


def test_dynamic_batch_reshape_chain() -> None:
    model = nets.model(
        """g (float[N, 3, 8, 8] x) => (float[N, 10] y) {
            h = Conv <pads = [1, 1, 1, 1]> (x, w)
            s = Shape(h)
            zero = Constant <value = int64 {0}> ()
            n = Gather(s, zero)
            axes = Constant <value = int64[1] {0}> ()
            rows = Unsqueeze(n, axes)
            rest = Constant <value = int64[1] {-1}> ()
            target = Concat <axis = 0> (rows, rest)
            f = Reshape(h, target)
            y = MatMul(f, v)
        }""",
        {"w": (4, 3, 3, 3), "v": (256, 10)},
    )
    before = model.SerializeToString(deterministic=True)
    shapes = infer_shapes(model)
    assert shapes["h"] == Shape((1, 4, 8, 8), (2, 4, 8, 8))
    assert shapes["f"] == Shape((1, 256), (2, 256))
    assert shapes["y"] == Shape((1, 10), (2, 10))
    assert shapes["target"] == Shape((2,), (2,))
    assert model.SerializeToString(deterministic=True) == before


def test_attention_heads_behind_a_computed_reshape() -> None:
    model = nets.model(
        """g (float[N, T, 8] x) => (y) {
            s = Shape(x)
            zero = Constant <value = int64 {0}> ()
            one = Constant <value = int64 {1}> ()
            n = Gather(s, zero)
            t = Gather(s, one)
            axes = Constant <value = int64[1] {0}> ()
            n1 = Unsqueeze(n, axes)
            t1 = Unsqueeze(t, axes)
            heads = Constant <value = int64[2] {2, 4}> ()
            target = Concat <axis = 0> (n1, t1, heads)
            r = Reshape(x, target)
            y = Transpose <perm = [0, 2, 1, 3]> (r)
        }"""
    )
    shape = infer_shapes(model)["y"]
    assert shape.dims == (1, 2, 16, 4)
    assert [shape.is_fixed(dim) for dim in range(4)] == [False, True, False, True]


def test_open_image_sizes_stay_open_after_many_halvings() -> None:
    layers = " ".join(f"v{i + 1} = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (v{i})" for i in range(5))
    shapes = infer_shapes(nets.model(f"g (float[N, 3, H, W] v0) => (v5) {{ {layers} }}"))
    assert shapes["v0"] == Shape((1, 3, 224, 224), (2, 3, 320, 448))
    assert shapes["v5"] == Shape((1, 3, 7, 7), (2, 3, 10, 14))


def test_open_sizes_grow_until_the_graph_fits() -> None:
    model = nets.model("g (float[N, 1, T] x) => (y) { y = Conv(x, w) }", {"w": (2, 1, 30)})
    shapes = infer_shapes(model)
    assert shapes["y"] == Shape((1, 2, 35), (2, 2, 227))


def test_declared_output_shapes_do_not_get_in_the_way() -> None:
    model = nets.model("g (float[N, 4] x) => (float[wrong, 4] y) { y = Relu(x) }")
    assert infer_shapes(model)["y"] == Shape((1, 4), (2, 4))


def test_outputs_that_are_no_tensors() -> None:
    model = nets.model(
        "g (float[N, 4] x) => (seq(float[N, 4]) q, float[N, 4] y) { q = SequenceConstruct(x) y = Relu(x) }"
    )
    shapes = infer_shapes(model)
    assert shapes["y"] == Shape((1, 4), (2, 4))
    assert "q" not in shapes


def test_unknown_op_leaves_only_its_own_outputs_unknown() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.example" : 1]>
        g (float[N, 4] x) => (y, z) %s { o = com.example.Odd(x) y = Neg(o) r = Relu(x) z = Neg(r) }"""
    shapes = infer_shapes(nets.model(text % ""))
    assert shapes["z"] == Shape((1, 4), (2, 4))
    assert "o" not in shapes
    assert "y" not in shapes
    declared = infer_shapes(nets.model(text % "<float[N, 6] o>"))
    assert declared["o"] == declared["y"] == Shape((1, 6), (2, 6))


def test_local_functions_and_branches() -> None:
    model = nets.model(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1, "com.example" : 1]>
        g (bool c, float[N, 4] x) => (y, w) {
            a = local.twice(x)
            b = If (c) <then_branch = t () => (p) { p = Neg(a) }, else_branch = e () => (q) { q = Relu(a) }>
            y = Relu(b)
            w = com.example.Odd(x)
        }
        <domain: "local", opset_import: ["" : 17]>
        twice (i) => (o) { o = Add(i, i) }"""
    )
    shapes = infer_shapes(model)
    assert shapes["a"] == shapes["b"] == shapes["y"] == Shape((1, 4), (2, 4))


def test_weights_are_not_looked_at() -> None:
    model = nets.model("g (float[N, 4000] x) => (y) { h = MatMul(x, w) y = MatMul(h, s) }")
    tensor = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[4000, 70])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="nowhere.bin")
    values = numpy_helper.from_array(np.array([1], np.float32), "s")
    index = numpy_helper.from_array(np.array([0]))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, index, [70, 9]))
    model.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [70, 9]))
    assert infer_shapes(model)["y"] == Shape((1, 9), (2, 9))


def test_nothing_is_known_of_an_input_without_a_shape() -> None:
    model = nets.model("g (float[2] x) => (y) { y = Relu(x) }")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert infer_shapes(model) == {}


def test_evaluate_node() -> None:
    node = helper.make_node("Split", ["x", ""], ["a", "b"], axis=0)
    a, b = evaluate_node(node, {"x": np.arange(4)}, 17)
    assert (a.tolist(), b.tolist()) == ([0, 1], [2, 3])
    assert evaluate_node(helper.make_node("NoSuchOp", ["x"], ["a", "b"]), {"x": np.arange(4)}, 17) == [None, None]


@pytest.mark.parametrize("n_nodes", [3000])
def test_long_chains_are_no_problem(n_nodes: int) -> None:
    model = nets.model("g (float[N, 4] v0) => (y) { y = Relu(v0) }")
    model.graph.node.extend(helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(n_nodes))
    assert infer_shapes(model)[f"v{n_nodes}"] == Shape((1, 4), (2, 4))
    assert isinstance(model, onnx.ModelProto)


def test_amounts_that_constants_make_are_known_to_the_whole_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nets.model(
        """g (float[N, 3, 8, 8] x) => (y) {
            back = Constant <value = int64[1] {-1}> ()
            rows = Reshape(pairs, two)
            turned = Slice(rows, back, first, zero, back)
            columns = Transpose <perm = [1, 0]> (turned)
            flat = Reshape(columns, back)
            p = Pad(x, flat)
            y = Conv(p, w)
        }""",
        {
            "w": (4, 3, 3, 3),
            "pairs": np.array([1, 1, 2, 2, 0, 0, 0, 0], np.int64),
            "two": np.array([-1, 2], np.int64),
            "first": np.array([-9], np.int64),
            "zero": np.array([0], np.int64),
        },
    )
    monkeypatch.setattr("agmc_onnx.graph.shapes._walk", lambda *_: pytest.fail("went node by node"))
    shapes = infer_shapes(model)
    assert shapes["y"] == Shape((1, 4, 10, 8), (2, 4, 10, 8)) and shapes["flat"] == Shape((8,), (8,))

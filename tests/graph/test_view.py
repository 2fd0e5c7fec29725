from __future__ import annotations

from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from agmc_onnx.errors import ModelError
from agmc_onnx.graph.files import write_model
from agmc_onnx.graph.view import captured_names, graph_of


def conv() -> onnx.ModelProto:
    return nets.model(
        """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y, float[N, 4, 8, 8] r) {
            h = Conv <pads = [1, 1, 1, 1], auto_pad = "NOTSET"> (x, w)
            [relu] r = Relu(h)
            y = Add(r, h)
        }""",
        {"w": (4, 3, 3, 3)},
    )


def test_producers_and_consumers() -> None:
    graph = graph_of(conv())
    assert [node.op_type for node in graph.nodes] == ["Conv", "Relu", "Add"]
    assert [node.index for node in graph.nodes] == [0, 1, 2]
    assert {value: node.op_type for value, node in graph.producer.items()} == {"h": "Conv", "r": "Relu", "y": "Add"}
    uses = {value: [(node.op_type, position) for node, position in found] for value, found in graph.consumers.items()}
    assert uses == {"x": [("Conv", 0)], "w": [("Conv", 1)], "h": [("Relu", 0), ("Add", 1)], "r": [("Add", 0)]}
    assert (graph.inputs, graph.outputs, graph.opset) == (("x",), ("y", "r"), 17)


def test_labels_and_attributes() -> None:
    model = conv()
    model.graph.node.append(helper.make_node("Silent", ["x"], [], domain="ai.onnx"))
    model.graph.node.append(helper.make_node("RNN", ["x"], ["s"], activations=["Tanh", "Relu"]))
    model.graph.node[-1].attribute.add(name="blob", type=onnx.AttributeProto.STRING, s=b"\xff")
    graph = graph_of(model)
    assert [node.label for node in graph.nodes] == ["Conv h", "Relu relu", "Add y", "Silent number 3", "RNN s"]
    assert graph.nodes[3].domain == ""
    assert graph.nodes[0].attribute("pads") == [1, 1, 1, 1]
    assert graph.nodes[0].attribute("auto_pad") == "NOTSET"
    assert graph.nodes[0].attribute("group", 1) == 1
    assert graph.nodes[4].attribute("activations") == ["Tanh", "Relu"]
    assert graph.nodes[4].attribute("blob") == b"\xff"


def test_initializers_listed_as_inputs_are_no_inputs() -> None:
    model = conv()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3, 3, 3]))
    model.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [2]))
    values = numpy_helper.from_array(np.array([1], np.float32), "s")
    index = numpy_helper.from_array(np.array([0]))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, index, [2]))
    assert graph_of(model).inputs == ("x",)


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("value = float[2] {1, 2}", np.array([1, 2], np.float32)),
        ("value_float = 1.5", np.array(1.5, np.float32)),
        ("value_floats = [1.0, 2.0]", np.array([1, 2], np.float32)),
        ("value_int = 3", np.array(3)),
        ("value_ints = [3, 4]", np.array([3, 4])),
    ],
)
def test_constant_nodes_are_tensors(attribute: str, expected: np.ndarray) -> None:
    graph = graph_of(nets.model(f"g (float[2] x) => (y) {{ k = Constant <{attribute}> () y = Add(x, k) }}"))
    assert [node.op_type for node in graph.nodes] == ["Add"]
    assert graph.array("k").tolist() == expected.tolist()
    assert graph.array("k").dtype == expected.dtype
    assert graph.shape("k").dims == expected.shape
    assert graph.is_float("k") == (expected.dtype == np.float32)
    assert "k" not in graph.producer


def test_text_constants_stay_nodes() -> None:
    graph = graph_of(nets.model('g (float[2] x) => (y) { k = Constant <value_string = "a"> () y = Relu(x) }'))
    assert [node.op_type for node in graph.nodes] == ["Constant", "Relu"]
    assert not graph.tensors


NESTED = """g (bool c, float[2] x, int64 n) => (float[2] y) {
    a = Relu(x)
    b = Neg(x)
    y = If (c) <
        then_branch = then_graph () => (float[2] t) {
            i = Identity(c)
            t = Loop (n, i, a) <body = body (int64 k, bool go, float[2] v) => (bool on, float[2] w)
                { on = Identity(i) s = Mul(v, scale) w = Add(s, b) }>
        },
        else_branch = else_graph () => (float[2] x2) <float[2] own = {1, 2}> { x2 = Add(own, x) }
    >
}"""


def test_captured_names_of_nested_subgraphs() -> None:
    model = nets.model(NESTED, {"scale": (2,)})
    assert set(captured_names(model.graph.node[2])) == {"c", "n", "a", "b", "scale", "x"}
    graph = graph_of(model)
    assert {name: node.op_type for name, node in graph.captured.items()} == dict.fromkeys(
        ("c", "n", "a", "b", "scale", "x"), "If"
    )


def test_branch_that_only_passes_a_value_on_captures_it() -> None:
    model = nets.model(
        """g (bool c, float[2] x) => (float[2] y) {
            y = If (c) <then_branch = t () => (float[2] x) {}, else_branch = e () => (float[2] n) { n = Neg(x) }>
        }"""
    )
    assert set(captured_names(model.graph.node[0])) == {"x"}


def test_sparse_initializer_of_a_branch_is_not_captured() -> None:
    model = nets.model(NESTED, {"scale": (2,)})
    branch = model.graph.node[2].attribute[1].g
    branch.ClearField("initializer")
    values = numpy_helper.from_array(np.array([1], np.float32), "own")
    branch.sparse_initializer.append(helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0])), [2]))
    assert "own" not in set(captured_names(model.graph.node[2]))


def test_weights_include_what_is_computed_from_constants_alone() -> None:
    model = nets.model(
        """g (float[2, 2] x, bool c) => (float[2, 2] y) {
            t = Transpose(w)
            s = Mul(t, two)
            yes = Constant <value = bool {1}> ()
            i = If (yes) <then_branch = a () => (float[2, 2] p) { p = Neg(x) },
                          else_branch = b () => (float[2, 2] q) { q = Relu(x) }>
            m = MatMul(x, s)
            y = Add(m, i)
        }""",
        {"w": (2, 2), "two": (1,)},
    )
    assert graph_of(model).weights == {"w", "two", "t", "s", "yes"}


def test_value_of_a_pad_amount_chain() -> None:
    graph = graph_of(
        nets.model(
            """g (float[N, 3, H, W] x) => (y) {
                zero = Constant <value = int64 {0}> ()
                z = ConstantOfShape <value = int64[1] {0}> (four)
                all = Concat <axis = 0> (pads, z)
                two = Constant <value = int64[2] {-1, 2}> ()
                r = Reshape(all, two)
                back = Constant <value = int64[1] {-1}> ()
                start = Constant <value = int64[1] {-1}> ()
                end = Constant <value = int64[1] {-9223372036854775807}> ()
                axis = Constant <value = int64[1] {0}> ()
                s = Slice(r, start, end, axis, back)
                t = Transpose <perm = [1, 0]> (s)
                f = Reshape(t, back)
                amounts = Cast <to = 7> (f)
                y = Pad(x, amounts)
            }""",
            {"pads": np.array([1, 2, 3, 4]), "four": np.array([4])},
        )
    )
    assert graph.value("amounts").tolist() == [0, 0, 3, 1, 0, 0, 4, 2]
    assert graph.value("x") is None
    assert graph.value("y") is None


def test_value_picks_the_fixed_sizes_out_of_a_shape() -> None:
    graph = graph_of(
        nets.model(
            """g (float[N, 6, H, 4] x) => (y) {
                shape = Shape(x)
                tail = Shape <start = -1> (x)
                one = Constant <value = int64 {1}> ()
                two = Constant <value = int64 {2}> ()
                c = Gather(shape, one)
                h = Gather(shape, two)
                half = Div(c, two)
                big = Constant <value = int64 {1000}> ()
                same = Div(h, big)
                row = Unsqueeze(half, axes)
                target = Concat <axis = 0> (tail, row)
                size = Size(x)
                y = Reshape(x, target)
            }""",
            {"axes": np.array([0])},
        )
    )
    assert graph.value("c") == 6
    assert graph.value("half") == 3
    assert graph.value("target").tolist() == [4, 3]
    assert graph.value("shape") is None  # N and H are open
    assert graph.value("size") is None
    assert graph.value("h") is None
    assert graph.value("same") is None  # 0 for every size tried, yet not a constant


def test_value_of_a_static_shape() -> None:
    graph = graph_of(nets.model("g (float[2, 3] x) => (s, n) { s = Shape(x) n = Size(x) }"))
    assert graph.value("s").tolist() == [2, 3]
    assert graph.value("n") == 6


def test_value_of_a_chain_longer_than_the_recursion_limit() -> None:
    nodes = [helper.make_node("Identity", [f"v{i}"], [f"v{i + 1}"]) for i in range(1500)]
    model = nets.model("g (float[1] x) => (y) { y = Relu(x) }", {"v0": np.array([7])})
    model.graph.node.extend(nodes)
    assert graph_of(model).value("v1500") == 7


def test_random_and_large_values_are_not_folded() -> None:
    graph = graph_of(
        nets.model(
            """g (float[2] x) => (y) {
                r = RandomNormalLike(w)
                w2 = ConstantOfShape(shape)
                y = Relu(x)
            }""",
            {"w": (2,), "shape": np.array([1000, 1000]), "large": (5000,)},
        )
    )
    assert [graph.value(name) for name in ("r", "w2", "large")] == [None, None, None]


def test_external_tensors_need_the_folder(tmp_path: Path) -> None:
    model = conv()
    model.graph.initializer.append(numpy_helper.from_array(np.arange(256), "index"))
    write_model(model, tmp_path / "net.onnx", external=True)
    slim = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    with pytest.raises(ModelError, match="tensor index: its numbers lie in another file"):
        graph_of(slim).array("index")
    assert graph_of(slim).value("index") is None
    assert graph_of(slim).shape("index").dims == (256,)
    assert graph_of(slim, tmp_path).array("index").tolist() == list(range(256))
    assert graph_of(slim, tmp_path).value("index").tolist() == list(range(256))

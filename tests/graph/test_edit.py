from __future__ import annotations

import time
from pathlib import Path

import ml_dtypes
import nets
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from agmc_onnx.errors import ModelError
from agmc_onnx.graph.edit import rewire

DATA = Path(__file__).parents[3] / "shared" / "data"


def nothing(graph: gs.Graph) -> None:
    """Change nothing."""


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def chain() -> onnx.ModelProto:
    return nets.model(
        """g (float[N, 3] x) => (float[N, 2] y) {
            h = MatMul(x, w)
            r = Relu(h)
            y = MatMul(r, v)
        }""",
        {"w": (3, 4), "v": (4, 2)},
    )


def everything() -> onnx.ModelProto:
    """A model with all that graphsurgeon loses, moves or cannot hold."""
    model = nets.model(
        """<ir_version: 10, opset_import: ["" : 21, "local" : 1, "com.example" : 3, "com.unused" : 7]>
        g (bool c, float[batch, 3, "height"] x, float[3, 1] bias, seq(float[K]) seq) => (float[batch, 3, "height"] y, z)
        <float[batch, 3, "height"] a>
        {
            [named] a = Add(x, bias)
            b = local.twice(a)
            unused = Relu(a)
            e = com.example.Odd <raw = "text"> (a)
            y = If (c) <
                then_branch = then_graph () => (float[batch, 3, "height"] t) { t = Mul(b, scale) },
                else_branch = else_graph () => (float[batch, 3, "height"] u) <float[1] own = {2}>
                    { m = Mul(b, scale) u = Mul(m, own) }
            >
            q = Constant <value = float[2] {1, 2}> ()
            z = Mul(q, sparse)
            k = SequenceAt(seq, zero)
        }
        <domain: "local", opset_import: ["" : 21]>
        twice (i) => (o) { o = Add(i, i) }""",
        {"scale": (3, 1), "bias": (3, 1), "zero": np.array(0), "lonely": (5,)},
    )
    graph = model.graph
    model.producer_name, model.producer_version, model.domain = "maker", "1.2", "org.example"
    model.model_version, model.doc_string = 12, "about the model"
    model.metadata_props.add(key="licence", value="MIT")
    graph.doc_string = "about the graph"
    graph.metadata_props.add(key="graph", value="1")
    for message in (graph.node[0], graph.initializer[0], graph.input[0], graph.output[0], graph.value_info[0]):
        message.doc_string = "documented"
        message.metadata_props.add(key="where", value=type(message).__name__)
    graph.node[0].attribute.add(name="kind", type=onnx.AttributeProto.TYPE_PROTO, doc_string="a type").tp.CopyFrom(
        helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    )
    graph.node[0].attribute.add(name="blob", type=onnx.AttributeProto.STRING, s=b"\xff\xfe\x00")
    graph.node[0].attribute.add(name="empty", type=onnx.AttributeProto.FLOATS)
    model.functions[0].doc_string = "about the function"
    model.functions[0].metadata_props.add(key="function", value="1")
    annotation = graph.quantization_annotation.add(tensor_name="a")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="lonely")
    values = numpy_helper.from_array(np.array([5.0], np.float32), "sparse")
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([1]), ""), [2]))
    rare = (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2fnuz, ml_dtypes.int4, ml_dtypes.uint2)
    for dtype in (*rare, ml_dtypes.float4_e2m1fn, np.float16, np.bool_, np.complex64, object):
        name = np.dtype(dtype).name
        array = np.array(["one", "two", "three"], object) if dtype is object else np.array([0, 1, 1]).astype(dtype)
        graph.initializer.append(numpy_helper.from_array(array, name))
        graph.node.append(helper.make_node("Shape", [name], [name + "_shape"]))
    away = graph.initializer.add(name="away", data_type=TensorProto.FLOAT, dims=[1000, 1000])
    away.data_location = TensorProto.EXTERNAL
    away.external_data.add(key="location", value="not-there.bin")
    graph.node.append(helper.make_node("MatMul", ["a", "away"], ["far"], doc_string="not documented"))
    mapping = graph.output.add(name="map")
    mapping.type.sequence_type.elem_type.map_type.key_type = TensorProto.STRING
    mapping.type.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = TensorProto.FLOAT
    graph.node.append(helper.make_node("ZipMap", ["a"], ["map"], domain="com.example"))
    return model


def test_nothing_is_lost_by_an_edit_that_changes_nothing() -> None:
    model = everything()
    before = model.SerializeToString(deterministic=True)
    assert rewire(model, nothing) == model
    assert model.SerializeToString(deterministic=True) == before


def test_all_that_an_edit_does_not_touch_is_kept_field_by_field() -> None:
    model = everything()
    before = model.SerializeToString(deterministic=True)

    def edit(graph: gs.Graph) -> None:
        sequence = next(node for node in graph.nodes if node.op == "SequenceAt")
        sequence.name = "renamed"
        relu = gs.Variable("extra", np.float32, ["batch", 3, "height"])
        graph.nodes.insert(0, gs.Node("Relu", inputs=[graph.tensors()["a"]], outputs=[relu]))
        graph.outputs.append(relu)

    out = rewire(model, edit)
    assert model.SerializeToString(deterministic=True) == before
    for field in model.DESCRIPTOR.fields:
        if field.name != "graph":
            assert getattr(out, field.name) == getattr(model, field.name), field.name
    for field in model.graph.DESCRIPTOR.fields:
        if field.name not in ("node", "output"):
            assert getattr(out.graph, field.name) == getattr(model.graph, field.name), field.name
    assert list(out.graph.output)[:-1] == list(model.graph.output)
    assert out.graph.output[-1] == helper.make_tensor_value_info("extra", TensorProto.FLOAT, ["batch", 3, "height"])
    nodes = [node for node in out.graph.node if list(node.output) != ["extra"]]
    changed = [(new.name, old.name) for new, old in zip(nodes, model.graph.node, strict=True) if new != old]
    assert changed == [("renamed", "")]


def test_unloaded_weights_are_not_read_but_asked_for_with_a_clear_message() -> None:
    def edit(graph: gs.Graph) -> None:
        _ = graph.tensors()["away"].values

    with pytest.raises(ModelError, match=r"tensor away: its numbers lie in another file.*Read the model with read"):
        rewire(everything(), edit)


def test_changed_node_keeps_its_documentation_and_the_attributes_graphsurgeon_cannot_hold() -> None:
    def edit(graph: gs.Graph) -> None:
        graph.nodes[0].attrs["empty"] = [1, 2.5]
        graph.nodes[0].attrs["new"] = 3

    model = everything()
    node = rewire(model, edit).graph.node[0]
    expected = onnx.NodeProto()
    expected.CopyFrom(model.graph.node[0])
    expected.attribute[2].floats.extend([1, 2.5])
    expected.attribute.append(helper.make_attribute("new", 3))
    assert node == expected


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fnuz, ml_dtypes.int4, ml_dtypes.uint2]
)
def test_weights_of_every_type_can_be_cut(dtype: type) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    model = nets.model("g (float[2] x) => (float[2] y, int64[2] s) { y = Relu(x) s = Shape(w) }", {"w": array})
    model.graph.initializer[0].doc_string = "kept"

    def edit(graph: gs.Graph) -> None:
        weight = graph.tensors()["w"]
        weight.values = weight.values[:, 1:]

    (tensor,) = rewire(model, edit).graph.initializer
    assert tensor.doc_string == "kept"
    assert tensor.data_type == model.graph.initializer[0].data_type
    assert numpy_helper.to_array(tensor).tolist() == array[:, 1:].tolist()
    assert numpy_helper.to_array(model.graph.initializer[0]).shape == (2, 3)


def test_weights_that_were_only_read_are_as_before() -> None:
    model = everything()

    def edit(graph: gs.Graph) -> None:
        for tensor in graph.tensors().values():
            if isinstance(tensor, gs.Constant) and tensor.name not in ("away", "sparse"):
                assert tensor.values is not None
        constant = next(node for node in graph.nodes if node.op == "Constant")
        assert constant.attrs["value"].values.tolist() == [1, 2]

    assert rewire(model, edit) == model


def test_dropping_a_node_drops_what_only_it_used() -> None:
    def edit(graph: gs.Graph) -> None:
        graph.outputs = [graph.tensors()["r"]]

    model = chain()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "unused"))
    out = rewire(model, edit)
    assert [node.op_type for node in out.graph.node] == ["MatMul", "Relu"]
    assert [tensor.name for tensor in out.graph.initializer] == ["w", "unused"]


def test_overridable_input_is_kept_when_its_last_use_goes_and_follows_its_shape() -> None:
    def drop(graph: gs.Graph) -> None:
        graph.outputs = [graph.tensors()["r"]]

    def cut(graph: gs.Graph) -> None:
        graph.tensors()["v"].values = graph.tensors()["v"].values[:, :1]

    model = chain()
    model.graph.input.insert(0, helper.make_tensor_value_info("v", TensorProto.FLOAT, [4, 2]))
    out = rewire(model, drop)
    assert list(out.graph.input) == list(model.graph.input)
    assert [tensor.name for tensor in out.graph.initializer] == ["w", "v"]
    cut_input = rewire(model, cut).graph.input[0]
    assert cut_input == helper.make_tensor_value_info("v", TensorProto.FLOAT, [4, 1])


def test_old_ir_lists_all_initializers_as_inputs() -> None:
    model = chain()
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))

    def edit(graph: gs.Graph) -> None:
        graph.nodes[0].inputs[1] = gs.Constant("w2", graph.tensors()["w"].values * 2)

    out = rewire(model, edit)
    assert rewire(model, nothing) == model
    assert [value.name for value in out.graph.input] == ["x", "v", "w2"]
    assert [tensor.name for tensor in out.graph.initializer] == ["v", "w2"]
    x = np.ones((1, 3), np.float32)
    np.testing.assert_allclose(run(out, x=x)[0], 2 * run(model, x=x)[0], rtol=1e-6)  # a power of two: exact up to order


def test_new_nodes_are_put_in_order_and_the_others_keep_theirs() -> None:
    def edit(graph: gs.Graph) -> None:
        relu = next(node for node in graph.nodes if node.op == "Relu")
        half = gs.Variable("half", np.float32, ["N", 4])
        factor = gs.Constant("factor", np.array(0.5, np.float32))
        graph.nodes.append(gs.Node("Mul", "halve", inputs=[relu.inputs[0], factor], outputs=[half]))
        relu.inputs[0] = half

    model = chain()
    out = rewire(model, edit)
    assert [node.op_type for node in out.graph.node] == ["MatMul", "Mul", "Relu", "MatMul"]
    assert list(out.graph.value_info) == [helper.make_tensor_value_info("half", TensorProto.FLOAT, ["N", 4])]
    onnx.checker.check_model(out, full_check=True)
    x = np.ones((2, 3), np.float32)
    np.testing.assert_allclose(run(out, x=x)[0], run(model, x=x)[0] / 2, rtol=1e-6)


def test_value_infos_follow_the_edit() -> None:
    model = chain()
    model.graph.value_info.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in "hr")
    model.graph.value_info[1].doc_string = "after Relu"

    def edit(graph: gs.Graph) -> None:
        tensors = graph.tensors()
        tensors["w"].values, tensors["v"].values = tensors["w"].values[:, :2], tensors["v"].values[:2]
        tensors["h"].shape = tensors["r"].shape = ["N", 2]

    h, r = rewire(model, edit).graph.value_info
    assert h == helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 2])
    assert r == helper.make_tensor_value_info("r", TensorProto.FLOAT, ["N", 2], doc_string="after Relu")


def branches() -> onnx.ModelProto:
    return nets.model(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (bool c, float[2] x) => (float[2] y) {
            a = local.twice(x)
            y = If (c) <
                then_branch = then_graph () => (float[2] t) { t = Mul(a, scale) },
                else_branch = else_graph () => (float[2] u) <float[1] own = {2}> { m = Mul(a, scale) u = Mul(m, own) }
            >
        }
        <domain: "local", opset_import: ["" : 17]>
        twice (i) => (o) { o = Add(i, i) }""",
        {"scale": (2,)},
    )


def test_outer_weight_of_two_branches_is_edited_where_it_is() -> None:
    def edit(graph: gs.Graph) -> None:
        inner = next(graph.subgraphs())
        inner.nodes[0].inputs[1].values = np.array([3, 4], np.float32)

    model = branches()
    out = rewire(model, edit)
    assert out.graph.node == model.graph.node
    assert [numpy_helper.to_array(tensor).tolist() for tensor in out.graph.initializer] == [[3, 4]]
    x = np.ones(2, np.float32)
    assert run(out, c=np.array(False), x=x)[0].tolist() == [12, 16]


def test_branches_are_edited_and_new_nodes_ordered_despite_local_functions() -> None:
    def edit(graph: gs.Graph) -> None:
        late, (_, other) = gs.Variable("late", np.float32, [2]), graph.subgraphs()
        other.nodes[0].inputs[1] = gs.Constant("three", np.full(2, 3, np.float32))
        other.nodes[0].inputs[0] = late
        graph.nodes.append(gs.Node("Neg", inputs=[graph.tensors()["a"]], outputs=[late]))

    model = branches()
    out = rewire(model, edit)
    assert [node.op_type for node in out.graph.node] == ["twice", "Neg", "If"]
    assert out.graph.node[2].attribute[0] == model.graph.node[1].attribute[0]
    assert [tensor.name for tensor in out.graph.node[2].attribute[1].g.initializer] == ["own", "three"]
    assert [tensor.name for tensor in out.graph.initializer] == ["scale"]
    x = np.ones(2, np.float32)
    assert run(out, c=np.array(False), x=x)[0].tolist() == [-12, -12]
    assert run(out, c=np.array(True), x=x)[0].tolist() == run(model, c=np.array(True), x=x)[0].tolist()


def test_new_domains_are_imported_and_functions_added() -> None:
    def edit(graph: gs.Graph) -> None:
        x, y = gs.Variable("i"), gs.Variable("o")
        graph.functions.append(gs.Function("same", "mine", nodes=[gs.Node("Identity", inputs=[x], outputs=[y])],
                                           inputs=[x], outputs=[y], opset=17))  # fmt: skip
        relu = next(node for node in graph.nodes if node.op == "Relu")
        relu.op, relu.domain = "same", "mine"

    out = rewire(chain(), edit)
    assert {opset.domain: opset.version for opset in out.opset_import} == {"": 17, "mine": 1}
    assert [function.name for function in out.functions] == ["same"]
    assert run(out, x=np.ones((1, 3), np.float32))[0].shape == (1, 2)


def test_graphsurgeon_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    model = chain()
    model.graph.node[0].name = model.graph.node[1].name = "twin"  # graphsurgeon warns of this on stdout
    model.opset_import[0].domain = "other"  # and of this
    rewire(model, lambda graph: gs.export_onnx(graph) and None)
    assert capfd.readouterr() == ("", "")


def test_cycle_is_an_error() -> None:
    def edit(graph: gs.Graph) -> None:
        graph.nodes[0].inputs[0] = graph.tensors()["r"]

    with pytest.raises(ModelError, match=r"graph g: .* needs its own output; expected no cycle"):
        rewire(chain(), edit)


def test_value_that_nothing_makes_is_an_error() -> None:
    def edit(graph: gs.Graph) -> None:
        graph.nodes[1].outputs.clear()

    with pytest.raises(ModelError, match=r"graph g: nothing makes r any more; expected no use of it to be left"):
        rewire(chain(), edit)


def test_two_constants_of_one_name_are_an_error() -> None:
    def edit(graph: gs.Graph) -> None:
        graph.nodes[2].inputs[1] = gs.Constant("w", np.zeros((4, 2), np.float32))

    with pytest.raises(ModelError, match="graph g: two constants are called w; expected one"):
        rewire(chain(), edit)


def test_twenty_thousand_nodes_take_seconds() -> None:
    def elapsed(n_nodes: int) -> float:
        nodes = [helper.make_node("Add", [f"v{i}", "w"], [f"v{i + 1}"]) for i in range(n_nodes)]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("v0", f"v{n_nodes}")]
        weight = numpy_helper.from_array(np.ones(2, np.float32), "w")
        model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight]),
                                  opset_imports=[helper.make_opsetid("", 17)], ir_version=8)  # fmt: skip
        start = time.process_time()
        out = rewire(model, lambda graph: graph.nodes.reverse())  # also: no recursion along the chain
        assert out == model
        return time.process_time() - start

    small, large = elapsed(2_000), elapsed(20_000)
    assert large < 30
    assert large < 40 * max(small, 0.05)  # linear would be 10, quadratic 100


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.glob("*.onnx")) or ["none"])
def test_real_model_is_the_same_to_the_byte(name: str) -> None:
    if name == "none":
        pytest.skip(f"no models in {DATA}")
    model = onnx.load(DATA / name)
    before = model.SerializeToString(deterministic=True)
    assert rewire(model, nothing).SerializeToString(deterministic=True) == before
    assert model.SerializeToString(deterministic=True) == before

from __future__ import annotations

from pathlib import Path

import nets
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from agmc_onnx.graph.edit import rewire
from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.view import graph_of
from agmc_onnx.ops import analyse
from agmc_onnx.pruning.surgery import Surgeon

DATA = Path(__file__).parents[3] / "shared" / "data"
SAMPLES = 576  # what the one audio model wants as (batch, samples); images declare their sizes


def initializers(model: onnx.ModelProto) -> dict[str, list[float]]:
    return {tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in model.graph.initializer}


def shared() -> onnx.ModelProto:
    return nets.model(
        """g (float[2] x) => (float[2] y) {
            b1 = Identity(b)
            b2 = Identity(b1)
            p = Add(x, b)
            q = Add(p, b1)
            y = Add(q, b2)
        }""",
        {"b": np.array([1, 2], np.float32)},
    )


def test_every_user_of_an_identity_gets_a_tensor_of_its_own() -> None:
    model = shared()
    model.graph.initializer[0].doc_string = "biases"
    before = model.SerializeToString(deterministic=True)
    out = normalize(model)
    assert initializers(out) == {"b": [1, 2], "b1": [1, 2], "b2": [1, 2]}
    assert {tensor.doc_string for tensor in out.graph.initializer} == {"biases"}
    assert [node.op_type for node in out.graph.node] == ["Add", "Add", "Add"]
    assert list(out.graph.node) == list(model.graph.node)[2:]
    assert model.SerializeToString(deterministic=True) == before


def test_original_is_dropped_when_only_identities_used_it() -> None:
    model = shared()
    model.graph.node[2].input[1] = "b1"
    assert initializers(normalize(model)) == {"b1": [1, 2], "b2": [1, 2]}


def test_value_with_an_own_user_and_others_unused_before_stay() -> None:
    model = shared()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "unused"))
    model.graph.node.append(helper.make_node("Relu", ["x"], ["dead"]))
    out = normalize(model)
    assert [node.op_type for node in out.graph.node] == ["Add", "Add", "Add", "Relu"]
    assert set(initializers(out)) == {"b", "b1", "b2", "unused"}


@pytest.mark.parametrize("constant", ["value = float[2] {1, 2}", "value_floats = [1.0, 2.0]"])
def test_identity_of_a_constant_node(constant: str) -> None:
    model = nets.model(
        f"g (float[2] x) => (float[2] y) {{ b = Constant <{constant}> () c = Identity(b) y = Add(x, c) }}"
    )
    out = normalize(model)
    assert initializers(out) == {"c": [1, 2]}
    assert [node.op_type for node in out.graph.node] == ["Add"]


def test_identity_that_is_a_graph_output_stays() -> None:
    model = nets.model("g (float[2] x) => (float[2] y, float[2] c) { y = Add(x, b) c = Identity(b) }", {"b": (2,)})
    assert normalize(model) is model


def test_identity_of_a_computed_value_stays() -> None:
    model = nets.model("g (float[2] x) => (float[2] y) { i = Identity(x) y = Add(i, b) }", {"b": (2,)})
    assert normalize(model) is model


def test_overridable_initializer_is_not_copied() -> None:
    model = shared()
    model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [2]))
    assert normalize(model) is model


def test_old_ir_has_no_overridable_initializers() -> None:
    model = shared()
    model.ir_version = 3
    model.graph.node[2].input[1] = "b1"
    model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [2]))
    out = normalize(model)
    assert [value.name for value in out.graph.input] == ["x", "b1", "b2"]
    onnx.checker.check_model(out)


def test_copy_captured_by_a_branch() -> None:
    model = nets.model(
        """g (bool c, float[2] x) => (float[2] y) {
            b1 = Identity(b)
            y = If (c) <
                then_branch = then_graph () => (float[2] t) { t = Add(x, b1) },
                else_branch = else_graph () => (float[2] u) { i = Identity(b) u = Add(x, i) }
            >
        }""",
        {"b": np.array([1, 2], np.float32)},
    )
    out = normalize(model)
    assert set(initializers(out)) == {"b", "b1"}
    assert list(out.graph.node) == [model.graph.node[1]]


def test_external_reference_is_copied() -> None:
    model = shared()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="nowhere.bin")
    out = normalize(model)
    assert [tensor.name for tensor in out.graph.initializer] == ["b", "b1", "b2"]
    assert all(tensor.data_location == TensorProto.EXTERNAL for tensor in out.graph.initializer)
    assert {tensor.external_data[0].value for tensor in out.graph.initializer} == {"nowhere.bin"}


def sparse_model(index: np.ndarray) -> onnx.ModelProto:
    model = nets.model("g (float[N, 2] x) => (float[N, 3] y) { y = Gemm(x, w) }")
    values = numpy_helper.from_array(np.array([5, 7], np.float32), "w")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(index, "w_index"), [2, 3])
    )
    return model


@pytest.mark.parametrize("index", [np.array([1, 5]), np.array([[0, 1], [1, 2]])])
def test_sparse_initializer_is_made_dense_only_when_asked(index: np.ndarray) -> None:
    model = sparse_model(index)
    assert normalize(model) is model
    out = normalize(model, dense=True)
    assert not out.graph.sparse_initializer
    assert initializers(out) == {"w": [[0, 5, 0], [0, 0, 7]]}
    assert out.graph.initializer[0].data_type == TensorProto.FLOAT


def test_identity_of_a_sparse_initializer() -> None:
    model = sparse_model(np.array([1, 5]))
    model.graph.node[0].input[1] = "copy"
    model.graph.node.insert(0, helper.make_node("Identity", ["w"], ["copy"]))
    (copy,) = normalize(model).graph.sparse_initializer
    assert (copy.values.name, list(copy.dims)) == ("copy", [2, 3])
    assert initializers(normalize(model, dense=True)) == {"copy": [[0, 5, 0], [0, 0, 7]]}


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.glob("*.onnx")) or ["none"])
def test_real_model_gives_equal_outputs(name: str) -> None:
    if name == "none":
        pytest.skip(f"no models in {DATA}")
    model = onnx.load(DATA / name)
    tied = with_shared_biases(model)
    generator = np.random.default_rng(0)
    sessions = [
        ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        for proto in (model, normalize(rewire(tied, lambda graph: None)))
    ]
    feeds = {}
    for value in sessions[0].get_inputs():
        opened = [1, SAMPLES] if len(value.shape) == 2 else [1] * len(value.shape)
        sizes = [size if isinstance(size, int) else other for size, other in zip(value.shape, opened, strict=True)]
        is_float = value.type == "tensor(float)"
        feeds[value.name] = generator.standard_normal(sizes).astype(np.float32) if is_float else np.array(16000)
    before, after = (session.run(None, feeds) for session in sessions)
    assert all(np.array_equal(one, two) for one, two in zip(before, after, strict=True))
    assert max(np.std(array) for array in before) > 0


def with_shared_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model as torch's legacy exporter would write it: vectors by way of an Identity for each user."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    taken = {value.name for value in model.graph.input} | {value.name for value in model.graph.output}
    vectors = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 1 and tensor.name not in taken]
    for tensor in vectors:
        shared = next(t for t in out.graph.initializer if t.name == tensor.name)
        shared.name = tensor.name + "_shared"
        out.graph.node.insert(0, helper.make_node("Identity", [shared.name], [tensor.name]))
    assert normalize(out) is not out or not vectors
    return out


def standardised() -> onnx.ModelProto:
    """Two convolutions whose weights are standardised as PyTorch's newer exporter writes it, with shared scale and bias."""
    rng = np.random.default_rng(0)
    kernels = {f"w{i}": rng.normal(size=size).astype(np.float32) for i, size in enumerate([(8, 3, 3, 3), (8, 8, 3, 3)])}
    layer = """
            flat{i} = Reshape(w{i}, to_flat)
            mean{i} = ReduceMean<axes = [0, 2], keepdims = 0>(flat{i})
            own{i} = ReduceMean<axes = [0, 2], keepdims = 1>(flat{i})
            off{i} = Sub(flat{i}, own{i})
            square{i} = Mul(off{i}, off{i})
            var{i} = ReduceMean<axes = [0, 2], keepdims = 0>(square{i})
            normed{i} = BatchNormalization(flat{i}, ones, zeros, mean{i}, var{i})
            kernel{i} = Reshape(normed{i}, to{i})"""
    return nets.model(
        "g (float[1, 3, 8, 8] x) => (float[1, 8, 8, 8] y) {"
        + layer.replace("{i}", "0")
        + layer.replace("{i}", "1")
        + """
            a = Conv<pads = [1, 1, 1, 1]>(x, kernel0)
            b = Relu(a)
            y = Conv<pads = [1, 1, 1, 1]>(b, kernel1)
        }""",
        {
            **kernels,
            "ones": np.full(8, 0.5, np.float32),
            "zeros": np.zeros(8, np.float32),
            "to_flat": np.array([1, 8, -1]),
            "to0": np.array([8, 3, 3, 3]),
            "to1": np.array([8, 8, 3, 3]),
        },
    )


def test_statistics_of_weights_are_known_and_what_made_them_is_gone() -> None:
    model = standardised()
    out = normalize(model)
    ops = [node.op_type for node in out.graph.node]
    assert ops == ["Reshape", "BatchNormalization", "Reshape"] * 2 + ["Conv", "Relu", "Conv"]
    assert {"mean0", "var0", "mean1", "var1"} <= set(initializers(out))
    feed = {"x": np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)}
    ours, theirs = (ort.InferenceSession(m.SerializeToString()).run(None, feed)[0] for m in (out, model))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_layers_that_share_vectors_of_one_number_are_cut_apart() -> None:
    channels = analyse(graph_of(normalize(standardised())))
    assert [group.n_units for group in channels.groups] == [8]
    plan = [np.arange(0, 8, 2)]
    cut = Surgeon(channels).cut(plan)
    feed = {"x": np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)}
    found = ort.InferenceSession(cut.SerializeToString()).run(None, feed)[0]
    masked = standardised()
    node = next(node for node in masked.graph.node if node.op_type == "Relu")
    node.output[0] = "whole"
    masked.graph.node.insert(-1, helper.make_node("Mul", ["whole", "mask"], ["b"]))
    last = masked.graph.node.pop(-3)  # the last Conv comes after the mask
    masked.graph.node.append(last)
    mask = np.isin(np.arange(8), plan[0]).astype(np.float32).reshape(1, 8, 1, 1)
    masked.graph.initializer.append(numpy_helper.from_array(mask, "mask"))
    wanted = ort.InferenceSession(masked.SerializeToString()).run(None, feed)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert {len(t.dims) and t.dims[0] for t in cut.graph.initializer if t.name.startswith("zeros")} == {4, 8}

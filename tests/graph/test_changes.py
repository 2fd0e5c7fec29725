"""Named changes of a graph, and what is remembered of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from agmc_onnx.errors import ModelError
from agmc_onnx.graph.edit import (
    Alias,
    Change,
    Gone,
    Input,
    Made,
    Output,
    Skeleton,
    Skeletons,
    Undeclared,
    edited,
    rewire,
    with_arrays,
)
from agmc_onnx.measuring.session import make_session, run_model
from tests import nets

NET = """
g (float[N, 3] x) => (float[N, 3] y) <float[N, 3] a, float[N, 3] b> {
    a = Relu (x)
    b = Add (a, k)
    s = Shape (x)
    c = Reshape (b, s)
    y = Mul (c, m)
}
"""
WEIGHTS = {"k": np.array([1, 2, 3], np.float32), "m": np.array([2, 2, 2], np.float32)}
X = np.array([[1, -2, 3], [-4, 5, 6]], np.float32)


def lines(model: onnx.ModelProto) -> list[str]:
    return [f"{','.join(n.output)}={n.op_type}({','.join(n.input)})" for n in model.graph.node]


def answer(model: onnx.ModelProto) -> list[list[float]]:
    onnx.checker.check_model(model)
    return run_model(make_session(model), {"x": X})[0].tolist()


@pytest.mark.parametrize(
    ("changes", "arrays", "nodes", "kept"),
    [
        ([Input("c", 1, "t")], {"t": np.array([-1, 3])}, "a b c=Reshape(b,t) y", "k m t"),
        ([Input("b", 1, "t")], {"t": np.zeros(3, np.float32)}, "a b=Add(a,t) s c y", "m t"),
        ([Alias("b", "x"), Gone("b")], {}, "s c=Reshape(x,s) y", "m"),
        ([Gone("a")], {"a": np.ones((2, 3), np.float32)}, "b s c y", "k m a"),
        ([Made("Identity", ("b",), ("c",))], {}, "a b c=Identity(b) y", "k m"),
        (
            [Made("Add", ("x", "d"), ("e",)), Input("b", 0, "e")],
            {"d": np.ones(3, np.float32)},
            "e=Add(x,d) b=Add(e,k) s c y",
            "k m d",
        ),
        (
            [Output("a", "raw"), Made("Neg", ("raw",), ("a",), behind="a")],
            {},
            "raw=Relu(x) a=Neg(raw) b s c y",
            "k m",
        ),
        ([Made("Neg", ("a",), ("c",), place="b"), Gone("c")], {}, "a c=Neg(a) y", "m"),
        ([Made("Sin", ("x",), ("k",))], {}, "a k=Sin(x) b s c y", "m"),
    ],
    ids=lambda given: " ".join(type(one).__name__ for one in given) if isinstance(given, list) else "",
)
def test_changes(changes: list[Change], arrays: dict[str, np.ndarray], nodes: str, kept: str) -> None:
    model = nets.model(NET, WEIGHTS)
    before = model.SerializeToString()
    as_it_was = {line.split("=")[0]: line for line in lines(model)}
    made = edited(model, changes, arrays)
    assert lines(made) == [as_it_was.get(part, part) for part in nodes.split()]
    assert " ".join(tensor.name for tensor in made.graph.initializer) == kept
    assert answer(made) is not None and model.SerializeToString() == before


def test_a_declaration_that_no_longer_holds_goes() -> None:
    made = edited(nets.model(NET, WEIGHTS), [Undeclared("a"), Gone("s")], {"s": np.array([-1, 3])})
    assert [info.name for info in made.graph.value_info] == ["b"]


def test_a_replaced_node_keeps_its_documentation() -> None:
    model = nets.model(NET, WEIGHTS)
    model.graph.node[0].doc_string = "kept"
    (node,) = (n for n in edited(model, [Made("Neg", ("x",), ("a",))]).graph.node if n.op_type == "Neg")
    assert node.doc_string == "kept"


def test_constants_for_constants_need_no_graphsurgeon_and_give_what_it_gives() -> None:
    model = nets.model(NET, WEIGHTS)
    changes = [Input("b", 1, "t"), Undeclared("a")]
    arrays = {"t": np.zeros(3, np.float32)}
    plain = edited(model, changes, arrays)
    whole = edited(model, [*changes, Alias("x", "x")], arrays)  # an alias is structure
    assert plain == whole


def test_what_has_no_numbers_is_an_error() -> None:
    with pytest.raises(ModelError, match="nothing makes t any more; expected numbers for it"):
        edited(nets.model(NET, WEIGHTS), [Input("b", 1, "t")])


def test_numbers_keep_type_shape_and_documentation_of_their_constant() -> None:
    model = nets.model(NET, WEIGHTS)
    model.graph.initializer[0].doc_string = "offset"
    made = with_arrays(model, {"k": np.array([0.5, 1, 2]), "unknown": np.zeros(1)})
    tensor = made.graph.initializer[0]
    assert (tensor.data_type, tensor.doc_string) == (onnx.TensorProto.FLOAT, "offset")
    assert onnx.numpy_helper.to_array(tensor).tolist() == [0.5, 1, 2]
    assert with_arrays(model, {}) == model
    with pytest.raises(ModelError, match=r"k: shape changed, got \[2\]; expected \[3\]"):
        with_arrays(model, {"k": np.zeros(2)})


def test_a_constant_is_stored_sparse_and_dense_again() -> None:
    model = nets.model(NET, {**WEIGHTS, "k": np.array([0, 2, 0], np.float32)})
    values = onnx.numpy_helper.from_array(np.array([2], np.float32), "k")
    sparse = onnx.helper.make_sparse_tensor(values, onnx.numpy_helper.from_array(np.array([1])), [3])
    stored = with_arrays(model, {"k": sparse})
    assert [s.values.name for s in stored.graph.sparse_initializer] == ["k"] and len(stored.graph.initializer) == 1
    assert answer(stored) == answer(model)
    back = with_arrays(stored, {"k": np.array([0, 2, 0], np.float32)})
    assert not back.graph.sparse_initializer and answer(back) == answer(model)


def test_new_constants_of_an_old_model_are_listed_as_inputs() -> None:
    model = nets.model(NET, WEIGHTS)
    model.ir_version = 3
    model.graph.input.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3]) for name in "km")
    made = edited(model, [Input("b", 1, "t")], {"t": np.zeros(3, np.float32)})
    assert [value.name for value in made.graph.input] == ["x", "m", "t"]
    onnx.checker.check_model(made)


def test_a_set_of_changes_is_made_once_and_the_last_ones_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    skeletons = Skeletons(nets.model(NET, WEIGHTS))
    monkeypatch.setattr(skeletons, "_limit", 2)
    first = skeletons.of([Gone("a")])
    assert isinstance(first, Skeleton) and first.new == {"a"} and not first.model.graph.initializer
    assert skeletons.of([Gone("a")]) is first and skeletons.of([Undeclared("a")]) is not first
    assert skeletons.of([Gone("a")]) is first
    skeletons.of()
    skeletons.of([Alias("b", "a")])
    assert skeletons.of([Gone("a")]) is not first


def test_changes_do_what_the_same_edit_does_by_hand() -> None:
    model = nets.model(NET, WEIGHTS)

    def edit(graph) -> None:
        tensors = graph.tensors()
        for node in list(tensors["b"].outputs):
            node.inputs[0] = tensors["a"]

    assert edited(model, [Alias("b", "a")]) == rewire(model, edit)

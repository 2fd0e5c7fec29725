from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from agmc_onnx.errors import ModelError
from agmc_onnx.graph.files import read_model, read_sparse
from agmc_onnx.graph.fold import evaluate_node
from agmc_onnx.graph.soundness import check_sound

AGAIN = " Export the model again."


def net(body: str = "h = Conv(x, w) r = Relu(h) y = Conv(r, v)") -> onnx.ModelProto:
    return nets.model(
        f"g (float[N, 3, 8, 8] x) => (float[N, M, A, B] y) {{ {body} }}", {"w": (8, 3, 1, 1), "v": (4, 8, 1, 1)}
    )


def sound(model: onnx.ModelProto) -> str:
    """Return what is said of a model, "" for nothing."""
    try:
        check_sound(model, "m.onnx")
    except ModelError as error:
        return str(error)
    return ""


def with_weight(**fields: object) -> onnx.ModelProto:
    model = net()
    model.graph.initializer[0].CopyFrom(TensorProto(name="w", **fields))
    return model


def with_attribute(**fields: object) -> onnx.ModelProto:
    model = net()
    model.graph.node[0].attribute.append(onnx.AttributeProto(**fields))
    return model


def changed(change: Callable[[onnx.GraphProto], object]) -> onnx.ModelProto:
    model = net()
    change(model.graph)
    return model


def calling(n: int, text: str) -> onnx.ModelProto:
    """Return a net with functions F0 to F(n-1), each of which has a body that may call the next."""
    functions = "".join(
        f'<domain: "f", opset_import: ["" : 17, "f" : 1]> F{i} (a) => (b) {{ {text.format(next=i + 1)} }}\n'
        for i in range(n - 1)
    )
    functions += f'<domain: "f", opset_import: ["" : 17, "f" : 1]> F{n - 1} (a) => (b) {{ b = Relu(a) }}'
    return nets.model(
        '<ir_version: 8, opset_import: ["" : 17, "f" : 1]> g (float[N, 3] x) => (float[N, 3] y) { y = f.F0(x) }\n'
        + functions
    )


BROKEN = {
    "cycle of two": (net("a = Add(d, d) d = Relu(a) h = Conv(x, w) y = Conv(h, v)"),
                     "m.onnx: its nodes form a cycle, got Relu d, Add a; expected none."),
    "self loop": (net("h = Conv(x, w) r = Relu(r) y = Conv(h, v)"),
                  "m.onnx: its nodes form a cycle, got Relu r; expected none."),
    "cycle through a body": (
        net("c = Cast<to = 9>(p) p = If (c) <then_branch = t () => (q) { q = Relu(c) },"
            " else_branch = e () => (s) { s = Relu(x) }> h = Conv(x, w) y = Conv(h, v)"),
        "m.onnx: its nodes form a cycle, got If p, Cast c; expected none."),
    "made by nothing": (net("h = Conv(x, z) y = Conv(h, v)"),
                        "m.onnx: value 'z', used by node Conv h, is made by nothing; expected a node or input."),
    "output made by nothing": (net("h = Conv(x, w)"),
                               "m.onnx: value 'y', used by the graph's outputs, is made by nothing; expected a node or input."),
    "no output": (changed(lambda g: g.node.add(op_type="Relu", name="n", input=["x"])),
                  "m.onnx: node Relu n: has no output, got an empty one; expected one."),
    "no op_type": (changed(lambda g: g.node.add(name="n", input=["x"], output=["q"])),
                   "m.onnx: node without op_type n: has no op_type, got an empty one; expected one."),
    "made twice": (net("h = Conv(x, w) h = Relu(x) y = Conv(h, v)"),
                   "m.onnx: value h is made twice, got Conv h and Relu h; expected once."),
    "made of a weight": (net("w = Relu(x) y = Conv(w, v)"),
                         "m.onnx: value w is made twice, got an input or initializer and Relu w; expected once."),
    "no weight": (net("h = Conv(x) y = Conv(h, v)"),
                  "m.onnx: node Conv h: wrong number of inputs, got 1; expected 2 to 3 of Conv."),
    "no inputs": (net("h = Concat<axis = 0>() y = Conv(h, v)"),
                  "m.onnx: node Concat h: wrong number of inputs, got 0; expected 1 or more of Concat."),
    "too many outputs": (net("h, k = Relu(x) y = Conv(h, v)"),
                         "m.onnx: node Relu h: wrong number of outputs, got 2; expected 1 of Relu."),
    "input left out": (net('h = Conv("", w) y = Conv(h, v)'),
                       "m.onnx: node Conv h: input 0 is left out; expected a value there."),
    "attribute missing": (net("h = Concat(x, x) y = Conv(h, v)"),
                          "m.onnx: node Concat h: attribute axis is missing; expected it of Concat."),
    "attribute of another type": (net("h = Conv<group = 1.0>(x, w) y = Conv(h, v)"),
                                  "m.onnx: node Conv h: attribute group has the wrong type, got FLOAT; expected INT."),
    "attribute without type": (with_attribute(name="group", i=1),
                               "m.onnx: node Conv h: attribute group has no known type, got 0; expected one."),
    "attribute of no function": (
        with_attribute(name="group", ref_attr_name="g", type=2),
        "m.onnx: node Conv h: attribute group refers to one of a function, got 'g' outside of any; expected a value."),
    "attribute twice": (net("h = Conv<group = 1, group = 1>(x, w) y = Conv(h, v)"),
                        "m.onnx: node Conv h: attribute group is there twice; expected once."),
    "too few bytes": (with_weight(dims=[8, 3, 1, 1], data_type=1, raw_data=b"\0" * 95),
                      "m.onnx: initializer w: wrong number of bytes, got 95; expected 96 for its sizes [8, 3, 1, 1]."),
    "sizes without numbers": (
        with_weight(dims=[2**30, 3, 1, 1], data_type=1),
        "m.onnx: initializer w: wrong number of elements, got 0; expected 3221225472 for its sizes [1073741824, 3, 1, 1]."),
    "half the numbers": (with_weight(dims=[4], data_type=10, int32_data=[1, 2]),
                         "m.onnx: initializer w: wrong number of elements, got 2; expected 4 for its sizes [4]."),
    "strings as bytes": (with_weight(dims=[1], data_type=8, raw_data=b"a"),
                         "m.onnx: initializer w: wrong number of bytes, got 1; expected no raw bytes."),
    "negative size": (with_weight(dims=[-2], data_type=1),
                      "m.onnx: initializer w: a size that none can have, got [-2]; expected 0 to 2^40."),
    "unknown type": (with_weight(dims=[1], data_type=99, raw_data=b"\0" * 4),
                     "m.onnx: initializer w: unknown type of element, got 99; expected one of ONNX."),
    "broken constant": (
        net("h = Conv(x, w) y = Conv(h, v) k = Constant<value = float[3] {1, 2, 3}>()"), ""),
    "no such opset": (
        nets.model('<ir_version: 8, opset_import: ["" : 3000000000]> g (float[N] x) => (float[N] y) { y = Relu(x) }'),
        "m.onnx: opset of ai.onnx is none, got 3000000000; expected a version."),
    "huge input": (changed(lambda g: g.input[0].type.tensor_type.shape.dim[2].__setattr__("dim_value", 2**62)),
                   "m.onnx: value x has a size of 4611686018427387904; expected at most 2^40."),
    "function that calls itself": (
        calling(3, "t = f.F1(a) b = f.F{next}(t)"),
        "m.onnx: local functions call themselves, got F1; expected no cycle."),
    "many calls": (calling(18, "t = f.F{next}(a) b = f.F{next}(t)"),
                   "m.onnx: local functions stand for 131,072 nodes; expected at most 10,000. Export the model without nested"
                   " functions."),
    "deep calls": (calling(102, "b = f.F{next}(a)"),
                   "m.onnx: local functions call one another, got over 100 deep; expected less."),
    "function with no such value": (
        calling(2, "t = Relu(u) b = f.F{next}(a)"),
        "m.onnx: function F0: value 'u', used by node Relu t, is made by nothing; expected a node or input."),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(name: str) -> None:
    model, said = BROKEN[name]
    assert sound(model) == (said if said.endswith("functions.") or not said else said + AGAIN)


@pytest.mark.parametrize("field", ["node[0].name", "node[0].output", "input[0].name", "doc_string", "dim_param"])
def test_a_name_that_is_no_text(field: str) -> None:
    model = net("hh = Conv(x, w) y = Conv(hh, v)")
    model.graph.node[0].name = "nn"
    model.graph.doc_string = "dd"
    old = {
        "node[0].name": b"nn",
        "node[0].output": b"hh",
        "input[0].name": b"x",
        "doc_string": b"dd",
        "dim_param": b"N",
    }
    raw, name = model.SerializeToString(), old[field]
    broken = onnx.ModelProto()
    prefix = bytes([len(name)])
    broken.ParseFromString(raw.replace(prefix + name, prefix + b"\xff" * len(name)))
    assert ": a name is not UTF-8, got b'\\xff" in sound(broken)


def test_nodes_are_put_in_order() -> None:
    model = net("y = Conv(r, v) r = Relu(h) h = Conv(x, w)")
    assert sound(model) == ""
    assert [node.output[0] for node in model.graph.node] == ["h", "r", "y"]
    body = nets.model(
        """g (bool c, float[N, 3] x) => (float[N, 3] y) {
        y = If (c) <then_branch = t () => (q) { q = Relu(p) p = Neg(k) }, else_branch = e () => (s) { s = Relu(x) }>
        k = Abs(x) }"""
    )
    assert sound(body) == ""
    assert [node.op_type for node in body.graph.node] == ["Abs", "If"]
    branch = next(a.g for a in body.graph.node[1].attribute if a.name == "then_branch")
    assert [node.op_type for node in branch.node] == ["Neg", "Relu"]


def test_nodes_of_one_name_are_named_apart() -> None:
    model = net()
    for node, name in zip(model.graph.node, ("n", "n_2", "n"), strict=True):
        node.name = name
    assert sound(model) == ""
    assert [node.name for node in model.graph.node] == ["n", "n_2", "n_3"]


def test_what_is_sound_is_not_changed() -> None:
    values = np.array([1.0, 2.0], np.float32)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(values, "s"), numpy_helper.from_array(np.array([0, 2])), [2, 2]
    )
    model = net("h = Conv(x, w) y = Conv(h, v) k = Add(i, i) z = MatMul(s, s)")
    model.graph.sparse_initializer.append(sparse)
    model.graph.initializer.append(helper.make_tensor("i", TensorProto.INT4, [3], [1, 2, 3]))
    model.graph.initializer.append(helper.make_tensor("c", TensorProto.COMPLEX64, [2], [1 + 2j, 3j]))
    model.graph.initializer.append(helper.make_tensor("t", TensorProto.STRING, [2], ["a", "b"]))
    model.graph.initializer.append(helper.make_tensor("e", TensorProto.FLOAT, [0, 3], []))
    before = model.SerializeToString(deterministic=True)
    assert sound(model) == ""
    assert model.SerializeToString(deterministic=True) == before


def test_sparse_indices_that_do_not_fit() -> None:
    model = net()
    model.graph.sparse_initializer.add(dims=[4, 4]).values.CopyFrom(
        numpy_helper.from_array(np.ones(2, np.float32), "s")
    )
    model.graph.sparse_initializer[0].indices.CopyFrom(numpy_helper.from_array(np.zeros((3, 2), np.int64)))
    said = sound(model)
    assert (
        said
        == f"m.onnx: sparse initializer s: indices that do not fit, got [3, 2] for [2] values; expected int64 [2].{AGAIN}"
    )


def test_many_references_to_the_same_bytes_are_not_loaded(tmp_path: Path) -> None:
    """A file of 20 MB whose 20 tensors refer to the same bytes stands for 400 MB: references are kept."""
    n = 5_000_000
    (tmp_path / "w").write_bytes(bytes(4 * n))
    model = net()
    for i in range(20):
        tensor = model.graph.initializer.add(name=f"big{i}", dims=[n], data_type=1, data_location=1)
        tensor.external_data.add(key="location", value="w")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert read_model(tmp_path / "m.onnx").proto.ByteSize() < 10_000


def test_onnxruntime_writes_nothing_into_the_home_folder(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(net().SerializeToString())
    (tmp_path / "home").mkdir()
    kept = {key: value for key, value in os.environ.items() if key not in ("ORT_DISABLE_TELEMETRY", "CI")}
    program = "from agmc_onnx.measuring.session import Path, make_session; make_session(Path('m.onnx'))"
    subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=tmp_path,
        env={**kept, "HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert not list((tmp_path / "home").rglob("*"))


def test_a_hostile_file_ends_at_once_with_one_line(tmp_path: Path) -> None:
    model = calling(23, "t = f.F{next}(a) b = f.F{next}(t)")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, "-m", "agmc_onnx", "inspect", tmp_path / "m.onnx"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "agmc-onnx: error: m.onnx: local functions stand for 4,194,304 nodes; expected at most 10,000."
        " Export the model without nested functions.\n"
    )
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 10


def test_values_beyond_any_memory_end_in_one_line() -> None:
    values = helper.make_tensor("s", onnx.TensorProto.FLOAT, [1], [1.0])
    index = helper.make_tensor("i", onnx.TensorProto.INT64, [1], [0])
    with pytest.raises(ModelError, match="sparse initializer s: too large, got sizes"):
        read_sparse(helper.make_sparse_tensor(values, index, [2**40]))
    node = helper.make_node("ConstantOfShape", ["n"], ["y"])
    with pytest.raises(ModelError, match="node ConstantOfShape y: its constant output takes more memory"):
        evaluate_node(node, {"n": np.array([2**40], np.int64)}, 17)

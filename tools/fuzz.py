"""Feed the program mutated models, plans, cards, journals and tables, and count what ends in no right answer or error.

    python -m tools.fuzz --inputs 10000 --log fuzz.jsonl        # again with the same log: goes on where it stopped
    python -m tools.fuzz --inputs 10000 --log fuzz.jsonl --only 4711 --keep folder

Input number i depends on the seed and i alone. A fork server holds the imported program; every input gets a process of its
own, in an empty folder, which may take 20 s of processor time and 2 GB. What counts as a failure:

- internal: exit code 1 or a signal, or an error that is not one line that begins "agmc-onnx: error:", after lines of progress;
- hang: over 20 s of processor time, or 200 s of the wall clock, since other processes may be in the way;
- memory: over 2 GB resident, or out of memory at 4 GB of data;
- partial: some files of a result but not all, or any after an error, or hidden ones.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import AttributeProto, TensorProto, helper, numpy_helper

SECONDS, WALL_SECONDS, BYTES, DATA_BYTES = 20, 200.0, 2 * 2**30, 4 * 2**30
KINDS = ("model", "model", "model", "model", "plan", "card", "journal", "table")
CUT = ("--flops", "0.7", "--policy", "uniform", "--episodes", "1", "--latency-seconds", "0", "--recover", "none")
INTS = (-(2**63), -(2**31), -7, -2, -1, 0, 1, 2, 3, 5, 64, 1000, 2**16, 2**30, 2**31, 2**40, 2**62, 2**63 - 1)
WORDS = (
    "",
    "x",
    "w",
    "y",
    "a b",
    "é",
    "a\nb",
    "../../up",
    "/abs",
    "N" * 300,
    "%s",
    "{0}",
    "\x00",
    "\x1b[31m",
    "'",
    '"',
)
VALUES = (
    None,
    True,
    -1,
    0,
    1,
    3,
    1.5,
    1e308,
    float("nan"),
    float("inf"),
    2**70,
    "",
    "x",
    "2024-01-01",
    "0:5",
    [],
    [1],
    [[0]],
    {},
    {"a": 1},
)

NETS = {
    "conv": (
        """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
        c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1], group = 1>(x, w, b)
        n = BatchNormalization<epsilon = 0.001>(c, s, b, b, q) r = Relu(n)
        d = Conv<group = 8, pads = [1, 1, 1, 1]>(r, k) a = Add(d, r) p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(a)
        m = GlobalAveragePool(p) f = Flatten<axis = 1>(m) y = Gemm<transB = 1>(f, v, t) }""",
        {"w": (8, 3, 3, 3), "b": (8,), "s": (8,), "q": np.ones(8, np.float32), "k": (8, 1, 3, 3), "v": (5, 8), "t": (5,)},
    ),
    "mixed": (
        """g (float[N, 3, 8, 8] x) => (float[N, C, H, W] y) {
        c = Conv(x, w) l, e = Split<axis = 1>(c, parts) j = Concat<axis = 1>(e, l) o = Pad(j, pads)
        z = Slice(o, starts, ends, axes) u = Resize<mode = "nearest">(z, "", scales) h = Sigmoid(u)
        i = Mul(h, u) y = ConvTranspose<strides = [2, 2]>(i, v) }""",
        {"w": (8, 3, 1, 1), "v": (8, 4, 2, 2), "parts": np.array([4, 4]), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
         "starts": np.array([1]), "ends": np.array([9]), "axes": np.array([2]), "scales": np.array([1, 1, 2, 2], np.float32)},
    ),
    "heads": (
        """g (float[N, T, 16] x) => (float[N, T, 16] y) {
        n = LayerNormalization<axis = -1>(x, g1, b1) q0 = MatMul(n, wq) k0 = MatMul(n, wk) v0 = MatMul(n, wv)
        q1 = Reshape(q0, sh) k1 = Reshape(k0, sh) v1 = Reshape(v0, sh) q = Transpose<perm = [0, 2, 1, 3]>(q1)
        k = Transpose<perm = [0, 2, 3, 1]>(k1) v = Transpose<perm = [0, 2, 1, 3]>(v1) s0 = MatMul(q, k) s1 = Div(s0, two)
        s = Softmax<axis = -1>(s1) o0 = MatMul(s, v) o1 = Transpose<perm = [0, 2, 1, 3]>(o0) o = Reshape(o1, back)
        p = MatMul(o, wo) r = Add(p, x) h0 = MatMul(r, f1) h = Gelu(h0) h1 = MatMul(h, f2) y = Add(h1, r) }""",
        {**dict.fromkeys(("wq", "wk", "wv", "wo"), (16, 16)), "f1": (16, 32), "f2": (32, 16), "g1": (16,), "b1": (16,),
         "sh": np.array([0, 0, 4, 4]), "back": np.array([0, 0, 16]), "two": np.array(2, np.float32)},
    ),
    "shapes": (
        """g (float[N, 3, H, W] x) => (float[N, 6] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(c) s = Shape(r) one = Constant<value_int = 0>() b = Gather<axis = 0>(s, one)
        zero = Constant<value = int64[1] {0}>() u = Unsqueeze(b, zero) minus = Constant<value = int64[1] {-1}>()
        a = ReduceMean<axes = [2, 3], keepdims = 1>(r) t = Concat<axis = 0>(u, minus) f = Reshape(a, t)
        e = ConstantOfShape<value = float[1] {1}>(t2) m = MatMul(f, v) y = Mul(m, e) }""",
        {"w": (8, 3, 3, 3), "v": (8, 6), "t2": np.array([6])},
    ),
    "branches": (
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]> g (float[N, 8] x, bool p) => (float[N, 4] y) {
        a = f.Twice(x) h = MatMul(a, w)
        r = If (p) <then_branch = t () => (o1) { o1 = Relu(h) }, else_branch = e () => (o2) { o2 = Neg(h) }> y = MatMul(r, v) }
        <domain: "f", opset_import: ["" : 17]> Twice (i) => (o) { k = Relu(i) o = Add(k, k) }""",
        {"w": (8, 12), "v": (12, 4)},
    ),
    "recurrent": (
        """g (float[T, N, 4] x) => (float[T, 1, N, 6] y) {
        z, h1, c1 = LSTM<hidden_size = 6>(x, w, r, b) y = Relu(z) }""",
        {"w": (1, 24, 4), "r": (1, 24, 6), "b": (1, 48)},
    ),
    "quantised": (
        """g (float[N, 3, 4, 4] x) => (float[N, 4, 4, 4] y) {
        w = DequantizeLinear<axis = 0>(wq, ws, wz) c = Conv(x, w) q = QuantizeLinear(c, s, z) d = DequantizeLinear(q, s, z)
        y = Conv(d, v) }""",
        {"wq": np.arange(24, dtype=np.int8).reshape(8, 3, 1, 1), "ws": np.full(8, 0.1, np.float32), "wz": np.zeros(8, np.int8),
         "s": np.array(0.1, np.float32), "z": np.array(3, np.uint8), "v": (4, 8, 1, 1)},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        i: Its number.
        kind: Of input.
        what: Verbs, with the mutations.
        codes: Exit code of every verb.
        seconds: Wall clock.
        mb: Largest resident size.
        fault: "" or "internal", "hang", "memory", "partial".
        said: Of a fault, what was said.
    """

    i: int
    kind: str
    what: str
    codes: list[int]
    seconds: float
    mb: int
    fault: str
    said: str


# -- inputs


def net(name: str) -> onnx.ModelProto:
    """Return one of `NETS` with seeded weights."""
    text, weights = NETS[name]
    header = "" if text.lstrip().startswith("<") else '<ir_version: 8, opset_import: ["" : 17]>\n'
    model = onnx.parser.parse_model(header + text)
    generator = np.random.default_rng(0)
    for tensor, value in weights.items():
        array = value if isinstance(value, np.ndarray) else generator.standard_normal(value).astype(np.float32) / 4
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), tensor))
    if name == "heads":
        model.opset_import[0].version = 20
    return model


def mutate_model(model: onnx.ModelProto, rng: random.Random) -> tuple[bytes, list[str]]:
    """Return the bytes of a model with one to four changes, and their names."""
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        change = rng.choice(CHANGES)
        with_error = None
        try:
            change(model, rng)
        except Exception as error:  # nothing there to change, or nothing left of it
            with_error = error
        done.append(change.__name__.strip("_") + ("" if with_error is None else " (not)"))
    raw = bytearray(model.SerializeToString())
    if rng.random() < 0.1:
        done.append("bytes")
        for _ in range(rng.choice((1, 1, 3, 10))):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
    if rng.random() < 0.02:
        done.append("truncated")
        del raw[rng.randrange(len(raw)) :]
    if rng.random() < 0.03:
        done.append("no text")
        names = [value.name.encode() for value in (*model.graph.input, *model.graph.output, *model.graph.initializer)]
        name = rng.choice([*names, *(n.output[0].encode() for n in model.graph.node if n.output)])
        raw = bytearray(
            bytes(raw).replace(bytes([len(name) % 256]) + name, bytes([len(name) % 256]) + b"\xff" * len(name))
        )
    return bytes(raw), done


def _node(model: onnx.ModelProto, rng: random.Random) -> onnx.NodeProto:
    nodes = list(model.graph.node) * 4 + [node for function in model.functions for node in function.node]
    inner = [n for node in model.graph.node for a in node.attribute if a.HasField("g") for n in a.g.node]
    return rng.choice(nodes + inner)


def _values(model: onnx.ModelProto) -> list[str]:
    made = [name for node in model.graph.node for name in node.output]
    return (
        made + [v.name for v in (*model.graph.input, *model.graph.output)] + [t.name for t in model.graph.initializer]
    )


def _tensors(model: onnx.ModelProto) -> list[TensorProto]:
    inner = [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    return [*model.graph.initializer, *inner]


def _drop_input(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    del node.input[rng.randrange(len(node.input))]


def _blank_input(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    node.input[rng.randrange(len(node.input))] = ""


def _rewire_input(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    node.input[rng.randrange(len(node.input))] = rng.choice(_values(model))


def _add_input(model: onnx.ModelProto, rng: random.Random) -> None:
    _node(model, rng).input.append(rng.choice([*_values(model), "", "nowhere"]))


def _drop_output(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    del node.output[rng.randrange(len(node.output))]


def _add_output(model: onnx.ModelProto, rng: random.Random) -> None:
    _node(model, rng).output.append(rng.choice([*_values(model), "", "new"]))


def _rename(model: onnx.ModelProto, rng: random.Random) -> None:
    rng.choice((_node(model, rng), *_tensors(model), *model.graph.input, *model.graph.output)).name = rng.choice(WORDS)


def _other_op(model: onnx.ModelProto, rng: random.Random) -> None:
    _node(model, rng).op_type = rng.choice(OPS)


def _other_domain(model: onnx.ModelProto, rng: random.Random) -> None:
    _node(model, rng).domain = rng.choice(("com.microsoft", "f", "nowhere", "ai.onnx.ml", "ai.onnx"))


def _drop_node(model: onnx.ModelProto, rng: random.Random) -> None:
    del model.graph.node[rng.randrange(len(model.graph.node))]


def _copy_node(model: onnx.ModelProto, rng: random.Random) -> None:
    node = model.graph.node.add()
    node.CopyFrom(rng.choice(model.graph.node))
    if rng.random() < 0.7:
        for i in range(len(node.output)):
            node.output[i] += "_2"


def _swap_nodes(model: onnx.ModelProto, rng: random.Random) -> None:
    nodes = list(model.graph.node)
    rng.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _insert_node(model: onnx.ModelProto, rng: random.Random) -> None:
    """Put a random op before an input of a node, fed with random values."""
    node = _node(model, rng)
    i = rng.randrange(len(node.input))
    made = helper.make_node(
        rng.choice(OPS), [node.input[i], *rng.choices(_values(model), k=rng.choice((0, 0, 1, 2)))], ["ins"]
    )
    for name, values in (
        ("axis", INTS[2:10]),
        ("axes", None),
        ("to", INTS[5:12]),
        ("perm", None),
        ("group", INTS[3:9]),
    ):
        if rng.random() < 0.3:
            made.attribute.append(
                helper.make_attribute(name, rng.choice(values) if values else rng.choices(INTS[2:10], k=2))
            )
    node.input[i] = "ins"
    nodes = list(model.graph.node)
    at = next((k for k, one in enumerate(nodes) if "ins" in one.input), 0)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:at], made, *nodes[at:]])


def _attribute_value(model: onnx.ModelProto, rng: random.Random) -> None:
    attribute = rng.choice([a for node in model.graph.node for a in node.attribute])
    if attribute.type == AttributeProto.INTS and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(INTS)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e38))
    elif attribute.type == AttributeProto.STRING:
        attribute.s = rng.choice((b"", b"\xff", b"linear", b"cubic", b"VALID", b"SAME_UPPER"))
    else:
        attribute.i = rng.choice(INTS)


def _attribute_length(model: onnx.ModelProto, rng: random.Random) -> None:
    attribute = rng.choice([a for node in model.graph.node for a in node.attribute if a.type == AttributeProto.INTS])
    if rng.random() < 0.5:
        attribute.ints.append(rng.choice(INTS))
    else:
        del attribute.ints[rng.randrange(len(attribute.ints)) :]


def _attribute_kind(model: onnx.ModelProto, rng: random.Random) -> None:
    attribute = rng.choice([a for node in model.graph.node for a in node.attribute])
    attribute.type = rng.choice([*AttributeProto.AttributeType.values(), 99])  # type: ignore[list-item]


def _drop_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice([node for node in model.graph.node if node.attribute])
    del node.attribute[rng.randrange(len(node.attribute))]


def _add_attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    name = rng.choice(
        ("axis", "axes", "group", "pads", "strides", "auto_pad", "kernel_shape", "perm", "keepdims", "to", "mode")
    )
    value: Any = rng.choice(
        (rng.choice(INTS), rng.choices(INTS, k=3), "SAME_UPPER", 1.5, [0.5], helper.make_tensor("t", 1, [1], [1.0]))
    )
    _node(model, rng).attribute.append(helper.make_attribute(name, value))


def _tensor_dims(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(_tensors(model))
    tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(INTS)


def _tensor_rank(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(_tensors(model))
    dims = list(tensor.dims)
    count = int(np.prod(dims))
    tensor.ClearField("dims")
    tensor.dims.extend(rng.choice(([count], [1, *dims], [*dims, 1], [count, 1], dims[::-1], [])))


def _tensor_bytes(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(_tensors(model))
    tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)] + b"\1" * rng.choice((0, 0, 1, 4, 100))


def _tensor_kind(model: onnx.ModelProto, rng: random.Random) -> None:
    rng.choice(_tensors(model)).data_type = rng.choice([*TensorProto.DataType.values(), 99])


def _tensor_values(model: onnx.ModelProto, rng: random.Random) -> None:
    """Put extreme numbers into a tensor of the same shape; small whole ones are shapes, axes, pads."""
    tensor = rng.choice([t for t in _tensors(model) if t.data_type == TensorProto.INT64] or _tensors(model))
    array = numpy_helper.to_array(tensor).copy()
    flat = array.reshape(-1)
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(flat.size)
        flat[at] = rng.choice(INTS if array.dtype == np.int64 else (0, 1))
        if array.dtype.kind == "f":
            flat[at] = rng.choice((np.nan, np.inf, -1, 0, 3e38))
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _tensor_resized(model: onnx.ModelProto, rng: random.Random) -> None:
    """Make a tensor longer or shorter along one dim, numbers included: widths that do not fit."""
    tensor = rng.choice(_tensors(model))
    array = numpy_helper.to_array(tensor)
    axis = rng.randrange(array.ndim)
    size = rng.choice((0, 1, 2, array.shape[axis] + 1, 2 * array.shape[axis]))
    shape = [size if i == axis else n for i, n in enumerate(array.shape)]
    tensor.CopyFrom(numpy_helper.from_array(np.resize(array, shape), tensor.name))


def _external(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = rng.choice(_tensors(model))
    tensor.data_location = TensorProto.EXTERNAL
    places = ("w.bin", "m.onnx", "../w.bin", "/etc/hostname", "", "/dev/zero")
    choices = {"location": places, "offset": (0, 4, -4, 10**12, "x"), "length": (0, 4, 96, "x")}
    for key, values in choices.items():
        value = str(rng.choice(values))
        if rng.random() < 0.7:
            tensor.external_data.add(key=key, value=value)


def _input_dims(model: onnx.ModelProto, rng: random.Random) -> None:
    dims = rng.choice([*model.graph.input, *model.graph.output]).type.tensor_type.shape.dim
    dim = dims[rng.randrange(len(dims))]
    if rng.random() < 0.3:
        dim.dim_param = rng.choice(WORDS)
    else:
        dim.dim_value = rng.choice(INTS)


def _input_rank(model: onnx.ModelProto, rng: random.Random) -> None:
    kind = rng.choice([*model.graph.input, *model.graph.output]).type.tensor_type
    if rng.random() < 0.5:
        del kind.shape.dim[rng.randrange(len(kind.shape.dim)) :]
    else:
        kind.shape.dim.add(dim_value=rng.choice(INTS))


def _input_kind(model: onnx.ModelProto, rng: random.Random) -> None:
    value = rng.choice([*model.graph.input, *model.graph.output])
    what = rng.randrange(4)
    if what == 0:
        value.type.tensor_type.elem_type = rng.choice([*TensorProto.DataType.values(), 99])
    elif what == 1:
        value.ClearField("type")
    elif what == 2:
        value.type.tensor_type.ClearField("shape")
    else:
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1


def _drop_graph_value(model: onnx.ModelProto, rng: random.Random) -> None:
    values = rng.choice((model.graph.input, model.graph.output, model.graph.initializer))
    del values[rng.randrange(len(values))]


def _twice(model: onnx.ModelProto, rng: random.Random) -> None:
    values = rng.choice((model.graph.input, model.graph.output, model.graph.initializer))
    values.append(values[rng.randrange(len(values))])


def _more_outputs(model: onnx.ModelProto, rng: random.Random) -> None:
    model.graph.output.add(name=rng.choice(_values(model)))


def _versions(model: onnx.ModelProto, rng: random.Random) -> None:
    if rng.random() < 0.3:
        model.ir_version = rng.choice((0, 1, 3, 4, 10, 99, 2**40))
    else:
        model.opset_import[0].version = rng.choice((0, -1, 1, 6, 7, 9, 10, 11, 12, 13, 18, 20, 21, 23, 25, 99, 2**40))


def _calls(model: onnx.ModelProto, rng: random.Random) -> None:
    """Add local functions that call one another, twice each or in a circle."""
    n, step = rng.choice((2, 5, 15, 25, 200)), rng.choice((1, 1, 0))
    model.opset_import.add(domain="g", version=1)
    for i in range(n):
        callee = ("Relu", "") if i == n - 1 else (f"G{i + step}", "g")
        nodes = [helper.make_node(callee[0], [a], [b], domain=callee[1]) for a, b in (("a", "t"), ("t", "b"))]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("g", 1)]
        model.functions.append(helper.make_function("g", f"G{i}", ["a"], ["b"], nodes, opsets))
    node = _node(model, rng)
    nodes = [*list(model.graph.node), helper.make_node("G0", [node.input[0]], ["called"], domain="g")]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _sparse(model: onnx.ModelProto, rng: random.Random) -> None:
    tensor = model.graph.initializer.pop(rng.randrange(len(model.graph.initializer)))
    array = numpy_helper.to_array(tensor)
    index = np.flatnonzero(array)
    sparse = model.graph.sparse_initializer.add(dims=list(array.shape))
    sparse.values.CopyFrom(numpy_helper.from_array(array.reshape(-1)[index], tensor.name))
    if rng.random() < 0.5:
        index[0] = rng.choice(INTS)
    sparse.indices.CopyFrom(numpy_helper.from_array(index))
    if rng.random() < 0.3:
        sparse.dims[0] = rng.choice(INTS)


def _nested(model: onnx.ModelProto, rng: random.Random) -> None:
    """Put a node into branches of branches."""
    at = rng.randrange(len(model.graph.node))
    node = model.graph.node[at]
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    for depth in range(rng.choice((1, 2, 8))):
        graph = helper.make_graph([inner], f"b{depth}", [], [onnx.ValueInfoProto(name=name) for name in inner.output])
        inner = helper.make_node("If", ["cond"], list(node.output), then_branch=graph, else_branch=graph)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "cond"))
    model.graph.node[at].CopyFrom(inner)


CHANGES: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    _drop_input, _blank_input, _rewire_input, _rewire_input, _add_input, _drop_output, _add_output, _rename, _other_op,
    _other_op, _other_domain, _drop_node, _copy_node, _swap_nodes, _insert_node, _insert_node, _attribute_value,
    _attribute_value, _attribute_length, _attribute_kind, _drop_attribute, _add_attribute, _tensor_dims, _tensor_rank,
    _tensor_bytes, _tensor_kind, _tensor_values, _tensor_values, _tensor_resized, _tensor_resized, _external, _input_dims,
    _input_dims, _input_rank, _input_kind, _drop_graph_value, _twice, _more_outputs, _versions, _calls, _sparse, _nested,
)  # fmt: skip
OPS = (
    "Relu", "Add", "MatMul", "Conv", "Reshape", "Transpose", "Concat", "Slice", "Gather", "Split", "Pad", "Flatten",
    "Softmax", "ReduceSum", "Expand", "Tile", "Resize", "Size", "ConstantOfShape", "Range", "Shape", "Squeeze",
    "Unsqueeze", "Where", "Cast", "TopK", "NonMaxSuppression", "OneHot", "Einsum", "DepthToSpace", "SpaceToDepth",
    "ConvTranspose", "AveragePool", "LSTM", "GRU", "Attention", "QuantizeLinear", "DynamicQuantizeLinear", "ScatterND",
    "GatherND", "GatherElements", "Loop", "Scan", "Dropout", "RandomNormal", "StringNormalizer", "NonZero", "CumSum",
    "ArgMax", "LpPool", "GroupNormalization", "InstanceNormalization", "MaxUnpool", "RoiAlign", "GridSample",
    "Compress", "Trilu", "EyeLike", "Identity", "Upsample", "Nonesuch",
)  # fmt: skip


def mutate_json(value: Any, rng: random.Random) -> Any:
    """Return JSON with one place changed: dropped, replaced, repeated, or of another type."""
    places: list[tuple[Any, Any]] = []
    value = json.loads(json.dumps(value))

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(value)
    node, key = rng.choice(places)
    what = rng.randrange(5)
    if what == 0:
        del node[key]
    elif what == 1 and isinstance(node[key], int):
        node[key] = rng.choice(INTS)
    elif what == 2 and isinstance(node, list):
        node.insert(key, node[key])
    elif what == 3 and isinstance(node, dict):
        node[rng.choice(WORDS)] = node.pop(key)
    else:
        node[key] = rng.choice(VALUES)
    return value


def mutate_text(text: str, rng: random.Random) -> bytes:
    """Return a text with a few bytes changed, a line lost or repeated, or its end cut off."""
    raw, what = bytearray(text.encode()), rng.randrange(4)
    if what == 0:
        for _ in range(rng.choice((1, 3))):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
    elif what == 1:
        del raw[rng.randrange(len(raw)) :]
    else:
        lines = bytes(raw).splitlines(keepends=True)
        at = rng.randrange(len(lines))
        lines[at : at + 1] = [] if what == 2 else [lines[at]] * 2
        raw = bytearray(b"".join(lines))
    return bytes(raw)


CARD: dict[str, Any] = {
    "images": "d.npz", "layout": "NCHW", "color": "RGB", "scale": 255.0, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2],
    "metric": "top1", "resize": 8, "crop": 8, "input": "x", "labels": "labels.csv",
    "roles": {"calibration": "0:4", "reward": "4:8", "test": "8:12"},
    "train": {"images": "d.npz", "augment": ["flip"], "slice": "0:4"},
}  # fmt: skip


def to_toml(table: dict[str, Any]) -> str:
    """Return a table as TOML; what TOML has no word for is written as it stands in JSON."""
    rows = [f"{_key(k)} = {json.dumps(v)}" for k, v in table.items() if not isinstance(v, dict)]
    for name, inner in table.items():
        if isinstance(inner, dict):
            rows += [f"[{_key(name)}]", *(f"{_key(k)} = {json.dumps(v)}" for k, v in inner.items())]
    return "\n".join(rows).replace("NaN", "nan").replace("Infinity", "inf") + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"\w+", name, re.ASCII) else json.dumps(name)


def write_data(folder: Path, rng: random.Random) -> str:
    """Write samples, now and then strange ones, and return what is strange."""
    x: Any = (np.random.default_rng(0).random((12, 8, 8, 3)) * 255).astype(np.uint8)
    y: Any = np.arange(12) % 5
    what = rng.choice(
        ("plain",) * 5 + ("rank", "type", "labels", "pickle", "bytes", "bomb", "names", "short", "files", "nan")
    )
    (folder / "labels.csv").write_text("label\n" + "\n".join(map(str, y)) + "\n")
    if what == "rank":
        x = x[rng.choice((np.s_[0], np.s_[:, :, :, 0], np.s_[:, 0, 0, 0], np.s_[..., None], np.s_[:0]))]
    elif what == "type":
        x = x.astype(rng.choice(("U4", "M8[D]", "c8", "b1", "f2", "i8", "u8", "f8", "S3", "V4")))
    elif what == "labels":
        y = rng.choice(
            (y[:5], y.astype("M8[D]"), y.astype(str), y * 1.5, y - 3, y * 10**9, y[:, None], np.array(3), y == 1)
        )
        (folder / "labels.csv").write_bytes(
            mutate_text("file,label\n" + "\n".join(f"{i}.png,{n}" for i, n in enumerate(np.ravel(y))), rng)
        )
    elif what == "pickle":
        y = np.array([{"a": 1}] * 12, object)
    elif what == "nan":
        x = np.full((12, 8, 8, 3), rng.choice((np.nan, np.inf, 1e38)), np.float32)
    names = {"x": x, "y": y} if what != "names" else {rng.choice(WORDS) or "q": x, "z": y}
    stream = io.BytesIO()
    np.savez(stream, **names)
    raw = stream.getvalue()
    if what == "bomb":  # a small file that claims, or unpacks to, far more
        import zipfile

        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            shape = rng.choice(((2**33,), (12, 2**15, 2**15, 3), (2**40,)))
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
            archive.writestr("x.npy", header.getvalue() + b"\0" * rng.choice((10, 10**6)))
        raw = stream.getvalue()
    elif what in ("bytes", "short"):
        raw = mutate_text(raw.decode("latin1"), rng) if what == "bytes" else raw[: rng.randrange(len(raw))]
    if what == "files":
        from PIL import Image

        (folder / "d.npz").mkdir()
        for i in range(12):
            file = folder / "d.npz" / f"{i}.png"
            Image.fromarray(x[i] if isinstance(x, np.ndarray) else x).save(
                file, rng.choice(("png", "bmp", "eps", "gif"))
            )
        bad = bytearray(file.read_bytes())
        bad[rng.randrange(len(bad))] ^= 255
        file.write_bytes(bad)
    else:
        (folder / "d.npz").write_bytes(raw)
    return what


# -- what is done with them


def model_input(folder: Path, rng: random.Random, made: Path) -> tuple[str, list[list[str]]]:
    """A mutated model through inspect, compress and verify."""
    name = rng.choice(list(NETS))
    raw, done = mutate_model(net(name), rng)
    (folder / "m.onnx").write_bytes(raw)
    (folder / "w.bin").write_bytes(bytes(4096))
    recover = ("--recover", "compensate") if rng.random() < 0.1 else ()
    cut = ["compress", "m.onnx", *CUT, *recover, "-o", "out.onnx"]
    return f"{name}: {', '.join(done)}", [["inspect", "m.onnx"], cut, ["verify", "m.onnx", "out.onnx"]]


def plan_input(folder: Path, rng: random.Random, made: Path) -> tuple[str, list[list[str]]]:
    """A mutated plan or report of a right result."""
    for file in made.glob("c.*"):
        shutil.copy(file, folder)
    which = rng.choice(("plan", "plan", "plan", "report"))
    path = folder / f"c.{which}.json"
    text = path.read_text()
    if rng.random() < 0.15:
        path.write_bytes(mutate_text(text, rng))
    else:
        path.write_text(json.dumps(mutate_json(json.loads(text), rng)))
    if which == "report":
        return "report", [["report", "c.report.json", "-o", "r.html"]]
    rebuild = ["apply", "m.onnx", "c.plan.json", "-o", "out.onnx"]
    shutil.copy(made / "m.onnx", folder)
    return "plan", [["verify", "m.onnx", "c.onnx"], rebuild]


def card_input(folder: Path, rng: random.Random, made: Path) -> tuple[str, list[list[str]]]:
    """A mutated data card, with data that may be strange."""
    shutil.copy(made / "m.onnx", folder)
    table = {key: value for key, value in CARD.items() if key not in ("train", "labels") or rng.random() < 0.3}
    what = write_data(folder, rng)
    if what == "plain" or rng.random() < 0.2:
        for _ in range(rng.choice((1, 1, 2))):
            table = mutate_json(table, rng)
            what += ", card"
    raw = to_toml(table).encode()
    (folder / "card.toml").write_bytes(mutate_text(raw.decode(), rng) if rng.random() < 0.1 else raw)
    measure = ["measure", "m.onnx", "--data", "card.toml", "--seconds", "0"]
    cut = ["compress", "m.onnx", *CUT, "--data", "card.toml", "-o", "out.onnx"]
    return what, [measure, cut] if rng.random() < 0.5 else [cut]


def journal_input(folder: Path, rng: random.Random, made: Path) -> tuple[str, list[list[str]]]:
    """A mutated journal that a run resumes, or a config file."""
    shutil.copy(made / "m.onnx", folder)
    (folder / "out.run").mkdir()
    rows = [json.loads(line) for line in (made / "journal.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(row) + "\n" for row in (mutate_json(rows, rng) if rng.random() < 0.8 else rows))
    (folder / "out.run" / "journal.jsonl").write_bytes(mutate_text(text, rng) if rng.random() < 0.3 else text.encode())
    return "journal", [
        ["compress", "m.onnx", *CUT, "--resume", "-o", "out.onnx"],
        ["report", "out.run", "-o", "r.html"],
    ]


def table_input(folder: Path, rng: random.Random, made: Path) -> tuple[str, list[list[str]]]:
    """A mutated table of op times, or a config file."""
    shutil.copy(made / "m.onnx", folder)
    if rng.random() < 0.3:
        asked = {"flops": 0.7, "policy": "uniform", "seed": 1, "round-to": 4, "recover": "none"}
        changed = mutate_json({"compress": asked}, rng)
        if isinstance(changed.get("compress"), dict):  # how long a run may take is no mutation
            changed["compress"] |= {"episodes": 1, "latency-seconds": 0}
        (folder / "c.toml").write_text(to_toml(changed))
        return "config", [["compress", "m.onnx", "--config", "c.toml", "-o", "out.onnx"]]
    text = (made / "table.json").read_text()
    raw = mutate_text(text, rng) if rng.random() < 0.15 else json.dumps(mutate_json(json.loads(text), rng)).encode()
    (folder / "t.json").write_bytes(raw)
    budget = ["--latency", "0.8", "--latency-table", "t.json", *CUT[2:]]
    return "table", [["compress", "m.onnx", *budget, "-o", "out.onnx"]]


INPUTS = {"model": model_input, "plan": plan_input, "card": card_input, "journal": journal_input, "table": table_input}


def prepare(made: Path) -> None:
    """Write what plans, journals and tables are mutations of, made by the program itself."""
    from agmc_onnx.cli import main
    from agmc_onnx.graph.files import read_model, write_model
    from agmc_onnx.latency import op_times
    from agmc_onnx.latency.tables import LatencyTable, time_sample
    from agmc_onnx.search import journal

    os.chdir(made)
    write_model(net("conv"), "m.onnx")
    rows: list[dict[str, Any]] = []
    append = journal.Journal._append
    journal.Journal._append = lambda self, row: (rows.append(dict(row)), append(self, row))[1]  # type: ignore[assignment,func-returns-value,method-assign]
    with _silent(made):
        code = main(["compress", "m.onnx", *CUT, "-o", "c.onnx"])
    journal.Journal._append = append  # type: ignore[method-assign]
    if code:
        raise SystemExit(f"the unchanged model cannot be compressed: {(made / 'stderr').read_text()}")
    (made / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = read_model("m.onnx")
    feed = {"x": np.zeros((1, 3, 8, 8), np.float32)}
    sample = {"kept": [8], **time_sample(file.proto, feed, 1, "cpu", 1.0)}
    table = LatencyTable(op_times.device(), 1, "cpu", 1).with_model(file.sha256, [sample])
    (made / "table.json").write_text(table.to_json())


# -- the fork server


class _silent:
    """Send stdout and stderr of this process, of C++ too, to files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._old = os.dup(1), os.dup(2)
        for number, name in ((1, "stdout"), (2, "stderr")):
            handle = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, number)
            os.close(handle)

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), self._old, strict=True):
            os.dup2(old, number)
            os.close(old)


def _child(verbs: Sequence[Sequence[str]], folder: Path, record: Path) -> None:
    """Run verbs until one fails, and write down each one's exit code, what it said, and the files it left."""
    from agmc_onnx.cli import main

    resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES, DATA_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["AGMC_ONNX_DEBUG"] = "1"
    os.environ["AGMC_ONNX_CACHE"] = str(record)
    os.chdir(folder)
    rows: list[dict[str, Any]] = []
    for verb in verbs:
        log = record / f"log{len(rows)}"
        log.mkdir()
        (record / "now").write_text(json.dumps([*rows, {"verb": verb[0], "code": None}]))
        with _silent(log):
            try:
                code, trace = main(verb), ""
            except BaseException as error:
                code, trace = 1, _place(error)
        rows.append({"verb": verb[0], "code": code, "trace": trace})
        (record / "now").write_text(json.dumps(rows))
        if code:
            break
    os._exit(0)


def _place(error: BaseException) -> str:
    """Return an error with the last places in the package that it came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "agmc_onnx" in f.filename]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[:-4:-1])
    return f"{type(error).__name__}: {str(error)[:200]} at {places}"


def run_one(i: int, seed: int, made: Path, keep: Path | None) -> Outcome:
    """Make input number `i` and run it in a process of its own."""
    rng = random.Random(f"{seed} {i}")
    kind = KINDS[i % len(KINDS)]
    with tempfile.TemporaryDirectory() as top:
        folder, record = Path(top, "work"), Path(top, "record")
        folder.mkdir()
        record.mkdir()
        what, verbs = INPUTS[kind](folder, rng, made)
        given = {path.name for path in folder.iterdir()}
        if keep is not None:
            shutil.copytree(folder, keep / f"{i}-{kind}", dirs_exist_ok=True)
            print(f"{keep / f'{i}-{kind}'}: " + " && ".join(" ".join(verb) for verb in verbs))
        start = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            try:
                _child(verbs, folder, record)
            finally:
                os._exit(97)
        status, usage, timed_out = _wait(pid, start + WALL_SECONDS)
        spent = time.perf_counter() - start
        try:
            rows = json.loads((record / "now").read_text())
        except (OSError, ValueError):
            rows = [{"verb": verbs[0][0], "code": None, "trace": "the child said nothing"}]
        fault, said = _judge(rows, record, folder, given, status, usage.ru_maxrss * 1024, timed_out)
        codes = [row["code"] for row in rows]
        return Outcome(i, kind, what, codes, round(spent, 2), usage.ru_maxrss // 1024, fault, said)


def _wait(pid: int, deadline: float) -> tuple[int, resource.struct_rusage, bool]:
    timed_out = False
    pause = 0.001
    while True:
        done, status, usage = os.wait4(pid, 0 if timed_out else os.WNOHANG)
        if done:
            return status, usage, timed_out
        if time.perf_counter() > deadline:
            os.kill(pid, signal.SIGKILL)
            timed_out = True
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def _judge(
    rows: list[dict[str, Any]], record: Path, folder: Path, given: set[str], status: int, n_bytes: int, timed_out: bool
) -> tuple[str, str]:
    last = rows[-1]
    text = (record / f"log{len(rows) - 1}" / "stderr").read_text(errors="replace") if last["verb"] else ""
    verb = last["verb"]
    if timed_out or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)):
        return "hang", verb
    if status or last["code"] is None:
        signal_number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return "internal", f"{verb}: ended by signal {signal_number}: {text[-300:]}"
    if last.get("trace") or last["code"] == 1:
        return "internal", f"{verb}: {last.get('trace') or text}"
    if n_bytes > BYTES:
        return "memory", f"{verb}: {n_bytes / 2**30:.1f} GB"
    if "out of memory" in text:
        return "memory", f"{verb}: {text.strip()}"
    is_error = re.fullmatch(r"(agmc-onnx: (?!error)[^\n]+\n)*agmc-onnx: error: [^\n]+\n", text)  # after progress
    if last["code"] and not is_error:
        return "internal", f"{verb}: exit {last['code']} with other than one line: {text[-300:]!r}"
    new = {path.name for path in folder.iterdir()} - given - {"out.run", "stdout", "stderr"}
    whole = {"out.onnx", "out.plan.json", "out.report.json", "out.report.html"}
    made = set()
    for row in rows:
        if row["code"] == 0:
            made |= {"compress": whole, "apply": {"out.onnx", "out.plan.json"}, "report": {"r.html"}}.get(
                row["verb"], set()
            )
    if new != made and not (new - made <= {"out.onnx.data"}):
        return "partial", f"{verb}: {sorted(new)} where {sorted(made)} was due"
    return "", ""


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return the counts of faults, of every kind of input, and the most frequent faults."""
    faults = Counter(o.fault for o in outcomes)
    lines = [
        f"{len(outcomes)} inputs: " + ", ".join(f"{faults[f]} {f}" for f in ("internal", "hang", "memory", "partial"))
    ]
    for kind in dict.fromkeys(KINDS):
        of_kind = [o for o in outcomes if o.kind == kind]
        codes = Counter("/".join(map(str, o.codes)) for o in of_kind)
        said = ", ".join(f"{n} x {code}" for code, n in codes.most_common(8))
        lines.append(f"  {kind}: {len(of_kind)}, exit codes {said}")
    if outcomes:
        slow, large = max(outcomes, key=lambda o: o.seconds), max(outcomes, key=lambda o: o.mb)
        lines.append(f"  slowest {slow.seconds} s (input {slow.i}), largest {large.mb} MB (input {large.i})")
    groups: dict[str, list[Outcome]] = {}
    for o in outcomes:
        if o.fault:
            groups.setdefault(f"{o.fault}: {re.sub(r'[0-9]+', '#', o.said)[:160]}", []).append(o)
    for some in sorted(groups.values(), key=len, reverse=True)[:60]:
        numbers = ", ".join(str(o.i) for o in some[:4])
        lines.append(f"{len(some)} x {some[0].fault}: {some[0].said[:400]} (inputs {numbers}; {some[0].what})")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run inputs that the log has not yet, print the summary, and return 1 where there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="one line an input; inputs that are in it are not run again")
    parser.add_argument("--kinds", nargs="*", choices=sorted(INPUTS), help="default: all")
    parser.add_argument("--only", type=int, nargs="*", help="run these inputs again")
    parser.add_argument("--keep", type=Path, help="copy the inputs that are run there")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many")
    parser.add_argument("--again", action="store_true", help="run the inputs of the log that failed again")
    given = parser.parse_args(argv)
    known: dict[int, Outcome] = {}
    log = given.log.resolve() if given.log else None
    keep = given.keep.resolve() if given.keep else None
    if log is not None and log.exists():
        known = {row["i"]: Outcome(**row) for row in map(json.loads, log.read_text().splitlines())}
    kinds = given.kinds or tuple(INPUTS)
    wanted = given.only or [i for i in range(given.first, given.first + given.inputs) if KINDS[i % len(KINDS)] in kinds]
    todo = [i for i in wanted if given.only or i not in known or (given.again and known[i].fault)]
    _import_all()
    here, start = Path.cwd(), time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        prepare(Path(made))
        os.chdir(here)
        for i in todo:
            if time.monotonic() - start > 60 * given.minutes:
                break
            known[i] = run_one(i, given.seed, Path(made), keep)
            if log is not None:
                with log.open("a") as out:
                    out.write(json.dumps(asdict(known[i])) + "\n")
    outcomes = [known[i] for i in sorted(known) if i in set(wanted)]
    print(summary(outcomes))
    return int(any(o.fault for o in outcomes))


def _import_all() -> None:
    """Import what the verbs import when they are used, before the first fork."""
    import pkgutil

    import agmc_onnx

    for module in pkgutil.walk_packages(agmc_onnx.__path__, "agmc_onnx."):
        if not any(part in module.name for part in ("exchange", "paddle", "cluster", "__main__", "_moved")):
            __import__(module.name)


if __name__ == "__main__":
    raise SystemExit(main())

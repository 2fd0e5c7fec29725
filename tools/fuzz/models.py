"""Mutations of a model: of nodes, attributes, tensors, inputs and outputs, functions, branches and single bytes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tools.fuzz.texts import INTS, WORDS


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

"""The graphs that nodes hold (branches of If, bodies of Loop and Scan), each as a graph of its own at the sizes it is run at."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import onnx
from onnx.external_data_helper import uses_external_data

from agmc_onnx.graph.edit import LAST_IR_WITH_INPUTS
from agmc_onnx.graph.inline import rename
from agmc_onnx.graph.shapes import Shape, infer_shapes
from agmc_onnx.graph.view import FLOATS, Graph, Node, captured_names, constant_tensor, graph_of

_SMALL = 1024  # entries of constants whose numbers shape arithmetic in a body may need
_HOLDERS = frozenset({"If", "Loop", "Scan"})


def holds_bodies(node: Node) -> bool:
    """Whether a node is an If, a Loop or a Scan."""
    return node.op_type in _HOLDERS and not node.domain


def bodies_of(graph: Graph, node: Node) -> dict[str, Graph]:
    """Return the graphs that a node holds, by attribute, at the first setting of the open sizes."""
    found = {}
    for attribute in node.proto.attribute:
        if attribute.HasField("g") and not node.domain:
            model = _as_model(graph, node, attribute.g, is_first=True)
            found[attribute.name] = graph_of(model, shapes=infer_shapes(model, _sizes(model)))
    return found


def cuttable_bodies(graph: Graph, node: Node) -> dict[str, Graph]:
    """Return the same at both settings, with the constants that they take from outside; none where they are not sure.

    What a Loop or a Scan hands from one pass to the next has to keep its sizes, or those found would hold for the first alone.
    """
    if not holds_bodies(node) or any(node.attribute("scan_input_axes", ())):
        return {}
    found = {}
    for attribute in node.proto.attribute:
        if not attribute.HasField("g"):
            continue
        models = [_as_model(graph, node, attribute.g, is_first) for is_first in (True, False)]
        one, two = (infer_shapes(model, _sizes(model)) for model in models)
        shapes = {
            name: Shape(shape.dims, two[name].dims)
            for name, shape in one.items()
            if name in two and shape.rank == two[name].rank
        }
        if not _keeps_sizes(node, attribute.g, shapes):
            return {}
        body = graph_of(models[0], graph.folder, shapes)
        body.tensors.update({name: graph.tensors[name] for name in captured_names(node.proto) if name in graph.tensors})
        found[attribute.name] = body
    return found


def _keeps_sizes(node: Node, body: onnx.GraphProto, shapes: dict[str, Shape]) -> bool:
    if node.op_type == "If":
        return True
    skipped = int(node.op_type == "Loop")  # the condition
    n_states = len(body.input) - (2 if node.op_type == "Loop" else int(node.attribute("num_scan_inputs", 0)))
    given = [value.name for value in body.input][2 * skipped :][:n_states]
    made = [value.name for value in body.output][skipped:][:n_states]
    return all(a in shapes and shapes[a] == shapes.get(b) for a, b in zip(given, made, strict=True))


def passes(graph: Graph, node: Node) -> int | None:
    """Return how often the body of a node runs, None where that is not known."""
    if node.op_type == "If":
        return 1
    if node.op_type == "Scan":
        shape = graph.shape(node.inputs[-1])
        axes = node.attribute("scan_input_axes", [0])
        return None if shape is None else shape.dims[axes[-1]]
    n_states = len(node.inputs) - 2
    rows = graph.shape(node.outputs[n_states]) if len(node.outputs) > n_states and node.outputs[n_states] else None
    if rows is not None:
        return rows.dims[0]
    pair = graph.linear_pair(node.inputs[0]) if node.inputs[0] else None
    goes_on = not node.inputs[1] or graph.value(node.inputs[1]) is not None
    return int(pair[0].ravel()[0]) if pair is not None and goes_on else None


def with_weights_outside(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the floating constants of branches and bodies among its own, or the model itself.

    There they are seen, counted and cut like all others; a body sees what is around it.
    """
    if model.ir_version <= LAST_IR_WITH_INPUTS:
        return model
    names = Counter(_made(model.graph))
    moves = [(output, name, [*_weights(body)]) for output, name, body in bodies_in(model.graph)]
    if not any(weights for _, _, weights in moves):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for (output, name, weights), (_, _, body) in zip(moves, bodies_in(result.graph), strict=True):
        new = {old: f"{output}__{name}__{old}" for old, _ in weights if names[old] > 1}
        moved = {old for old, _ in weights}
        for old, tensor in weights:
            result.graph.initializer.add().CopyFrom(tensor)
            result.graph.initializer[-1].name = new.get(old, old)
        for i in reversed(range(len(body.initializer))):
            if body.initializer[i].name in moved:
                del body.initializer[i]
        for i in reversed(range(len(body.node))):
            if body.node[i].output[0] in moved:
                del body.node[i]
        rename(body, new)
    return result


def bodies_in(graph: onnx.GraphProto) -> list[tuple[str, str, onnx.GraphProto]]:
    """Return the branches and bodies that nodes of a graph hold: first output of the node, attribute, and the graph itself."""
    return [
        (node.output[0], attribute.name, attribute.g)
        for node in graph.node
        if node.op_type in _HOLDERS and node.domain in ("", "ai.onnx")
        for attribute in node.attribute
        if attribute.HasField("g")
    ]


def _weights(body: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Yield the constants of a body that may be cut, by name."""
    outputs = {value.name for value in body.output} | {value.name for value in body.input}
    constants = [(node.output[0], constant_tensor(node)) for node in body.node if node.op_type == "Constant"]
    for name, tensor in (*((tensor.name, tensor) for tensor in body.initializer), *constants):
        if tensor is None or name in outputs or uses_external_data(tensor):
            continue
        if tensor.data_type in FLOATS and math.prod(tensor.dims) > 1:
            yield name, tensor


def _made(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield every name that a graph, or one inside of it, gives to a value, as often as it does."""
    yield from (value.name for value in (*graph.input, *graph.initializer))
    for node in graph.node:
        yield from node.output
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _made(inner)


def _sizes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in model.graph.input
        if value.type.tensor_type.HasField("shape")
    }


def _as_model(graph: Graph, node: Node, body: onnx.GraphProto, is_first: bool) -> onnx.ModelProto:
    """Return a body as a model whose inputs, and what it takes from outside, have the shapes they have there."""
    model = onnx.ModelProto(ir_version=max(graph.model.ir_version, 4), opset_import=graph.model.opset_import)
    model.graph.CopyFrom(body)
    del model.graph.input[:]
    outside = [*_fed(graph, node, body), *((name, name, 0) for name in dict.fromkeys(captured_names(node.proto)))]
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.model.graph.input, *graph.model.graph.value_info)}
    types |= {value.name: value.type.tensor_type.elem_type for value in body.input if value.type.tensor_type.elem_type}
    for name, source, n_cut in outside:
        tensor, shape = graph.tensors.get(source), graph.shape(source)
        if (
            tensor is not None
            and name == source
            and all(d < _SMALL for d in tensor.dims)
            and math.prod(tensor.dims) <= _SMALL
        ):
            model.graph.initializer.add().CopyFrom(tensor)
            model.graph.initializer[-1].name = name
            continue
        kind = (
            tensor.data_type if tensor is not None else types.get(name) or types.get(source) or onnx.TensorProto.FLOAT
        )
        dims = _declared(body, name) if shape is None else list((shape.dims if is_first else shape.other)[n_cut:])
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, dims))
    return model


def _declared(body: onnx.GraphProto, name: str) -> list[int] | None:
    """Return the shape that a body says of its input; that of a Loop's first two, its count and condition, is one number."""
    at = next((i for i, value in enumerate(body.input) if value.name == name), None)
    kind = None if at is None else body.input[at].type.tensor_type
    if kind is not None and kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
        return [dim.dim_value for dim in kind.shape.dim]
    return [] if at in (0, 1) else None


def _fed(graph: Graph, node: Node, body: onnx.GraphProto) -> list[tuple[str, str, int]]:
    """Return (input of a body, value outside that has its shape or "", leading dims that it loses)."""
    names = [value.name for value in body.input]
    if node.op_type == "Loop":
        return [(name, source, 0) for name, source in zip(names, ["", "", *node.inputs[2:]], strict=False)]
    n_states = len(names) - int(node.attribute("num_scan_inputs", 0))
    return [
        (name, source, int(i >= n_states)) for i, (name, source) in enumerate(zip(names, node.inputs, strict=False))
    ]

"""MACs inside the branches of If and the bodies of Loop and Scan, and what could not be counted at all."""

from __future__ import annotations

import math

import onnx

from agmc_onnx.graph.shapes import infer_shapes
from agmc_onnx.graph.view import FLOATS, Graph, Node, captured_names, constant_tensor, graph_of
from agmc_onnx.ops.table import TABLE, UnknownSizesError, node_macs, op_of

_SMALL = 1024  # entries of constants whose numbers shape arithmetic in a body may need


def body_macs(graph: Graph, node: Node) -> int:
    """Return the MACs of what a node holds: of an If the larger branch, of a Loop or Scan one pass times the passes.

    0 for nodes that hold no graph, and for what cannot be told; `uncounted` names those.
    """
    parts = [_total(inner) for inner in _bodies(graph, node).values()]
    if not any(parts):
        return 0
    n_passes = passes(graph, node)
    return max(parts) * (1 if n_passes is None else n_passes)


def body_params(node: onnx.NodeProto) -> int:
    """Return the number of floating elements of the constants in the graphs that a node holds."""
    found = 0
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
            constants = [constant_tensor(inner) for inner in graph.node if inner.op_type == "Constant"]
            tensors = [*graph.initializer, *(tensor for tensor in constants if tensor is not None)]
            found += sum(math.prod(tensor.dims) for tensor in tensors if tensor.data_type in FLOATS)
            found += sum(math.prod(sparse.dims) for sparse in graph.sparse_initializer)
            found += sum(map(body_params, graph.node))
    return found


def uncounted(graph: Graph) -> list[str]:
    """Return the nodes whose MACs cannot be told, as labels with the reason: a shape, a number of passes, or an op is unknown."""
    found = []
    for node in graph.nodes:
        if _is_unknown(graph, node):
            found.append(f"{node.label} (unknown shape)")
        elif (
            node.domain not in ("", "ai.onnx.ml", "ai.onnx.preview.training")
            and (node.domain, node.op_type) not in TABLE
        ):
            found.append(f"{node.label} (unknown op of {node.domain})")
        bodies = _bodies(graph, node)
        found += [f"{label} in {node.label}" for inner in bodies.values() for label in uncounted(inner)]
        if bodies and any(map(_total, bodies.values())) and passes(graph, node) is None:
            found.append(f"{node.label} (counted once: unknown number of passes)")
    return found


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


def _is_unknown(graph: Graph, node: Node) -> bool:
    macs = op_of(node).macs
    try:
        return macs is not None and macs(graph, node) is None
    except UnknownSizesError:
        return True


def _total(graph: Graph) -> int:
    return sum(node_macs(graph, node) + body_macs(graph, node) for node in graph.nodes)


def _bodies(graph: Graph, node: Node) -> dict[str, Graph]:
    """Return the graphs that a node holds, each as one of its own at the sizes it is run at."""
    found = {}
    for attribute in node.proto.attribute:
        if attribute.HasField("g") and not node.domain:
            found[attribute.name] = graph_of(_as_model(graph, node, attribute.g))
    return {
        name: graph_of(inner.model, shapes=infer_shapes(inner.model, _sizes(inner.model)))
        for name, inner in found.items()
    }


def _sizes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in model.graph.input
        if value.type.tensor_type.HasField("shape")
    }


def _as_model(graph: Graph, node: Node, body: onnx.GraphProto) -> onnx.ModelProto:
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
            and _entries(tensor) <= _SMALL
        ):
            model.graph.initializer.add().CopyFrom(tensor)
            model.graph.initializer[-1].name = name
            continue
        kind = (
            tensor.data_type if tensor is not None else types.get(name) or types.get(source) or onnx.TensorProto.FLOAT
        )
        dims = _declared(body, name) if shape is None else list(shape.dims[n_cut:])
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, dims))
    return model


def _declared(body: onnx.GraphProto, name: str) -> list[int] | None:
    """Return the shape that a body says of its input; that of a Loop's first two, its count and condition, is one number."""
    at = next((i for i, value in enumerate(body.input) if value.name == name), None)
    kind = None if at is None else body.input[at].type.tensor_type
    if kind is not None and kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
        return [dim.dim_value for dim in kind.shape.dim]
    return [] if at in (0, 1) else None


def _entries(tensor: onnx.TensorProto) -> int:
    n = 1
    for size in tensor.dims:
        n *= size
    return n


def _fed(graph: Graph, node: Node, body: onnx.GraphProto) -> list[tuple[str, str, int]]:
    """Return (input of a body, value outside that has its shape or "", leading dims that it loses)."""
    names = [value.name for value in body.input]
    if node.op_type == "Loop":
        return [(name, source, 0) for name, source in zip(names, ["", "", *node.inputs[2:]], strict=False)]
    n_states = len(names) - int(node.attribute("num_scan_inputs", 0))
    return [
        (name, source, int(i >= n_states)) for i, (name, source) in enumerate(zip(names, node.inputs, strict=False))
    ]

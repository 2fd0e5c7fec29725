"""MACs inside the branches of If and the bodies of Loop and Scan, and what could not be counted at all."""

from __future__ import annotations

import math

import onnx

from agmc_onnx.graph.bodies import bodies_of, passes
from agmc_onnx.graph.view import FLOATS, Graph, Node, constant_tensor
from agmc_onnx.ops.table import TABLE, UnknownSizesError, node_macs, op_of


def body_macs(graph: Graph, node: Node) -> int:
    """Return the MACs of what a node holds: of an If the larger branch, of a Loop or Scan one pass times the passes.

    0 for nodes that hold no graph, and for what cannot be told; `uncounted` names those.
    """
    parts = [_total(inner) for inner in bodies_of(graph, node).values()]
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
        bodies = bodies_of(graph, node)
        found += [f"{label} in {node.label}" for inner in bodies.values() for label in uncounted(inner)]
        if bodies and any(map(_total, bodies.values())) and passes(graph, node) is None:
            found.append(f"{node.label} (counted once: unknown number of passes)")
    return found


def _is_unknown(graph: Graph, node: Node) -> bool:
    macs = op_of(node).macs
    try:
        return macs is not None and macs(graph, node) is None
    except UnknownSizesError:
        return True


def _total(graph: Graph) -> int:
    return sum(node_macs(graph, node) + body_macs(graph, node) for node in graph.nodes)

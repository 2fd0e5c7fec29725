"""Level 1 of the hierarchical graph: feature maps are nodes, operations are typed edges (AGMC paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import numpy as np

from agmc_onnx.graph.view import Graph, Node, captured_names
from agmc_onnx.ops.conv import KERNELS, kernel_shape
from agmc_onnx.ops.table import TABLE, op_of

SOURCE, SINK = "<source>", "<sink>"  # single ends of a network with several inputs or outputs

_CONVS = tuple(f"conv{kernel}{kind}" for kernel in KERNELS for kind in ("", "-depthwise", "-grouped"))
_OTHERS = """
    conv-transpose batchnorm relu activation max-pool average-pool global-pool pad split add mul concat matmul reshape norm
    softmax reduce resize recurrent identity unknown virtual
"""
EDGE_TYPES: dict[str, int] = {name: i for i, name in enumerate((*_CONVS, *_OTHERS.split()))}
WEIGHTED = frozenset((*_CONVS, "conv-transpose", "matmul", "recurrent"))  # they multiply by learned matrices
_SHAPE_OPS = frozenset(("Shape", "Size"))
# Attributes that say what an op does and not how wide it is; all others (group, split, hidden_size) are left out.
_STRUCTURE = ("kernel_shape", "strides", "dilations", "auto_pad", "ceil_mode", "axis", "axes", "perm", "mode")
_PADDED = frozenset((*_CONVS, "conv-transpose", "max-pool", "average-pool"))


def edge_type(graph: Graph, node: Node) -> str:
    """Return the name of a node's row in `EDGE_TYPES`; "unknown" for every op that has none."""
    edge = op_of(node).edge
    return "unknown" if edge is None else edge if isinstance(edge, str) else edge(graph, node)


def signature(graph: Graph, node: Node) -> str:
    """Return what makes two ops the same in a motif: op type, kernel, stride and the like, but no width."""
    parts = [f"{node.domain}.{node.op_type}" if node.domain else node.op_type]
    if not node.domain:
        kind = edge_type(graph, node)
        if kind in _CONVS:
            parts.append(kind)
        for name in _STRUCTURE:
            value = kernel_shape(graph, node) if name == "kernel_shape" else node.attribute(name)
            if value is None or value == () or (name in ("strides", "dilations") and set(value) == {1}):
                continue
            is_list = isinstance(value, Sequence) and not isinstance(value, str)
            parts.append(f"{name}={','.join(map(str, value)) if is_list else value}")
        if kind in _PADDED and any(pads := node.attribute("pads") or ()):
            parts.append(f"pads={','.join(map(str, pads))}")
    return " ".join(parts)


def commutes(text: str) -> bool:
    """Return whether the order of the inputs changes nothing in the op of a signature."""
    op = TABLE.get(("", text.split(" ", maxsplit=1)[0]))
    return op is not None and op.commutes


def used_values(node: Node) -> tuple[str, ...]:
    """Return a node's inputs, "" where omitted, and behind them the outer values its subgraphs use."""
    if not any(a.HasField("g") or a.graphs for a in node.proto.attribute):
        return node.inputs
    return (*node.inputs, *dict.fromkeys(name for name in captured_names(node.proto) if name not in node.inputs))


def feature_maps(graph: Graph) -> tuple[str, ...]:
    """Return the values that carry features, in topological order.

    Constants, what is computed from constants alone, and sizes (Shape, and what is computed from it alone) are none.
    """
    still = set(graph.tensors)
    found = list(graph.inputs)
    for node in graph.nodes:
        used = [name for name in used_values(node) if name]
        if used and ((not node.domain and node.op_type in _SHAPE_OPS) or all(name in still for name in used)):
            still.update(node.outputs)
        else:
            found += [name for name in node.outputs if name]
    return tuple(found)


def feature_graph(graph: Graph) -> nx.MultiDiGraph:
    """Return level 1: an edge from every feature map an op reads to every feature map it makes.

    Args:
        graph: The network.

    Returns:
        Nodes are value names. An edge has the key (op, input, output), unique in the graph, and the attributes `type`
        (a name in `EDGE_TYPES`), `signature` (see `signature`), `op` (index of the ONNX node), `input` and `output`
        (positions) and `constants` (names of the other inputs). Several starts get a common `SOURCE`, several ends a
        common `SINK`, by edges of type "virtual" whose op is -1.
    """
    level1 = nx.MultiDiGraph()
    level1.add_nodes_from(feature_maps(graph))
    for node in graph.nodes:
        made = [(o, name) for o, name in enumerate(node.outputs) if name in level1]
        if not made:
            continue
        used = used_values(node)
        read = [(i, name) for i, name in enumerate(used) if name in level1]
        constants = tuple(name for name in used if name and name not in level1)
        kind, text = edge_type(graph, node), signature(graph, node)
        for i, source in read:
            for o, target in made:
                level1.add_edge(
                    source, target, key=(node.index, i, o), type=kind, signature=text, op=node.index, input=i, output=o,
                    constants=constants,
                )  # fmt: skip
    starts, ends = end_points(graph, level1)
    for virtual, pairs in ((SOURCE, [(SOURCE, v) for v in starts]), (SINK, [(v, SINK) for v in ends])):
        if len(pairs) > 1:
            for k, (source, target) in enumerate(pairs):
                side = int(virtual == SINK)
                level1.add_edge(
                    source, target, key=(-1, k, side), type="virtual", signature=virtual, op=-1, input=k, output=side,
                    constants=(),
                )  # fmt: skip
    return level1


def end_points(graph: Graph, level1: nx.MultiDiGraph) -> tuple[list[str], list[str]]:
    """Return the feature maps that no op makes from others, and those that are outputs or that nothing uses."""
    outputs = set(graph.outputs)
    values = [value for value in level1 if value not in (SOURCE, SINK)]
    starts = [v for v in values if all(u == SOURCE for u in level1.pred[v])]
    ends = [v for v in values if v in outputs or all(w == SINK for w in level1.succ[v])]
    return starts, ends


def op_params(graph: Graph, node: Node) -> int:
    """Return how many floating numbers a node's constants hold."""
    tensors = {name for name in node.inputs if name in graph.tensors and graph.is_float(name)}
    return sum(int(np.prod(graph.tensors[name].dims, dtype=np.int64)) for name in tensors)

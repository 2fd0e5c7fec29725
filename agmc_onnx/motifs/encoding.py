"""The hierarchical graph as arrays for an encoder, and the papers' expansion to one node per filter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
import numpy.typing as npt

from agmc_onnx.arrays import GraphArrays, IntArray, Mask
from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.motifs.level1 import EDGE_TYPES, SINK, SOURCE, edge_type, feature_maps, op_params
from agmc_onnx.motifs.motifs import Hierarchy
from agmc_onnx.motifs.regions import immediate_dominators
from agmc_onnx.ops.conv import is_conv, kernel_shape
from agmc_onnx.ops.table import node_macs, op_of

N_HASHED = 8  # columns of `x` that a motif's key is hashed to

_SHORTCUT_OPS = frozenset(("batchnorm", "pad", "split", "identity", "average-pool", "max-pool"))


@dataclass(frozen=True)
class HierarchyArrays(GraphArrays):
    """Both levels of the hierarchical graph. Level 1 is what `GraphArrays` names.

    The columns of `x`: log2 of the channels / 12, log2 of the spatial size / 16, log10 of the producing op's MACs / 10
    and of its parameters / 8 (of 1 + each), depth in 0..1, log2 of the count of the motif the op is in / 8 (0 outside
    of motifs), `N_HASHED` columns with a 1 where the motif's key hashes to, one column for each of `EDGE_TYPES` with a
    1 at the producing op.

    Attributes:
        values: Value name of every level-1 node.
        motif_of_node: int64 (n_nodes,), the motif whose occurrence makes a node; -1 where none does.
        motif_of_edge: int64 (n_edges,), likewise for edges.
        edge2_of_edge: int64 (n_edges,), the level-2 edge that every level-1 edge lies in.
        x2: float32 (n_nodes2, n_features), the rows of `x` of the level-2 nodes.
        node_of_node2: int64 (n_nodes2,), their numbers in level 1.
        edge_index2: int64 (2, n_edges2).
        edge_type2: int64 (n_edges2,); an op's type as in level 1, or n_edge_types + a motif's number.
        n_edge_types2: n_edge_types + the number of motifs.
        group_nodes: For every channel group the level-1 nodes in it, ascending.
    """

    values: tuple[str, ...]
    motif_of_node: IntArray
    motif_of_edge: IntArray
    edge2_of_edge: IntArray
    x2: npt.NDArray[np.float32]
    node_of_node2: IntArray
    edge_index2: IntArray
    edge_type2: IntArray
    n_edge_types2: int
    group_nodes: tuple[IntArray, ...]


def arrays(hierarchy: Hierarchy, graph: Graph, channel_groups: Sequence[frozenset[str]] = ()) -> HierarchyArrays:
    """Return both levels as arrays, with deterministic features.

    Args:
        hierarchy: Of the network.
        graph: The network, with shapes.
        channel_groups: For every prunable group the names of its values; what is no feature map is passed over.
    """
    values = tuple(hierarchy.level1)
    number = {value: i for i, value in enumerate(values)}
    edges = {key: k for k, (_, _, key) in enumerate(_edges(hierarchy.level1))}
    ends = [(number[u], number[v]) for u, v, _ in _edges(hierarchy.level1)]
    kinds = [EDGE_TYPES[kind] for _, _, kind in hierarchy.level1.edges(data="type")]
    motif_of_edge = np.full(len(edges), -1, np.int64)
    edge2_of_edge = np.zeros(len(edges), np.int64)
    nodes2 = tuple(hierarchy.level2)
    number2 = {value: i for i, value in enumerate(nodes2)}
    ends2, kinds2 = [], []
    for k, (u, v, key, data) in enumerate(hierarchy.level2.edges(keys=True, data=True)):
        ends2.append((number2[u], number2[v]))
        kinds2.append(len(EDGE_TYPES) + data["motif"] if "motif" in data else EDGE_TYPES[data["type"]])
        held = [edges[edge[0]] for edge in data["edges"]] if "motif" in data else [edges[key]]
        edge2_of_edge[held] = k
        motif_of_edge[held] = data.get("motif", -1)
    motif_of_node = np.full(len(values), -1, np.int64)
    for k, (_, target) in enumerate(ends):
        motif_of_node[target] = max(motif_of_node[target], motif_of_edge[k])
    typed = [(source, target, kind) for (source, target), kind in zip(ends, kinds, strict=True)]
    x = _features(hierarchy, graph, values, typed, motif_of_node)
    node_of_node2 = np.array([number[value] for value in nodes2], np.int64)
    return HierarchyArrays(
        x=x,
        edge_index=_pairs(ends),
        edge_type=np.array(kinds, np.int64),
        n_edge_types=len(EDGE_TYPES),
        values=values,
        motif_of_node=motif_of_node,
        motif_of_edge=motif_of_edge,
        edge2_of_edge=edge2_of_edge,
        x2=x[node_of_node2],
        node_of_node2=node_of_node2,
        edge_index2=_pairs(ends2),
        edge_type2=np.array(kinds2, np.int64),
        n_edge_types2=len(EDGE_TYPES) + len(hierarchy.motifs),
        group_nodes=tuple(
            np.array(sorted(number[name] for name in group if name in number), np.int64) for group in channel_groups
        ),
    )


def _edges(graph: nx.MultiDiGraph) -> Iterable[tuple[str, str, tuple[int, int, int]]]:
    return graph.edges(keys=True)


def _pairs(ends: list[tuple[int, int]]) -> IntArray:
    return np.ascontiguousarray(np.array(ends, np.int64).reshape(-1, 2).T)


def _features(
    hierarchy: Hierarchy,
    graph: Graph,
    values: tuple[str, ...],
    edges: list[tuple[int, int, int]],
    motif_of_node: IntArray,
) -> npt.NDArray[np.float32]:
    x = np.zeros((len(values), 6 + N_HASHED + len(EDGE_TYPES)), np.float32)
    depth = np.zeros(len(values))
    for target, source in sorted((t, s) for s, t, _ in edges if values[t] != SINK and values[s] != SOURCE):
        depth[target] = max(depth[target], depth[source] + 1)  # the longest path; numbers are a topological order
    depth[[i for i, value in enumerate(values) if value == SINK]] = depth.max(initial=0) + 1
    x[:, 4] = depth / max(1.0, depth.max(initial=0))
    for _, target, kind in edges:
        x[target, 6 + N_HASHED + kind] = 1
    channel_dims: dict[str, int] = {}
    for i, value in enumerate(values):
        shape = graph.shape(value)
        node = graph.producer.get(value)
        if shape is not None and shape.rank > 1:
            dim = channel_dims[value] = _channel_dim(graph, node, shape.rank, channel_dims)
            x[i, 0] = np.log2(max(1, shape.dims[dim])) / 12
            rest = np.prod(shape.dims[1:], dtype=np.float64) / max(1, shape.dims[dim]) if dim else 1
            x[i, 1] = np.log2(max(1.0, rest)) / 16
        if node is not None:
            x[i, 2] = np.log10(1 + node_macs(graph, node)) / 10
            x[i, 3] = np.log10(1 + op_params(graph, node)) / 8
        if motif_of_node[i] >= 0:
            motif = hierarchy.motifs[motif_of_node[i]]
            x[i, 5] = np.log2(motif.count) / 8
            x[i, 6 + int(motif.key[:8], 16) % N_HASHED] = 1
    return x


def _channel_dim(graph: Graph, node: Node | None, rank: int, known: dict[str, int]) -> int:
    """Return the dimension that features count as channels: 1, but the last one behind a dense op or LayerNorm."""
    if rank < 3 or node is None:
        return 1
    if op_of(node).channels:
        return 1 if op_of(node).channels == "first" else rank - 1
    return next((known[name] for name in node.inputs if name in known and known[name] < rank), 1)


@dataclass(frozen=True)
class ChannelView:
    """The papers' channel-level graph: one node per filter.

    Attributes:
        edge_index: int64 (2, n_edges); sources have smaller numbers than targets.
        layer: int64 (n_nodes,), index of the ONNX node a node belongs to; -1 for the source, node 0.
        is_filter: bool (n_nodes,), whether a node is one filter of a convolution.
    """

    edge_index: IntArray
    layer: IntArray
    is_filter: Mask

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return len(self.layer)

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return self.edge_index.shape[1]

    def to_networkx(self) -> nx.MultiDiGraph:
        """Return the same graph with the node attributes `layer` and `is_filter`."""
        graph = nx.MultiDiGraph()
        pairs = zip(self.layer.tolist(), self.is_filter.tolist(), strict=True)
        graph.add_nodes_from((i, {"layer": layer, "is_filter": flag}) for i, (layer, flag) in enumerate(pairs))
        graph.add_edges_from(self.edge_index.T.tolist())
        return graph


def channel_view(graph: Graph) -> ChannelView:
    """Return the channel-level graph under the rule of the published AGMC code (db1c632).

    One source node. A convolution of n filters adds n nodes side by side and one that concatenates them, 2n edges. A
    pool (a mean over all spatial dims too) adds a node and an edge. Where branches join, every branch but the one made
    last gives an edge to the node that closes the block. All other ops add nothing.

    A projection shortcut counts as the plain edge from the node that opened the block, as in that code: a dense 1x1
    convolution alone on a branch without activation, whose block holds another branch with two convolutions or more.
    That gives the 31,997 nodes and 63,893 edges of the paper for the bottleneck network of blocks (3, 4, 6, 6).

    Args:
        graph: Any network; a convolution whose filters cannot be counted counts as one filter.
    """
    skipped = _projections(graph)
    maps = set(feature_maps(graph))
    place = dict.fromkeys(graph.inputs, 0)  # value -> the node that stands for it
    layer, is_filter = [np.full(1, -1)], [np.zeros(1, bool)]
    sources: list[IntArray] = []
    targets: list[IntArray] = []
    n_nodes = 1

    def connect(source: IntArray | int, target: IntArray | int) -> None:
        source, target = np.broadcast_arrays(np.atleast_1d(source), np.atleast_1d(target))
        sources.append(source)
        targets.append(target)

    for node in graph.nodes:
        kind = edge_type(graph, node)
        at = sorted({place[name] for name in node.inputs if name in place and name in maps} or {0})
        here = at[-1]
        if kind.startswith("conv") and node.index not in skipped:
            n_filters = _n_filters(graph, node)
            filters = np.arange(n_nodes, n_nodes + n_filters)
            connect(at[-1], filters)
            here = n_nodes + n_filters
            connect(filters, here)
            layer.append(np.full(n_filters + 1, node.index))
            is_filter.append(np.arange(n_filters + 1) < n_filters)
            n_nodes = here + 1
        elif _is_pool(graph, node, kind) and node.index not in skipped:
            connect(at[-1], n_nodes)
            layer.append(np.full(1, node.index))
            is_filter.append(np.zeros(1, bool))
            here = n_nodes
            n_nodes += 1
        else:
            for source in at[:-1]:
                connect(source, here)
        place.update((name, here) for name in node.outputs if name)
    empty = [np.zeros(0, np.int64)]
    edge_index = np.stack([np.concatenate(sources or empty), np.concatenate(targets or empty)]).astype(np.int64)
    return ChannelView(edge_index, np.concatenate(layer).astype(np.int64), np.concatenate(is_filter))


def _n_filters(graph: Graph, node: Node) -> int:
    shape = graph.shape(node.inputs[1])
    if shape is None:
        return 1
    return shape.dims[1] * int(node.attribute("group", 1)) if node.op_type == "ConvTranspose" else shape.dims[0]


def _is_pool(graph: Graph, node: Node, kind: str) -> bool:
    if kind.endswith("-pool"):
        return True
    if node.domain or node.op_type not in ("ReduceMean", "ReduceMax"):
        return False
    axes = node.attribute("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1]:
        found = graph.value(node.inputs[1])
        axes = None if found is None else found.tolist()
    shape = graph.shape(node.inputs[0])
    if axes is None or shape is None or shape.rank < 4:
        return False
    found_axes = sorted(int(axis) % shape.rank for axis in axes)
    return found_axes in (list(range(2, shape.rank)), list(range(1, shape.rank - 1)))


def _projections(graph: Graph) -> set[int]:
    """Return the nodes of projection shortcuts: on a branch from a block's opening value to its Add, one 1x1 Conv."""
    values = ["", *feature_maps(graph)]
    number = {value: i for i, value in enumerate(values)}
    sources: list[set[int]] = [set() for _ in values]
    n_convs = [0] * len(values)  # the most convolutions on a path from the inputs
    for value in values[1:]:
        node = graph.producer.get(value)
        i = number[value]
        sources[i] = {number[name] for name in node.inputs if name in number} - {0} if node else set()
        is_conv = node is not None and edge_type(graph, node).startswith("conv")
        n_convs[i] = max((n_convs[s] for s in sources[i]), default=0) + is_conv
        sources[i] = sources[i] or {0}
    opening = immediate_dominators([list(found) for found in sources]) if len(values) > 1 else [0]
    found: set[int] = set()
    for node in graph.nodes:
        branches = [name for name in node.inputs if name in number]
        if node.op_type not in ("Add", "Sum") or len(branches) < 2:
            continue
        opened = opening[number[node.outputs[0]]]
        for branch in branches:
            others = [n_convs[number[name]] - n_convs[opened] for name in branches if name != branch]
            if max(others, default=0) > 1:
                found |= _linear_branch(graph, branch, values[opened], number.__contains__)
    return found


def _linear_branch(graph: Graph, value: str, opened: str, is_map: Callable[[str], bool]) -> set[int]:
    """Return the convolution and pools between two values if they are a chain with one dense 1x1 Conv, else nothing."""
    chain: list[Node] = []
    while value != opened:
        node = graph.producer.get(value)
        if node is None or len(graph.consumers.get(value, ())) != 1:
            return set()
        kind = edge_type(graph, node)
        is_projection = kind in ("conv1", "conv-other") and set(kernel_shape(graph, node)) == {1}
        read = [name for name in node.inputs if name and is_map(name)]
        if len(read) != 1 or not (is_projection or kind in _SHORTCUT_OPS):
            return set()
        chain.append(node)
        value = read[0]
    is_one = sum(is_conv(node) for node in chain) == 1
    return {node.index for node in chain} if is_one else set()

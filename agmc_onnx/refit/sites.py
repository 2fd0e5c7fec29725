"""Where a network can be refitted: nodes with a weight of their own, and the value each of them is fitted to."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from agmc_onnx.arrays import FloatArray
from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ops.norm import is_stored
from agmc_onnx.ops.table import op_of

_PASSING = ("Identity", "Dropout")


@dataclass(frozen=True, eq=False)
class Site:
    """A linear node, and what its output becomes on the way to the value it is fitted to.

    With y the node's output, the target is scale * y + shift, channel by channel, plus the sum of `others`.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        weight: Its weight, which no other node uses.
        bias: Constant that a correction of the output's mean goes into, or None.
        bias_scale: float64 (channels,): what the node's output has been multiplied by where `bias` is added.
        can_add_bias: Whether the node may get a bias of its own.
        target: Value it is fitted to: of the same shape as the output.
        scale, shift: float64 (channels,).
        others: Values added on the way, which are there before the node in every useful sense: no later site feeds them.
        channel_dim: 1, or -1 for a MatMul: the dim of channels of output and target.
    """

    node: Node
    weight: str
    bias: str | None
    bias_scale: FloatArray
    can_add_bias: bool
    target: str
    scale: FloatArray
    shift: FloatArray
    others: tuple[str, ...]
    channel_dim: int

    @property
    def x(self) -> str:
        """The node's input."""
        return self.node.inputs[0]


def find_sites(graph: Graph) -> list[Site]:
    """Return the sites of a graph in topological order.

    A site that feeds a sum is fitted to the sum if it is the last of those that do, so that it takes over the error of
    all the others; else to its own output.

    Args:
        graph: Any graph; nodes without a constant weight of their own are no sites.
    """
    found: list[tuple[Site, Site | None]] = []  # fitted to its own output; fitted to the sum behind it
    for node in graph.nodes:
        weight = _weight(graph, node)
        if weight is not None:
            found.append(_follow(graph, node, weight))
    last = {summed.target: summed.node.index for _, summed in found if summed is not None}
    numbers = np.array([own.node.index for own, _ in found], np.int64)
    sites = []
    for own, summed in found:
        use_sum = summed is not None and last[summed.target] == own.node.index
        if use_sum and summed is not None:
            behind = _nodes_behind(graph, summed.others, own.node.index)
            use_sum = not np.isin(numbers, list(behind)).any()
        sites.append(summed if use_sum and summed is not None else own)
    return sites


def _weight(graph: Graph, node: Node) -> str | None:
    if not op_of(node).refit:
        return None
    x, weight = node.inputs[:2]
    if (
        weight not in graph.tensors
        or x in graph.weights
        or len(graph.consumers[weight]) != 1
        or not graph.is_float(weight)
    ):
        return None
    rank = len(graph.tensors[weight].dims)
    if node.op_type == "MatMul":
        return weight if rank == 2 else None
    if node.op_type == "Gemm":
        return weight if not node.attribute("transA", 0) and node.attribute("alpha", 1.0) != 0 else None
    return weight if rank >= 3 and weight not in graph.captured else None


def n_channels(graph: Graph, node: Node) -> int:
    """Return the number of output channels of a site's node."""
    dims, out_dim = graph.tensors[node.inputs[1]].dims, op_of(node).out_dim
    assert out_dim is not None
    at = out_dim(node, len(dims))
    return int(dims[at] * (node.attribute("group", 1) if op_of(node).kernel and at == 1 else 1))


def _follow(graph: Graph, node: Node, weight: str) -> tuple[Site, Site | None]:
    """Follow a node's output through per-channel steps to where it ends or is summed with other values."""
    n = n_channels(graph, node)
    dim = 1 if op_of(node).kernel or node.op_type == "Gemm" else -1
    ones = np.ones(n)
    own_bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2] and node.op_type != "MatMul" else None
    bias, bias_scale = None, ones
    if own_bias is not None and _is_own(graph, own_bias) and graph.array(own_bias).size == n:
        beta = node.attribute("beta", 1.0) if node.op_type == "Gemm" else 1.0
        bias, bias_scale = (own_bias, ones / beta) if beta else (None, ones)
    value, scale, shift = node.outputs[0], ones, np.zeros(n)
    while True:
        site = Site(
            node, weight, bias, bias_scale, own_bias is None and node.op_type != "MatMul", value, scale, shift, (), dim
        )
        users = graph.consumers.get(value, [])
        if len(users) != 1 or value in graph.outputs or value in graph.captured:
            return site, None
        user, position = users[0]
        if user.domain:
            return site, None
        if user.op_type in _PASSING:
            value = user.outputs[0]
            continue
        if is_stored(user) and position == 0 and dim == 1 and all(name in graph.tensors for name in user.inputs[1:5]):
            gamma, beta, mean, var = (graph.array(name).astype(np.float64) for name in user.inputs[1:5])
            factor = gamma / np.sqrt(var + user.attribute("epsilon", 1e-5))
            scale, shift = scale * factor, (shift - mean) * factor + beta
            if bias is None and _is_own(graph, user.inputs[2]):
                bias, bias_scale = user.inputs[2], scale
            value = user.outputs[0]
            continue
        others = tuple(name for i, name in enumerate(user.inputs) if i != position)
        if user.op_type in ("Add", "Mul") and others[0] in graph.tensors and graph.is_float(others[0]):
            array = _per_channel(graph, others[0], value, n, dim)
            if array is None:
                return site, None
            if user.op_type == "Mul":
                scale, shift = scale * array, shift * array
            else:
                shift = shift + array
                if bias is None and array.size == graph.array(others[0]).size and _is_own(graph, others[0]):
                    bias, bias_scale = others[0], scale
            value = user.outputs[0]
            continue
        if user.op_type in ("Add", "Sum") and others and not any(name in graph.weights for name in others):
            shapes = [graph.shape(name) for name in (value, *others, user.outputs[0])]
            if value not in others and all(s is not None and shapes[0] is not None and s == shapes[0] for s in shapes):
                return site, replace(site, target=user.outputs[0], others=others)
        return site, None


def _is_own(graph: Graph, name: str) -> bool:
    """Whether a value is a constant that a single node uses."""
    return name in graph.tensors and len(graph.consumers[name]) == 1 and name not in graph.captured


def _per_channel(graph: Graph, name: str, value: str, n: int, dim: int) -> FloatArray | None:
    """Return a constant as float64 (n,) where it is broadcast over all dims but the channels, else None."""
    array, shape = graph.array(name), graph.shape(value)
    if shape is None or array.ndim > shape.rank:
        return None
    sizes = (1,) * (shape.rank - array.ndim) + array.shape
    at = dim % shape.rank
    if any(size != 1 for i, size in enumerate(sizes) if i != at) or sizes[at] not in (1, n):
        return None
    return np.broadcast_to(array.reshape(-1).astype(np.float64), (n,)).copy()


def _nodes_behind(graph: Graph, values: tuple[str, ...], after: int) -> set[int]:
    """Return the numbers above `after` of the nodes that some values depend on."""
    found: set[int] = set()
    pending = list(values)
    while pending:
        node = graph.producer.get(pending.pop())
        if node is not None and node.index > after and node.index not in found:
            found.add(node.index)
            pending.extend(name for name in node.inputs if name)
    return found

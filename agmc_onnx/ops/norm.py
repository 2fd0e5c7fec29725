"""Normalisations: what they take statistics over stays a group, and the numbers that stay change when it is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agmc_onnx.graph.registry import Attributes, Dims, same_as_first
from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ops.passing import broadcast, normalise, pass_through
from agmc_onnx.ops.table import MICROSOFT, Op, Statistics, Vanishing, op_of, register
from agmc_onnx.ops.zeros import from_weight
from agmc_onnx.ties.ledger import Ledger, tie_or_freeze

_SOFTMAX_OF_LAST_DIM = 13  # opset since which that is the default


def batch_norm(ledger: Ledger, node: Node) -> None:
    """BatchNormalization: every parameter follows dim 1 of the input.

    A weight's inputs may lie in the later dims of one that trains (how weights are standardised): cutting there changes the
    statistics.
    """
    if node.attribute("spatial", 1):  # up to opset 8: else parameters of all dims
        _channel_norm(ledger, node, bool(node.attribute("training_mode", 0)))


def instance_norm(ledger: Ledger, node: Node) -> None:
    """InstanceNormalization: every parameter follows dim 1 of the input.

    Groups of channels may lie in the later dims (how GroupNorm is written out): cutting there changes the statistics.
    """
    _channel_norm(ledger, node, True)


def _channel_norm(ledger: Ledger, node: Node, takes_statistics: bool) -> None:
    rank = ledger.shape(node.inputs[0]).rank
    normalise(ledger, node, set(range(2, rank)) if takes_statistics else set())
    ids = ledger.flat(node, node.inputs[0], 1)
    if ids is not None:
        for name in node.inputs[1:]:
            tie_or_freeze(ledger, node, ids, name, 0)


def scaled(ledger: Ledger, node: Node) -> None:
    """LpNormalization, MeanVarianceNormalization: cutting a normalised dim changes the statistics."""
    rank = ledger.shape(node.inputs[0]).rank
    is_mean = node.op_type == "MeanVarianceNormalization"
    axes = node.attribute("axes", [0, 2, 3]) if is_mean else [node.attribute("axis", -1)]
    normalise(ledger, node, {axis % rank for axis in axes})


def softmax(ledger: Ledger, node: Node) -> None:
    """Softmax, LogSoftmax, Hardmax: dims pass; cutting the normalised ones changes what the entries that stay sum up to.

    So the scores of an attention over channels are cut. Several normalised dims (up to opset 12) must be whole.
    """
    x = node.inputs[0]
    rank = ledger.shape(x).rank
    axis = node.attribute("axis", 1 if ledger.graph.opset < _SOFTMAX_OF_LAST_DIM else -1) % rank
    if ledger.graph.opset < _SOFTMAX_OF_LAST_DIM and axis < rank - 1:
        pass_through(ledger, node, set(range(axis)))
        return
    if node.op_type != "Softmax":
        pass_through(ledger, node, set(range(rank)) - {axis})
        return
    normalise(ledger, node, {axis})


def layer_norm(ledger: Ledger, node: Node) -> None:
    """LayerNormalization, RMSNormalization: scale and bias follow the normalised dims; cutting changes the statistics."""
    x = node.inputs[0]
    rank = ledger.shape(x).rank
    first = node.attribute("axis", -1) % rank
    normalise(ledger, node, set(range(first, rank)))
    for extra in node.outputs[1:]:
        if extra and ledger.graph.consumers.get(extra):
            return
    for dim in range(first, rank):
        entries = ledger.axis(node, x, dim)
        for name in node.inputs[1:] if entries is not None else ():
            own = dim - rank + ledger.shape(name).rank if name else -1
            if entries is not None and own >= 0 and ledger.size(name, own) > 1:
                tie_or_freeze(ledger, node, entries.ids, name, own)


def group_norm(ledger: Ledger, node: Node) -> None:
    """GroupNormalization: every group keeps equally many channels; cutting changes the statistics."""
    pass_through(ledger, node, {1})
    ids = ledger.flat(node, node.inputs[0], 1)
    groups = node.attribute("num_groups")
    if ids is not None:
        ledger.balance(ids.reshape(groups, -1))
        ledger.normalise(ids, node)
        for name in node.inputs[1:]:
            if ledger.size(name, 0) == ids.size:
                tie_or_freeze(ledger, node, ids, name, 0)


def local_norm(ledger: Ledger, node: Node) -> None:
    """LRN: channels pass; each is divided by the energy of its neighbours, which are others after a cut."""
    pass_through(ledger, node, {0, 1})
    entries = ledger.axis(node, node.inputs[0], 1)
    if entries is not None:
        ledger.normalise(entries.ids, node)


def skip_norm(ledger: Ledger, node: Node) -> None:
    """SkipLayerNormalization, SkipSimplifiedLayerNormalization: a sum, normalised; the sum is an output of its own."""
    is_simple = node.op_type == "SkipSimplifiedLayerNormalization"
    names = [*node.inputs, "", ""]
    bias = names[3] if is_simple else names[4]
    operands = [name for name in (*names[:2], bias) if name]
    targets = [name for at, name in enumerate(node.outputs) if name and at in (0, 3)]
    if not node.outputs[0] or any(ledger.graph.consumers.get(name) for name in node.outputs[1:3] if name):
        return
    for output in targets:
        broadcast(ledger, node, operands, output)
    dim = ledger.shape(node.outputs[0]).rank - 1
    entries = ledger.entries.get((node.outputs[0], dim))
    if entries is not None:
        ledger.normalise(entries.ids, node)
        for name in [names[2]] if is_simple else names[2:4]:
            if name:
                tie_or_freeze(ledger, node, entries.ids, name, 0)


def embed_norm(ledger: Ledger, node: Node) -> None:
    """EmbedLayerNormalization: a sum of three embeddings, normalised."""
    tables = [name for name in node.inputs[2:5] if name]
    ids = ledger.flat(node, tables[0], 1)
    if ids is None:
        return
    for name in tables[1:]:
        tie_or_freeze(ledger, node, ids, name, 1)
    for name in node.inputs[5:7]:
        tie_or_freeze(ledger, node, ids, name, 0)
    ledger.normalise(ids, node)
    for at in (0, 2):
        if at < len(node.outputs) and node.outputs[at]:
            ledger.set(node.outputs[at], 2, ids)


def skip_shape(dims: Sequence[Dims | None], _: Attributes) -> list[Dims | None]:
    """The result and, as the fourth output, the sum."""
    return [dims[0], None, None, dims[0]]


def embed_shape(dims: Sequence[Any], _: Attributes) -> list[Dims | None]:
    """The result, the lengths, the sum."""
    out = (*dims[0], dims[2][1])
    return [out, (dims[0][0],), out]


def _last_dim(graph: Graph, node: Node) -> set[int] | None:
    shape = graph.shape(node.inputs[0])
    return None if shape is None or node.attribute("axis", -1) % shape.rank != shape.rank - 1 else {shape.rank - 1}


def _softmax_dim(graph: Graph, node: Node) -> set[int] | None:
    shape = graph.shape(node.inputs[0])
    if shape is None:
        return None
    return {node.attribute("axis", 1 if graph.opset < _SOFTMAX_OF_LAST_DIM else -1) % shape.rank}


def _rows(graph: Graph, node: Node) -> set[int] | None:
    shape = graph.shape(node.inputs[0])
    return {2} if shape is not None and shape.rank == 3 else None


def is_stored(node: Node) -> bool:
    """Whether a node is a BatchNormalization that uses the statistics it has stored, channel by channel."""
    return (
        op_of(node).ties is batch_norm and not node.attribute("training_mode", 0) and node.attribute("spatial", 1) == 1
    )


def batch_norm_empty(node: Node) -> Vanishing | None:
    """BatchNormalization: zero where its bias is neutral, and its scale or its mean; not where it trains."""
    return None if node.attribute("training_mode", 0) else Vanishing("keep", ((2,), (3, 1)))


_BIASED = Vanishing("keep", ((2,),))
_OF_LAST_DIM = Statistics(_last_dim, outputs=(0,))
_OF_SUM = Statistics(_last_dim, outputs=(0, 3))
_OF_GROUPS = Statistics(lambda graph, node: {1}, masked="write out", always=True)
OPS = register(
    Op(
        "BatchNormalization", batch_norm, keeps_zero=from_weight(1, 0), when_empty=batch_norm_empty, edge="batchnorm",
        divisors=(4,), channels="first", layout="blocked",
        statistics=Statistics(_rows, outputs=(0,), follow=False),
    ),
    Op(
        "InstanceNormalization", instance_norm, keeps_zero=from_weight(1, 0), when_empty=_BIASED, edge="norm",
        shape=same_as_first, statistics=Statistics(_rows, masked="write out", always=True),
    ),
    Op("GroupNormalization", group_norm, when_empty=_BIASED, edge="norm", shape=same_as_first, statistics=_OF_GROUPS),
    Op(
        "LayerNormalization", layer_norm, when_empty=_BIASED, edge="norm", channels="last", shape=same_as_first,
        statistics=_OF_LAST_DIM,
    ),
    Op("RMSNormalization", layer_norm, when_empty=Vanishing("keep"), edge="norm", statistics=_OF_LAST_DIM),
    Op(
        "SimplifiedLayerNormalization", layer_norm, when_empty=Vanishing("keep"), edge="norm", shape=same_as_first,
        statistics=_OF_LAST_DIM,
    ),
    Op("LpNormalization", scaled, edge="norm", statistics=_OF_LAST_DIM),
    Op("MeanVarianceNormalization", scaled, edge="norm"),
    Op("LRN", local_norm, edge="norm"),
    Op(
        "Softmax", softmax, edge="softmax", shape=same_as_first,
        statistics=Statistics(_softmax_dim, masked="silence", always=True),
    ),
    Op("LogSoftmax", softmax, edge="softmax"),
    Op("Hardmax", softmax, edge="softmax"),
    Op("SkipLayerNormalization", skip_norm, MICROSOFT, shape=skip_shape, statistics=_OF_SUM),
    Op("SkipSimplifiedLayerNormalization", skip_norm, MICROSOFT, shape=skip_shape, statistics=_OF_SUM),
    Op("EmbedLayerNormalization", embed_norm, MICROSOFT, shape=embed_shape, type_input=2),
    Op("GroupNorm", domain=MICROSOFT, shape=same_as_first),
)  # fmt: skip

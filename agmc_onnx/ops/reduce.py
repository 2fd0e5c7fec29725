"""Ops that take entries together: reductions, pools, searches, running sums."""

from __future__ import annotations

from typing import Any

import onnx

from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ops.editor import Editor
from agmc_onnx.ops.elementwise import elementwise_ties
from agmc_onnx.ops.passing import carry, pass_through
from agmc_onnx.ops.table import Op, Statistics, register
from agmc_onnx.ops.zeros import where_first_is
from agmc_onnx.ties.ledger import Ledger


def reduce_ties(ledger: Ledger, node: Node) -> None:
    """Reduce ops: dims that are not reduced pass; cutting what is reduced changes the statistics."""
    x = node.inputs[0]
    rank = ledger.shape(x).rank
    reduced = reduced_dims(ledger.graph, node)
    if reduced is None or len(reduced) == rank:
        return
    if not reduced:
        elementwise_ties(ledger, node)
        return
    _pass_others(ledger, node, reduced)
    if node.op_type != "ReduceProd":
        for dim in reduced:
            entries = ledger.axis(node, x, dim)
            if entries is not None:
                ledger.normalise(entries.ids, node)


def reduced_dims(graph: Graph, node: Node) -> set[int] | None:
    """Return the dims that a Reduce op takes together, or None where they are not known."""
    shape = graph.shape(node.inputs[0])
    axes = node.attribute("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1]:
        given = graph.value(node.inputs[1])
        axes = None if given is None else given.ravel().tolist()
        if axes is None:
            return None
    if shape is None:
        return None
    if not axes:
        return set() if node.attribute("noop_with_empty_axes", 0) else set(range(shape.rank))
    return {int(axis) % shape.rank for axis in axes}


def arg_reduce(ledger: Ledger, node: Node) -> None:
    """ArgMax, ArgMin: dims other than the searched one pass."""
    _pass_others(ledger, node, {node.attribute("axis", 0) % ledger.shape(node.inputs[0]).rank})


def _pass_others(ledger: Ledger, node: Node, reduced: set[int]) -> None:
    x, keepdims = node.inputs[0], node.attribute("keepdims", 1)
    kept = [dim for dim in range(ledger.shape(x).rank) if dim not in reduced]
    carry(ledger, node, x, node.outputs[0], {dim: (dim if keepdims else i) for i, dim in enumerate(kept)})


def running(ledger: Ledger, node: Node) -> None:
    """CumSum, CumProd: dims other than the one run along pass."""
    axis = ledger.graph.value(node.inputs[1])
    if axis is not None:
        rank = ledger.shape(node.inputs[0]).rank
        pass_through(ledger, node, set(range(rank)) - {int(axis.ravel()[0]) % rank})


def triangle(ledger: Ledger, node: Node) -> None:
    """Trilu: a batch of matrices; only the batch passes."""
    pass_through(ledger, node, set(range(ledger.shape(node.inputs[0]).rank - 2)))


def top(ledger: Ledger, node: Node) -> None:
    """TopK: dims other than the sorted one pass."""
    x = node.inputs[0]
    rank = ledger.shape(x).rank
    dims = {dim: dim for dim in range(rank) if dim != node.attribute("axis", -1) % rank}
    for output in filter(None, node.outputs):
        carry(ledger, node, x, output, dims)


def pool(ledger: Ledger, node: Node) -> None:
    """Pooling and the like: channels (dim 1) pass, spatial dims must be whole."""
    pass_through(ledger, node, {0, 1})


def max_pool(ledger: Ledger, node: Node) -> None:
    """MaxPool: its second output counts places over all channels, so that only MaxUnpool, which takes it back, may read it."""
    pool(ledger, node)
    y, places = [*node.outputs, ""][:2]
    users = ledger.graph.consumers.get(places, ())
    is_seen = places in ledger.graph.outputs or places in ledger.graph.captured
    entries = ledger.entries.get((y, 1))
    if not places or entries is None or not (users or is_seen):
        return
    if is_seen or any(user.op_type != "MaxUnpool" or at != 1 for user, at in users):
        ledger.freeze(entries.ids, f"{node.label}: {places} counts over all channels")
    else:
        ledger.set(places, 1, entries.ids, entries.rows)


def max_unpool(ledger: Ledger, node: Node) -> None:
    """MaxUnpool: channels pass together with those of the places."""
    found = [ledger.axis(node, name, 1) for name in node.inputs[:2]]
    known = [entries for entries in found if entries is not None]
    if len(known) < len(found):
        ledger.freeze_all(known, f"{node.label}: its operands cannot be cut together")
    else:
        entries = ledger.meet(*known)
        ledger.set(node.outputs[0], 1, entries.ids, entries.rows)


def max_unpool_repair(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """MaxUnpool: the shape of its output, where it is given."""
    y = node.outputs[0]
    if len(node.inputs) > 2 and node.inputs[2] and editor.cut.is_cut(y):
        shape = editor.shape(y)
        sizes = [editor.cut.size(y, dim) if shape.is_fixed(dim) else None for dim in range(shape.rank)]
        editor.numbers(proto, 2, sizes)


def mean_pool(ledger: Ledger, node: Node) -> None:
    """GlobalAveragePool: channels pass; a mean over what is cut (how tf2onnx writes that of a LayerNorm) changes."""
    pool(ledger, node)
    for dim in range(2, ledger.shape(node.inputs[0]).rank):
        entries = ledger.axis(node, node.inputs[0], dim)
        if entries is not None:
            ledger.normalise(entries.ids, node)


def _places(graph: Graph, node: Node) -> set[int] | None:
    shape = graph.shape(node.inputs[0])
    return None if shape is None else set(range(2, shape.rank))


def regions(ledger: Ledger, node: Node) -> None:
    """RoiAlign, MaxRoiPool: channels pass, to as many samples as there are regions."""
    pass_through(ledger, node, {1})


def _reductions(names: str, masked: str = "", **facts: Any) -> list[Op]:
    return [
        Op(n, reduce_ties, statistics=Statistics(reduced_dims, masked=masked), edge="reduce", **facts)
        for n in names.split()
    ]


_SLIDES: dict[str, Any] = {"shrinks": True, "channels": "first"}
OPS = register(
    *_reductions("ReduceL1 ReduceL2 ReduceMean ReduceSum ReduceSumSquare", masked="weigh", keeps_zero=where_first_is),
    *_reductions("ReduceMax ReduceMin", keeps_zero=where_first_is),
    *_reductions("ReduceLogSum ReduceLogSumExp ReduceProd"),
    Op("ArgMax", arg_reduce, edge="reduce"),
    Op("ArgMin", arg_reduce, edge="reduce"),
    Op("TopK", top, edge="reduce"),
    Op("CumProd", running),
    Op("CumSum", running),
    Op("Trilu", triangle, keeps_zero=where_first_is),
    Op("MaxPool", max_pool, keeps_zero=where_first_is, edge="max-pool", **_SLIDES),
    Op("MaxUnpool", max_unpool, repair=max_unpool_repair, shape_inputs=(2,), keeps_zero=where_first_is, edge="resize"),
    Op("AveragePool", pool, keeps_zero=where_first_is, edge="average-pool", **_SLIDES),
    Op("LpPool", pool, keeps_zero=where_first_is, edge="average-pool", shrinks=True),
    Op(
        "GlobalAveragePool",
        mean_pool,
        keeps_zero=where_first_is,
        edge="global-pool",
        statistics=Statistics(_places, masked="weigh"),
    ),
    Op("GlobalMaxPool", pool, keeps_zero=where_first_is, edge="global-pool"),
    Op("GlobalLpPool", pool, keeps_zero=where_first_is, edge="global-pool"),
    Op("GridSample", pool),
    Op("MaxRoiPool", regions),
    Op("RoiAlign", regions),
)

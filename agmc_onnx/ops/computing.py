"""The op table: how channels pass through each ONNX op that computes on them.

Ops that only move entries (Reshape, Concat, Slice, ...) are in `agmc_onnx.ops.move`. A rule that does not mention an
axis leaves it whole: `agmc_onnx.ties.ledger.walk` freezes it, so an op that is missing here is safe.
"""

from __future__ import annotations

from collections.abc import Sequence

from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ops import move, quantize, sizes
from agmc_onnx.ops.conv import conv, conv_transpose, deformable
from agmc_onnx.ops.einsum import einsum
from agmc_onnx.ops.recurrent import GATES, recurrent
from agmc_onnx.ties.ledger import Axis, Handler, Ledger, tie_or_freeze


def elementwise(ledger: Ledger, node: Node) -> None:
    """Tie the operands of an element-by-element op along every dim of its output, with numpy broadcasting."""
    names = [name for name in node.inputs if name]
    if len(names) == 1:
        _same(ledger, node, names[0], node.outputs[0])
    else:
        broadcast(ledger, node, names, node.outputs[0])
    for extra in node.outputs[1:]:
        if extra:
            broadcast(ledger, node, [node.inputs[0]], extra)


def _same(ledger: Ledger, node: Node, x: str, y: str) -> None:
    """Give every dim of an output the ids of the input's."""
    for dim in range(ledger.shape(x).rank):
        entries = ledger.axis(node, x, dim)
        if entries is not None:
            ledger.set(y, dim, entries.ids, entries.rows)


def broadcast(ledger: Ledger, node: Node, inputs: Sequence[str], output: str) -> None:
    """Tie broadcast operands; a size of 1 is no operand, an operand without ids freezes the others."""
    rank = ledger.shape(output).rank
    all_weights = all(name in ledger.graph.weights for name in inputs)
    sizes = [(name, ledger.shape(name).other) for name in inputs]
    ends = [(name, size, rank - len(size)) for name, size in sizes]  # and the dim of the output where its dims begin
    for dim in range(rank):
        members = [(name, dim - first) for name, size, first in ends if dim >= first and size[dim - first] > 1]
        others = [m for m in members if m[0] not in ledger.graph.tensors]
        if not (all_weights or any(m in ledger.entries for m in others)):
            continue
        constants = [m for m in members if m[0] in ledger.graph.tensors]
        found = [(m, ledger.axis(node, *m)) for m in others]
        found += [(m, ledger.axis(node, *m)) for m in constants]
        if not found:
            continue
        known = [(name, entries) for (name, _), entries in found if entries is not None]
        without = next((axis for axis, entries in found if entries is None), None)
        if without is not None:
            place = f"its operand {without[0]} keeps dimension {without[1]} whole"
            why = f"{node.label}: {place} (positions, the input, or all of it needed by an op)"
            for _, entries in known:
                ledger.freeze(entries.ids, why)
            continue
        shifted = [
            e.permuted({row: row + rank - ledger.shape(name).rank for row in e.rows}) if e.rows else e
            for name, e in known
        ]
        joined = shifted[0]
        for entries in shifted[1:]:
            joined = ledger.meet(joined, entries)
        ledger.set(output, dim, joined.ids, joined.rows)


def gemm(ledger: Ledger, node: Node) -> None:
    """Gemm: one contracted dim, rows from the first operand, columns from the second, C broadcast over both."""
    a, b = node.inputs[:2]
    a_row, a_inner = (1, 0) if node.attribute("transA", 0) else (0, 1)
    b_inner, b_column = (1, 0) if node.attribute("transB", 0) else (0, 1)
    _meet(ledger, node, (a, a_inner), (b, b_inner))
    for dim, (value, source) in enumerate(((a, a_row), (b, b_column))):
        ids = ledger.flat(node, value, source)
        if ids is None:
            continue
        c = node.inputs[2] if len(node.inputs) > 2 else ""
        if c:
            c_dim = dim - 2 + ledger.shape(c).rank
            if c_dim >= 0 and ledger.size(c, c_dim) > 1:
                tie_or_freeze(ledger, node, ids, c, c_dim)
        ledger.set(node.outputs[0], dim, ids)


def matmul(ledger: Ledger, node: Node) -> None:
    """MatMul: the last dim of the first operand meets the last but one of the second; leading dims are a batch."""
    product(ledger, node, False, False)


def product(ledger: Ledger, node: Node, turn_a: bool, turn_b: bool) -> None:
    """Tie a product of two stacks of matrices, either of which may be transposed before."""
    a, b = node.inputs[:2]
    y = node.outputs[0]
    rank, rank_a, rank_b = (ledger.shape(v).rank for v in (y, a, b))
    if rank_a < 2 or rank_b < 2:
        return
    inner = (rank_a - 2 if turn_a else rank_a - 1, rank_b - 1 if turn_b else rank_b - 2)
    outer = (2 * rank_a - 3 - inner[0], 2 * rank_b - 3 - inner[1])
    _meet(ledger, node, (a, inner[0]), (b, inner[1]), rank)
    for value, rank_v, own, target in ((a, rank_a, outer[0], rank - 2), (b, rank_b, outer[1], rank - 1)):
        entries = ledger.axis(node, value, own)
        if entries is not None:
            kept = ledger.collapse(entries, [row for row in entries.rows if row >= rank_v - 2])
            moved = kept.permuted({row: row + rank - rank_v for row in kept.rows})
            ledger.set(y, target, moved.ids, moved.rows)
    for dim in range(rank - 2):  # batch dims: tied across both operands like any broadcast op
        _batch_dim(ledger, node, dim, rank, ((a, rank_a), (b, rank_b)))


def _batch_dim(ledger: Ledger, node: Node, dim: int, rank: int, operands: Sequence[tuple[str, int]]) -> None:
    members = [(v, dim - rank + r) for v, r in operands if dim - rank + r >= 0]
    members = [(v, d) for v, d in members if ledger.size(v, d) > 1]
    found = [ledger.axis(node, *m) for m in members if m[0] not in ledger.graph.tensors]
    known = [e for e in found if e is not None]
    if known and len(known) == len(members):
        columns = [ledger.column(e) for e in known]
        for other in columns[1:]:
            ledger.tie(columns[0], other)
        ledger.set(node.outputs[0], dim, columns[0])
    else:
        for entries in known:
            ledger.freeze(entries.ids, f"{node.label}: batch dimension {dim} cannot be cut in both operands")


def running(ledger: Ledger, node: Node) -> None:
    """CumSum, CumProd: dims other than the one run along pass."""
    axis = ledger.graph.value(node.inputs[1])
    if axis is not None:
        rank = ledger.shape(node.inputs[0]).rank
        _pass_through(ledger, node, set(range(rank)) - {int(axis.ravel()[0]) % rank})


def triangle(ledger: Ledger, node: Node) -> None:
    """Trilu: a batch of matrices; only the batch passes."""
    _pass_through(ledger, node, set(range(ledger.shape(node.inputs[0]).rank - 2)))


def top(ledger: Ledger, node: Node) -> None:
    """TopK: dims other than the sorted one pass."""
    x = node.inputs[0]
    rank = ledger.shape(x).rank
    dims = {dim: dim for dim in range(rank) if dim != node.attribute("axis", -1) % rank}
    for output in filter(None, node.outputs):
        move.carry(ledger, node, x, output, dims)


def regions(ledger: Ledger, node: Node) -> None:
    """RoiAlign, MaxRoiPool: channels pass, to as many samples as there are regions."""
    _pass_through(ledger, node, {1})


def scaled(ledger: Ledger, node: Node) -> None:
    """LpNormalization, MeanVarianceNormalization: cutting a normalised dim changes the statistics."""
    rank = ledger.shape(node.inputs[0]).rank
    is_mean = node.op_type == "MeanVarianceNormalization"
    axes = node.attribute("axes", [0, 2, 3]) if is_mean else [node.attribute("axis", -1)]
    _normalise(ledger, node, {axis % rank for axis in axes})


def batch_norm(ledger: Ledger, node: Node) -> None:
    """BatchNormalization, InstanceNormalization: every parameter follows dim 1 of the input.

    Groups of channels may lie in the later dims of an InstanceNormalization (how GroupNorm is written out), and a weight's
    inputs in those of a BatchNormalization that trains (how weights are standardised): cutting there changes the statistics.
    """
    rank = ledger.shape(node.inputs[0]).rank
    if node.op_type == "BatchNormalization" and not node.attribute(
        "spatial", 1
    ):  # up to opset 8: parameters of all dims
        return
    takes_statistics = node.op_type == "InstanceNormalization" or node.attribute("training_mode", 0)
    _normalise(ledger, node, set(range(2, rank)) if takes_statistics else set())
    ids = ledger.flat(node, node.inputs[0], 1)
    if ids is not None:
        for name in node.inputs[1:]:
            tie_or_freeze(ledger, node, ids, name, 0)


def pool(ledger: Ledger, node: Node) -> None:
    """Pooling and the like: channels (dim 1) pass, spatial dims must be whole."""
    _pass_through(ledger, node, {0, 1})


def local_norm(ledger: Ledger, node: Node) -> None:
    """LRN: channels pass; each is divided by the energy of its neighbours, which are others after a cut."""
    _pass_through(ledger, node, {0, 1})
    entries = ledger.axis(node, node.inputs[0], 1)
    if entries is not None:
        ledger.normalise(entries.ids, node)


def reduce(ledger: Ledger, node: Node) -> None:
    """Reduce ops: dims that are not reduced pass; cutting what is reduced changes the statistics."""
    x = node.inputs[0]
    rank = ledger.shape(x).rank
    reduced = reduced_dims(ledger.graph, node)
    if reduced is None or len(reduced) == rank:
        return
    if not reduced:
        elementwise(ledger, node)
        return
    keepdims = node.attribute("keepdims", 1)
    kept = [dim for dim in range(rank) if dim not in reduced]
    move.carry(ledger, node, x, node.outputs[0], {dim: (dim if keepdims else i) for i, dim in enumerate(kept)})
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
    x = node.inputs[0]
    rank = ledger.shape(x).rank
    axis = node.attribute("axis", 0) % rank
    kept = [dim for dim in range(rank) if dim != axis]
    keepdims = node.attribute("keepdims", 1)
    move.carry(ledger, node, x, node.outputs[0], {dim: (dim if keepdims else i) for i, dim in enumerate(kept)})


def softmax(ledger: Ledger, node: Node) -> None:
    """Softmax, LogSoftmax, Hardmax: dims pass; cutting the normalised ones changes what the entries that stay sum up to.

    So the scores of an attention over channels are cut. Several normalised dims (up to opset 12) must be whole.
    """
    x = node.inputs[0]
    rank = ledger.shape(x).rank
    axis = node.attribute("axis", 1 if ledger.graph.opset < 13 else -1) % rank
    if ledger.graph.opset < 13 and axis < rank - 1:
        _pass_through(ledger, node, set(range(axis)))
        return
    if node.op_type != "Softmax":
        _pass_through(ledger, node, set(range(rank)) - {axis})
        return
    _normalise(ledger, node, {axis})


def layer_norm(ledger: Ledger, node: Node) -> None:
    """LayerNormalization, RMSNormalization: scale and bias follow the normalised dims; cutting changes the statistics."""
    x = node.inputs[0]
    rank = ledger.shape(x).rank
    first = node.attribute("axis", -1) % rank
    _normalise(ledger, node, set(range(first, rank)))
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
    _pass_through(ledger, node, {1})
    ids = ledger.flat(node, node.inputs[0], 1)
    groups = node.attribute("num_groups")
    if ids is not None:
        ledger.balance(ids.reshape(groups, -1))
        ledger.normalise(ids, node)
        for name in node.inputs[1:]:
            if ledger.size(name, 0) == ids.size:
                tie_or_freeze(ledger, node, ids, name, 0)


def _meet(ledger: Ledger, node: Node, one: Axis, other: Axis, rank: int = 2) -> None:
    """Tie the contracted dims of two operands of a product; `rank` is that of its result, whose batch dims rows are."""
    weights = [value in ledger.graph.tensors for value, _ in (one, other)]
    if all(weights):
        return
    first = None if weights[0] else ledger.axis(node, *one)
    second = None if weights[1] else ledger.axis(node, *other)
    if weights[0] and second is not None:
        first = ledger.axis(node, *one)
    if weights[1] and first is not None:
        second = ledger.axis(node, *other)
    if first is None or second is None:
        for entries in (first, second):
            if entries is not None:
                ledger.freeze(entries.ids, f"{node.label}: the other operand cannot be cut with it")
        return
    sides = []
    for entries, (value, _) in ((first, one), (second, other)):
        own = ledger.shape(value).rank
        batched = ledger.collapse(entries, [row for row in entries.rows if row >= own - 2])
        sides.append(batched.permuted({row: row + rank - own for row in batched.rows}))
    ledger.meet(*sides)


def _normalise(ledger: Ledger, node: Node, dims: set[int]) -> None:
    """Pass all dims, noting that statistics are taken over some: what differs along these in the others must be one."""
    x, y = node.inputs[0], node.outputs[0]
    _pass_through(ledger, node, set(range(ledger.shape(x).rank)) - dims)
    for dim in sorted(dims):
        entries = ledger.axis(node, x, dim)
        if entries is not None:
            ledger.normalise(entries.ids, node)
            ledger.set(y, dim, entries.ids, entries.rows)


def _pass_through(ledger: Ledger, node: Node, dims: set[int]) -> None:
    x = node.inputs[0]
    move.carry(ledger, node, x, node.outputs[0], {dim: dim for dim in range(ledger.shape(x).rank) if dim in dims})


_ELEMENTWISE = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil
    Celu Clip Cos Cosh Div Dropout Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish
    Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow
    Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh
    SwiGLU ThresholdedRelu Where Xor
"""
_QUANTISED = "ConvInteger DynamicQuantizeLinear MatMulInteger QLinearConv QLinearMatMul"
_REDUCE = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)

RULES: dict[tuple[str, str], Handler] = {
    **{("", op): elementwise for op in _ELEMENTWISE.split()},
    **{("", op): reduce for op in _REDUCE.split()},
    **{("", op): move.RULES[op] for op in move.RULES},
    **{
        ("", op): pool
        for op in ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "LpPool", "MaxPool")
    },
    ("", "CumProd"): running,
    ("", "CumSum"): running,
    ("", "DeformConv"): deformable,
    ("", "GridSample"): pool,
    ("", "LpNormalization"): scaled,
    ("", "MaxRoiPool"): regions,
    ("", "MeanVarianceNormalization"): scaled,
    ("", "RoiAlign"): regions,
    ("", "TopK"): top,
    ("", "Trilu"): triangle,
    ("", "ArgMax"): arg_reduce,
    ("", "ArgMin"): arg_reduce,
    ("", "BatchNormalization"): batch_norm,
    ("", "InstanceNormalization"): batch_norm,
    ("", "Conv"): conv,
    ("", "ConvTranspose"): conv_transpose,
    ("", "Gemm"): gemm,
    ("", "GroupNormalization"): group_norm,
    ("", "LayerNormalization"): layer_norm,
    ("", "RMSNormalization"): layer_norm,
    ("", "LRN"): local_norm,
    ("", "MatMul"): matmul,
    ("", "Einsum"): einsum,
    **{("", op): recurrent for op in GATES},
    **{("", op): quantize.quantised for op in _QUANTISED.split()},
    ("", "QuantizeLinear"): quantize.linear,
    ("", "DequantizeLinear"): quantize.linear,
    ("", "Shape"): sizes.shape_of,
    ("", "Size"): sizes.shape_of,
    **{("", op): softmax for op in ("Softmax", "LogSoftmax", "Hardmax")},
}

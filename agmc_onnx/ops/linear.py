"""Products of matrices: Gemm, MatMul, Einsum."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from agmc_onnx.graph.registry import Attributes, Dims
from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ops.table import MICROSOFT, Op, Product, Vanishing, register, sizes_of
from agmc_onnx.ops.zeros import Removed
from agmc_onnx.ties.ledger import Axis, Ledger, tie_or_freeze


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
        ledger.freeze_all(known, f"{node.label}: batch dimension {dim} cannot be cut in both operands")


def fused_matmul(ledger: Ledger, node: Node) -> None:
    """FusedMatMul: a product of operands that may be transposed, times a number."""
    if not (node.attribute("transBatchA", 0) or node.attribute("transBatchB", 0)):
        product(ledger, node, bool(node.attribute("transA", 0)), bool(node.attribute("transB", 0)))


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
        ledger.freeze_all((first, second), f"{node.label}: the other operand cannot be cut with it")
        return
    sides = []
    for entries, (value, _) in ((first, one), (second, other)):
        own = ledger.shape(value).rank
        batched = ledger.collapse(entries, [row for row in entries.rows if row >= own - 2])
        sides.append(batched.permuted({row: row + rank - own for row in batched.rows}))
    ledger.meet(*sides)


def einsum(ledger: Ledger, node: Node) -> None:
    """Tie the operands' dims of each letter; letters of the result pass. Dots and repeated letters are left whole."""
    left, arrow, result = node.attribute("equation").replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "." in left + result or any(len(set(term)) < len(term) for term in (*terms, result)):
        return
    graph = ledger.graph
    letters = sorted(set(left) - {","})
    place = {letter: number for number, letter in enumerate(letters)}
    for letter in letters:
        members = [(v, term) for v, term in zip(node.inputs, terms, strict=True) if letter in term]
        members = [(v, term) for v, term in members if ledger.size(v, term.index(letter)) > 1]
        active = [(v, term) for v, term in members if v not in graph.tensors]
        found = [(term, ledger.axis(node, v, term.index(letter))) for v, term in active]
        if active and all(entries is None for _, entries in found):
            continue
        if len(active) < len(members):
            found += [(term, ledger.axis(node, v, term.index(letter))) for v, term in members if v in graph.tensors]
        known = [
            entries.permuted({dim: place[other] for dim, other in enumerate(term)})
            for term, entries in found
            if entries is not None
        ]
        if len(known) < len(found):
            ledger.freeze_all(known, f"{node.label}: {letter} cannot be cut in all operands")
            continue
        if not known:
            continue
        joined = reduce(ledger.meet, known)
        if letter in result:
            joined = ledger.collapse(joined, [row for row in joined.rows if letters[row] not in result])
            moved = joined.permuted({place[other]: dim for dim, other in enumerate(result)})
            ledger.set(node.outputs[0], result.index(letter), moved.ids, moved.rows)


def product_macs(graph: Graph, node: Node) -> list[Product]:
    """Gemm, MatMul: every entry of the output times the contracted dim."""
    x, y = node.inputs[0], node.outputs[0]
    first, _, out = sizes_of(graph, x, node.inputs[1], y)
    inner = len(first) - (2 if node.attribute("transA", 0) else 1)
    return [((*out, first[inner]), [*((y, dim) for dim in range(len(out))), (x, inner)])]


def einsum_macs(graph: Graph, node: Node) -> list[Product]:
    """One product over all letters; what an ellipsis stands for are letters too."""
    terms = node.attribute("equation").replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    axes: dict[str, Axis | None] = {}
    for name, term, dims in zip(node.inputs, terms, sizes_of(graph, *node.inputs), strict=True):
        before, _, after = term.partition("...")
        free = len(dims) - len(before) - len(after)
        letters = [*before, *(f".{free - i}" for i in range(free)), *after]
        for dim, (letter, size) in enumerate(zip(letters, dims, strict=True)):
            sizes[letter] = max(size, sizes.get(letter, 1))
            axes.setdefault(letter, (name, dim) if len(letter) == 1 else None)
    return [(tuple(sizes.values()), list(axes.values()))]


def gemm_zero(asked: Removed) -> bool:
    """Gemm: 0 in columns where those of its second operand and what is added are."""
    inputs, columns = asked.node.inputs, _gemm_columns(asked.node, 2)
    is_zero = asked.dim == 1 and asked.at(inputs[1], columns)
    return is_zero and (len(inputs) < 3 or not inputs[2] or asked.beside(inputs[2]))


def matmul_zero(asked: Removed) -> bool:
    """MatMul: 0 in rows of the first operand, columns of the second, and batches of either."""
    rank, (a, b) = asked.ledger.shape(asked.value).rank, asked.node.inputs
    if asked.dim < rank - 2:
        return asked.beside(a) or asked.beside(b)
    return asked.beside(b) if asked.dim == rank - 1 else asked.beside(a)


def _gemm_columns(node: Node, _: int) -> int:
    return 0 if node.attribute("transB", 0) else 1


def matmul_shape(dims: Sequence[Any], attributes: Attributes) -> list[Dims | None]:
    """FusedMatMul: the batch, broadcast, then rows and columns."""
    a, b = dims[:2]
    if len(a) < 2 or len(b) < 2 or attributes.get("transBatchA", 0) or attributes.get("transBatchB", 0):
        return []
    row = a[-1] if attributes.get("transA", 0) else a[-2]
    column = b[-2] if attributes.get("transB", 0) else b[-1]
    rank = max(len(a), len(b)) - 2
    batch = [(1,) * (rank - len(v) + 2) + tuple(v[:-2]) for v in (a, b)]
    return [(*(max(x, y) for x, y in zip(*batch, strict=True)), row, column)]


OPS = register(
    Op(
        "Gemm", gemm, contracts=True, out_dim=_gemm_columns, refit=True, macs=product_macs, keeps_zero=gemm_zero,
        when_empty=Vanishing("product", ((2,),)), edge="matmul",
    ),
    Op(
        "MatMul", matmul, contracts=True, out_dim=lambda node, rank: rank - 1, refit=True, macs=product_macs,
        keeps_zero=matmul_zero, when_empty=Vanishing("product"), edge="matmul", channels="last",
    ),
    Op("Einsum", einsum, macs=einsum_macs, when_empty=Vanishing("product"), edge="matmul"),
    Op("FusedGemm", gemm, MICROSOFT, macs=product_macs, begins_with=("Gemm", 3)),
    Op(
        "FusedMatMul", fused_matmul, MICROSOFT, macs=product_macs, shape=matmul_shape, when_empty=Vanishing("product"),
    ),
)  # fmt: skip

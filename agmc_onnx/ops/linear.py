"""Products of matrices: Gemm, MatMul, Einsum."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

from agmc_onnx.graph.registry import Attributes, Dims
from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ops.table import MICROSOFT, Op, Product, Vanishing, register, sizes_of
from agmc_onnx.ops.transforms import keep_transform
from agmc_onnx.ops.zeros import Removed
from agmc_onnx.ties.ledger import Axis, Ledger, tie_or_freeze


def gemm(ledger: Ledger, node: Node) -> None:
    """Gemm: one contracted dim, rows from the first operand, columns from the second, C broadcast over both."""
    a, b, *c = filter(None, node.inputs)
    terms = "CM" if node.attribute("transA", 0) else "MC", "NC" if node.attribute("transB", 0) else "CN"
    contract(ledger, node, list(zip((a, b), terms, strict=True)), "MN")
    for name in c:
        for dim in range(2):
            entries, own = ledger.entries.get((node.outputs[0], dim)), dim - 2 + ledger.shape(name).rank
            if entries is not None and own >= 0 and ledger.size(name, own) > 1:
                tie_or_freeze(ledger, node, entries.ids, name, own)


def matmul(ledger: Ledger, node: Node) -> None:
    """MatMul: the last dim of the first operand meets the last but one of the second; leading dims are a batch."""
    product(ledger, node, False, False)


def product(ledger: Ledger, node: Node, turn_a: bool, turn_b: bool) -> None:
    """Tie a product of two stacks of matrices, either of which may be transposed before."""
    ranks = [ledger.shape(name).rank for name in node.inputs[:2]]
    if min(ranks) >= 2:
        batch = [chr(ord("a") + i) for i in range(max(ranks) - 2)]  # an operand may lack the first ones
        inner = ["CM" if turn_a else "MC", "NC" if turn_b else "CN"]
        terms = ["".join(batch[len(batch) - rank + 2 :]) + own for rank, own in zip(ranks, inner, strict=True)]
        contract(ledger, node, list(zip(node.inputs[:2], terms, strict=True)), "".join(batch) + "MN")
        for dim in range(ranks[1]):
            keep_transform(ledger, node, node.inputs[1], dim)


def fused_matmul(ledger: Ledger, node: Node) -> None:
    """FusedMatMul: a product of operands that may be transposed, times a number."""
    if not (node.attribute("transBatchA", 0) or node.attribute("transBatchB", 0)):
        product(ledger, node, bool(node.attribute("transA", 0)), bool(node.attribute("transB", 0)))


def einsum(ledger: Ledger, node: Node) -> None:
    """Einsum: its own letters. Dots and repeated letters are left whole."""
    left, arrow, result = node.attribute("equation").replace(" ", "").partition("->")
    terms = left.split(",")
    if arrow and "." not in left + result and all(len(set(term)) == len(term) for term in (*terms, result)):
        contract(ledger, node, list(zip(node.inputs, terms, strict=True)), result)


def contract(ledger: Ledger, node: Node, terms: list[tuple[str, str]], result: str) -> None:
    """Tie the operands' dims of each letter; letters of the result pass, the others are contracted."""
    constants, spelled = ledger.graph.tensors, ",".join(term for _, term in terms)
    letters = sorted({letter for _, term in terms for letter in term})
    place = {letter: number for number, letter in enumerate(letters)}
    for letter in letters:
        members = [(v, term) for v, term in terms if letter in term and ledger.size(v, term.index(letter)) > 1]
        active = {v: ledger.axis(node, v, term.index(letter)) for v, term in members if v not in constants}
        if all(entries is None for entries in active.values()) and (active or letter not in result):
            continue
        found = [(term, active[v] if v in active else ledger.axis(node, v, term.index(letter))) for v, term in members]
        known = [
            entries.permuted({dim: place[other] for dim, other in enumerate(term)})
            for term, entries in found
            if entries is not None
        ]
        if len(known) < len(found):
            ledger.freeze_all(known, f"{node.label}: not all operands can be cut along {letter} of {spelled}")
        elif known:
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

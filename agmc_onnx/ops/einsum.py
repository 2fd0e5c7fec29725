"""Einsum: every letter is an axis of its own, in all operands that have it."""

from __future__ import annotations

from agmc_onnx.graph.view import Node
from agmc_onnx.ties.ledger import Ledger


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
            for entries in known:
                ledger.freeze(entries.ids, f"{node.label}: {letter} cannot be cut in all operands")
            continue
        if not known:
            continue
        joined = known[0]
        for entries in known[1:]:
            joined = ledger.meet(joined, entries)
        if letter in result:
            joined = ledger.collapse(joined, [row for row in joined.rows if letters[row] not in result])
            moved = joined.permuted({place[other]: dim for dim, other in enumerate(result)})
            ledger.set(node.outputs[0], result.index(letter), moved.ids, moved.rows)

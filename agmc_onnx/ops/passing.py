"""How ids go from the inputs of a node to its outputs: what the rules of several families need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

from agmc_onnx.arrays import IntArray
from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ops.table import op_of
from agmc_onnx.ties.ledger import Axis, Entries, Ledger

_LONGEST_WAY = 12  # nodes that are looked back for where a value comes from


def carry(
    ledger: Ledger,
    node: Node,
    source: str,
    target: str,
    dims: Mapping[int, int],
    picked: Mapping[int, IntArray] | None = None,
    picked_dim: int | None = -1,
) -> None:
    """Give the ids of some dims of one value to dims of another; dims not named must be whole.

    Args:
        ledger: Where ids are kept.
        node: The node whose rule asks.
        source: An input of the node.
        target: An output of the node.
        dims: Dim of `source` to dim of `target`.
        picked: Dims of `source` not in `dims` of which only some entries go on: their indices. Ids that differ along such a
            dim are picked too.
        picked_dim: Dim of `target` that the picked dim becomes (-1: the same number); None where it is gone.
    """
    picked = picked or {}
    for dim, to in dims.items():
        if ledger.size(source, dim) == 1 or ledger.size(source, dim) != ledger.size(target, to):
            continue  # broadcast, or resized: an axis that is labelled all the same is frozen by not being mentioned
        entries = ledger.axis(node, source, dim)
        if entries is None:
            continue
        entries = pick_rows(ledger, source, entries, picked)
        places = {
            d: place
            for d, place in {**dims, **{row: row if picked_dim == -1 else picked_dim for row in picked}}.items()
            if d in picked or place is None or ledger.size(source, d) == ledger.size(target, place)
        }
        kept = ledger.collapse(entries, [row for row in entries.rows if places.get(row) is None])
        moved = kept.permuted({row: place for row, place in places.items() if place is not None})
        ledger.set(target, to, moved.ids, moved.rows)


def pick_rows(ledger: Ledger, value: str, entries: Entries, picked: Mapping[int, IntArray]) -> Entries:
    """Return entries after some indices were picked along their row dims; an index without a dim drops the row."""
    for row in [row for row in entries.rows if row in picked]:
        at = entries.rows.index(row)
        if entries.ids.shape[at] != ledger.size(value, row):
            entries = ledger.collapse(entries, [row])
            continue
        ids = entries.ids.take(picked[row], axis=at)
        if ids.ndim == entries.ids.ndim:
            entries = Entries(ids, entries.rows)
        else:
            entries = Entries(ids, tuple(r for r in entries.rows if r != row))
    return entries


def pass_through(ledger: Ledger, node: Node, dims: set[int]) -> None:
    """Let these dims of the first input pass to the first output; others must be whole."""
    x = node.inputs[0]
    carry(ledger, node, x, node.outputs[0], {dim: dim for dim in range(ledger.shape(x).rank) if dim in dims})


def normalise(ledger: Ledger, node: Node, dims: set[int]) -> None:
    """Pass all dims, noting that statistics are taken over some: what differs along these in the others must be one."""
    x, y = node.inputs[0], node.outputs[0]
    pass_through(ledger, node, set(range(ledger.shape(x).rank)) - dims)
    for dim in sorted(dims):
        entries = ledger.axis(node, x, dim)
        if entries is not None:
            ledger.normalise(entries.ids, node)
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
        if not (
            all_weights or any(m in ledger.entries for m in others) or (not others and _stands_alone(ledger, members))
        ):
            continue
        constants = [m for m in members if m[0] in ledger.graph.tensors]
        found = [(m, ledger.axis(node, *m)) for m in others]
        found += [(m, ledger.axis(node, *m)) for m in constants]
        if not found:
            continue
        known = [(name, entries) for (name, _), entries in found if entries is not None]
        without = next((axis for axis, entries in found if entries is None), None)
        if without is not None:
            why = f"{node.label}: it meets {origin(ledger.graph, without[0])}, which keeps dimension {without[1]} whole"
            ledger.freeze_all((entries for _, entries in known), why)
            continue
        shifted = [
            e.permuted({row: row + rank - ledger.shape(name).rank for row in e.rows}) if e.rows else e
            for name, e in known
        ]
        joined = reduce(ledger.meet, shifted)
        ledger.set(output, dim, joined.ids, joined.rows)


def origin(graph: Graph, value: str) -> str:
    """Return in words where a value comes from, past ops that only move entries or keep their places."""
    for _ in range(_LONGEST_WAY):
        if value in graph.inputs:
            return f"the input {value}"
        if value in graph.tensors:
            return f"the constant {value}"
        node = graph.producer.get(value)
        if node is None:
            return value
        sources = [name for name in node.inputs if name and name not in graph.tensors]
        if len(sources) != 1 and not (op_of(node).edge == "reshape" and node.inputs):
            break
        value = node.inputs[0] if op_of(node).edge == "reshape" else sources[0]
    return value if node is None else f"what {node.label} makes"


def _stands_alone(ledger: Ledger, members: Sequence[Axis]) -> bool:
    """Whether a dim comes from one constant that has no other: the frequencies that positions are multiplied by."""
    return len(members) == 1 and sum(size > 1 for size in ledger.shape(members[0][0]).other) == 1


def only_user(graph: Graph, value: str) -> Node | None:
    """Return the node that alone reads a value, as its first input, or None."""
    users = graph.consumers.get(value, ())
    is_seen = value in graph.outputs or value in graph.captured
    return users[0][0] if len(users) == 1 and users[0][1] == 0 and not is_seen else None

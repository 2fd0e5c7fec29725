"""Axes and ties: which entries of which values live and die together.

An **axis** is (value, dim); its entries carry ids. A rule of an op (`agmc_onnx.ops`) reads the ids of a node's inputs
and gives ids to its outputs: the same id means the same entry, a **tie** says that two ids live or die together. So
Concat concatenates ids, Split and Slice cut them, Flatten repeats them, and only where two axes meet (Add, a contraction)
is a tie needed. Ties have no direction.

After a reshape of a flat axis C into (R, C/R) the entries of the second dim may differ from row to row: `Entries.ids` is
then two-dimensional and `rows` names the other dim (or dims). Every row must keep equally many (`Ledger.balance`), but not
the same ones. Groups of a convolution and heads of an attention are such rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from agmc_onnx.arrays import IntArray
from agmc_onnx.errors import ModelError
from agmc_onnx.graph.shapes import Shape
from agmc_onnx.graph.view import Graph, Node, captured_names

Axis = tuple[str, int]
_TO_FOLD = "an export with fixed input sizes often does without it"
Handler = Callable[["Ledger", Node], None]
Rules = Callable[[Node], Handler | None]  # the rule of a node, or None where there is none


class Facts(Protocol):
    """What this layer asks of an op; `agmc_onnx.ops.table.Op` says what each means."""

    @property
    def ties(self) -> Handler | None: ...  # noqa: D102
    @property
    def joins(self) -> bool: ...  # noqa: D102
    @property
    def contracts(self) -> bool: ...  # noqa: D102
    @property
    def kernel(self) -> bool: ...  # noqa: D102
    @property
    def out_dim(self) -> Callable[[Node, int], int] | None: ...  # noqa: D102
    @property
    def divisors(self) -> tuple[int, ...]: ...  # noqa: D102


OpOf = Callable[[Node], Facts]


@dataclass(frozen=True, eq=False)
class Entries:
    """Ids of one axis.

    Attributes:
        ids: (size,), or (*periods, size) where entries differ along other dims.
        rows: Those dims, ascending, one for each leading axis of `ids`. Entries repeat along a row dim with the period that
            `ids` has there, so a period divides that dim's size.
    """

    ids: IntArray
    rows: tuple[int, ...] = ()

    @property
    def grid(self) -> IntArray:
        """Ids as (number of rows, size)."""
        return self.ids.reshape(-1, self.ids.shape[-1])

    def permuted(self, dims: Mapping[int, int]) -> Entries:
        """Return the same entries where row dims have other numbers."""
        rows = [dims[row] for row in self.rows]
        order = np.argsort(rows, kind="stable").tolist()
        return Entries(self.ids.transpose([*order, len(rows)]), tuple(sorted(rows)))


@dataclass(frozen=True)
class Freeze:
    """Ids that must stay, and why."""

    ids: IntArray
    why: str


@dataclass(frozen=True)
class Shuffle:
    """Reshape, Transpose, Reshape that permute dim `dim`, read as (rows, size / rows), by transposing it."""

    chain: tuple[Node, ...]
    dim: int
    rows: int


class Ledger:
    """Collects ids, ties, balances and freezes while the rules walk over a graph.

    Attributes:
        graph: The graph walked over.
        entries: Ids of every axis that can be cut, by axis.
        ties: Pairs of id arrays of equal size.
        balances: Id arrays (rows, size): every row keeps equally many.
        frozen: What must stay.
        mentioned: (value, dim, node's index) where a node's rule knows an axis; any other user of it freezes it.
        normalised: Ids over which a node takes statistics, with the node's label: cutting them changes the numbers that stay.
        shuffles: Channel shuffles by the index of their first node: the nodes, the dim they permute, and its rows.
        views: Gathers that, with the Reshape of this index, change nothing.
        sized: Axes whose size a node computes with, by the node's index.
        runs: Ids of axes in which every entry is a run of places, as many for each; (groups, size) by the dim before.
        skipped: Nodes that a rule of another node stands for.
        inside: Ledgers of the graphs that nodes hold (`ties.bodies`), by the first output of the node and the attribute.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.entries: dict[Axis, Entries] = {}
        self.ties: list[tuple[IntArray, IntArray]] = []
        self.balances: list[IntArray] = []
        self.frozen: list[Freeze] = []
        self.mentioned: set[tuple[str, int, int]] = set()
        self.normalised: list[Freeze] = []
        self.shuffles: dict[int, Shuffle] = {}
        self.views: dict[int, Node] = {}
        self.sized: dict[int, set[Axis]] = {}
        self.runs: dict[Axis, Entries] = {}
        self.skipped: set[int] = set()
        self.inside: dict[tuple[str, str], Ledger] = {}
        self.n_ids = 0

    # -- shapes ---------------------------------------------------------------------------------------------------

    def shape(self, value: str) -> Shape:
        """Return a value's shape; rules are only called where all shapes are known."""
        shape = self.graph.shape(value)
        assert shape is not None
        return shape

    def size(self, value: str, dim: int) -> int:
        """Return the size of one dim."""
        return self.shape(value).other[dim]

    # -- reading --------------------------------------------------------------------------------------------------

    def labelled(self, value: str) -> list[int]:
        """Return the dims of a value that have ids, ascending; dims of weights get theirs when first asked for."""
        return [dim for dim in range(self.shape(value).rank) if (value, dim) in self.entries]

    def axis(self, node: Node, value: str, dim: int, is_weight: bool = False) -> Entries | None:
        """Return the ids of an axis that `node`'s rule knows, or None where it cannot be cut.

        Args:
            node: The node whose rule asks; the axis is then mentioned there.
            value: Input of the node.
            dim: Dimension; negative counts from the end.
            is_weight: Whether a constant is a weight although it does not hold floating numbers.
        """
        if dim < 0:
            dim += self.shape(value).rank
        axis = (value, dim)
        self.mentioned.add((value, dim, node.index))
        entries = self.entries.get(axis)
        if entries is None and value in self.graph.tensors and (is_weight or self.graph.is_float(value)):
            size = self.graph.tensors[value].dims[dim]
            if size > 1:
                entries = self.entries[axis] = Entries(self.fresh(size))
        return entries

    def flat(self, node: Node, value: str, dim: int) -> IntArray | None:
        """Return the ids of an axis as one row; rows that could differ are tied together."""
        entries = self.axis(node, value, dim)
        return None if entries is None else self.column(entries)

    def column(self, entries: Entries) -> IntArray:
        """Return entries as one row; rows that could differ are tied together."""
        return self.collapse(entries, entries.rows).ids

    def collapse(self, entries: Entries, rows: Iterable[int]) -> Entries:
        """Return entries that no longer differ along some row dims; what could differ there is tied together."""
        for row in rows:
            at = entries.rows.index(row)
            first = entries.ids.take([0], axis=at)
            self.tie(entries.ids, np.broadcast_to(first, entries.ids.shape))
            entries = Entries(first.squeeze(at), tuple(r for r in entries.rows if r != row))
        return entries

    def meet(self, one: Entries, other: Entries) -> Entries:
        """Tie two axes whose dims have the same numbers, row by row; return the one that differs along more rows."""
        rows = tuple(sorted({*one.rows, *other.rows}))
        for row in rows:  # periods along a shared row dim must be the same
            if row not in one.rows or row not in other.rows:
                continue
            if one.ids.shape[one.rows.index(row)] != other.ids.shape[other.rows.index(row)]:
                one, other = self.collapse(one, [row]), self.collapse(other, [row])
        rows = tuple(row for row in rows if row in one.rows or row in other.rows)
        self.tie(_spread(one, rows), _spread(other, rows))
        return one if len(one.rows) >= len(other.rows) else other

    # -- writing --------------------------------------------------------------------------------------------------

    def fresh(self, size: int) -> IntArray:
        """Return `size` ids never used before."""
        ids = np.arange(self.n_ids, self.n_ids + size, dtype=np.int64)
        self.n_ids += size
        return ids

    def fixed(self, size: int, why: str) -> IntArray:
        """Return `size` new ids that must stay."""
        ids = self.fresh(size)
        self.freeze(ids, why)
        return ids

    def set(self, value: str, dim: int, ids: IntArray, rows: tuple[int, ...] = ()) -> None:
        """Give ids to an axis of an output; sizes 1 and open sizes take none.

        Args:
            value: Output of a node, or "" for one left out.
            dim: Dimension.
            ids: (*periods, size).
            rows: Dims that `ids` differs along; those where it does not after all are dropped.
        """
        if not value:
            return
        shape = self.shape(value)
        assert ids.shape[-1] == shape.other[dim], (value, dim, ids.shape, shape)
        assert ids.ndim == len(rows) + 1, (value, dim, ids.shape, rows)
        if not shape.is_fixed(dim):
            self.freeze(ids, f"dimension {dim} of {value} has no fixed size; export the model with one to cut it")
        elif shape.other[dim] > 1:
            for at in reversed(range(len(rows))):
                if (ids == ids.take([0], axis=at)).all():
                    ids, rows = np.take(ids, 0, axis=at), rows[:at] + rows[at + 1 :]
            self.entries[value, dim] = Entries(ids, rows)
        else:
            self.freeze(ids, f"dimension {dim} of {value} has size 1 and must stay")

    def tie(self, one: IntArray, other: IntArray) -> None:
        """Let two arrays of ids live and die together, entry by entry."""
        if one is other:
            return
        if one.shape != other.shape:
            one, other = np.broadcast_arrays(one, other)
        if not (one == other).all():
            self.ties.append((one.ravel(), other.ravel()))

    def balance(self, ids: IntArray) -> None:
        """Let every row of (..., size) ids keep equally many."""
        if not ids.size:
            return
        grid = ids.reshape(-1, ids.shape[-1])
        if grid.shape[0] > 1:
            self.balances.append(grid)

    def freeze(self, ids: IntArray, why: str) -> None:
        """Keep all these ids."""
        self.frozen.append(Freeze(ids.ravel(), why))

    def freeze_all(self, found: Iterable[Entries | IntArray | None], why: str) -> None:
        """Keep all these ids, as far as there are any."""
        for one in found:
            if one is not None:
                self.freeze(one.ids if isinstance(one, Entries) else one, why)

    def normalise(self, ids: IntArray, node: Node) -> None:
        """Note that a node takes statistics over these ids."""
        self.normalised.append(Freeze(ids.ravel(), node.label))

    def freeze_value(self, value: str, why: str) -> None:
        """Keep every entry of a value."""
        if self.graph.shape(value) is not None:
            for dim in self.labelled(value):
                self.freeze(self.entries[value, dim].ids, why)

    def close(self, of_outputs: str, entered: Set[str] = frozenset()) -> None:
        """Freeze what no rule knows: axes that a user never mentions, outputs, and what nodes use inside of themselves.

        Args:
            of_outputs: Why outputs stay, with {} for the name of one.
            entered: First outputs of nodes whose graphs were walked over; constants are known there.
        """
        graph = self.graph
        for (value, dim), entries in self.entries.items():
            for node, _ in graph.consumers.get(value, ()):
                if (value, dim, node.index) not in self.mentioned and node.index not in self.skipped:
                    self.freeze(entries.ids, f"{node.label}: works on the whole dimension {dim} of {value} at once")
        for value in graph.outputs:
            self.freeze_value(value, of_outputs.format(value))
        for holder in graph.nodes if graph.captured else ():
            for value in captured_names(holder.proto):
                if value not in graph.tensors or holder.outputs[0] not in entered:
                    self.freeze_value(value, f"{holder.label}: used inside its subgraph, which is not cut; {_TO_FOLD}")


def walk(graph: Graph, rules: Rules, enter: Callable[[Ledger], None] = lambda ledger: None) -> Ledger:
    """Run the rules over a graph in topological order.

    Args:
        graph: The graph.
        rules: Returns the rule of a node.
        enter: Walks over graphs that nodes hold too (`agmc_onnx.ties.bodies`).

    Returns:
        The ledger, with everything frozen that a rule does not know: an axis that some user of it never mentions, a
        graph output, a value used inside a subgraph.
    """
    ledger = Ledger(graph)
    visit(ledger, rules)
    enter(ledger)
    ledger.close("graph output {}", {holder for holder, _ in ledger.inside})
    return ledger


def visit(ledger: Ledger, rules: Rules) -> None:
    """Run the rules over a graph; what a node without one touches is frozen."""
    graph, known = ledger.graph, ledger.graph.known_shapes
    for node in graph.nodes:
        if node.index in ledger.skipped:
            continue
        rule = rules(node)
        if len(node.outputs) > 1:
            node = _without_unused(graph, node)
        unknown = next((v for v in (*node.inputs, *node.outputs) if v and v not in known), None)
        if rule is None or unknown is not None:
            why = (
                f"{node.label}: this op is not understood"
                if rule is None
                else f"{node.label}: shape of {unknown} is not known; an export with fixed input sizes may tell it"
            )
            for value in node.inputs:
                if value:
                    ledger.freeze_value(value, why)
            continue
        try:
            rule(ledger, node)
        except MemoryError:
            raise ModelError(
                f"{node.label}: its values are too large to analyse, got a dim that takes more memory than there is;"
                " expected sizes that the model runs at. Give smaller ones with --input-shape, or export it again."
            ) from None


def _without_unused(graph: Graph, node: Node) -> Node:
    """Return a node without its further outputs that nobody uses: inference may not know their shapes (Dropout's mask)."""

    def is_used(value: str) -> bool:
        return value in graph.consumers or value in graph.outputs or value in graph.captured

    if all(graph.shape(value) is not None or is_used(value) for value in node.outputs[1:] if value):
        return node
    used = [value if graph.shape(value) is not None or is_used(value) else "" for value in node.outputs[1:]]
    return replace(node, outputs=(node.outputs[0], *used))


def _spread(entries: Entries, rows: tuple[int, ...]) -> IntArray:
    """Return ids with an axis for every dim of `rows`, of size 1 where the entries do not differ along it."""
    sizes = iter(entries.ids.shape)
    return entries.ids.reshape([next(sizes) if row in entries.rows else 1 for row in rows] + [entries.ids.shape[-1]])


def tie_or_freeze(ledger: Ledger, node: Node, ids: IntArray, value: str, dim: int) -> None:
    """Let ids live and die with a dim of another value, or freeze them where that cannot be cut."""
    entries = ledger.axis(node, value, dim)
    if entries is None:
        ledger.freeze(ids, f"{node.label}: its operand {value} cannot be cut with it")
    else:
        ledger.tie(entries.ids, ids)


def describe(ledger: Ledger, names: Iterable[str]) -> str:
    """Return the ids of some values on one line, for tests and debugging: `x[1]=0..7 w[0]=0..7`."""
    parts = []
    for name in names:
        for dim in ledger.labelled(name):
            entries = ledger.entries[name, dim]
            text = " | ".join(_ranges(row) for row in entries.grid)
            parts.append(f"{name}[{dim}]={text}" + (f" by {','.join(map(str, entries.rows))}" if entries.rows else ""))
    ties = [f"{_ranges(a)}~{_ranges(b)}" for a, b in ledger.ties]
    return " ".join(parts + ties)


def _ranges(ids: IntArray) -> str:
    runs: list[list[int]] = []
    for i in ids.tolist():
        if runs and i == runs[-1][-1] + 1 and len(runs[-1]) <= 2:
            runs[-1] = [runs[-1][0], i]
        else:
            runs.append([i])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)

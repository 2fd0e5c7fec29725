"""Units of the axes of a graph, and of graphs inside of nodes (branches of If, bodies of Loop and Scan).

Those are walked over in the ledger of the graph around them. Constants are the same inside and outside. What else goes in or
comes out stays whole, and so does what is normalised or divided by inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from agmc_onnx.arrays import IntArray, Mask
from agmc_onnx.graph.view import Graph, Node, captured_names
from agmc_onnx.ties.ledger import Axis, Entries, Ledger, OpOf, Shuffle, visit

Bodies = Callable[[Graph, Node], Mapping[str, Graph]]  # the graphs that a node holds and that may be cut, by attribute


@dataclass(frozen=True, eq=False)
class AxisUnits:
    """Units of one axis.

    Attributes:
        units: (size,) or, where rows differ, (number of rows, size).
        rows: The dims that rows are along, ascending.
        periods: How many rows there are along each; they repeat along a larger dim.
    """

    units: IntArray
    rows: tuple[int, ...] = ()
    periods: tuple[int, ...] = ()


def units_on(
    axes: Mapping[Axis, AxisUnits], n_units: int, where: Callable[[str, int], bool] = lambda value, dim: True
) -> Mask:
    """Return which units stand on some axis, of those that value and dim choose (n_units,)."""
    found = np.zeros(n_units, bool)
    for axis, stands in axes.items():
        if where(*axis):
            found[stands.units] = True
    return found


@dataclass(frozen=True, eq=False)
class Scope:
    """What was found on the values of one graph.

    Attributes:
        graph: The graph; of one inside of a node, with the constants that it takes from outside.
        axes: Units of every axis that has ids; frozen units are among them.
        shuffles: Channel shuffles by the index of their first node.
        views: Gathers that, with the Reshape of this index, change nothing.
        sized: Axes whose size a node computes with, by the node's index.
        runs: Units (groups, size) of axes in which every unit is a run of places, of any length.
    """

    graph: Graph
    axes: dict[Axis, AxisUnits]
    shuffles: Mapping[int, Shuffle]
    views: Mapping[int, Node]
    sized: Mapping[int, Set[Axis]]
    runs: Mapping[Axis, IntArray]

    @classmethod
    def of(cls, ledger: Ledger, unit_of: IntArray, **others: Any) -> Self:
        """Return what a ledger says, in units; with more, where more is known."""
        axes = {
            axis: AxisUnits(unit_of[e.grid if e.rows else e.ids], e.rows, e.ids.shape[:-1])
            for axis, e in ledger.entries.items()
        }
        runs = {axis: unit_of[entries.ids] for axis, entries in ledger.runs.items()}
        return cls(ledger.graph, axes, ledger.shuffles, ledger.views, ledger.sized, runs, **others)


@dataclass(frozen=True, eq=False)
class Body(Scope):
    """A graph inside of a node, and what was found in it.

    Attributes:
        holder: First output of the node.
        name: The attribute that it stands in.
    """

    holder: str
    name: str

    def axis(self, axis: Axis, outer: Graph) -> Axis:
        """Return the name that an axis has outside."""
        return axis if axis[0] in outer.tensors else (inner_name(self.holder, self.name, axis[0]), axis[1])


def inner_name(holder: str, attribute: str, value: str) -> str:
    """Return the name that a value of a graph inside of a node has in the ledger of the graph around it."""
    return f"{holder}/{attribute}/{value}"


def enter(ledger: Ledger, op_of: OpOf, bodies: Bodies) -> None:
    """Walk over the graphs that the nodes of a graph hold.

    Args:
        ledger: Of the graph around them: ids, ties, balances and what is frozen are noted there, and their axes too, under
            `inner_name`.
        op_of: Returns what is known of a node's op.
        bodies: Returns the graphs that a node holds, where they may be cut.
    """
    graph, outside = ledger.graph, ledger.graph.tensors
    holders = [node for node in graph.nodes if graph.captured and any(captured_names(node.proto))]
    found = [(holder, name, Ledger(body)) for holder in holders for name, body in bodies(graph, holder).items()]
    for holder, name, inner in found:
        ledger.inside[holder.outputs[0], name] = inner
        inner.ties, inner.balances, inner.frozen = ledger.ties, ledger.balances, ledger.frozen
        inner.n_ids = ledger.n_ids
        inner.entries.update(_shared(ledger, inner.graph))
        visit(inner, lambda node: op_of(node).ties)
        ledger.n_ids = inner.n_ids
        for (value, dim), entries in inner.entries.items():
            known = value if value in outside else inner_name(holder.outputs[0], name, value)
            ledger.entries[known, dim] = entries
    for holder, name, inner in found:
        inner.entries.update(_shared(ledger, inner.graph))  # other bodies know more of them
        inner.close(f"{holder.label}: what comes out of its {name} stays whole")
        for mark in inner.normalised:
            inner.freeze(mark.ids, f"{mark.why}: takes statistics over it inside of {holder.label}")
        for value in filter(lambda name: name not in outside, inner.graph.tensors):
            inner.freeze_value(value, f"{holder.label}: {value} is stored inside of it")
        for node in inner.graph.nodes:
            for value in [node.inputs[at] for at in op_of(node).divisors if at < len(node.inputs)]:
                if value in outside:  # a removed entry is 0 in the masked original
                    inner.freeze_value(value, f"{node.label}: divides by it inside of another node")


def _shared(ledger: Ledger, body: Graph) -> Iterator[tuple[Axis, Entries]]:
    """Yield the entries of constants that a graph sees from inside of a node."""
    names = body.tensors.keys() & ledger.graph.tensors.keys()
    return ((axis, entries) for axis, entries in ledger.entries.items() if axis[0] in names)

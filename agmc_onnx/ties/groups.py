"""Ties -> units -> groups: what can be cut, as a handful of decisions."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Protocol

import numpy as np
import numpy.typing as npt

from agmc_onnx.arrays import IntArray, Mask
from agmc_onnx.errors import UsageError
from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ties.balance import components, join_uneven, merge, step_of
from agmc_onnx.ties.ledger import Axis, Bodies, Handler, Ledger, Shuffle, inner_name, walk

RESIDUAL = "residual"  # stands for all groups that shortcuts join
LAYER = "layer:"  # before a name in --exclude: it may shrink, not go


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
class Group:
    """All units on the same axes; one decision.

    Attributes:
        name: Readable and unique: the weight whose output channels these are.
        units: Unit numbers, in the order of the first axis they stand on.
        step: A kept count is a multiple of this (or all units).
        partitions: Each an int array (n_units,) that puts the units into blocks, which all keep the same share. Blocks are
            equally large, except where a single partition stands for rows that only together keep equally many.
        why_frozen: Why nothing of it can be cut, or None.
        normalised_by: Nodes that take statistics over its units; what stays then changes when some are cut.
    """

    name: str
    units: IntArray
    step: int
    partitions: tuple[IntArray, ...]
    why_frozen: str | None
    normalised_by: tuple[str, ...]

    @property
    def n_units(self) -> int:
        """Number of units."""
        return self.units.size


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


@dataclass(frozen=True, eq=False)
class Body:
    """A graph inside of a node, and what was found in it.

    Attributes:
        holder: First output of the node.
        name: The attribute that it stands in.
        graph: The graph, with the constants that it takes from outside.
        axes: Units of its axes, by their names inside.
        shuffles, views, sized, runs: As of `Channels`.
    """

    holder: str
    name: str
    graph: Graph
    axes: Mapping[Axis, AxisUnits]
    shuffles: Mapping[int, Shuffle]
    views: Mapping[int, Node]
    sized: Mapping[int, Set[Axis]]
    runs: Mapping[Axis, IntArray]

    def axis(self, axis: Axis, outer: Graph) -> Axis:
        """Return the name that an axis has outside."""
        return axis if axis[0] in outer.tensors else (inner_name(self.holder, self.name, axis[0]), axis[1])


@dataclass(frozen=True, eq=False)
class Channels:
    """What the analysis of a graph found.

    Attributes:
        graph: The graph.
        op_of: Returns what is known of a node's op.
        axes: Units of every axis that has ids; frozen units are among them.
        groups: The prunable groups, in the order of the network.
        frozen: Groups that stay whole, each with its reason.
        n_units: Number of units in all.
        shuffles: Channel shuffles by the index of their first node.
        views: Gathers that, with the Reshape of this index, change nothing.
        sized: Axes whose size a node computes with, by the node's index.
        runs: Units (groups, size) of axes in which every unit is a run of places, of any length.
        staying: Names of groups that may shrink but not keep nothing, with the reason.
        bodies: The graphs inside of nodes that units stand in.
    """

    graph: Graph
    op_of: OpOf
    axes: dict[Axis, AxisUnits]
    groups: tuple[Group, ...]
    frozen: tuple[Group, ...]
    n_units: int
    shuffles: Mapping[int, Shuffle]
    views: Mapping[int, Node]
    sized: Mapping[int, Set[Axis]]
    runs: Mapping[Axis, IntArray]
    staying: Mapping[str, str] = field(default_factory=dict)
    bodies: tuple[Body, ...] = ()

    def inside(self, body: Body) -> Channels:
        """Return what was found in a graph inside of a node: the same units and groups, on its own axes."""
        return replace(
            self,
            graph=body.graph,
            axes=dict(body.axes),
            shuffles=body.shuffles,
            views=body.views,
            sized=body.sized,
            runs=body.runs,
            bodies=(),
        )

    def removed(self, kept: list[IntArray]) -> Mask:
        """Return a mask over units, true where a unit goes.

        Args:
            kept: For each prunable group the kept positions, ascending, in 0..n_units-1 of that group.
        """
        gone = np.zeros(self.n_units, bool)
        for group, positions in zip(self.groups, kept, strict=True):
            gone[group.units] = True
            gone[group.units[positions]] = False
        return gone

    @property
    def joined(self) -> Mask:
        """Whether a sum of two feature maps or more joins the units of each prunable group (n_groups,)."""
        sums = {
            name
            for node in self.graph.nodes
            if self.op_of(node).joins and sum(bool(i) and i not in self.graph.tensors for i in node.inputs) > 1
            for name in node.outputs
        }
        is_summed = np.zeros(self.n_units, bool)
        for (value, _), axis in self.axes.items():
            if value in sums:
                is_summed[axis.units] = True
        return np.array([is_summed[group.units].any() for group in self.groups], bool)

    @property
    def makers(self) -> list[list[str]]:
        """The weights that make the channels of each prunable group, in the order of the network."""
        group_of = np.full(self.n_units, -1, np.int64)
        for index, group in enumerate(self.groups):
            group_of[group.units] = index
        found: list[list[str]] = [[] for _ in self.groups]
        for (value, dim), axis in self.axes.items():
            graphs = (self.graph, *(body.graph for body in self.bodies))
            if value in self.graph.tensors and _is_output_dim(graphs, self.op_of, value, dim):
                for index in _distinct(group_of[axis.units]):
                    if index >= 0:
                        found[index].append(value)
        return found

    def excluding(self, names: Sequence[str]) -> Channels:
        """Return the analysis with some prunable groups frozen, or some layers kept.

        Args:
            names: Names of groups, or of weights or nodes that make their channels, with `*` and `?` as in file names; "residual"
                stands for the groups that shortcuts join, and with `layer:` before it a name says that the layer stays, while
                its widths may shrink.

        Raises:
            UsageError: If a name fits no group.
        """
        makers = [
            {
                group.name,
                *weights,
                *(node.proto.name for weight in weights for node, _ in self.graph.consumers.get(weight, ())),
            }
            for group, weights in zip(self.groups, self.makers, strict=True)
        ]
        joined = self.joined
        why: dict[int, str] = {}
        staying: dict[str, str] = {}
        for text in names:
            name = text.removeprefix(LAYER)
            found = [
                index
                for index, own in enumerate(makers)
                if (joined[index] if name == RESIDUAL else any(fnmatchcase(one, name) for one in own))
            ]
            if not found and name != RESIDUAL and not any(fnmatchcase(group.name, name) for group in self.frozen):
                known = sorted(set().union(*makers)) if makers else []
                near = difflib.get_close_matches(name, known, 1, 0.3)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise UsageError(
                    f"--exclude: no group has this name, got {name!r}; expected one that agmc-onnx inspect prints, with * and"
                    f" ? if you like, or {RESIDUAL}.{hint}"
                )
            for index in found:
                if name != text:
                    staying.setdefault(self.groups[index].name, f"stays by --exclude {text}")
                else:
                    why.setdefault(index, f"left whole by --exclude {name}")
        groups = tuple(group for index, group in enumerate(self.groups) if index not in why)
        frozen = tuple(replace(self.groups[index], why_frozen=text) for index, text in sorted(why.items()))
        return replace(self, groups=groups, frozen=(*frozen, *self.frozen), staying={**self.staying, **staying})


def analyse(graph: Graph, op_of: OpOf, bodies: Bodies | None = None) -> Channels:
    """Find the groups of a graph.

    Args:
        graph: A normalised graph (`agmc_onnx.graph.normal_form`).
        op_of: Returns what is known of a node's op; nothing is known of ops but what it says.
        bodies: Returns the graphs inside of a node that may be cut.
    """
    ledger = walk(graph, lambda node: op_of(node).ties, bodies)
    for inner in ledger.inside.values():
        for node in inner.graph.nodes:
            for value in [node.inputs[at] for at in op_of(node).divisors if at < len(node.inputs)]:
                if value in graph.tensors:  # a removed entry is 0 in the masked original
                    ledger.freeze_value(value, f"{node.label}: divides by it inside of another node")
    unit_of, n_units = components(ledger.n_ids, ledger.ties)
    why = _frozen_units(ledger, unit_of)
    axes = _axis_units(ledger, unit_of)
    has_weight, is_used = _uses(graph, op_of, axes, n_units)
    for unit in np.flatnonzero(~(has_weight & is_used)).tolist():
        why.setdefault(unit, "nothing but statistics of constants depends on it")
    of_kernel = _of_kernels(graph, op_of, axes, n_units)
    ordered, group_of = _alike(axes, n_units)
    ordered, group_of = merge(ledger, unit_of, ordered, group_of)
    ordered, group_of, partitions = join_uneven(ledger, unit_of, ordered, group_of, why)
    inside = tuple(inner.graph for inner in ledger.inside.values())
    names = _names((graph, *inside), op_of, axes, ordered, group_of)
    norms: dict[int, set[str]] = {}
    for mark in ledger.normalised:
        for index in _distinct(group_of[unit_of[mark.ids]]):
            norms.setdefault(index, set()).add(mark.why)
    groups: list[Group] = []
    frozen: list[Group] = []
    is_frozen = np.zeros(n_units, bool)
    is_frozen[list(why)] = True
    for index, units in enumerate(ordered):
        blocks = tuple(partitions.get(index, ()))
        step = step_of(blocks)
        reason = next((why[int(unit)] for unit in units[is_frozen[units]][:1]), None)
        if reason is None and units.size <= step:
            reason = (
                "it is a single unit, and one must stay"
                if step == 1
                else f"its {units.size} units lie in {step} heads or groups that keep equally many, so none can go"
            )
        group = Group(names[index], units, step, blocks, reason, tuple(sorted(norms.get(index, ()))))
        if reason is None:
            groups.append(group)
        elif has_weight[units].any() and not of_kernel[units].all():  # what no weight has is nobody's to cut
            frozen.append(group)
    found = Channels(
        graph,
        op_of,
        axes,
        tuple(groups),
        tuple(frozen),
        n_units,
        ledger.shuffles,
        ledger.views,
        ledger.sized,
        _runs(ledger, unit_of),
    )
    return _with_bodies(found, ledger, unit_of) if ledger.inside else found


def _with_bodies(channels: Channels, ledger: Ledger, unit_of: IntArray) -> Channels:
    """Return what was found with the graphs inside of nodes; what stands in them may shrink, and not go."""
    bodies = [
        Body(*key, one.graph, _axis_units(one, unit_of), one.shuffles, one.views, one.sized, _runs(one, unit_of))
        for key, one in ledger.inside.items()
    ]
    is_inside = np.zeros(channels.n_units, bool)
    for body in bodies:
        for axis in body.axes.values():
            is_inside[axis.units] = True
    names = [group.name for group in channels.groups if is_inside[group.units].any()]
    return replace(channels, bodies=tuple(bodies), staying=dict.fromkeys(names, "it stands in a body of another node"))


def _axis_units(ledger: Ledger, unit_of: IntArray) -> dict[Axis, AxisUnits]:
    return {
        axis: AxisUnits(unit_of[e.grid if e.rows else e.ids], e.rows, e.ids.shape[:-1])
        for axis, e in ledger.entries.items()
    }


def _runs(ledger: Ledger, unit_of: IntArray) -> dict[Axis, IntArray]:
    return {axis: unit_of[entries.ids] for axis, entries in ledger.runs.items()}


def _frozen_units(ledger: Ledger, unit_of: IntArray) -> dict[int, str]:
    why: dict[int, str] = {}
    for freeze in ledger.frozen:
        for unit in np.unique(unit_of[freeze.ids]).tolist():
            why.setdefault(unit, freeze.why)
    return why


def _uses(graph: Graph, op_of: OpOf, axes: dict[Axis, AxisUnits], n_units: int) -> Mask:
    """Return (2, n_units): whether a unit has a weight, and whether it stands on an axis that meets more than constants.

    Exporters leave copies of a weight behind of which only statistics are taken. (Products of constants are layers of their
    own: a network that makes position biases out of coordinates.)
    """
    found = np.zeros((2, n_units), bool)
    meets = {
        value: value not in graph.weights
        or any(
            user.outputs[0] not in graph.weights or op_of(user).contracts for user, _ in graph.consumers.get(value, ())
        )
        for value, _ in axes
    }
    for row, stands in enumerate((graph.tensors, {value for value, is_met in meets.items() if is_met})):
        units = [axis.units.ravel() for (value, _), axis in axes.items() if value in stands]
        if units:
            found[row, np.concatenate(units)] = True
    return found


def _of_kernels(graph: Graph, op_of: OpOf, axes: dict[Axis, AxisUnits], n_units: int) -> Mask:
    """Return which units are places or inputs of kernels and no channels of a feature map: nobody would cut them."""
    found = np.zeros(n_units, bool)
    kernels = {
        node.inputs[1]
        for node in graph.nodes
        if op_of(node).kernel and node.inputs[1] in graph.weights - set(graph.tensors)
    }
    for (value, dim), axis in axes.items():
        if value in kernels and dim:
            found[axis.units] = True
    for (value, _), axis in axes.items():
        if value not in graph.weights:
            found[axis.units] = False
    return found


def _alike(axes: dict[Axis, AxisUnits], n_units: int) -> tuple[list[IntArray], IntArray]:
    """Put units that stand on the same axes into groups: units of every group, and group of every unit or -1.

    Groups, and units in them, come in the order of their first appearance.
    """
    signature, first = _signatures(axes, n_units)
    present = np.flatnonzero(first < np.iinfo(np.int64).max)
    present = present[np.argsort(first[present])]
    _, starts, alike = np.unique(signature[present], return_index=True, return_inverse=True)
    number = np.empty(starts.size, np.int64)
    number[np.argsort(starts)] = np.arange(starts.size)
    group_of = np.full(n_units, -1, np.int64)
    group_of[present] = number[alike.ravel()]
    by_group = present[np.argsort(group_of[present], kind="stable")]
    ends = np.cumsum(np.bincount(group_of[present], minlength=starts.size))
    return np.split(by_group, ends[:-1]) if starts.size else [], group_of


def _signatures(axes: dict[Axis, AxisUnits], n_units: int) -> tuple[npt.NDArray[np.uint64], IntArray]:
    """Return a hash of the axes each unit stands on (with how often), and where a unit first appears."""
    rng = np.random.default_rng(0)
    signature = np.zeros(n_units, np.uint64)
    first = np.full(n_units, np.iinfo(np.int64).max)
    if axes:
        flat = np.concatenate([axis_units.units.ravel() for axis_units in axes.values()])
        marks = rng.integers(0, 1 << 63, len(axes), dtype=np.uint64)
        sizes = [axis_units.units.size for axis_units in axes.values()]
        np.add.at(signature, flat, np.repeat(marks, sizes))  # wraps around
        first[flat[::-1]] = np.arange(flat.size)[::-1]  # the last write is the earliest place
    return signature, first


def _distinct(numbers: IntArray) -> list[int]:
    """Return the distinct numbers of an array, ascending; mostly there is one."""
    flat = numbers.ravel()
    return [int(flat[0])] if flat.size and (flat == flat[0]).all() else np.unique(flat).tolist()


def _names(
    graphs: Sequence[Graph], op_of: OpOf, axes: dict[Axis, AxisUnits], ordered: list[IntArray], group_of: IntArray
) -> list[str]:
    """Name groups after the weight that makes their channels: the first that has them on an output dim."""
    names: dict[int, str] = {}
    for (value, dim), axis_units in axes.items():
        if value in graphs[0].tensors and _is_output_dim(graphs, op_of, value, dim):
            for index in _distinct(group_of[axis_units.units]):
                names.setdefault(index, value)
    for (value, _), axis_units in axes.items():  # else the first value of all
        if len(names) < len(ordered):
            for index in _distinct(group_of[axis_units.units]):
                names.setdefault(index, value)
    chosen = [names.get(index, "?") for index in range(len(ordered))]
    total, seen = Counter(chosen), Counter[str]()
    result = []
    for name in chosen:
        seen[name] += 1
        result.append(name if total[name] == 1 else f"{name}#{seen[name]}")
    return result


def _is_output_dim(graphs: Sequence[Graph], op_of: OpOf, value: str, dim: int) -> bool:
    """Whether some node makes the channels of its output with this dim of its weight."""
    for graph in graphs:
        for node, position in graph.consumers.get(value, ()):
            out_dim = op_of(node).out_dim if position == 1 else None
            if out_dim is not None and out_dim(node, len(graph.tensors[value].dims)) == dim:
                return True
    return False

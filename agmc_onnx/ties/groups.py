"""Ties -> units -> groups: what can be cut, as a handful of decisions."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from functools import partial

import numpy as np

from agmc_onnx.arrays import IntArray, Mask
from agmc_onnx.errors import UsageError
from agmc_onnx.graph.view import Graph
from agmc_onnx.ties.balance import components, join_uneven, merge, numbered, step_of
from agmc_onnx.ties.bodies import AxisUnits, Bodies, Body, Scope, enter, units_on
from agmc_onnx.ties.ledger import Axis, OpOf, walk

RESIDUAL = "residual"  # stands for all groups that shortcuts join
_HELD = "it stands in a body of another node"
LAYER = "layer:"  # before a name in --exclude: it may shrink, not go


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
class Channels(Scope):
    """What the analysis of a graph found.

    Attributes:
        op_of: Returns what is known of a node's op.
        groups: The prunable groups, in the order of the network.
        frozen: Groups that stay whole, each with its reason.
        n_units: Number of units in all.
        staying: Names of groups that may shrink but not keep nothing, with the reason.
        bodies: The graphs inside of nodes that units stand in.
    """

    op_of: OpOf
    groups: tuple[Group, ...]
    frozen: tuple[Group, ...]
    n_units: int
    staying: Mapping[str, str] = field(default_factory=dict)
    bodies: tuple[Body, ...] = ()

    def inside(self, body: Body) -> Channels:
        """Return what was found in a graph inside of a node: the same units and groups, on its own axes."""
        return replace(self, bodies=(), **{one.name: getattr(body, one.name) for one in fields(Scope)})

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
        is_summed = units_on(self.axes, self.n_units, lambda value, dim: value in sums)
        return np.array([is_summed[group.units].any() for group in self.groups], bool)

    @property
    def makers(self) -> list[list[str]]:
        """The weights that make the channels of each prunable group, in the order of the network."""
        graphs = (self.graph, *(body.graph for body in self.bodies))
        group_of = numbered([group.units for group in self.groups], self.n_units)
        made = _makers(graphs, self.op_of, self.axes, group_of)
        return [made.get(index, []) for index in range(len(self.groups))]

    def excluding(self, names: Sequence[str]) -> Channels:
        """Return the analysis with some prunable groups frozen, or some layers kept.

        Args:
            names: Names of groups, or of weights or nodes that make their channels, with `*` and `?` as in file names; "residual"
                stands for the groups that shortcuts join, and with `layer:` before it a name says that the layer stays, while
                its widths may shrink.

        Raises:
            UsageError: If a name fits no group.
        """
        if not names:
            return self
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


def analyse(graph: Graph, op_of: OpOf, bodies: Bodies = lambda graph, node: {}) -> Channels:
    """Find the groups of a graph.

    Args:
        graph: A normalised graph (`agmc_onnx.graph.normal_form`).
        op_of: Returns what is known of a node's op; nothing is known of ops but what it says.
        bodies: Returns the graphs inside of a node that may be cut.
    """
    ledger = walk(graph, lambda node: op_of(node).ties, partial(enter, op_of=op_of, bodies=bodies))
    unit_of, n_units = components(ledger.n_ids, ledger.ties)
    why: dict[int, str] = {}
    for freeze in ledger.frozen:
        for unit in np.unique(unit_of[freeze.ids]).tolist():
            why.setdefault(unit, freeze.why)
    scope = Scope.of(ledger, unit_of)
    axes = scope.axes
    has_weight, is_used, of_kernel = _uses(graph, op_of, axes, n_units)
    for unit in np.flatnonzero(~(has_weight & is_used)).tolist():
        why.setdefault(unit, "nothing but statistics of constants depends on it")
    ordered, group_of = _alike(axes, n_units)
    ordered, group_of = merge(ledger, unit_of, ordered, group_of)
    ordered, group_of, partitions = join_uneven(ledger, unit_of, ordered, group_of, why)
    held = tuple(Body.of(one, unit_of, holder=at, name=name) for (at, name), one in ledger.inside.items())
    names = _names((graph, *(body.graph for body in held)), op_of, axes, ordered, group_of)
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
    is_held = [units_on(body.axes, n_units) for body in held]
    staying = {group.name: _HELD for group in groups if any(mask[group.units].any() for mask in is_held)}
    found = {one.name: getattr(scope, one.name) for one in fields(Scope)}
    return Channels(**found, op_of=op_of, groups=tuple(groups), frozen=tuple(frozen), n_units=n_units,
                    staying=staying, bodies=held)  # fmt: skip


def _uses(graph: Graph, op_of: OpOf, axes: Mapping[Axis, AxisUnits], n_units: int) -> tuple[Mask, Mask, Mask]:
    """Return whether a unit has a weight, stands on an axis that meets more than constants, and is of kernels alone.

    Exporters leave copies of a weight behind of which only statistics are taken. (Products of constants are layers of their
    own: a network that makes position biases out of coordinates.) Places or inputs of kernels that are no channels of a
    feature map nobody would cut.
    """
    weights, computed = graph.weights, graph.weights - graph.tensors.keys()
    kernels = {node.inputs[1] for node in graph.nodes if op_of(node).kernel and node.inputs[1] in computed}
    meets = {
        value: value not in weights
        or any(user.outputs[0] not in weights or op_of(user).contracts for user, _ in graph.consumers.get(value, ()))
        for value, _ in axes
    }
    return (
        units_on(axes, n_units, lambda value, dim: value in graph.tensors),
        units_on(axes, n_units, lambda value, dim: meets[value]),
        units_on(axes, n_units, lambda value, dim: value in kernels and dim > 0)
        & ~units_on(axes, n_units, lambda value, dim: value not in weights),
    )


def _alike(axes: Mapping[Axis, AxisUnits], n_units: int) -> tuple[list[IntArray], IntArray]:
    """Put units that stand on the same axes, equally often, into groups: units of every group, and group of every unit or -1.

    Groups, and units in them, come in the order of their first appearance.
    """
    sizes = [axis.units.size for axis in axes.values()]
    flat = np.concatenate([np.empty(0, np.int64), *(axis.units.ravel() for axis in axes.values())])
    signature = np.zeros(n_units, np.uint64)  # a hash of the axes
    marks = np.random.default_rng(0).integers(0, 1 << 63, len(axes), dtype=np.uint64)
    np.add.at(signature, flat, np.repeat(marks, sizes))  # wraps around
    first = np.full(n_units, flat.size)
    first[flat[::-1]] = np.arange(flat.size)[::-1]  # the last write is the earliest place
    present = np.flatnonzero(first < flat.size)
    present = present[np.argsort(first[present])]
    _, starts, alike = np.unique(signature[present], return_index=True, return_inverse=True)
    number = np.argsort(np.argsort(starts))[alike.ravel()]
    by_group = present[np.argsort(number, kind="stable")]
    groups = np.split(by_group, np.cumsum(np.bincount(number, minlength=1))[:-1]) if starts.size else []
    return groups, numbered(groups, n_units)


def _distinct(numbers: IntArray) -> list[int]:
    """Return the distinct numbers of an array, ascending; mostly there is one."""
    flat = numbers.ravel()
    return [int(flat[0])] if flat.size and (flat == flat[0]).all() else np.unique(flat).tolist()


def _makers(
    graphs: Sequence[Graph], op_of: OpOf, axes: Mapping[Axis, AxisUnits], group_of: IntArray
) -> dict[int, list[str]]:
    """Return the weights that have the channels of a group on an output dim, in the order of the network, by group."""
    found: dict[int, list[str]] = {}
    for (value, dim), axis in axes.items():
        if value in graphs[0].tensors and _is_output_dim(graphs, op_of, value, dim):
            for index in _distinct(group_of[axis.units]):
                found.setdefault(index, []).append(value)
    return found


def _names(
    graphs: Sequence[Graph], op_of: OpOf, axes: Mapping[Axis, AxisUnits], ordered: list[IntArray], group_of: IntArray
) -> list[str]:
    """Name groups after the weight that makes their channels: the first that has them on an output dim."""
    names = {index: weights[0] for index, weights in _makers(graphs, op_of, axes, group_of).items()}
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

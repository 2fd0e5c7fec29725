"""Layers that go: the graph without them, and its analysis, which is a part of the whole graph's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from agmc_onnx.arrays import IntArray
from agmc_onnx.graph.edit import rewire
from agmc_onnx.graph.view import Graph, Node, graph_of
from agmc_onnx.ops.vanish import closer_of
from agmc_onnx.ties.closed import Closed
from agmc_onnx.ties.groups import Channels


def shallower(channels: Channels, closed: Closed) -> Channels:
    """Return the analysis of a graph without the nodes that are gone: same units, same groups.

    Args:
        channels: Analysis of the whole graph.
        closed: What goes.
    """
    graph = channels.graph
    fewer = graph_of(rewire(graph.model, _edit(graph, closed)), graph.folder)
    fewer.__dict__["shapes"] = graph.shapes  # of the whole graph: operands of a Concat no longer add up before the cut
    new = {name: node for node in fewer.nodes for name in node.outputs if name}
    number = {node.index: new[name].index for node in graph.nodes for name in node.outputs if name in new}
    exists = {*fewer.inputs, *fewer.tensors, *new}

    def renewed(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
        return tuple(fewer.nodes[number[node.index]] for node in nodes)

    def stand_in(value: str) -> str:
        while value in closed.stands_for and value not in exists:
            value = closed.stands_for[value]
        return value

    return replace(
        channels,
        graph=fewer,
        axes={axis: units for axis, units in channels.axes.items() if axis[0] in exists},
        shuffles={
            number[i]: replace(shuffle, chain=renewed(shuffle.chain))
            for i, shuffle in channels.shuffles.items()
            if all(node.index in number for node in shuffle.chain)
        },
        views={
            number[i]: renewed((node,))[0] for i, node in channels.views.items() if i in number and node.index in number
        },
        sized={number[i]: {(stand_in(x), dim) for x, dim in axes} for i, axes in channels.sized.items() if i in number},
    )


def _edit(graph: Graph, closed: Closed) -> Callable[[gs.Graph], None]:
    """Return the edit of the graph that takes out what goes."""
    names = {i: next(filter(None, node.outputs)) for i, node in enumerate(graph.nodes) if any(node.outputs)}

    def edit(whole: gs.Graph) -> None:
        made = {tensor.name: node for node in whole.nodes for tensor in node.outputs}
        tensors = whole.tensors()
        for value, other in closed.stands_for.items():
            for user in list(tensors[value].outputs):
                user.inputs = [tensors[other] if tensor.name == value else tensor for tensor in user.inputs]
        for i in sorted(closed.is_identity):
            node = made[names[i]]
            node.op, node.attrs, node.inputs = "Identity", {}, [tensors[closed.stands_for[names[i]]]]
        for i, places in closed.inputs.items():
            made[names[i]].inputs = [made[names[i]].inputs[at] for at in places]
        for i, places in closed.outputs.items():
            made[names[i]].outputs = [made[names[i]].outputs[at] for at in places]
        gone = [made[names[i]] for i in closed.gone if i in names]
        for node in gone:
            node.inputs, node.outputs = [], []
        dead = {id(node) for node in gone}
        whole.nodes = [node for node in whole.nodes if id(node) not in dead]

    return edit


def layers_that_may_go(channels: Channels, costs: Mapping[str, Callable[[IntArray], float]]) -> list[dict[str, Any]]:
    """Return every branch that may go: name, groups, number of nodes, and what share of each cost it takes with it.

    Args:
        channels: The analysis.
        costs: Of kept counts, by the name of the share.
    """
    closer, groups = closer_of(channels), channels.groups
    full = np.array([group.n_units for group in groups], np.int64)
    found = []
    for branch in closer.branches:
        kept = full.copy()
        kept[list(branch.groups)] = 0
        shares = {name: float(1 - cost(kept) / max(cost(full), 1e-9)) for name, cost in costs.items()}
        names = [groups[g].name for g in branch.groups]
        found.append({"name": branch.name, "groups": names, "nodes": len(branch.gone), **shares})
    return found


def layers_gone(channels: Channels, kept: Sequence[int]) -> list[str]:
    """Return the names of the branches that are gone at kept counts (n_groups,), without those inside of others."""
    closer = closer_of(channels)
    gone = closer(i for i, n in enumerate(kept) if not n).gone
    names = [closer(branch.groups).gone for branch in closer.branches]
    inside = [own for own in names if own <= gone]
    return [
        branch.name
        for branch, own in zip(closer.branches, names, strict=True)
        if own <= gone and not any(own < other for other in inside)
    ]

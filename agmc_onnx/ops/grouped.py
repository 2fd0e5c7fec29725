"""Statistics over groups of channels and all places at once: how GroupNorm is written in plain nodes.

(batch, channels, *places) is seen as (batch, groups, all the rest), whose last dim may be open. Between that Reshape and the one
back, nothing may tell one entry of a group from another; a channel is then a run of entries there (`Ledger.runs`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from agmc_onnx.graph.view import Node
from agmc_onnx.ops.elementwise import elementwise_ties
from agmc_onnx.ops.reduce import reduced_dims
from agmc_onnx.ops.table import op_of
from agmc_onnx.ties.ledger import Entries, Ledger

_REST = 2  # the dim of everything else
_LARGEST_REGION = 32  # nodes
_STATISTICS = ("InstanceNormalization", "ReduceMean", "ReduceSum")


def grouped_statistics(ledger: Ledger, node: Node) -> bool:
    """Carry channels through a Reshape into groups, statistics over these, and the Reshape back; return whether it is that."""
    x = node.inputs[0]
    before, after = ledger.shape(x), ledger.shape(node.outputs[0])
    if before.rank < 3 or after.rank != 3 or not after.is_fixed(1) or ledger.labelled(x) != [1]:
        return False
    channels, groups = before.other[1], after.other[1]
    rests = [(getattr(before, at), getattr(after, at)) for at in ("dims", "other")]
    is_view = all(b[0] == a[0] and b[1] * math.prod(b[2:]) == a[1] * a[_REST] for b, a in rests)
    if not is_view or groups >= channels or channels % groups:
        return False
    region = _region(ledger, node)
    if region is None:
        return False
    ids = ledger.flat(node, x, 1)
    assert ids is not None
    runs = Entries(ids.reshape(groups, -1), (1,))
    ledger.runs.update(((value, _REST), runs) for value in region.spread)
    ledger.balance(runs.ids)
    for taker in region.statistics:
        ledger.normalise(ids, taker)
    for back in region.backs:
        ledger.set(back.outputs[0], 1, ids)
    ledger.skipped.update(member.index for member in (*region.members, *region.backs))
    return True


@dataclass
class _Region:
    """What lies between two Reshapes.

    Attributes:
        spread: Values of the shape between them, in which channels are runs.
        reduced: Values with one entry a group.
        members: Nodes, but for the Reshapes back.
        statistics: Those that take statistics.
        backs: Reshapes to the shape before.
    """

    spread: list[str]
    reduced: list[str] = field(default_factory=list)
    members: list[Node] = field(default_factory=list)
    statistics: list[Node] = field(default_factory=list)
    backs: list[Node] = field(default_factory=list)


def _region(ledger: Ledger, node: Node) -> _Region | None:
    """Return what lies behind a Reshape into groups, or None where entries of a group are told apart there."""
    graph, start = ledger.graph, ledger.shape(node.inputs[0])
    region = _Region([node.outputs[0]])
    waiting = {user.index: user for user, _ in graph.consumers.get(node.outputs[0], ())}
    while waiting:
        user = waiting.pop(min(waiting))  # in topological order: what else it reads was seen before
        y = user.outputs[0]
        first = user.inputs[0] in region.spread
        if len(user.outputs) != 1 or graph.shape(y) is None or len(region.members) > _LARGEST_REGION:
            return None
        if user.op_type == "Reshape" and first and ledger.shape(y) == start:
            region.backs.append(user)
            continue
        if user.op_type in _STATISTICS and first:
            if not _is_of_rest(ledger, user):
                return None
            region.statistics.append(user)
            (region.spread if user.op_type == "InstanceNormalization" else region.reduced).append(y)
        elif op_of(user).ties is elementwise_ties and all(
            name in region.spread or name in region.reduced or _is_alike(ledger, name) for name in user.inputs
        ):
            (region.spread if any(name in region.spread for name in user.inputs) else region.reduced).append(y)
        else:
            return None
        if y in graph.outputs or y in graph.captured:
            return None
        region.members.append(user)
        waiting.update((after.index, after) for after, _ in graph.consumers.get(y, ()))
    return region if region.backs and region.statistics else None


def _is_of_rest(ledger: Ledger, node: Node) -> bool:
    """Whether statistics are taken over all of a group, group by group."""
    if node.op_type == "InstanceNormalization":
        return all(name in ledger.graph.weights for name in node.inputs[1:])
    return reduced_dims(ledger.graph, node) == {_REST} and node.attribute("keepdims", 1) == 1


def _is_alike(ledger: Ledger, name: str) -> bool:
    """Whether a constant is the same for all entries of a group."""
    shape = ledger.graph.shape(name)
    return name in ledger.graph.tensors and shape is not None and (not shape.rank or shape.other[-1] == 1)

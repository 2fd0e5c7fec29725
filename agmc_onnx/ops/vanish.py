"""What an op makes of operands that are gone: the answers that `ties.closed` asks for, from the table of ops."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from agmc_onnx.graph.view import Node
from agmc_onnx.ops.table import Vanishing, op_of
from agmc_onnx.ops.zeros import Removed, where_all_are, where_any_is, where_first_is
from agmc_onnx.ties.closed import Closer
from agmc_onnx.ties.groups import Channels

_BY_ZEROS: dict[Callable[[Removed], bool], Vanishing] = {
    where_first_is: Vanishing("keep"),
    where_all_are: Vanishing("sum"),
    where_any_is: Vanishing("scale"),
}


def when_empty(node: Node) -> Vanishing | None:
    """Return what a node gives where operands are gone, or None where that is not sure."""
    op = op_of(node)
    if callable(op.when_empty):
        return op.when_empty(node)
    return op.when_empty or (None if op.keeps_zero is None else _BY_ZEROS.get(op.keeps_zero))


def repeats(node: Node, before: Node | None) -> bool:
    """Return whether a node changes nothing behind another: a Relu behind a Relu."""
    return (
        before is not None
        and op_of(node).idempotent
        and (node.domain, node.op_type, node.inputs[1:]) == (before.domain, before.op_type, before.inputs[1:])
        and [a.SerializeToString() for a in node.proto.attribute]
        == [a.SerializeToString() for a in before.proto.attribute]
    )


@lru_cache(maxsize=8)
def closer_of(channels: Channels) -> Closer:
    """Return what closes choices for an analysis; always the same for the same one."""
    return Closer(channels, when_empty, repeats)

"""The table of ops: one record says everything about an op, and every phase asks it here.

A field that is left out means that nothing is known: no rule of ties freezes what the op touches, no count of MACs is 0, no
repair leaves the node as it is. So an op that is missing is safe, and one that is half known is too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx

from agmc_onnx.graph.registry import Evaluate, Key, ShapeRule, install
from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ties.ledger import Axis, Handler

if TYPE_CHECKING:
    from agmc_onnx.ops.editor import Editor
    from agmc_onnx.ops.zeros import Removed

MICROSOFT = "com.microsoft"  # domain of onnxruntime's own ops
Product = tuple[tuple[int, ...], list[Axis | None]]  # sizes, and the axis that may change each


Repair = Callable[["Editor", Node, onnx.NodeProto], None]
Macs = Callable[[Graph, Node], list[Product]]


@dataclass(frozen=True)
class Statistics:
    """Numbers that a node takes over whole dims, so that they change where these are cut.

    Attributes:
        dims: Returns the dims of the first input that they are taken over, or None where that cannot be told.
        outputs: Positions of the outputs that have those dims; none where the dims go.
        follow: Whether the other inputs have the dim as their last.
        masked: How the node is told which entries to see where they cannot be gathered: "silence" (a very low score),
            "weigh" (zeros, and a mean of those that stay), "write out" (as nodes), or "" where there is no way.
        always: Whether it is told so even where all rows keep the same entries.
    """

    dims: Callable[[Graph, Node], set[int] | None]
    outputs: tuple[int, ...] = ()
    follow: bool = True
    masked: str = ""
    always: bool = False


class Vanishing(NamedTuple):
    """What a node gives where some of its operands are gone: zero everywhere, or without any entries.

    Attributes:
        kind: "product" (zero where a factor is zero or has no entries), "sum" (of the operands that are left), "difference",
            "scale" (zero where any operand is zero), "quotient", "keep" (zero where the first operand is), "join" (of the
            operands that have entries), "split" (of the outputs that have entries), or "size" (which is no dependence).
        zeroed: Positions of constants that must be neutral for the result to be zero, one of each tuple.
    """

    kind: str
    zeroed: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Op:
    """What is known of one op.

    Attributes:
        op_type: Name in its domain.
        ties: Rule of `agmc_onnx.ties`: which entries of which axes live and die together.
        domain: "" for the ops of the standard.
        joins: Whether it adds feature maps up, as shortcuts are.
        contracts: Whether a product with it makes a layer even of constants alone.
        out_dim: Returns the dim of its weight (the second input, of a rank) that makes the channels of its output.
        refit: Whether it is linear in that weight, so that a refit can compute it anew.
        kernel: Whether that weight is (channels, channels, *places).
        in_channels: Returns the channels of its input, for the sizes of that weight and the number of groups.
        repair: Makes attributes and shape constants true after a cut.
        macs: Returns the products of sizes whose sum counts its MACs.
        shape: Returns the shapes of its outputs for those of its inputs, where onnx's inference does not know them.
        begins_with: Op of the standard that has the same output for this many first inputs.
        type_input: Position of the input whose type the outputs have, for `shape`.
        shape_inputs: Positions of inputs that are sizes, bounds or counts.
        computes_sizes: Whether numbers read from a shape may pass through it on their way to a shape input.
        arranges: Whether it only picks and arranges numbers: what is equal for two sizes of an input is so for all of them.
        linear_in: Inputs that its output is linear in: "each", "any one", "first", "second", or "" for none.
        shrinks: Whether a small size may come out of it as none, or less.
        is_random: Whether it draws its output.
        evaluate: Returns its output for constant inputs, None where onnx's reference shall say it.
        keeps_zero: Whether its output is 0 where entries were removed; see `agmc_onnx.ops.zeros`.
        divisors: Positions of inputs that a removed entry of is 1 and not 0, which it would divide by.
        selects: Whether it does not read the entries of its first input that stand in none of its outputs.
        when_empty: What it makes of operands that are gone, or a function that tells; None is what the generic rules of
            `keeps_zero` say, and else not sure.
        idempotent: Whether it changes nothing behind itself.
        statistics: What it takes over whole dims.
        edge: Type of its edge in the papers' graph, a row of `agmc_onnx.motifs.level1.EDGE_TYPES`; None is "unknown".
        commutes: Whether the order of its inputs changes nothing.
        channels: The dim of its output that holds them: "first" behind the batch, "last", or "" for that of its input.
        layout: Where onnxruntime runs it: in channel blocks ("blocked"), never so ("plain"), or "" where that depends.
    """

    op_type: str
    ties: Handler | None = None
    domain: str = ""
    joins: bool = False
    contracts: bool = False
    out_dim: Callable[[Node, int], int] | None = None
    refit: bool = False
    kernel: bool = False
    in_channels: Callable[[Sequence[int], int], int] | None = None
    repair: Repair | None = None
    macs: Macs | None = None
    shape: ShapeRule | None = None
    begins_with: tuple[str, int] | None = None
    type_input: int = 0
    shape_inputs: tuple[int, ...] = ()
    computes_sizes: bool = False
    arranges: bool = False
    linear_in: str = ""
    shrinks: bool = False
    is_random: bool = False
    evaluate: Evaluate | None = None
    keeps_zero: Callable[[Removed], bool] | None = None
    divisors: tuple[int, ...] = ()
    selects: bool = False
    when_empty: Vanishing | Callable[[Node], Vanishing | None] | None = None
    idempotent: bool = False
    statistics: Statistics | None = None
    edge: str | Callable[[Graph, Node], str] | None = None
    commutes: bool = False
    channels: str = ""
    layout: str = ""

    @property
    def key(self) -> Key:
        """Domain and op type."""
        return self.domain, self.op_type


class UnknownSizesError(Exception):
    """Sizes that a count needs are not known."""


def sizes_of(graph: Graph, *values: str) -> list[tuple[int, ...]]:
    """Return the sizes of some values that costs are counted at.

    Raises:
        UnknownSizesError: If one of them is not known; `macs_of` makes no count of it.
    """
    shapes = [shape for value in values if (shape := graph.shape(value)) is not None]
    if len(shapes) < len(values):
        raise UnknownSizesError
    return [shape.dims for shape in shapes]


TABLE: dict[Key, Op] = {}
install(TABLE)


def register(*ops: Op) -> tuple[Op, ...]:
    """Put the records of a family into the table; return them.

    Raises:
        ValueError: If an op is listed twice.
    """
    for op in ops:
        if op.key in TABLE:
            raise ValueError(f"{op.domain or 'ai.onnx'}.{op.op_type}: listed twice in the table of ops")
        TABLE[op.key] = op
    return ops


# Facts of ops that only arrange the numbers of all their inputs, and of those that pick some of the first
ARRANGES: dict[str, Any] = {"computes_sizes": True, "arranges": True, "linear_in": "each"}
PICKS: dict[str, Any] = {**ARRANGES, "linear_in": "first"}

_NOTHING = Op("")


def op_of(node: Node) -> Op:
    """Return the record of a node's op; one that knows nothing where the table has none."""
    return TABLE.get((node.domain, node.op_type), _NOTHING)


def rule_of(node: Node) -> Handler | None:
    """Return the rule of ties of a node, or None for an op that has none."""
    return op_of(node).ties


def macs_of(graph: Graph, node: Node) -> list[Product]:
    """Return the products of sizes whose sum counts a node's MACs; none for ops that do not multiply, or unknown shapes."""
    macs = op_of(node).macs
    try:
        return macs(graph, node) if macs is not None else []
    except UnknownSizesError:
        return []


def node_macs(graph: Graph, node: Node) -> int:
    """Return the MACs of a node at batch 1."""
    return sum(math.prod(dims) for dims, _ in macs_of(graph, node))

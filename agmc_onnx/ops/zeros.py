"""Whether removed entries of a value are zeros in the masked original: what an op that mixes positions relies on.

A contraction does not ask, since its weight is masked too. A convolution that slides along the channels (efficient channel
attention, Wang et al. 2020, arXiv:1910.03151) has no weight for a position: it may only be cut where what goes is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agmc_onnx.graph.view import Node
from agmc_onnx.ops.table import op_of
from agmc_onnx.ties.ledger import Ledger

_DEEPEST = 64  # nodes looked back


@dataclass(frozen=True)
class Removed:
    """The question of one node: are the removed entries of this dim of an output 0?

    Attributes:
        ledger: Where ids are kept; the rules of all nodes that make the value have run.
        node: The node.
        value: Its output.
        dim: The dim.
        depth: How many nodes were looked back already.
    """

    ledger: Ledger
    node: Node
    value: str
    dim: int
    depth: int

    def at(self, name: str, dim: int) -> bool:
        """Whether those of a dim of another value are."""
        return removed_are_zero(self.ledger, name, dim, self.depth + 1)

    def beside(self, name: str) -> bool:
        """Whether those of an operand that is broadcast are."""
        return self.at(name, self.dim - self.ledger.shape(self.value).rank + self.ledger.shape(name).rank)


def removed_are_zero(ledger: Ledger, value: str, dim: int, depth: int = 0) -> bool:
    """Whether what a plan can remove along a dim is 0 once its weights are masked; False where that is not sure."""
    node = ledger.graph.producer.get(value)
    if (value, dim) not in ledger.entries or depth > _DEEPEST:
        return False
    if value in ledger.graph.tensors:
        return True
    rule = None if node is None else op_of(node).keeps_zero
    return node is not None and rule is not None and rule(Removed(ledger, node, value, dim, depth))


def where_first_is(asked: Removed) -> bool:
    """Ops that give 0 where their first input is 0, wherever its entries go: ids move with them."""
    ledger, x = asked.ledger, asked.node.inputs[0]
    first = ledger.entries[asked.value, asked.dim].ids.flat[0]
    return any(asked.at(x, dim) for dim in ledger.labelled(x) if (ledger.entries[x, dim].ids == first).any())


def where_any_is(asked: Removed) -> bool:
    """Products: 0 where one operand is."""
    return any(asked.beside(name) for name in asked.node.inputs)


def where_all_are(asked: Removed) -> bool:
    """Sums: 0 where all operands are."""
    return all(asked.beside(name) for name in asked.node.inputs)


def from_weight(own: int, of_weight: int) -> Callable[[Removed], bool]:
    """Return the rule of ops whose dim `own` is 0 where dim `of_weight` of their weight is, bias and all."""
    return lambda asked: asked.dim == own and asked.at(asked.node.inputs[1], of_weight)

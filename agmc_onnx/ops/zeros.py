"""Whether removed entries of a value are zeros in the masked original: what an op that mixes positions relies on.

A contraction does not ask, since its weight is masked too. A convolution that slides along the channels (efficient channel
attention, Wang et al. 2020, arXiv:1910.03151) has no weight for a position: it may only be cut where what goes is zero.
"""

from __future__ import annotations

import numpy as np

from agmc_onnx.graph.view import Node
from agmc_onnx.ties.ledger import Ledger

_FROM_WEIGHT = {"Conv": (1, 0), "ConvTranspose": (1, 1), "BatchNormalization": (1, 0), "InstanceNormalization": (1, 0)}
_KEEPING = frozenset(  # zero where the first input is
    (
        *("Abs", "AveragePool", "Cast", "Celu", "Dropout", "Elu", "Erf", "Expand", "Flatten", "Gelu"),
        *(
            "GlobalAveragePool",
            "GlobalMaxPool",
            "HardSwish",
            "Identity",
            "LeakyRelu",
            "MaxPool",
            "Mish",
            "Neg",
            "PRelu",
        ),
        *("ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Selu", "Softsign", "Squeeze", "Tanh", "Tile"),
        *("Transpose", "Unsqueeze"),
    )
)
_DEEPEST = 64  # nodes looked back


def removed_are_zero(ledger: Ledger, value: str, dim: int, depth: int = 0) -> bool:
    """Whether what a plan can remove along a dim is 0 once its weights are masked; False where that is not sure.

    Args:
        ledger: Where ids are kept; the rules of all nodes that make the value have run.
        value: A value.
        dim: Its dim.
        depth: How many nodes were looked back already.
    """
    entries, node = ledger.entries.get((value, dim)), ledger.graph.producer.get(value)
    if entries is None or depth > _DEEPEST:
        return False
    if value in ledger.graph.tensors:
        return True
    if node is None or node.domain:
        return False
    rank = ledger.shape(value).rank

    def is_zero(name: str, at: int) -> bool:
        return removed_are_zero(ledger, name, at, depth + 1)

    def beside(name: str) -> bool:  # an operand that is broadcast
        return is_zero(name, dim - rank + ledger.shape(name).rank)

    if node.op_type in _FROM_WEIGHT:
        own, of_weight = _FROM_WEIGHT[node.op_type]
        return dim == own and is_zero(node.inputs[1], of_weight)
    if node.op_type == "Gemm":
        added = node.inputs[2] if len(node.inputs) > 2 else ""
        columns = is_zero(node.inputs[1], 0 if node.attribute("transB", 0) else 1)
        return dim == 1 and columns and (not added or beside(added))
    if node.op_type == "MatMul":
        a, b = node.inputs
        if dim < rank - 2:
            return beside(a) or beside(b)
        return beside(b) if dim == rank - 1 else beside(a)
    if node.op_type in _KEEPING or (node.op_type == "Clip" and _clips_around_zero(ledger, node)):
        x = node.inputs[0]
        first = entries.ids.flat[0]  # ids move with their entries
        return any(is_zero(x, d) for d in ledger.labelled(x) if (ledger.entries[x, d].ids == first).any())
    if node.op_type == "Concat" and node.attribute("axis", 1) % rank == dim:
        return all(is_zero(name, dim) for name in node.inputs if (name, dim) in ledger.entries)
    if node.op_type in ("Mul", "Div"):
        return any(beside(name) for name in (node.inputs if node.op_type == "Mul" else node.inputs[:1]))
    return node.op_type in ("Add", "Sub", "Sum", "Concat") and all(beside(name) for name in node.inputs)


def _clips_around_zero(ledger: Ledger, node: Node) -> bool:
    def bound(position: int, name: str) -> float | None:
        given = node.inputs[position] if len(node.inputs) > position else ""
        value = ledger.graph.value(given) if given else np.asarray(node.attribute(name, 0.0))
        return None if value is None or value.size != 1 else float(value.ravel()[0])

    low, high = bound(1, "min"), bound(2, "max")
    return low is not None and high is not None and low <= 0 <= high

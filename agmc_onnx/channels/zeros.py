"""Whether removed entries of a value are zeros in the masked original: what an op that mixes positions relies on.

A contraction does not ask, since its weight is masked too. A convolution that slides along the channels (efficient channel
attention, Wang et al. 2020, arXiv:1910.03151) has no weight for a position: it may only be cut where what goes is zero.
"""

from __future__ import annotations

import numpy as np

from agmc_onnx.channels.axes import Ledger
from agmc_onnx.model.graph import Node

_FROM_WEIGHT = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "InstanceNormalization"))
_KEEPING = frozenset(  # zero where the first input is
    (
        *("Abs", "AveragePool", "Cast", "Celu", "Div", "Dropout", "Elu", "Erf", "Expand", "Flatten", "Gelu"),
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
_SUMS = frozenset(("Add", "Sub", "Sum", "Concat"))
_DEEPEST = 64  # nodes looked back


def removed_are_zero(ledger: Ledger, value: str, depth: int = 0) -> bool:
    """Whether every entry of a value that a plan can remove is 0 once its weights are masked; False where that is not sure."""
    if depth > _DEEPEST:
        return False
    if value in ledger.graph.tensors:
        return bool(ledger.labelled(value))
    node = ledger.graph.producer.get(value)
    if node is None or node.domain:
        return False

    def is_zero(name: str) -> bool:
        return removed_are_zero(ledger, name, depth + 1)

    if node.op_type in _FROM_WEIGHT:
        return node.inputs[1] in ledger.graph.weights
    if node.op_type in _KEEPING:
        return is_zero(node.inputs[0])
    if node.op_type == "Clip":
        return _clips_around_zero(ledger, node) and is_zero(node.inputs[0])
    if node.op_type == "Mul":
        return any(is_zero(name) for name in node.inputs)
    return node.op_type in _SUMS and all(is_zero(name) for name in node.inputs)


def _clips_around_zero(ledger: Ledger, node: Node) -> bool:
    def bound(position: int, name: str) -> float | None:
        given = node.inputs[position] if len(node.inputs) > position else ""
        value = ledger.graph.value(given) if given else np.asarray(node.attribute(name, 0.0))
        return None if value is None or value.size != 1 else float(value.ravel()[0])

    low, high = bound(1, "min"), bound(2, "max")
    return low is not None and high is not None and low <= 0 <= high

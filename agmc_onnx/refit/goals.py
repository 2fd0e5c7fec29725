"""What the answers of two networks are compared by: which values, and whether they are scores of classes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from agmc_onnx.errors import ModelError
from agmc_onnx.graph.view import Graph

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)


@dataclass(frozen=True)
class Goal:
    """A pair of values that the student's is to follow the teacher's.

    Attributes:
        value: Its name, the same in both networks.
        is_scores: Whether it holds class scores before the softmax, (samples, classes).
    """

    value: str
    is_scores: bool


def output_goals(graph: Graph) -> list[Goal]:
    """Return one goal for every float output; where an output is a softmax, what it is taken of.

    Args:
        graph: The original.

    Raises:
        ModelError: If the graph has no float output.
    """
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.model.graph.output}
    goals = []
    for output in graph.outputs:
        value, node = output, graph.producer.get(output)
        if node is not None and node.op_type in ("Softmax", "LogSoftmax") and node.inputs[0] in graph.producer:
            value = node.inputs[0]
        shape = graph.shape(value)
        is_scores = shape is not None and shape.rank == 2 and shape.other[1] > 1 and shape.is_fixed(1)
        if kinds.get(output, onnx.TensorProto.FLOAT) in _FLOATS:
            goals.append(Goal(value, is_scores))
    if not goals:
        raise ModelError("distill: the model has no float output; expected at least one to learn from. Use compensate.")
    return goals

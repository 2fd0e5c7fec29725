"""What the answers of two networks are compared by: which values, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from agmc_onnx.errors import ModelError
from agmc_onnx.graph.view import Graph
from agmc_onnx.measuring.outputs import Answer, answers_of

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
OWN = frozenset({"detections", "embedding", "mask", "positions"})  # kinds with a loss of their own (`distill.losses`)


@dataclass(frozen=True)
class Goal:
    """A pair of values that the student's is to follow the teacher's.

    Attributes:
        value: Its name, the same in both networks.
        is_scores: Whether it holds class scores before the softmax, (samples, classes).
        answer: What is said with it, of the kinds in `OWN`; None: scores, or numbers.
        more: Other values that are part of the answer.
        is_logits: Whether the value is what a softmax is taken of, of an answer.
    """

    value: str
    is_scores: bool
    answer: Answer | None = None
    more: tuple[str, ...] = ()
    is_logits: bool = False

    @property
    def values(self) -> tuple[str, ...]:
        """All values of it."""
        return (self.value, *self.more)


def output_goals(graph: Graph, answers: Sequence[Answer] | None = None) -> list[Goal]:
    """Return goals for every float output; where an output is a softmax, what it is taken of.

    Args:
        graph: The original.
        answers: What its outputs say; None: what the graph tells.

    Raises:
        ModelError: If the graph has no float output.
    """
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.model.graph.output}
    own = {i: answer for answer in answers or answers_of(graph) if answer.kind in OWN for i in answer.at}
    goals = []
    for number, output in enumerate(graph.outputs):
        value, node, answer = output, graph.producer.get(output), own.get(number)
        if node is not None and node.op_type in ("Softmax", "LogSoftmax") and node.inputs[0] in graph.producer:
            value = node.inputs[0]
        if answer is not None and answer.form != "list":
            if number == answer.at[0]:
                is_logits = answer.kind == "positions" and value != output
                value = value if is_logits else output
                more = tuple(graph.outputs[i] for i in answer.at[1:])
                goals.append(Goal(value, False, answer, more, is_logits))
            continue
        shape = graph.shape(value)
        is_scores = shape is not None and shape.rank == 2 and shape.other[1] > 1 and shape.is_fixed(1)
        if kinds.get(output, onnx.TensorProto.FLOAT) in _FLOATS:
            goals.append(Goal(value, is_scores))
    if not goals:
        raise ModelError("distill: the model has no float output; expected at least one to learn from. Use compensate.")
    return goals

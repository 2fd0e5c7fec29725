"""Sequences that only carry parts from where they are made to where they are taken: written as Slice, Concat and Identity."""

from __future__ import annotations

import numpy as np
import onnx

from agmc_onnx.graph.edit import Change, Made, edited
from agmc_onnx.graph.view import Graph, Node, graph_of

_MAKERS = frozenset({"SplitToSequence", "SequenceConstruct"})


def without_sequences(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with plain ops for its sequences, as far as it is known what they hold, or the model itself.

    Exporters write them for a split or a chunk whose parts are then taken one by one, and for lists that are put together again.
    """
    if not any(node.op_type in _MAKERS for node in model.graph.node):
        return model
    graph, changes, arrays = graph_of(model), list[Change](), dict[str, np.ndarray]()
    for node in graph.nodes:
        maker = graph.producer.get(node.inputs[0]) if node.inputs and not node.domain else None
        if maker is None or maker.domain:
            continue
        y = node.outputs[0]
        if node.op_type == "ConcatFromSequence" and maker.op_type == "SequenceConstruct":
            if not node.attribute("new_axis", 0):
                changes.append(
                    Made("Concat", maker.inputs, (y,), (("axis", node.attribute("axis")),), name=node.proto.name)
                )
        elif node.op_type == "SequenceAt":
            index = graph.value(node.inputs[1])
            if index is not None and maker.op_type == "SequenceConstruct":
                at = int(index.item())
                if -len(maker.inputs) <= at < len(maker.inputs):
                    changes.append(Made("Identity", (maker.inputs[at],), (y,), name=node.proto.name))
            elif index is not None and maker.op_type == "SplitToSequence":
                ends = _part(graph, maker, int(index.item()))
                if ends is not None:
                    names = tuple(f"{y}__agmc_{what}" for what in ("start", "end", "axis"))
                    arrays.update(
                        zip(names, (np.array([n], np.int64) for n in (*ends, maker.attribute("axis", 0))), strict=True)
                    )
                    changes.append(Made("Slice", (maker.inputs[0], *names), (y,), name=node.proto.name))
    return edited(model, changes, arrays) if changes else model


def _part(graph: Graph, maker: Node, index: int) -> tuple[int, int] | None:
    """Return where a part begins and ends; None where that is not known, or parts lose a dim."""
    sizes = graph.value(maker.inputs[1]) if len(maker.inputs) > 1 and maker.inputs[1] else None
    if sizes is None:
        return (index, index + 1) if len(maker.inputs) < 2 and maker.attribute("keepdims", 1) and index >= 0 else None
    if not sizes.ndim:
        return (index * int(sizes), (index + 1) * int(sizes)) if index >= 0 else None
    if not -len(sizes) <= index < len(sizes):
        return None
    places = [0, *np.cumsum(sizes).tolist()]
    index %= len(sizes)
    return places[index], places[index + 1]

"""What is static is taken out of its wrapping: local functions, and the branches of Ifs that constant sizes decide."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx.inliner

from agmc_onnx.graph.protobuf import copy_fields
from agmc_onnx.graph.shapes import Shape
from agmc_onnx.graph.view import graph_of


def unwrapped(model: onnx.ModelProto, shapes: dict[str, Shape] | None = None) -> onnx.ModelProto:
    """Return the model with its local functions inlined, and with the branch in place of every If whose condition is known.

    A condition is known where constants or fixed sizes make it (what exporters write for squeeze), whatever the open sizes are.
    The model itself is returned where there is nothing to do.

    Args:
        model: Any model; not changed.
        shapes: Of its values, where they are known better than inference at guessed sizes tells.
    """
    if len(model.functions):
        model = onnx.inliner.inline_local_functions(model)
    while any(node.op_type == "If" for node in model.graph.node):
        found = _with_taken_branches(model, shapes)
        if found is model:
            break
        model = found
    return model


def _with_taken_branches(model: onnx.ModelProto, shapes: dict[str, Shape] | None) -> onnx.ModelProto:
    graph = graph_of(model, shapes=shapes)
    taken: dict[str, onnx.GraphProto] = {}
    for node in graph.nodes:
        condition = graph.value(node.inputs[0]) if node.op_type == "If" and not node.domain else None
        if condition is not None and condition.size == 1:
            branch: onnx.GraphProto = node.attribute("then_branch" if condition.item() else "else_branch")
            if not branch.sparse_initializer:
                taken[node.outputs[0]] = branch
    if not taken:
        return model
    result = onnx.ModelProto()
    copy_fields(model, result, but={"graph"})
    copy_fields(model.graph, result.graph, but={"node"})
    used = set(_names(model.graph)) | {value.name for value in model.graph.input}
    for node in model.graph.node:
        if not node.output or node.output[0] not in taken:
            result.graph.node.add().CopyFrom(node)
            continue
        branch = onnx.GraphProto()
        branch.CopyFrom(taken[node.output[0]])
        own = list(
            dict.fromkeys([t.name for t in branch.initializer] + [o for n in branch.node for o in n.output if o])
        )
        new = {name: f"{node.output[0]}__{name}" for name in own if name in used}
        rename(branch, new)
        used.update(_names(branch))
        result.graph.initializer.extend(branch.initializer)
        result.graph.node.extend(branch.node)
        for inner, outer in zip(branch.output, node.output, strict=True):
            if outer:
                result.graph.node.append(onnx.helper.make_node("Identity", [inner.name], [outer]))
    return result


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names of the values that nodes and initializers of the outer graph make."""
    yield from (tensor.name for tensor in graph.initializer)
    yield from (name for node in graph.node for name in node.output)


def rename(graph: onnx.GraphProto, new: dict[str, str]) -> None:
    """Give values of a graph, and of those inside of it, other names, in place."""
    for tensor in graph.initializer:
        tensor.name = new.get(tensor.name, tensor.name)
    for value in graph.output:
        value.name = new.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                rename(inner, new)

"""Pieces of protobuf that an edited graph is written back with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx
from google.protobuf.message import Message

from agmc_onnx.errors import ModelError
from agmc_onnx.graph.view import captured_names

_A = onnx.AttributeProto
_SHOWN = frozenset({_A.FLOAT, _A.INT, _A.STRING, _A.TENSOR, _A.GRAPH, _A.FLOATS, _A.INTS, _A.STRINGS})


def copy_fields(source: Message, target: Message, but: set[str]) -> None:
    """Copy all set fields of a message except some; large ones are not copied only to be dropped again."""
    for descriptor, value in source.ListFields():
        if descriptor.name in but:
            continue
        if isinstance(value, Message):
            getattr(target, descriptor.name).CopyFrom(value)
        elif isinstance(value, str | bytes | int | float):
            setattr(target, descriptor.name, value)
        else:
            getattr(target, descriptor.name).extend(value)


def is_shown(attribute: onnx.AttributeProto) -> bool:
    """Whether graphsurgeon can hold an attribute; the others (types, sparse tensors, non-text strings) stay behind."""
    try:
        for text in (attribute.s, *attribute.strings):
            text.decode()
    except UnicodeDecodeError:
        return False
    return attribute.type in _SHOWN


def used_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield every value that nodes, subgraphs and outputs of a graph use."""
    for node in graph.node:
        yield from node.input
        yield from captured_names(node)
    yield from (value.name for value in graph.output)


def unmade(graph: onnx.GraphProto) -> set[str]:
    """Return the values that a graph uses but does not have."""
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    made.update(sparse.values.name for sparse in graph.sparse_initializer)
    made.update(name for node in graph.node for name in node.output)
    return set(used_names(graph)) - made - {""}


def ordered(nodes: list[onnx.NodeProto], where: str) -> list[onnx.NodeProto]:
    """Return nodes in topological order; each stands where it stood unless one before it needs it.

    Raises:
        ModelError: If there is a cycle.
    """
    maker = {name: position for position, node in enumerate(nodes) for name in node.output if name}
    needs = [
        [maker[name] for name in (*node.input, *captured_names(node)) if name in maker]
        for position, node in enumerate(nodes)
    ]
    state = [0] * len(nodes)  # 0 not met, 1 waiting for what it needs, 2 placed
    order: list[onnx.NodeProto] = []
    for start in range(len(nodes)):
        stack = [start]
        while stack:
            position = stack[-1]
            if state[position] == 0:
                state[position] = 1
                waiting = [other for other in needs[position] if state[other] != 2]
                for other in waiting:
                    if state[other] == 1:
                        name = nodes[other].name or next(iter(nodes[other].output), "")
                        raise ModelError(
                            f"graph {where}: {nodes[other].op_type} {name} needs its own output; expected no cycle. "
                            "Undo that part of the edit."
                        )
                stack.extend(reversed(waiting))
                continue
            stack.pop()
            if state[position] == 1:
                state[position] = 2
                order.append(nodes[position])
    return order


def retyped(value: onnx.ValueInfoProto, kind: tuple[int, Any]) -> onnx.ValueInfoProto:
    """Return the declaration of an initializer as an input, which has to follow when the initializer was cut."""
    data_type, dims = kind
    declared = value.type.tensor_type
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in declared.shape.dim]
    fits = len(sizes) == len(dims) and all(size in (None, dim) for size, dim in zip(sizes, dims, strict=True))
    if declared.elem_type == data_type and (fits or not declared.HasField("shape")):
        return value
    out = onnx.ValueInfoProto()
    out.CopyFrom(value)
    out.type.CopyFrom(onnx.helper.make_tensor_type_proto(data_type, list(dims)))
    return out


def without_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without the initializers of the main graph, which are not copied in between."""
    skeleton = onnx.ModelProto()
    copy_fields(model, skeleton, but={"graph"})
    copy_fields(model.graph, skeleton.graph, but={"initializer"})
    return skeleton


def import_domains(model: onnx.ModelProto, result: onnx.ModelProto, edited: Iterable[onnx.OperatorSetIdProto]) -> None:
    """Import the operator sets that only the edit's nodes use, version 1 unless the edit says otherwise."""
    known = {opset.domain for opset in model.opset_import} | {"", "ai.onnx"}
    wanted = {opset.domain: opset.version for opset in edited}
    used = set(domains_of(result.graph.node)) - set(domains_of(model.graph.node))
    for domain in sorted((used | wanted.keys()) - known):
        result.opset_import.add(domain=domain, version=wanted.get(domain, 1))


def domains_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Yield the domain of every node, subgraphs included."""
    for node in nodes:
        yield node.domain
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from domains_of(attribute.g.node)

"""What a model computes as one: its nodes in kernels, with the time each takes in float and in int8 where it has both."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from agmc_onnx.precision.int8 import WEIGHTED

JOINED = ("Relu", "Clip")  # what a rounding to the range of int8 does on the way
OUTSIDE = -1  # in place of a kernel: the graph's inputs and outputs, which are float
_ADDED = re.compile(r"(_QuantizeLinear_Output)?(_token_\d+)?$")  # to a value's name: its int8 form, in another layout
_DIMS = re.compile(r"(?:float|u?int8)(\d+(?:x\d+)*)")  # of the first input, as a table of times has it
_CHANGES = (
    "QuantizeLinear",
    "DequantizeLinear",
    "Transpose",
    "ReorderInput",
    "ReorderOutput",
)  # of form, not of the model


@dataclass(frozen=True)
class Kernel:
    """Nodes that are rounded together or not at all.

    Attributes:
        name: First output of its first node.
        nodes: Their names.
        op_types: Theirs.
    """

    name: str
    nodes: tuple[str, ...]
    op_types: tuple[str, ...]


@dataclass(frozen=True)
class Crossing:
    """A value that one kernel gives and another reads.

    Attributes:
        source, reader: Places of kernels, or `OUTSIDE`.
        entries: Of it, of one sample.
    """

    source: int
    reader: int
    entries: int


def kernels_of(plain_model: onnx.ModelProto) -> tuple[list[Kernel], list[Crossing]]:
    """Return the kernels of a model in order, and what goes from one to another.

    A node with a weight begins one; the Relu or Clip that alone reads it belongs to it. Another node belongs to a kernel
    without a weight if all that it reads is read or given there too: Sigmoid and the Mul behind it, a Gelu in parts.

    Args:
        plain_model: As `int8.plain` returns it.
    """
    graph = plain_model.graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    of_value: dict[str, int] = {}
    nodes: list[list[onnx.NodeProto]] = []
    reads: list[set[str]] = []
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        read = [name for name in node.input if name and name not in constants]
        last = max((of_value.get(name, OUTSIDE) for name in read), default=OUTSIDE)
        if last != OUTSIDE and _joins(node, nodes[last], reads[last], read, of_value, last, readers):
            nodes[last].append(node)
        else:
            last = len(nodes)
            nodes.append([node])
            reads.append(set(read))
        of_value.update(dict.fromkeys(node.output, last))
    entries = {value.name: _entries(value) for value in (*graph.value_info, *graph.input, *graph.output)}
    crossings = []
    for place, (members, given) in enumerate(zip(nodes, reads, strict=True)):
        for name in sorted(given):
            n = sum(list(node.input).count(name) for node in members)
            crossings.append(Crossing(of_value.get(name, OUTSIDE), place, n * entries.get(name, 1)))
    crossings += [
        Crossing(of_value[value.name], OUTSIDE, entries[value.name]) for value in graph.output if value.name in of_value
    ]
    kernels = [Kernel(m[0].output[0], tuple(n.name for n in m), tuple(n.op_type for n in m)) for m in nodes]
    return kernels, crossings


def _joins(
    node: onnx.NodeProto,
    members: Sequence[onnx.NodeProto],
    reads: set[str],
    read: Sequence[str],
    of_value: Mapping[str, int],
    place: int,
    readers: Mapping[str, int],
) -> bool:
    if node.op_type in WEIGHTED:
        return False
    if members[0].op_type in WEIGHTED:
        return node.op_type in JOINED and len(members) == 1 and readers[members[0].output[0]] == 1
    return all(of_value.get(name) == place or name in reads for name in read)


def _entries(value: onnx.ValueInfoProto) -> int:
    return math.prod(max(dim.dim_value, 1) for dim in value.type.tensor_type.shape.dim)


@dataclass(frozen=True)
class Times:
    """What a profile says of kernels.

    Attributes:
        ms: Of each, 0 where it is computed as part of another.
        is_integer: Whether its kernel reads integers.
        change_ms: Of a change of form, by its type, for each entry.
    """

    ms: tuple[float, ...]
    is_integer: tuple[bool, ...]
    change_ms: Mapping[str, float]


def times_of(kernels: Sequence[Kernel], plain_model: onnx.ModelProto, ops: Sequence[Sequence[Any]]) -> Times:
    """Return the times of kernels.

    Args:
        kernels: Of a model.
        plain_model: The model.
        ops: Of it or of its int8 form, as `latency.op_times.time_ops` returns them.
    """
    place = {name: i for i, kernel in enumerate(kernels) for name in kernel.nodes}
    for node in plain_model.graph.node:
        if node.name in place:
            place.update({name: place[node.name] for name in node.output if name not in place})
    ms, is_integer = [0.0] * len(kernels), [False] * len(kernels)
    spent: dict[str, tuple[float, int]] = {}
    for owner, key, took in ops:
        op, given = key.partition(" ")[0].rpartition(".")[2], key.partition(" -> ")[0].rpartition(" ")[2]
        at = place.get(owner, place.get(_ADDED.sub("", owner)))
        if op in _CHANGES and (at is None or op not in kernels[at].op_types):
            total, n = spent.get(op, (0.0, 0))
            dims = _DIMS.match(given)
            spent[op] = total + took, n + (math.prod(map(int, dims[1].split("x"))) if dims else 0)
        elif at is not None:
            ms[at] += took
            is_integer[at] |= given.startswith(("uint8", "int8"))
    return Times(tuple(ms), tuple(is_integer), {op: total / max(n, 1) for op, (total, n) in spent.items()})

"""A read-only view of an ONNX graph: nodes, constants, who makes and who uses a value, and shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from agmc_onnx.model.shapes import Shape, evaluate_node, infer_shapes

FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE})
_FOLDED_SIZE = 4096  # larger constants are weights, never shape arithmetic


@dataclass(frozen=True, eq=False)
class Node:
    """One ONNX node of the main graph.

    Attributes:
        index: Position in the graph's topological order.
        proto: The protobuf it was read from; not to be changed.
        inputs, outputs: Value names; an omitted optional one is "".
    """

    index: int
    proto: onnx.NodeProto
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def label(self) -> str:
        """Name for messages: the op type with the node's name or first output."""
        return f"{self.op_type} {self.proto.name or self.outputs[0]}"

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute's value as Python data, or the default where it is absent."""
        for attribute in self.proto.attribute:
            if attribute.name == name:
                value = onnx.helper.get_attribute_value(attribute)
                return value.decode() if isinstance(value, bytes) else value
        return default


@dataclass(frozen=True, eq=False)
class Graph:
    """A model's main graph, indexed.

    Attributes:
        model: The model; not to be changed.
        nodes: In topological order.
        tensors: Initializers and outputs of Constant nodes, by value name.
        inputs: Names of the real graph inputs (initializers listed as inputs are not).
        outputs: Names of the graph outputs.
        producer: Node that makes a value; constants and inputs have none.
        consumers: (node, input position) pairs that use a value.
        captured: Values that a subgraph (If, Loop, Scan) uses from outside, with the node that holds it.
        opset: Version of the default operator set.
    """

    model: onnx.ModelProto
    nodes: tuple[Node, ...]
    tensors: dict[str, onnx.TensorProto]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    producer: dict[str, Node]
    consumers: dict[str, list[tuple[Node, int]]]
    captured: dict[str, Node]
    opset: int
    _values: dict[str, np.ndarray | None] = field(default_factory=dict, repr=False)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every value that inference can tell; see `agmc_onnx.model.shapes.Shape`."""
        return infer_shapes(self.model)

    def shape(self, value: str) -> Shape | None:
        """Return a value's shape, or None where it is unknown."""
        if value in self.tensors:
            dims = tuple(self.tensors[value].dims)
            return Shape(dims, dims)
        return self.shapes.get(value)

    def is_float(self, tensor: str) -> bool:
        """Whether a constant holds floating numbers."""
        return self.tensors[tensor].data_type in FLOATS

    @cached_property
    def weights(self) -> frozenset[str]:
        """Constants, and values computed from constants alone (a transposed or scaled weight)."""
        found = set(self.tensors)
        for node in self.nodes:
            used = [name for name in node.inputs if name]
            if used and all(name in found for name in used):
                found.update(node.outputs)
        return frozenset(found)

    def array(self, tensor: str) -> np.ndarray:
        """Return a constant as a numpy array."""
        return numpy_helper.to_array(self.tensors[tensor])

    def value(self, name: str) -> np.ndarray | None:
        """Return the numbers of a value that does not depend on the graph's inputs, or None.

        Small chains of constants and of shapes with fixed sizes are evaluated (onnx.reference); what exporters write for
        Pad amounts, Slice bounds and Reshape targets.
        """
        if name not in self._values:
            self._values[name] = self._evaluate(name)
        return self._values[name]

    def _evaluate(self, name: str) -> np.ndarray | None:
        pending = [name]
        while pending:  # an explicit stack: chains can be longer than Python's recursion limit
            current = pending[-1]
            if current in self._values:
                pending.pop()
                continue
            if current in self.tensors:
                small = np.prod(self.tensors[current].dims, dtype=np.int64) <= _FOLDED_SIZE
                self._values[current] = self.array(current) if small else None
                continue
            node = self.producer.get(current)
            self._values[current] = None
            if node is None or node.domain not in ("", "ai.onnx") or any(a.HasField("g") for a in node.proto.attribute):
                continue
            if node.op_type in ("Shape", "Size"):
                shape = self.shape(node.inputs[0])
                if shape is not None and shape.is_static:
                    dims = shape.dims[node.attribute("start", 0) : node.attribute("end", len(shape.dims))]
                    self._values[current] = np.array(dims if node.op_type == "Shape" else np.prod(shape.dims), np.int64)
                continue
            if node.op_type in ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial"):
                continue
            missing = [i for i in node.inputs if i and i not in self._values]
            if missing:
                del self._values[current]
                pending.extend(missing)
                continue
            feeds = {i: self._values[i] for i in node.inputs if i}
            if node.inputs and not any(value is None for value in feeds.values()):
                for output, value in zip(node.outputs, evaluate_node(node.proto, feeds, self.opset), strict=False):
                    self._values[output] = value
        return self._values[name]


def view(model: onnx.ModelProto) -> Graph:
    """Index a model's main graph.

    Args:
        model: Any ONNX model; not changed, and not to be changed while the view is used.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[Node] = []
    producer: dict[str, Node] = {}
    consumers: dict[str, list[tuple[Node, int]]] = {}
    captured: dict[str, Node] = {}
    for proto in graph.node:
        if proto.op_type == "Constant" and proto.domain in ("", "ai.onnx"):
            tensor = _constant_tensor(proto)
            if tensor is not None:
                tensors[proto.output[0]] = tensor
                continue
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        node = Node(len(nodes), proto, proto.op_type, domain, tuple(proto.input), tuple(proto.output))
        nodes.append(node)
        for output in node.outputs:
            if output:
                producer[output] = node
        for position, name in enumerate(node.inputs):
            if name:
                consumers.setdefault(name, []).append((node, position))
        for name in captured_names(proto):
            captured.setdefault(name, node)
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    inputs = tuple(i.name for i in graph.input if i.name not in tensors)
    outputs = tuple(o.name for o in graph.output)
    return Graph(model, tuple(nodes), tensors, inputs, outputs, producer, consumers, captured, opset)


def captured_names(proto: onnx.NodeProto) -> Iterator[str]:
    """Yield the outer values that a node's subgraphs use."""
    for attribute in proto.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
            for node in graph.node:
                yield from (name for name in node.input if name and name not in own)
                yield from (name for name in captured_names(node) if name not in own)
                own.update(node.output)
            yield from (o.name for o in graph.output if o.name not in own)


def _constant_tensor(proto: onnx.NodeProto) -> onnx.TensorProto | None:
    for attribute in proto.attribute:
        if attribute.name == "value":
            return attribute.t
        if attribute.name in ("value_float", "value_floats"):
            return numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(attribute), np.float32), proto.output[0])
        if attribute.name in ("value_int", "value_ints"):
            return numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(attribute), np.int64), proto.output[0])
    return None  # sparse or string constants stay nodes, which no rule understands

"""A read-only view of an ONNX graph: nodes, constants, who makes and who uses a value, and shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import onnx
from onnx import numpy_helper

from agmc_onnx.graph.expressions import computed_sizes
from agmc_onnx.graph.files import read_array
from agmc_onnx.graph.registry import graph_op
from agmc_onnx.graph.shapes import Shape, evaluate_node, infer_shapes

_T = onnx.TensorProto
FLOATS = frozenset({_T.FLOAT, _T.FLOAT16, _T.BFLOAT16, _T.DOUBLE})
_FOLDED_SIZE = 4096  # larger constants are weights, never shape arithmetic
_MAY_HOLD_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS, onnx.AttributeProto.UNDEFINED)
_LINEAR_IN = {"each": slice(None), "any one": slice(None), "first": slice(1), "second": slice(1, 2)}
_LONGEST_CHAIN = 100  # nodes
_Pair = tuple[np.ndarray, np.ndarray]  # a value at the two settings of the open dimensions, see shapes.Shape


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
        return f"{self.op_type} {self.proto.name or next(filter(None, self.outputs), f'number {self.index}')}"

    @cached_property
    def _attributes(self) -> dict[str, onnx.AttributeProto]:
        return {attribute.name: attribute for attribute in self.proto.attribute}

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute's value as Python data (text as str), or the default where it is absent."""
        attribute = self._attributes.get(name)
        if attribute is None:
            return default
        if attribute.type == onnx.AttributeProto.INT:
            return attribute.i
        value = onnx.helper.get_attribute_value(attribute)
        return [_text(item) for item in value] if attribute.type == onnx.AttributeProto.STRINGS else _text(value)


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
        folder: Folder of the model file, needed to read tensors whose data was left in a file of its own.
        given_shapes: What `shapes` is, where it is known already.
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
    folder: Path | None = None
    given_shapes: dict[str, Shape] | None = None
    _values: dict[str, _Pair | None] = field(default_factory=dict, repr=False)
    _sizes: dict[str, list[int | None] | None] = field(default_factory=dict, repr=False)
    _arrays: WeakValueDictionary[str, np.ndarray] = field(default_factory=WeakValueDictionary, repr=False)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every value that inference can tell; see `agmc_onnx.graph.shapes.Shape`."""
        return infer_shapes(self.model) if self.given_shapes is None else self.given_shapes

    @cached_property
    def known_shapes(self) -> dict[str, Shape]:
        """Shapes of the constants too, large ones and those in other files included."""
        found = dict(self.shapes)
        for name, tensor in self.tensors.items():
            dims = tuple(tensor.dims)
            found[name] = Shape(dims, dims)
        return found

    def shape(self, value: str) -> Shape | None:
        """Return a value's shape, or None where it is unknown."""
        return self.known_shapes.get(value)

    def is_fixed(self, value: str, dim: int) -> bool:
        """Whether a size is the same for every input."""
        shape = self.shape(value)
        return shape is not None and shape.is_fixed(dim)

    def is_float(self, tensor: str) -> bool:
        """Whether a constant holds floating numbers."""
        return self.tensors[tensor].data_type in FLOATS

    def is_parameter(self, tensor: str) -> bool:
        """Whether a constant is counted as parameters: floating numbers, or quantised ones; not the scales of these."""
        uses = [(node.op_type, position) for node, position in self.consumers.get(tensor, ())]
        if any(op_type in ("QuantizeLinear", "DequantizeLinear") for op_type, _ in uses):
            return ("DequantizeLinear", 0) in uses or ("QuantizeLinear", 0) in uses
        return self.is_float(tensor)

    @cached_property
    def weights(self) -> frozenset[str]:
        """Constants, and values computed from constants alone (a transposed or scaled weight)."""
        found = set(self.tensors)
        for node in self.nodes:
            used = [name for name in node.inputs if name]
            if used and all(name in found for name in used) and not _has_subgraph(node.proto):
                found.update(name for name in node.outputs if name)
        return frozenset(found)

    def array(self, tensor: str) -> np.ndarray:
        """Return a constant as a numpy array.

        Raises:
            ModelError: If its data lies in another file that cannot be read; see `folder`.
        """
        array = self._arrays.get(tensor)
        if array is None:
            array = self._arrays[tensor] = read_array(self.tensors[tensor], self.folder)
        return array

    def real_array(self, tensor: str) -> np.ndarray:
        """Return a constant as the numbers it stands for: a quantised weight times its scale, float64.

        Raises:
            ModelError: As `array`.
        """
        array = self.array(tensor)
        users = [node for node, at in self.consumers.get(tensor, ()) if node.op_type == "DequantizeLinear" and at == 0]
        if not users or any(name not in self.tensors for name in users[0].inputs[1:] if name):
            return array
        shape = [1] * array.ndim
        if array.ndim:
            shape[users[0].attribute("axis", 1) % array.ndim] = -1
        scale, *zero = (self.array(name) for name in users[0].inputs[1:] if name)
        parts = [x.astype(np.float64).reshape(shape if x.size > 1 else [1] * array.ndim) for x in (scale, *zero)]
        return (array.astype(np.float64) - (parts[1] if zero else 0)) * parts[0]

    def value(self, name: str) -> np.ndarray | None:
        """Return the numbers of a value that does not depend on the graph's inputs, or None.

        Small chains of constants and of fixed sizes are evaluated (onnx.reference): what exporters write for Pad
        amounts, Slice bounds and Reshape targets. Picking the fixed sizes out of a shape that also has open ones is
        understood; arithmetic on open sizes is not, even where it happens to give the same for many of them.
        """
        if name not in self._values:
            self._evaluate(name)
        pair = self._values[name]
        return pair[0] if pair is not None and _is_settled(pair) else None

    def _evaluate(self, name: str) -> None:
        pending = [name]
        while pending:  # an explicit stack: chains can be longer than Python's recursion limit
            current = pending[-1]
            if current in self._values:
                pending.pop()
                continue
            if current in self.tensors:
                self._values[current] = self._constant(current)
                continue
            node = self.producer.get(current)
            self._values[current] = None
            if node is None or node.domain or _has_subgraph(node.proto):
                continue
            known = graph_op(node.domain, node.op_type)
            if known is not None and known.is_random:
                continue
            if node.op_type in ("Shape", "Size"):
                shape = self.shape(node.inputs[0])
                if shape is not None:
                    self._values[current] = (_sizes(node, shape.dims), _sizes(node, shape.other))
                continue
            missing = [i for i in node.inputs if i and i not in self._values]
            if missing:
                del self._values[current]
                pending.extend(missing)
                continue
            feeds = {i: pair for i in node.inputs if i and (pair := self._values[i]) is not None}
            if not feeds or len(feeds) < len({i for i in node.inputs if i}):
                continue
            if node.op_type == "ConstantOfShape" and np.prod(feeds[node.inputs[0]][0]) > _FOLDED_SIZE:
                continue  # a weight
            settled = all(_is_settled(pair) for pair in feeds.values())
            if settled or (known is not None and known.arranges):
                first = evaluate_node(node.proto, {i: pair[0] for i, pair in feeds.items()}, self.opset)
                other = first
                if not settled:
                    other = evaluate_node(node.proto, {i: pair[1] for i, pair in feeds.items()}, self.opset)
                for output, one, two in zip(node.outputs, first, other, strict=True):
                    if output and one is not None and two is not None:
                        self._values[output] = (one, two)

    def sizes(self, name: str) -> list[int | None] | None:
        """Return the entries of a value that sizes make; None for what open sizes decide, or for a value of another kind."""
        value = self.value(name)
        if value is not None:
            return [int(entry) for entry in value.ravel()]
        if name not in self._sizes:
            self._sizes[name] = computed_sizes(self, name)
        return self._sizes[name]

    def linear_pair(self, name: str) -> _Pair | None:
        """Return the numbers of a value at the two settings of the open dimensions, where they are linear in those.

        None where it depends on the inputs' numbers, or on a product of two open sizes.
        """
        pending, found = [name], dict[str, _Pair]()
        while pending:
            current = pending[-1]
            node = self.producer.get(current)
            known = None if current in found else self._constant(current) if current in self.tensors else None
            if known is None and current not in found and node is not None and node.op_type == "Shape":
                shape = self.shape(node.inputs[0])
                known = None if shape is None else (_sizes(node, shape.dims), _sizes(node, shape.other))
            if known is not None:
                found[current] = known
            if current in found:
                pending.pop()
                continue
            op = graph_op(node.domain, node.op_type) if node is not None else None
            if node is None or op is None or not op.linear_in or len(found) > _LONGEST_CHAIN:
                return None
            missing = [used for used in node.inputs if used and used not in found]
            if missing:
                pending += missing
                continue
            pairs = {used: found[used] for used in node.inputs if used}
            free = {used for used, pair in pairs.items() if not _is_settled(pair)}
            if (op.linear_in == "any one" and len(free) > 1) or not free.issubset(
                node.inputs[_LINEAR_IN[op.linear_in]]
            ):
                return None
            settings = [{used: pair[i] for used, pair in pairs.items()} for i in (0, 1)]
            one, other = (evaluate_node(node.proto, feeds, self.opset)[0] for feeds in settings)
            if one is None or other is None:
                return None
            found[current] = (one, other)
        return found[name]

    def _constant(self, name: str) -> _Pair | None:
        tensor = self.tensors[name]
        is_known = tensor.data_location != onnx.TensorProto.EXTERNAL or self.folder is not None
        if not is_known or math.prod(tensor.dims) > _FOLDED_SIZE:
            return None
        array = self.array(name)
        return array, array


def graph_of(model: onnx.ModelProto, folder: Path | None = None, shapes: dict[str, Shape] | None = None) -> Graph:
    """Index a model's main graph.

    Args:
        model: Any ONNX model; not changed, and not to be changed while the view is used.
        folder: Folder of the model file; only needed where tensors refer to data in other files.
        shapes: Of its values, where they are known; None infers them at guessed sizes.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[Node] = []
    producer: dict[str, Node] = {}
    consumers: dict[str, list[tuple[Node, int]]] = {}
    captured: dict[str, Node] = {}
    for proto in graph.node:
        if proto.op_type == "Constant" and proto.domain in ("", "ai.onnx"):
            tensor = constant_tensor(proto)
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
    sparse = {sparse.values.name for sparse in graph.sparse_initializer}
    inputs = tuple(i.name for i in graph.input if i.name not in tensors and i.name not in sparse)
    outputs = tuple(o.name for o in graph.output)
    return Graph(model, tuple(nodes), tensors, inputs, outputs, producer, consumers, captured, opset, folder, shapes)


def captured_names(proto: onnx.NodeProto) -> Iterator[str]:
    """Yield the outer values that a node's subgraphs use."""
    for attribute in proto.attribute:
        if attribute.type not in _MAY_HOLD_GRAPHS:
            continue
        for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
            own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
            own.update(sparse.values.name for sparse in graph.sparse_initializer)
            for node in graph.node:
                yield from (name for name in node.input if name and name not in own)
                yield from (name for name in captured_names(node) if name not in own)
                own.update(node.output)
            yield from (o.name for o in graph.output if o.name not in own)


def constant_tensor(proto: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return what a Constant node holds, or None where that is no dense tensor of numbers."""
    for attribute in proto.attribute:
        if attribute.name == "value":
            return attribute.t
        for kind, dtype in (("float", np.float32), ("int", np.int64)):
            if attribute.name in (f"value_{kind}", f"value_{kind}s"):
                numbers = np.array(onnx.helper.get_attribute_value(attribute), dtype)
                return numpy_helper.from_array(numbers, proto.output[0])
    return None  # sparse or string constants stay nodes, which no rule understands


def _has_subgraph(proto: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in proto.attribute)


def _is_settled(pair: _Pair) -> bool:
    return pair[0] is pair[1] or (pair[0].dtype == pair[1].dtype and np.array_equal(*pair))


def _sizes(node: Node, dims: tuple[int, ...]) -> np.ndarray:
    """Return what a Shape or Size node gives for an input of these sizes."""
    if node.op_type == "Size":
        return np.array(np.prod(dims, dtype=np.int64), np.int64)
    return np.array(dims[node.attribute("start", 0) : node.attribute("end", len(dims))], np.int64)


def _text(value: Any) -> Any:
    """Return bytes as text where they are text."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value

"""Shapes of all values, and which of their sizes are fixed.

Exporters compute Reshape targets from shapes at run time, so symbolic inference loses track of them. With numbers in
place of the open dimensions onnx's inference gets through; done twice with different numbers, it also tells which
sizes depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from agmc_onnx.graph.fold import evaluate_node
from agmc_onnx.graph.inference import Infer, inferring
from agmc_onnx.graph.registry import Dims, ShapeRule, graph_op, same_as_first
from agmc_onnx.graph.sizes import (
    InputDims,
    InputSizes,
    Setting,
    batch_symbols,
    guesses,
    input_dims,
    others,
    setting_of,
    sizes_at,
)

__all__ = ["Shape", "dims_at", "evaluate_node", "guessed_sizes", "infer_shapes"]

_ACTIVATION = (
    "activation",
    "activation_params",
    "activation_alpha",
    "activation_beta",
    "activation_gamma",
)  # of fused ops
_MOST_REMEMBERED = 32
_REMEMBERED: dict[tuple[bytes, tuple[tuple[str, int], ...]], dict[str, tuple[int, ...]]] = {}  # the oldest first
_KEPT_ELEMENTS = 1024  # constants up to this size keep their numbers: shape arithmetic needs them


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a value at batch 1, and at a second setting of the open dimensions.

    Attributes:
        dims: Sizes at batch 1 and the sizes of the inputs that were asked for or guessed: what costs are counted at.
        other: Sizes at a second setting, in which every open dim differs; a size is fixed when it is the same in both.
    """

    dims: tuple[int, ...]
    other: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.dims)

    @property
    def is_static(self) -> bool:
        """Whether no size depends on the open dimensions."""
        return self.dims == self.other

    def is_fixed(self, dim: int) -> bool:
        """Whether the size of one dimension is the same for every input."""
        return self.dims[dim] == self.other[dim]


def infer_shapes(
    model: onnx.ModelProto, sizes: Mapping[str, Sequence[int]] | None = None, second: Setting | None = None
) -> dict[str, Shape]:
    """Return the shape of every value of the main graph that onnx's inference can tell.

    Args:
        model: Any model; not changed.
        sizes: Of the inputs, with batch 1; None: the first guess (`agmc_onnx.graph.sizes.guesses`) at which no size vanishes.
        second: The second setting; None: that of `agmc_onnx.graph.sizes.others` at which most can be told.
    """
    with inferring() as infer:
        return _infer_both(infer, model, sizes, second)


def _infer_both(
    infer: Infer, model: onnx.ModelProto, sizes: Mapping[str, Sequence[int]] | None, second: Setting | None
) -> dict[str, Shape]:
    skeleton = _without_weights(model)
    inputs = input_dims(model)
    made = [output for node in skeleton.graph.node for output in node.output if output]
    least = 0 if sizes is not None and any(0 in dims for dims in sizes.values()) else 1
    first: dict[str, tuple[int, ...]] = {}
    setting: Setting = {}
    for tried in guesses(inputs, model) if sizes is None else [setting_of(inputs, sizes)]:
        found = _infer(infer, skeleton, inputs, tried, made)
        good = {name: dims for name, dims in found.items() if min(dims, default=1) >= least}
        if len(good) > len(first):
            first, setting = good, tried
        if len(good) == len(found) and (sizes is None or first):
            break
    best: dict[str, Shape] = {}
    for tried in others(inputs, setting) if second is None else [second]:
        there = _infer(infer, skeleton, inputs, tried, made)
        shapes = {
            name: Shape(dims, there[name])
            for name, dims in first.items()
            if name in there and len(there[name]) == len(dims) and min(there[name], default=1) >= least
        }
        if len(shapes) > len(best):
            best = shapes
        if len(best) == len(first):
            break
    return best


def dims_at(model: onnx.ModelProto, settings: Sequence[Setting]) -> list[dict[str, tuple[int, ...]]]:
    """Return the sizes of every value that inference can tell, for each of some settings of the open dimensions."""
    skeleton, inputs = _without_weights(model), input_dims(model)
    made = [output for node in skeleton.graph.node for output in node.output if output]
    with inferring() as infer:
        return [_infer(infer, skeleton, inputs, setting, made) for setting in settings]


def guessed_sizes(model: onnx.ModelProto) -> InputSizes:
    """Return the sizes of the inputs that `infer_shapes` takes where it is given none."""
    shapes, inputs = infer_shapes(model), input_dims(model)
    return {name: shapes[name].dims for name in inputs if name in shapes}


def _infer(
    infer: Infer, skeleton: onnx.ModelProto, inputs: Mapping[str, InputDims], setting: Setting, made: list[str]
) -> dict[str, tuple[int, ...]]:
    """Infer at a setting of the open dimensions; the skeleton has no sizes of its own afterwards.

    What was found at guesses is remembered: of one model it is asked for when branches are taken, sizes settled, ties found.
    """
    known = dict.fromkeys(batch_symbols(inputs), 1) | setting
    is_guess = bool(setting.keys() - batch_symbols(inputs))
    key = (skeleton.SerializeToString(deterministic=True) if is_guess else b"", tuple(sorted(known.items())))
    if is_guess and key in _REMEMBERED:
        return _REMEMBERED[key]
    at = sizes_at(inputs, known)
    opened = []
    for value in (*skeleton.graph.input, *skeleton.graph.value_info):
        for position, dim in enumerate(value.type.tensor_type.shape.dim):
            size = at[value.name][position] if value.name in at else known.get(dim.dim_param)
            if _is_open(dim) and size is not None:
                opened.append((dim, dim.dim_param))
                dim.dim_value = size
    try:
        inferred = infer(skeleton, is_guess)
        found = {value.name: value.type for value in (*inferred.input, *inferred.value_info, *inferred.output)}
    except Exception:  # inference stops at the first contradiction it meets; node by node gets further
        found = {}
    sizes = {name: dims for name, kind in found.items() if (dims := _dims(kind)) is not None}
    sizes.update((tensor.name, tuple(tensor.dims)) for tensor in skeleton.graph.initializer)
    if not all(name in sizes for name in made):
        sizes = _walk(skeleton, found)
    for dim, name in opened:
        dim.dim_param = name  # takes the number away
    if is_guess:
        _REMEMBERED[key] = sizes
        while len(_REMEMBERED) > _MOST_REMEMBERED:
            del _REMEMBERED[next(iter(_REMEMBERED))]
    return sizes


def _walk(model: onnx.ModelProto, found: dict[str, onnx.TypeProto]) -> dict[str, tuple[int, ...]]:
    """Infer node by node, evaluating shape arithmetic on the way.

    A node that this fails for keeps what inference of the whole model has `found` (local functions, If), if anything.
    """
    walker = _Walker(model)
    for node in model.graph.node:
        used = [name for name in node.input if name]
        if all(name in walker.types or name in walker.data for name in used):
            if node.domain in ("", "ai.onnx"):
                walker.learn_outputs(node, used)
            else:
                walker.learn_fused(node)
        for name in node.output:
            if name in found and name not in walker.sizes:
                walker.learn_type(name, found[name])
    return walker.sizes


class _Walker:
    """What is known of the values of a graph so far: types, sizes, and of small ones the numbers."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._opset, self._imports, self._ir_version = _opset(model), list(model.opset_import), model.ir_version
        self.types: dict[str, onnx.TypeProto] = {}  # of small values with numbers only once they are asked for
        self.sizes: dict[str, tuple[int, ...]] = {}
        self.data: dict[str, np.ndarray] = {}
        for value in model.graph.input:
            self.learn_type(value.name, value.type)
        for tensor in model.graph.initializer:
            self.learn(tensor.name, numpy_helper.to_array(tensor))

    def learn(self, name: str, value: np.ndarray) -> None:
        """Learn the numbers of a value."""
        self.sizes[name] = value.shape
        self.data[name] = value
        if value.size > _KEPT_ELEMENTS:
            self.type_of(name)
            del self.data[name]

    def learn_type(self, name: str, kind: onnx.TypeProto) -> None:
        """Learn the type of a value, and its sizes where it says them; nothing is inferred from sizes below zero."""
        dims = _dims(kind)
        if dims is not None:
            self.sizes[name] = dims
        if dims is None or min(dims, default=0) >= 0:
            self.types[name] = kind

    def type_of(self, name: str) -> onnx.TypeProto:
        """Return the type of a value that is known."""
        if name not in self.types:
            value = self.data[name]
            kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            self.types[name] = onnx.helper.make_tensor_type_proto(kind, value.shape)
        return self.types[name]

    def learn_outputs(self, node: onnx.NodeProto, used: list[str]) -> None:
        """Learn what an op of the standard gives for known inputs."""
        op = graph_op(node.domain, node.op_type)
        if op is not None and op.shape is same_as_first and len(node.output) == 1 and used[0] not in self.data:
            self.learn_type(node.output[0], self.types[used[0]])
            return
        if node.op_type == "Shape" and used[0] in self.sizes:
            dims, attributes = self.sizes[used[0]], {a.name: a.i for a in node.attribute}
            part = slice(attributes.get("start", 0), attributes.get("end", len(dims)))
            self.learn(node.output[0], np.array(dims[part], np.int64))
            return
        if all(name in self.data for name in used) and not any(a.HasField("g") for a in node.attribute):
            feeds = {name: self.data[name] for name in used}
            for output, value in zip(node.output, evaluate_node(node, feeds, self._opset), strict=True):
                if output and value is not None and value.dtype != object:
                    self.learn(output, value)
            if all(output in self.sizes for output in node.output if output):
                return
        try:
            inferred = onnx.shape_inference.infer_node_outputs(
                onnx.defs.get_schema(node.op_type, self._opset, ""),
                node,
                {name: self.type_of(name) for name in used},
                {name: numpy_helper.from_array(self.data[name]) for name in used if name in self.data},
                opset_imports=self._imports,
                ir_version=self._ir_version,
            )
        except Exception:  # unknown op, contradiction: the outputs stay unknown
            inferred = {}
        for name, kind in inferred.items():
            self.learn_type(name, kind)
        if node.output[0] and node.output[0] not in self.sizes:
            self.learn_fused(node)

    def learn_fused(self, node: onnx.NodeProto) -> None:
        """Learn what an op of onnxruntime gives; the type of a result is that of the first input."""
        op = graph_op(node.domain, node.op_type)
        if op is not None and op.begins_with is not None:
            standard = _standard_node(node, *op.begins_with)
            self.learn_outputs(standard, [name for name in standard.input if name])
        elif op is not None and op.shape is not None:
            kind = self.type_of(node.input[op.type_input]).tensor_type.elem_type
            for output, shape in zip(node.output, self._shapes(node, op.shape), strict=False):
                if output and shape is not None:
                    self.learn_type(output, onnx.helper.make_tensor_type_proto(kind, shape))

    def _shapes(self, node: onnx.NodeProto, rule: ShapeRule) -> list[Dims | None]:
        dims = [self.sizes.get(name) if name else None for name in node.input]
        if not dims or dims[0] is None:
            return []
        try:
            return rule(dims, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute})
        except (IndexError, KeyError, TypeError):  # an input it needs is missing or has another rank
            return []


def _standard_node(node: onnx.NodeProto, op_type: str, n_inputs: int) -> onnx.NodeProto:
    """Return a node of the standard whose output has the same shape."""
    made = onnx.helper.make_node(op_type, node.input[:n_inputs], node.output)
    made.attribute.extend(a for a in node.attribute if a.name not in _ACTIVATION)
    return made


def _dims(kind: onnx.TypeProto | None) -> tuple[int, ...] | None:
    if kind is None:
        return None
    tensor = kind.tensor_type
    if not tensor.HasField("shape"):
        return None
    dims = tensor.shape.dim
    sizes = tuple([dim.dim_value for dim in dims])
    return None if 0 in sizes and not all(dim.HasField("dim_value") for dim in dims) else sizes


def _is_open(dim: onnx.TensorShapeProto.Dimension) -> bool:
    return not dim.HasField("dim_value") or dim.dim_value <= 0


def _opset(model: onnx.ModelProto) -> int:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose large constants are inputs of the same shape: inference reads shapes, not weights.

    Numbers that small constants alone make (how an exporter writes the amounts of a Pad) are initializers.
    """
    slim = onnx.ModelProto()
    slim.ir_version = max(model.ir_version, 4)
    slim.opset_import.extend(model.opset_import)
    slim.functions.extend(model.functions)
    graph = slim.graph
    graph.name = "shapes"
    named = {i.name for i in model.graph.initializer} | {s.values.name for s in model.graph.sparse_initializer}
    graph.input.extend(i for i in model.graph.input if i.name not in named)
    for output in model.graph.output:
        graph.output.add().name = output.name
        graph.output[-1].type.CopyFrom(output.type)
        if output.type.HasField("tensor_type"):
            graph.output[-1].type.tensor_type.ClearField("shape")  # declared shapes may be symbolic; let them be found
    numbers = _Numbers(graph, _opset(model))
    for tensor in model.graph.initializer:
        numbers.add(tensor, tensor.name)
    for sparse in model.graph.sparse_initializer:
        _add_input(graph, sparse.values.name, sparse.values.data_type, sparse.dims)
    for node in model.graph.node:
        tensor = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if tensor is not None and tensor.data_type != onnx.TensorProto.STRING:
            numbers.add(tensor, node.output[0])
        elif not numbers.fold(node):
            graph.node.append(node)
    # what the file says is the only source for the ops of other domains
    foreign = {name for node in graph.node if node.domain not in ("", "ai.onnx") for name in node.output}
    graph.value_info.extend(value for value in model.graph.value_info if value.name in foreign)
    return slim


class _Numbers:
    """The constants of a graph in the making: small ones, with what nodes make of them alone, and inputs for large ones."""

    def __init__(self, graph: onnx.GraphProto, opset: int) -> None:
        self._graph, self._opset = graph, opset
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._values: dict[str, np.ndarray] = {}

    def add(self, tensor: onnx.TensorProto, name: str) -> None:
        """Add a constant of the model under a name."""
        inline = tensor.data_location != onnx.TensorProto.EXTERNAL
        if not inline or math.prod(tensor.dims) > _KEPT_ELEMENTS:
            _add_input(self._graph, name, tensor.data_type, tensor.dims)
            return
        self._graph.initializer.append(tensor)
        self._tensors[name] = self._graph.initializer[-1]
        self._tensors[name].name = name

    def fold(self, node: onnx.NodeProto) -> bool:
        """Make a node's output a constant; False where it is no arithmetic on small ones."""
        op = graph_op(node.domain, node.op_type)
        if op is None or op.evaluate is None or not node.input or len(node.output) > 1:
            return False
        names = [name for name in node.input if name]
        if not all(name in self._tensors for name in names):
            return False
        for name in names:
            if name not in self._values:
                self._values[name] = numpy_helper.to_array(self._tensors[name])
        value = evaluate_node(node, {name: self._values[name] for name in names}, self._opset)[0]
        if value is None or value.dtype.kind not in "iufb" or value.size > _KEPT_ELEMENTS:
            return False
        self._values[node.output[0]] = value
        self.add(numpy_helper.from_array(value), node.output[0])
        return True


def _add_input(graph: onnx.GraphProto, name: str, dtype: int, dims: Iterator[int]) -> None:
    kind = graph.input.add(name=name).type.tensor_type
    kind.elem_type = dtype
    kind.shape.SetInParent()  # a number has a shape without dims
    for size in dims:
        kind.shape.dim.add(dim_value=size)

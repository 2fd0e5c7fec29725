"""Shapes of all values, and which of their sizes are fixed.

Exporters compute Reshape targets from shapes at run time, so symbolic inference loses track of them. With numbers in
place of the open dimensions onnx's inference gets through; done twice with different numbers, it also tells which
sizes depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from agmc_onnx.model.fused_shapes import fused_shapes, standard_node
from agmc_onnx.model.numbers import evaluate_node

__all__ = ["Shape", "evaluate_node", "infer_shapes"]

_BATCH = (1, 2)  # the first open dimension of an input, in the two passes
_OTHER = ((16, 24), (64, 96), (224, 256))  # all other open dimensions; larger ones when a graph shrinks 16 to nothing
_IMAGE_RANK = 4  # images start with the largest: at 16 and 24 pixels the last of five halvings would look fixed at 1
_FIRST_FLOAT = {"EmbedLayerNormalization": 2}  # input that has the type of the result, where that is not the first
_KEPT_ELEMENTS = 1024  # constants up to this size keep their numbers: shape arithmetic needs them


@dataclass(frozen=True)
class Shape:
    """Sizes of a value at batch 1, and at a second setting of the open dimensions.

    Attributes:
        dims: Sizes with every first open dimension 1 and the others small, 224 for images: what costs are counted at.
        other: Sizes at the second setting; a size is fixed when it is the same in both.
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


def infer_shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    """Return the shape of every value of the main graph that onnx's inference can tell.

    Args:
        model: Any model; not changed.
    """
    skeleton = _without_weights(model)
    best: dict[str, Shape] = {}
    made = [output for node in skeleton.graph.node for output in node.output if output]
    inputs = [i.type.tensor_type.shape.dim for i in skeleton.graph.input]
    is_image = any(len(dims) >= _IMAGE_RANK and any(_is_open(dim) for dim in dims[1:]) for dims in inputs)
    settings = _OTHER[::-1] if is_image else _OTHER
    for sizes in settings if any(_is_open(dim) for dims in inputs for dim in dims[1:]) else settings[:1]:
        first, second = (_infer(skeleton, batch, size, made) for batch, size in zip(_BATCH, sizes, strict=True))
        found = {
            name: Shape(dims, second[name])
            for name, dims in first.items()
            if name in second and len(second[name]) == len(dims) and min(dims, default=1) > 0
        }
        if len(found) > len(best):
            best = found
        if best and len(best) == len(first):
            break
    return best


def _infer(skeleton: onnx.ModelProto, batch: int, other: int, made: list[str]) -> dict[str, tuple[int, ...]]:
    model = onnx.ModelProto()
    model.CopyFrom(skeleton)
    names: dict[str, int] = {}
    for value in (*model.graph.input, *model.graph.value_info):
        for position, dim in enumerate(value.type.tensor_type.shape.dim):
            if _is_open(dim):
                size = batch if position == 0 else other
                dim.dim_value = names.setdefault(dim.dim_param, size) if dim.dim_param else size
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        found = {value.name: value.type for value in (*inferred.input, *inferred.value_info, *inferred.output)}
    except Exception:  # inference stops at the first contradiction it meets; node by node gets further
        found = {}
    sizes = {name: dims for name, kind in found.items() if (dims := _dims(kind)) is not None}
    return sizes if all(name in sizes for name in made) else _walk(model, found)


def _walk(model: onnx.ModelProto, found: dict[str, onnx.TypeProto]) -> dict[str, tuple[int, ...]]:
    """Infer node by node, evaluating shape arithmetic on the way.

    A node that this fails for keeps what inference of the whole model has `found` (local functions, If), if anything.
    """
    types = {i.name: i.type for i in model.graph.input}
    data: dict[str, np.ndarray] = {}
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)

    def learn(name: str, value: np.ndarray) -> None:
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        types[name] = onnx.helper.make_tensor_type_proto(kind, value.shape)
        if value.size <= _KEPT_ELEMENTS:
            data[name] = value

    def learn_outputs(node: onnx.NodeProto, used: list[str]) -> None:
        if node.op_type == "Shape" and (dims := _dims(types[used[0]])) is not None:
            attributes = {a.name: a.i for a in node.attribute}
            learn(
                node.output[0], np.array(dims[attributes.get("start", 0) : attributes.get("end", len(dims))], np.int64)
            )
            return
        if all(name in data for name in used) and not any(a.HasField("g") for a in node.attribute):
            feeds = {name: data[name] for name in used}
            for output, value in zip(node.output, evaluate_node(node, feeds, opset), strict=True):
                if output and value is not None and value.dtype != object:
                    learn(output, value)
            if all(output in types for output in node.output if output):
                return
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, "")
            inferred = onnx.shape_inference.infer_node_outputs(
                schema, node, {n: types[n] for n in used}, {n: numpy_helper.from_array(data[n]) for n in used if n in data},
                opset_imports=list(model.opset_import), ir_version=model.ir_version,
            )  # fmt: skip
        except Exception:  # unknown op, contradiction: the outputs stay unknown
            inferred = {}
        types.update(inferred)
        if any(name and _dims(types.get(name)) is None for name in node.output[:1]):
            learn_fused(node)

    def learn_fused(node: onnx.NodeProto) -> None:
        """Learn what an op of onnxruntime gives; the type of a result is that of the first input."""
        standard = standard_node(node)
        if standard is not None:
            learn_outputs(standard, [name for name in standard.input if name])
            return
        dims = [_dims(types.get(name)) if name else None for name in node.input]
        for output, shape in zip(node.output, fused_shapes(node, dims), strict=False):
            if output and shape is not None:
                kind = types[node.input[_FIRST_FLOAT.get(node.op_type, 0)]].tensor_type.elem_type
                types[output] = onnx.helper.make_tensor_type_proto(kind, shape)

    for tensor in model.graph.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        if math.prod(tensor.dims) <= _KEPT_ELEMENTS:
            data[tensor.name] = numpy_helper.to_array(tensor)
    for node in model.graph.node:
        used = [name for name in node.input if name]
        if all(name in types for name in used):
            if node.domain in ("", "ai.onnx"):
                learn_outputs(node, used)
            else:
                learn_fused(node)
        types.update((name, found[name]) for name in node.output if name in found and _dims(types.get(name)) is None)
    return {name: dims for name, kind in types.items() if (dims := _dims(kind)) is not None}


def _dims(kind: onnx.TypeProto | None) -> tuple[int, ...] | None:
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims) if all(dim.HasField("dim_value") for dim in dims) else None


def _is_open(dim: onnx.TensorShapeProto.Dimension) -> bool:
    return not dim.HasField("dim_value") or dim.dim_value <= 0


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose large constants are inputs of the same shape: inference reads shapes, not weights."""
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
    for tensor in model.graph.initializer:
        _add_constant(graph, tensor, tensor.name)
    for sparse in model.graph.sparse_initializer:
        _add_input(graph, sparse.values.name, sparse.values.data_type, sparse.dims)
    for node in model.graph.node:
        tensor = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if tensor is not None and np.prod(tensor.dims, dtype=np.int64) > _KEPT_ELEMENTS:
            _add_input(graph, node.output[0], tensor.data_type, tensor.dims)
        else:
            graph.node.append(node)
    # what the file says is the only source for the ops of other domains
    foreign = {name for node in graph.node if node.domain not in ("", "ai.onnx") for name in node.output}
    graph.value_info.extend(value for value in model.graph.value_info if value.name in foreign)
    return slim


def _add_constant(graph: onnx.GraphProto, tensor: onnx.TensorProto, name: str) -> None:
    inline = tensor.data_location != onnx.TensorProto.EXTERNAL
    if inline and np.prod(tensor.dims, dtype=np.int64) <= _KEPT_ELEMENTS:
        graph.initializer.append(tensor)
    else:
        _add_input(graph, name, tensor.data_type, tensor.dims)


def _add_input(graph: onnx.GraphProto, name: str, dtype: int, dims: Iterator[int]) -> None:
    graph.input.append(onnx.helper.make_tensor_value_info(name, dtype, list(dims)))

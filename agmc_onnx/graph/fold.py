"""The numbers that a node of shape arithmetic gives: a small table in numpy, onnx's reference for all other ops.

The reference builds a model and an evaluator for every node, a millisecond each; graphs that PyTorch's older exporter
writes hold thousands of such nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

Array = np.ndarray
Attributes = dict[str, Any]
Evaluation = Callable[[list[Any], Attributes], Any]
_FIRST_WITH_NUMPY_BROADCAST = 7  # before this opset, operands were aligned by an attribute


def evaluate_node(proto: onnx.NodeProto, feeds: dict[str, Array], opset: int) -> list[Array | None]:
    """Return the outputs of one node of the default domain.

    Args:
        proto: The node.
        feeds: Value of each of its inputs.
        opset: Version of the default operator set.

    Returns:
        One array an output; None for all of them where the node cannot be evaluated.
    """
    evaluation = EVALUATIONS.get(proto.op_type) if opset >= _FIRST_WITH_NUMPY_BROADCAST else None
    with np.errstate(all="ignore"):
        if evaluation is not None and len(proto.output) == 1:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
            inputs = [feeds[name] if name else None for name in proto.input]
            try:
                found = evaluation(inputs, attributes)
            except (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError, OverflowError):
                found = None  # let the reference say whether the node is wrong or only unusual
            if found is not None:
                return [np.asarray(found)]
        return _by_reference(proto, feeds, opset)


def _by_reference(proto: onnx.NodeProto, feeds: dict[str, Array], opset: int) -> list[Array | None]:
    types = onnx.helper.np_dtype_to_tensor_dtype
    infos = [onnx.helper.make_tensor_value_info(name, types(value.dtype), None) for name, value in feeds.items()]
    outs = [onnx.helper.make_empty_tensor_value_info(output) for output in proto.output if output]
    graph = onnx.helper.make_graph([proto], "one", infos, outs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    try:
        found = iter(ReferenceEvaluator(model).run(None, feeds))
    except Exception:  # any failure of onnx.reference means the same here: the value is not known
        return [None for _ in proto.output]
    return [np.asarray(next(found)) if name else None for name in proto.output]


def _binary(function: Callable[[Array, Array], Array]) -> Evaluation:
    def evaluate(inputs: list[Any], _: Attributes) -> Array | None:
        one, other = inputs
        return None if one.dtype != other.dtype else function(one, other)

    return evaluate


def _unary(function: Callable[[Array], Array]) -> Evaluation:
    return lambda inputs, _: function(inputs[0])


def _divide(one: Array, other: Array) -> Array | None:
    """Divide; whole numbers are rounded towards zero, as onnxruntime does."""
    if not np.issubdtype(one.dtype, np.integer):
        return np.divide(one, other)
    if (other == 0).any():
        return None
    quotient, rest = np.divmod(one, other)
    return quotient + ((rest != 0) & ((one < 0) != (other < 0))).astype(one.dtype)


def _modulo(inputs: list[Any], attributes: Attributes) -> Array | None:
    one, other = inputs
    if one.dtype != other.dtype or (other == 0).any():
        return None
    return np.fmod(one, other) if attributes.get("fmod", 0) else np.mod(one, other)


def _cast(inputs: list[Any], attributes: Attributes) -> Array | None:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(attributes["to"])
    plain = inputs[0].dtype.kind in "biuf" and np.dtype(dtype).kind in "biuf"
    return inputs[0].astype(dtype) if plain else None


def _constant(_: list[Any], attributes: Attributes) -> Array | None:
    for name, value in attributes.items():
        if name == "value":
            return numpy_helper.to_array(value)
        if name in ("value_int", "value_ints", "value_float", "value_floats"):
            return np.array(value, np.int64 if "int" in name else np.float32)
    return None


def _constant_of_shape(inputs: list[Any], attributes: Attributes) -> Array:
    value = numpy_helper.to_array(attributes["value"]) if "value" in attributes else np.zeros(1, np.float32)
    return np.full(inputs[0].tolist(), value.ravel()[0], value.dtype)


def _axes(inputs: list[Any], attributes: Attributes) -> list[int] | None:
    if len(inputs) > 1 and inputs[1] is not None:
        return [int(axis) for axis in inputs[1].ravel()]
    found: list[int] | None = attributes.get("axes")
    return found


def _unsqueeze(inputs: list[Any], attributes: Attributes) -> Array | None:
    axes = _axes(inputs, attributes)
    return None if axes is None else np.expand_dims(inputs[0], tuple(axes))


def _squeeze(inputs: list[Any], attributes: Attributes) -> Array:
    axes = _axes(inputs, attributes)
    return np.squeeze(inputs[0], None if axes is None else tuple(axes))


def _slice(inputs: list[Any], attributes: Attributes) -> Array:
    x = inputs[0]
    starts: Any
    ends: Any
    if len(inputs) > 1:
        starts, ends, axes, steps = (None if v is None else v.ravel().tolist() for v in [*inputs[1:], None, None][:4])
    else:
        starts, ends, axes, steps = attributes["starts"], attributes["ends"], attributes.get("axes"), None
    index = [slice(None)] * x.ndim
    for i, axis in enumerate(axes if axes is not None else range(len(starts))):
        index[axis] = slice(starts[i], ends[i], steps[i] if steps is not None else 1)
    return x[tuple(index)]


def _reshape(inputs: list[Any], attributes: Attributes) -> Array:
    x, target = inputs[0], inputs[1].tolist()
    if not attributes.get("allowzero", 0):
        target = [x.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return x.reshape(target)


def _expand(inputs: list[Any], _: Attributes) -> Array:
    x, target = inputs
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(target.tolist()))).copy()


def _range(inputs: list[Any], _: Attributes) -> Array:
    start, limit, delta = (value.ravel()[0] for value in inputs)
    return np.arange(start, limit, delta, dtype=inputs[0].dtype)


def _gather(inputs: list[Any], attributes: Attributes) -> Array:
    return np.take(inputs[0], inputs[1], axis=attributes.get("axis", 0))


def _extreme(function: Callable[[Array, Array], Array]) -> Evaluation:
    def evaluate(inputs: list[Any], _: Attributes) -> Array:
        found: Array = inputs[0]
        for other in inputs[1:]:
            found = function(found, other)
        return found

    return evaluate


EVALUATIONS: dict[str, Evaluation] = {
    "Add": _binary(np.add),
    "And": _binary(np.logical_and),
    "Cast": _cast,
    "Ceil": _unary(np.ceil),
    "Concat": lambda inputs, attributes: np.concatenate(inputs, axis=attributes["axis"]),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Div": lambda inputs, _: _divide(*inputs) if inputs[0].dtype == inputs[1].dtype else None,
    "Equal": _binary(np.equal),
    "Expand": _expand,
    "Floor": _unary(np.floor),
    "Gather": _gather,
    "Greater": _binary(np.greater),
    "Identity": _unary(np.asarray),
    "Less": _binary(np.less),
    "Max": _extreme(np.maximum),
    "Min": _extreme(np.minimum),
    "Mod": _modulo,
    "Mul": _binary(np.multiply),
    "Neg": _unary(np.negative),
    "Not": _unary(np.logical_not),
    "Or": _binary(np.logical_or),
    "Range": _range,
    "Reshape": _reshape,
    "Slice": _slice,
    "Sqrt": _unary(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _binary(np.subtract),
    "Transpose": lambda inputs, attributes: np.transpose(inputs[0], attributes.get("perm")),
    "Unsqueeze": _unsqueeze,
    "Where": lambda inputs, _: np.where(*inputs),
}

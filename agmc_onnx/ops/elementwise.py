"""Ops that compute entry by entry, with numpy broadcasting: their operands live and die together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx

from agmc_onnx.graph.registry import Attributes, Dims, Evaluate, same_as_first
from agmc_onnx.graph.view import Node
from agmc_onnx.ops.passing import broadcast
from agmc_onnx.ops.table import ARRANGES, MICROSOFT, Op, Vanishing, register
from agmc_onnx.ops.zeros import Removed, where_all_are, where_any_is, where_first_is
from agmc_onnx.ties.ledger import Ledger, tie_or_freeze


def elementwise_ties(ledger: Ledger, node: Node) -> None:
    """Tie the operands of an element-by-element op along every dim of its output, with numpy broadcasting."""
    names = [name for name in node.inputs if name]
    if len(names) == 1:
        _same(ledger, node, names[0], node.outputs[0])
    else:
        broadcast(ledger, node, names, node.outputs[0])
    for extra in node.outputs[1:]:
        if extra:
            broadcast(ledger, node, [node.inputs[0]], extra)


def _same(ledger: Ledger, node: Node, x: str, y: str) -> None:
    """Give every dim of an output the ids of the input's."""
    for dim in range(ledger.shape(x).rank):
        entries = ledger.axis(node, x, dim)
        if entries is not None:
            ledger.set(y, dim, entries.ids, entries.rows)


def cast_like(ledger: Ledger, node: Node) -> None:
    """CastLike: as its first input; of the second only the type is read."""
    _same(ledger, node, node.inputs[0], node.outputs[0])
    for dim in ledger.labelled(node.inputs[1]):
        ledger.axis(node, node.inputs[1], dim)


def split_gelu(ledger: Ledger, node: Node) -> None:
    """BiasSplitGelu: the first half of the last dim times the gelu of the second."""
    x, y = node.inputs[0], node.outputs[0]
    dim = ledger.shape(x).rank - 1
    ids = ledger.flat(node, x, dim)
    if ids is None:
        return
    tie_or_freeze(ledger, node, ids, node.inputs[1], 0)
    half = ids.size // 2
    ledger.tie(ids[:half], ids[half:])
    ledger.set(y, dim, ids[:half])


def split_gelu_shape(dims: Sequence[Any], _: Attributes) -> list[Dims | None]:
    """Half of the last dim."""
    return [(*dims[0][:-1], dims[0][-1] // 2)]


def clip_zero(asked: Removed) -> bool:
    """Clip: as its input where 0 lies between the bounds."""
    node = asked.node

    def bound(position: int, name: str) -> float | None:
        given = node.inputs[position] if len(node.inputs) > position else ""
        value = asked.ledger.graph.value(given) if given else np.asarray(node.attribute(name, 0.0))
        return None if value is None or value.size != 1 else float(value.ravel()[0])

    low, high = bound(1, "min"), bound(2, "max")
    return low is not None and high is not None and low <= 0 <= high and where_first_is(asked)


def quotient_zero(asked: Removed) -> bool:
    """Div: 0 where what is divided is."""
    return asked.beside(asked.node.inputs[0])


def _numpy(function: Callable[..., np.ndarray]) -> Evaluate:
    """Compute with a function of numpy, one operand after the other; operands of unlike types are left to onnx's reference."""

    def evaluate(inputs: list[Any], _: Attributes) -> np.ndarray | None:
        if len(inputs) == 1:
            return function(inputs[0])
        return reduce(function, inputs) if len({x.dtype for x in inputs}) == 1 else None

    return evaluate


def _divide(inputs: list[Any], _: Attributes) -> np.ndarray | None:
    """Divide; whole numbers are rounded towards zero, as onnxruntime does."""
    one, other = inputs
    if one.dtype != other.dtype or (np.issubdtype(one.dtype, np.integer) and (other == 0).any()):
        return None
    if not np.issubdtype(one.dtype, np.integer):
        return np.divide(one, other)
    quotient, rest = np.divmod(one, other)
    return quotient + ((rest != 0) & ((one < 0) != (other < 0))).astype(one.dtype)


def _modulo(inputs: list[Any], attributes: Attributes) -> np.ndarray | None:
    one, other = inputs
    if one.dtype != other.dtype or (other == 0).any():
        return None
    return np.fmod(one, other) if attributes.get("fmod", 0) else np.mod(one, other)


def _cast(inputs: list[Any], attributes: Attributes) -> np.ndarray | None:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(attributes["to"])
    plain = inputs[0].dtype.kind in "biuf" and np.dtype(dtype).kind in "biuf"
    return inputs[0].astype(dtype) if plain else None


def _where(inputs: list[Any], _: Attributes) -> np.ndarray:
    condition, one, other = inputs
    return np.where(condition, one, other)


def _pointwise(names: str, domain: str = "", **facts: Any) -> list[Op]:
    return [Op(name, elementwise_ties, domain, **facts) for name in names.split()]


_RANDOM = "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike"
_SIZES: dict[str, Any] = {"computes_sizes": True}
_KEEPS: dict[str, Any] = {"keeps_zero": where_first_is}
_SAME: dict[str, Any] = {"shape": same_as_first}
OPS = register(
    Op(
        "Add", elementwise_ties, joins=True, commutes=True, linear_in="each", evaluate=_numpy(np.add), keeps_zero=where_all_are,
        edge="add", **_SIZES,
    ),
    Op(
        "Sub", elementwise_ties, joins=True, linear_in="each", evaluate=_numpy(np.subtract), keeps_zero=where_all_are,
        when_empty=Vanishing("difference"), edge="add", **_SIZES,
    ),
    Op("Sum", elementwise_ties, joins=True, commutes=True, keeps_zero=where_all_are, edge="add"),
    Op("Mean", elementwise_ties, commutes=True, edge="add"),
    Op(
        "Mul", elementwise_ties, commutes=True, linear_in="any one", evaluate=_numpy(np.multiply), keeps_zero=where_any_is,
        edge="mul", **_SIZES,
    ),
    Op(
        "Div", elementwise_ties, evaluate=_divide, keeps_zero=quotient_zero, when_empty=Vanishing("quotient"), divisors=(1,),
        edge="mul", **_SIZES,
    ),
    Op("Mod", elementwise_ties, evaluate=_modulo, **_SIZES),
    Op("Max", elementwise_ties, commutes=True, evaluate=_numpy(np.maximum), edge="activation", **_SIZES),
    Op("Min", elementwise_ties, commutes=True, evaluate=_numpy(np.minimum), edge="activation", **_SIZES),
    Op("Neg", elementwise_ties, evaluate=_numpy(np.negative), edge="activation", **_SIZES, **_KEEPS, **_SAME),
    Op("Floor", elementwise_ties, evaluate=_numpy(np.floor), edge="activation", **_SIZES, **_KEEPS, **_SAME),
    Op("Ceil", elementwise_ties, evaluate=_numpy(np.ceil), edge="activation", **_SAME),
    Op("Sqrt", elementwise_ties, divisors=(0,), evaluate=_numpy(np.sqrt), edge="activation", **_KEEPS, **_SAME),
    Op("Cast", elementwise_ties, evaluate=_cast, edge="identity", **ARRANGES, **_KEEPS),
    Op("CastLike", cast_like, edge="identity", **_KEEPS),
    Op("Identity", elementwise_ties, evaluate=_numpy(np.asarray), edge="identity", **ARRANGES, **_KEEPS, **_SAME),
    Op("Dropout", elementwise_ties, edge="identity", **_KEEPS),
    Op("Clip", elementwise_ties, idempotent=True, keeps_zero=clip_zero, edge="relu", **_SAME),
    Op("PRelu", elementwise_ties, edge="relu", **_KEEPS),
    Op("ThresholdedRelu", elementwise_ties, edge="relu"),
    Op("Equal", elementwise_ties, evaluate=_numpy(np.equal), **_SIZES),
    Op("Greater", elementwise_ties, evaluate=_numpy(np.greater)),
    Op("Less", elementwise_ties, evaluate=_numpy(np.less)),
    Op("And", elementwise_ties, evaluate=_numpy(np.logical_and)),
    Op("Or", elementwise_ties, evaluate=_numpy(np.logical_or)),
    Op("Not", elementwise_ties, evaluate=_numpy(np.logical_not)),
    Op("Where", elementwise_ties, evaluate=_where, **_SIZES),
    Op("Relu", elementwise_ties, idempotent=True, edge="relu", **_KEEPS, **_SAME),
    Op("LeakyRelu", elementwise_ties, edge="relu", **_KEEPS, **_SAME),
    Op("Abs", elementwise_ties, idempotent=True, edge="activation", **_KEEPS, **_SAME),
    *_pointwise("Elu Erf Gelu HardSwish Round Selu Sin Tanh", edge="activation", **_KEEPS, **_SAME),
    *_pointwise("Celu Mish Sign Softsign Swish", edge="activation", **_KEEPS),
    *_pointwise("Cos Exp HardSigmoid Sigmoid Softplus", edge="activation", **_SAME),
    *_pointwise("Log Reciprocal", divisors=(0,), edge="activation", **_SAME),
    Op("Pow", elementwise_ties, edge="activation"),
    *_pointwise("Acos Acosh Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cosh"),
    *_pointwise("GreaterOrEqual IsInf IsNaN LessOrEqual Shrink Sinh SwiGLU Tan Xor"),
    *_pointwise("BiasGelu FastGelu Gelu QuickGelu", MICROSOFT, **_SAME),
    *(Op(name, is_random=True) for name in _RANDOM.split()),
    Op("BiasSplitGelu", split_gelu, MICROSOFT, shape=split_gelu_shape),
    Op("BiasAdd", elementwise_ties, MICROSOFT, joins=True, shape=same_as_first),
    Op("BiasSoftmax", domain=MICROSOFT, shape=same_as_first),
)  # fmt: skip

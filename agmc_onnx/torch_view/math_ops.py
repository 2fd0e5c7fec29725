"""ONNX ops as torch functions: arithmetic, reductions, matrix products.

Every function takes a `Call` (the node's attributes and the opset) and the node's inputs, None where one is left out.
Whole numbers (shapes, indices) stay on the CPU, whatever device the floats are on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from agmc_onnx.errors import ModelError

Result = Tensor | tuple[Tensor | None, ...]
Op = Callable[..., Result]
_T = onnx.TensorProto
DTYPES = {
    _T.FLOAT: torch.float32, _T.DOUBLE: torch.float64, _T.FLOAT16: torch.float16, _T.BFLOAT16: torch.bfloat16,
    _T.INT64: torch.int64, _T.INT32: torch.int32, _T.INT16: torch.int16, _T.INT8: torch.int8,
    _T.UINT8: torch.uint8, _T.BOOL: torch.bool,
}  # fmt: skip


@dataclass
class Call:
    """One node, ready to be run again and again.

    Attributes:
        op_type: Of the default domain.
        inputs, outputs: Value names; "" for one left out.
        attributes: Python values by name; text as str, tensors as TensorProto.
        opset: Version of the default operator set.
        label: Name for messages.
        training: Let BatchNormalization use, and update, the statistics of the batch.
        momentum: Weight of the new statistics where `training`.
        overwrites: Let Relu and Clip put their output in the place of their input.
    """

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    label: str = ""
    training: bool = False
    momentum: float = 0.1
    overwrites: bool = False

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or the default where the node has none of that name."""
        return self.attributes.get(name, default)

    def refuse(self, what: str) -> ModelError:
        """Return the error that this form of the op is not covered."""
        return ModelError(
            f"{self.label}: torch cannot run this form of {self.op_type}, got {what}; expected another. "
            "Use --recover compensate, which needs no gradients."
        )


def numbers(value: Tensor | None) -> list[Any] | None:
    """Return a small tensor as a flat list."""
    return None if value is None else value.reshape(-1).tolist()


def together(*values: Tensor) -> list[Tensor]:
    """Return tensors on one device: that of the first that is not on the CPU."""
    device = next((v.device for v in values if v.device.type != "cpu"), None)
    return list(values) if device is None else [v.to(device) for v in values]


def on(like: Tensor, index: Tensor) -> Tensor:
    """Return an index tensor on the device of the tensor it indexes."""
    return index if index.device == like.device else index.to(like.device)


# -- element by element ---------------------------------------------------------------------------------------------


def _unary(function: Callable[[Tensor], Tensor]) -> Op:
    return lambda _, x: function(x)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    def run(_: Call, a: Tensor, b: Tensor) -> Tensor:
        return function(a, b) if a.device == b.device else function(*together(a, b))

    return run


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    def run(_: Call, *values: Tensor) -> Tensor:
        values = tuple(together(*values))
        total = values[0]
        for value in values[1:]:
            total = function(total, value)
        return total

    return run


def mean(call: Call, *values: Tensor) -> Tensor:
    """Mean of several inputs."""
    total = _variadic(torch.add)(call, *values)
    assert isinstance(total, Tensor)
    return total / len(values)


def div(_: Call, a: Tensor, b: Tensor) -> Tensor:
    """Div: whole numbers are divided towards zero."""
    a, b = together(a, b)
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Mod: the sign of the divisor, or with fmod=1 that of the dividend."""
    a, b = together(a, b)
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


def pow_(_: Call, a: Tensor, b: Tensor) -> Tensor:
    """Pow: the type of the base stays."""
    if b.numel() == 1 and b.dim() <= a.dim():
        return torch.pow(a, b.item()).to(a.dtype)
    a, b = together(a, b)
    return torch.pow(a, b).to(a.dtype)


def where(_: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Where."""
    condition, a, b = together(condition, a, b)
    return torch.where(condition, a, b)


def relu(call: Call, x: Tensor) -> Tensor:
    """Relu."""
    return torch.relu_(x) if call.overwrites else torch.relu(x)


def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Clip: bounds are attributes before opset 11."""
    least = call.get("min") if low is None else low.item()
    most = call.get("max") if high is None else high.item()
    if least is None and most is None:
        return x
    if least is None or most is None or not x.is_floating_point() or least > most:
        return torch.clamp(x, least, most)
    return F.hardtanh(x, least, most, inplace=call.overwrites)  # as clamp, but its gradient takes a third of the time


def cast(call: Call, x: Tensor) -> Tensor:
    """Cast."""
    to = call.get("to")
    if isinstance(to, str):
        to = _T.DataType.Value(to)
    if to not in DTYPES:
        raise call.refuse(f"type {_T.DataType.Name(to)}")
    return x.to(DTYPES[to])


def cast_like(_: Call, x: Tensor, like: Tensor) -> Tensor:
    """CastLike."""
    return x.to(like.dtype)


def prelu(_: Call, x: Tensor, slope: Tensor) -> Tensor:
    """PRelu: the slope is broadcast as in numpy."""
    return torch.where(x >= 0, x, x * slope)


def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    """HardSigmoid."""
    return torch.clamp(x * call.get("alpha", 0.2) + call.get("beta", 0.5), 0, 1)


def swish(call: Call, x: Tensor) -> Tensor:
    """Swish."""
    alpha = call.get("alpha", 1.0)
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


def selu(call: Call, x: Tensor) -> Tensor:
    """Selu."""
    alpha, gamma = call.get("alpha", 1.6732631921768188), call.get("gamma", 1.0507010221481323)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0)))


def shrink(call: Call, x: Tensor) -> Tensor:
    """Shrink."""
    bias, limit = call.get("bias", 0.0), call.get("lambd", 0.5)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


def dropout(call: Call, x: Tensor, *_: Tensor | None) -> Result:
    """Dropout as in inference: nothing is dropped."""
    return (x, torch.ones_like(x, dtype=torch.bool))[: len(call.outputs)] if len(call.outputs) > 1 else x


def gelu(call: Call, x: Tensor) -> Tensor:
    """Gelu."""
    return F.gelu(x, approximate=call.get("approximate", "none"))


def is_inf(call: Call, x: Tensor) -> Tensor:
    """IsInf of one sign or both."""
    positive, negative = call.get("detect_positive", 1), call.get("detect_negative", 1)
    return (torch.isposinf(x) & bool(positive)) | (torch.isneginf(x) & bool(negative))


def round_(_: Call, x: Tensor) -> Tensor:
    """Round half to even."""
    return torch.round(x)


# -- reductions and products ----------------------------------------------------------------------------------------


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Op:
    def run(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        dims = numbers(axes) if axes is not None else call.get("axes")
        if not dims:
            if call.get("noop_with_empty_axes", 0):
                return x
            dims = list(range(x.dim()))
        return function(x, [int(d) % x.dim() for d in dims], bool(call.get("keepdims", 1))) if x.dim() else x

    return run


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    for dim in sorted(dims, reverse=True):
        x = torch.prod(x, dim, keepdim=keep)
    return x


def matmul(_: Call, a: Tensor, b: Tensor) -> Tensor:
    """MatMul."""
    return torch.matmul(*together(a, b)) if a.device != b.device else torch.matmul(a, b)


def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Gemm: alpha A B + beta C."""
    a = a.t() if call.get("transA", 0) else a
    b = b.t() if call.get("transB", 0) else b
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    y = a @ b
    y = y if alpha == 1 else y * alpha
    return y if c is None else y + (c if beta == 1 else c * beta)


def einsum(call: Call, *values: Tensor) -> Tensor:
    """Einsum."""
    return torch.einsum(call.get("equation").replace(" ", ""), *together(*values))


def softmax(call: Call, x: Tensor, log: bool = False) -> Tensor:
    """Softmax: before opset 13 over all dims from `axis` on."""
    function = torch.log_softmax if log else torch.softmax
    if call.opset >= 13:
        return function(x, call.get("axis", -1))
    axis = call.get("axis", 1) % x.dim()
    return function(x.reshape(math.prod(x.shape[:axis]), -1), 1).reshape(x.shape)


def log_softmax(call: Call, x: Tensor) -> Tensor:
    """LogSoftmax."""
    return softmax(call, x, log=True)


def _axes_of(dims: Sequence[int]) -> tuple[int, ...]:
    return tuple(dims)


ARITHMETIC: dict[str, Op] = {
    **{name: _unary(getattr(torch, name.lower())) for name in (
        "Abs", "Acos", "Asin", "Atan", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "IsNaN", "Log", "Neg",
        "Reciprocal", "Sigmoid", "Sign", "Sin", "Sinh", "Sqrt", "Tan", "Tanh")},
    **{name: _binary(function) for name, function in (
        ("Add", torch.add), ("Sub", torch.sub), ("Mul", torch.mul), ("Equal", torch.eq), ("Less", torch.lt),
        ("LessOrEqual", torch.le), ("Greater", torch.gt), ("GreaterOrEqual", torch.ge), ("And", torch.logical_and),
        ("Or", torch.logical_or), ("Xor", torch.logical_xor))},
    **{name: _variadic(function) for name, function in (
        ("Sum", torch.add), ("Max", torch.maximum), ("Min", torch.minimum))},
    "Cast": cast, "CastLike": cast_like, "Clip": clip, "Div": div, "Dropout": dropout, "Gelu": gelu,
    "Celu": lambda c, x: F.celu(x, c.get("alpha", 1.0)),
    "Elu": lambda c, x: F.elu(x, c.get("alpha", 1.0)),
    "HardSigmoid": hard_sigmoid, "HardSwish": lambda _, x: F.hardswish(x), "Identity": lambda _, x: x, "IsInf": is_inf,
    "LeakyRelu": lambda c, x: F.leaky_relu(x, c.get("alpha", 0.01)),
    "Mean": mean, "Mish": lambda _, x: F.mish(x), "Mod": mod, "Not": lambda _, x: torch.logical_not(x),
    "PRelu": prelu, "Pow": pow_, "Relu": relu, "Round": round_, "Selu": selu, "Shrink": shrink,
    "Softplus": lambda _, x: F.softplus(x, threshold=60), "Softsign": lambda _, x: F.softsign(x),
    "Swish": swish,
    "ThresholdedRelu": lambda c, x: torch.where(x > c.get("alpha", 1.0), x, torch.zeros_like(x)),
    "Where": where,
}  # fmt: skip

PRODUCTS: dict[str, Op] = {
    "Einsum": einsum, "Gemm": gemm, "LogSoftmax": log_softmax, "MatMul": matmul, "Softmax": softmax,
    "ReduceL1": _reduce(lambda x, d, k: x.abs().sum(_axes_of(d), keepdim=k)),
    "ReduceL2": _reduce(lambda x, d, k: torch.sqrt((x * x).sum(_axes_of(d), keepdim=k))),
    "ReduceLogSum": _reduce(lambda x, d, k: torch.log(x.sum(_axes_of(d), keepdim=k))),
    "ReduceLogSumExp": _reduce(lambda x, d, k: torch.logsumexp(x, _axes_of(d), keepdim=k)),
    "ReduceMax": _reduce(lambda x, d, k: torch.amax(x, _axes_of(d), keepdim=k)),
    "ReduceMean": _reduce(lambda x, d, k: x.mean(_axes_of(d), keepdim=k)),
    "ReduceMin": _reduce(lambda x, d, k: torch.amin(x, _axes_of(d), keepdim=k)),
    "ReduceProd": _reduce(_product),
    "ReduceSum": _reduce(lambda x, d, k: x.sum(_axes_of(d), keepdim=k)),
    "ReduceSumSquare": _reduce(lambda x, d, k: (x * x).sum(_axes_of(d), keepdim=k)),
}  # fmt: skip

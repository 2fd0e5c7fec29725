"""What an op makes of operands that are gone: the facts that `ties.closed` asks for, one row an op.

An operand may be zero everywhere, or have no entries at all. What is not listed here is not sure: it must not meet one.
"""

from __future__ import annotations

from typing import NamedTuple

from agmc_onnx.graph.view import Node


class Vanishing(NamedTuple):
    """What a node gives where some of its operands are gone.

    Attributes:
        kind: "product" (zero where a factor is zero or has no entries), "sum" (of the operands that are left), "difference",
            "scale" (zero where any operand is zero), "quotient", "keep" (zero where the first operand is), "join" (of the
            operands that have entries), "split" (of the outputs that have entries), or "size" (which is no dependence).
        zeroed: Positions of constants that must be neutral for the result to be zero, one of each tuple.
    """

    kind: str
    zeroed: tuple[tuple[int, ...], ...] = ()


_KEEP = """
    Abs AveragePool Cast Celu DepthToSpace Dropout Elu Erf Expand Flatten Floor Gather Gelu GlobalAveragePool GlobalLpPool
    GlobalMaxPool HardSwish Identity LeakyRelu LpPool MaxPool Mish Neg PRelu ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin
    ReduceSum ReduceSumSquare Relu Reshape Resize Round Selu Sign Sin Slice Softsign SpaceToDepth Sqrt Squeeze Swish Tanh Tile
    Transpose Trilu Unsqueeze Upsample
"""
_NORMS = ("InstanceNormalization", "LayerNormalization", "GroupNormalization")

WHEN_EMPTY: dict[tuple[str, str], Vanishing] = {
    **{("", op): Vanishing("keep") for op in _KEEP.split()},
    **{("", op): Vanishing("product", ((2,),)) for op in ("Conv", "ConvTranspose", "Gemm", "MatMul")},
    ("", "Einsum"): Vanishing("product"),
    ("com.microsoft", "FusedMatMul"): Vanishing("product"),
    ("", "Add"): Vanishing("sum"),
    ("", "Sum"): Vanishing("sum"),
    ("", "Sub"): Vanishing("difference"),
    ("", "Mul"): Vanishing("scale"),
    ("", "Div"): Vanishing("quotient"),
    ("", "BatchNormalization"): Vanishing("keep", ((2,), (3, 1))),
    **{("", op): Vanishing("keep", ((2,),)) for op in _NORMS},
    ("", "RMSNormalization"): Vanishing("keep"),
    ("", "SimplifiedLayerNormalization"): Vanishing("keep"),
    ("", "Concat"): Vanishing("join"),
    ("", "Split"): Vanishing("split"),
    ("", "Shape"): Vanishing("size"),
    ("", "Size"): Vanishing("size"),
}
_TWICE_IS_ONCE = frozenset({"Relu", "Clip", "Abs"})  # f(f(x)) = f(x)


def when_empty(node: Node) -> Vanishing | None:
    """Return what a node gives where operands are gone, or None where that is not sure."""
    found = WHEN_EMPTY.get((node.domain, node.op_type))
    if node.op_type == "Pad" and not node.domain:
        is_zero = len(node.inputs) < 3 or not node.inputs[2]
        return Vanishing("keep") if is_zero and not node.attribute("value", 0.0) else None
    if node.op_type == "BatchNormalization" and node.attribute("training_mode", 0):
        return None
    return found


def repeats(node: Node, before: Node | None) -> bool:
    """Return whether a node changes nothing behind another: a Relu behind a Relu."""
    return (
        before is not None
        and node.op_type in _TWICE_IS_ONCE
        and (node.domain, node.op_type, node.inputs[1:]) == (before.domain, before.op_type, before.inputs[1:])
        and [a.SerializeToString() for a in node.proto.attribute]
        == [a.SerializeToString() for a in before.proto.attribute]
    )

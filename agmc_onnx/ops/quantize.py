"""Quantised graphs: what a scale for every channel belongs to is cut as any weight; the rest stays whole, with a clear word.

A removed entry is a zero, and zero is exact in every quantisation: it becomes the zero point, and zero again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx

from agmc_onnx.graph.registry import Attributes, Dims
from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ops.editor import Editor
from agmc_onnx.ops.passing import carry
from agmc_onnx.ops.table import MICROSOFT, Macs, Op, Product, register, sizes_of
from agmc_onnx.ties.ledger import Ledger

_ADVICE = "compress the float model, then quantise the result"


def quantised(ledger: Ledger, node: Node) -> None:
    """Ops that compute with integers (QLinearConv, MatMulInteger, ...): scales and zero points belong to them as they are."""
    for name in node.inputs:
        if name:
            _label(ledger, node, name)
            ledger.freeze_value(name, f"{node.label}: quantised; {_ADVICE}")


def linear(ledger: Ledger, node: Node) -> None:
    """QuantizeLinear, DequantizeLinear: dims pass; a scale and a zero point for every channel follow theirs.

    A quantised weight with one scale for the whole of it, or for blocks of it, stays whole.
    """
    x, scale = node.inputs[:2]
    shape = ledger.shape(x)
    if node.op_type == "DequantizeLinear" and x in ledger.graph.tensors:
        _label(ledger, node, x)
    per_channel = ledger.shape(scale).rank == 1 and ledger.shape(scale).other[0] > 1
    if x in ledger.graph.tensors and not ledger.graph.is_float(x) and not per_channel:
        ledger.freeze_value(x, f"{node.label}: quantised without a scale for every channel; {_ADVICE}")
    if node.attribute("block_size", 0) or (ledger.shape(scale).rank and not per_channel):
        ledger.freeze_value(x, f"{node.label}: quantised in blocks; {_ADVICE}")
        return
    if per_channel:
        ids = ledger.flat(node, x, node.attribute("axis", 1) % shape.rank)
        for name in filter(None, node.inputs[1:3]):
            _label(ledger, node, name)
            own = ledger.flat(node, name, 0)
            if own is not None and ids is not None:
                ledger.tie(own, ids)
            elif ids is not None:
                ledger.freeze(ids, f"{node.label}: its scale {name} cannot be cut")
    carry(ledger, node, x, node.outputs[0], {dim: dim for dim in range(shape.rank)})


def _label(ledger: Ledger, node: Node, value: str) -> None:
    """Give ids to the dims of a constant of any type."""
    if value in ledger.graph.tensors:
        for dim in range(ledger.shape(value).rank):
            ledger.axis(node, value, dim, is_weight=True)


def quantised_macs(weight: int, is_kernel: bool = False) -> Macs:
    """As of a convolution or product with the weight at a position; nothing here is cut."""

    def macs(graph: Graph, node: Node) -> list[Product]:
        first, kernel, out = sizes_of(graph, node.inputs[0], node.inputs[weight], node.outputs[0])
        dims = (*out, *(kernel[1:] if is_kernel else first[-1:]))
        return [(dims, [None] * len(dims))]

    return macs


def blocks_macs(graph: Graph, node: Node) -> list[Product]:
    """MatMulNBits: a MatMul by a weight of K rows and N columns."""
    (dims,) = sizes_of(graph, node.inputs[0])
    columns = (node.outputs[0], len(dims) - 1)
    return [((*dims[:-1], node.attribute("K"), node.attribute("N")), [*[None] * len(dims), columns])]


def blocks(ledger: Ledger, node: Node) -> None:
    """MatMulNBits: columns go with their packed blocks, scales and zero points; rows are packed in blocks and stay."""
    x, w, y, columns = node.inputs[0], node.inputs[1], node.outputs[0], node.attribute("N")
    rank = ledger.shape(y).rank
    source = ledger.axis(node, x, -1)
    if source is not None:
        ledger.freeze(source.ids, f"{node.label}: quantised, the rows of its weight packed in blocks; {_ADVICE}")
    carry(ledger, node, x, y, {dim: dim for dim in range(rank - 1)})
    followers = [name for at, name in enumerate(node.inputs) if name and at in (2, 3, 5)]
    if any(ledger.size(name, 0) % columns for name in followers):
        return
    entries = ledger.axis(node, w, 0, is_weight=True)
    if entries is not None:
        for name in followers:
            own = ledger.axis(node, name, 0, is_weight=True)
            if own is not None:
                ledger.tie(own.ids.reshape(columns, -1), entries.ids[:, None])
        ledger.set(y, rank - 1, entries.ids)


def blocks_repair(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """MatMulNBits: the number of columns."""
    shape = editor.graph.shape(node.outputs[0])
    if shape is not None and editor.cut.mask(node.outputs[0], shape.rank - 1) is not None:
        editor.attribute(proto, "N", editor.cut.size(node.outputs[0], shape.rank - 1))


def blocks_shape(dims: Sequence[Any], attributes: Attributes) -> list[Dims | None]:
    """MatMulNBits: the rows of the first operand, and its columns."""
    return [(*dims[0][:-1], attributes["N"])]


OPS = register(
    Op("QuantizeLinear", linear, divisors=(1,), edge="identity"),
    Op("DequantizeLinear", linear, edge="identity"),
    Op("DynamicQuantizeLinear", quantised),
    Op("ConvInteger", quantised, kernel=True, macs=quantised_macs(1, is_kernel=True)),
    Op("QLinearConv", quantised, macs=quantised_macs(3, is_kernel=True)),
    Op("MatMulInteger", quantised, macs=quantised_macs(1)),
    Op("QLinearMatMul", quantised, macs=quantised_macs(3)),
    Op("MatMulNBits", blocks, MICROSOFT, repair=blocks_repair, macs=blocks_macs, shape=blocks_shape),
)

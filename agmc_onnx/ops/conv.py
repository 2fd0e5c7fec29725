"""Convolutions: how channels pass through them, and the dims they slide along."""

from __future__ import annotations

import numpy as np
import onnx

from agmc_onnx.arrays import IntArray
from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ops.editor import Editor
from agmc_onnx.ops.table import MICROSOFT, Op, Product, Vanishing, op_of, register, sizes_of
from agmc_onnx.ops.transforms import keep_transform
from agmc_onnx.ops.zeros import from_weight, removed_are_zero
from agmc_onnx.ties.ledger import Axis, Entries, Ledger, tie_or_freeze

KERNELS = ("1", "3", "5", "7", "-other")  # square ones with an edge type of their own, and all others


def conv_ties(ledger: Ledger, node: Node, bias: int = 2) -> None:
    """Conv: input channels are tied to dim 1 of the weight, output channels are dim 0 of the weight and the bias.

    Grouped: every group of input, and of output, channels keeps equally many; one input channel a group (depthwise):
    input and output channels live and die together.
    """
    x, w = node.inputs[:2]
    groups = node.attribute("group", 1)
    slide(ledger, node)
    out = ledger.flat(node, w, 0)
    source = ledger.flat(node, x, 1)
    if out is None:
        if source is not None and groups == 1 and ledger.size(w, 0) == 1:  # a single output channel stays
            _contract(ledger, node, source, w, 1)
        elif source is not None:
            ledger.freeze(source, f"{node.label}: its weight {w} cannot be cut")
        return
    keep_transform(ledger, node, w, 0)
    if groups == 1:
        _contract(ledger, node, source, w, 1)
    elif ledger.size(w, 1) == 1:
        per_group = out.size // groups
        if source is None:
            ledger.freeze(out, f"{node.label}: depthwise on {x}, which cannot be cut")
        else:
            ledger.tie(out.reshape(groups, per_group), source[:, None])
    else:
        ledger.balance(out.reshape(groups, -1))
        if source is not None:
            grid = source.reshape(groups, -1)
            ledger.balance(grid)
            _bind_grouped(ledger, node, w, grid)
    _bias(ledger, node, bias, out)
    ledger.set(node.outputs[0], 1, out)


def deformable(ledger: Ledger, node: Node) -> None:
    """DeformConv: a Conv whose places are shifted, the same way in all channels; its bias is the fourth input."""
    if node.attribute("offset_group", 1) == 1:
        conv_ties(ledger, node, bias=3)


def fused_conv(ledger: Ledger, node: Node) -> None:
    """FusedConv: a Conv, then the sum with another value, then an activation."""
    conv_ties(ledger, node)
    y = node.outputs[0]
    other = node.inputs[3] if len(node.inputs) > 3 else ""
    if not other:
        return
    out, added = ledger.entries.get((y, 1)), ledger.axis(node, other, 1)
    if out is not None and added is not None:
        ledger.meet(out, added)
    else:
        ledger.freeze_all((out, added), f"{node.label}: its operand {other} cannot be cut with it")


def slide(ledger: Ledger, node: Node) -> None:
    """Conv along dims that are channels elsewhere: one entry at a time passes; with neighbours, zeros keep their places.

    Cut, the entries that stay are first put back among zeros (`conv_repair`); so what goes must be zero.
    """
    x, y = node.inputs[0], node.outputs[0]
    for dim in range(2, ledger.shape(x).rank):
        if (x, dim) not in ledger.entries:
            continue
        ids = ledger.flat(node, x, dim)
        assert ids is not None
        if ledger.size(y, dim) != ids.size or not ledger.shape(y).is_fixed(dim):
            ledger.freeze(ids, f"{node.label}: its stride or padding changes the size of dimension {dim} of {x}")
        elif slides(ledger.graph, node, dim) and not removed_are_zero(ledger, x, dim):
            ledger.freeze(
                ids, f"{node.label}: mixes neighbours along dimension {dim} of {x}, and what goes may not be zero"
            )
        else:
            ledger.set(y, dim, ids)


def slides(graph: Graph, node: Node, dim: int) -> bool:
    """Whether a Conv takes more than one place of a dim of its input together, or not each one."""
    shape = graph.shape(node.inputs[1])
    n_dims = 0 if shape is None else shape.rank - 2
    strides, pads = node.attribute("strides") or [1] * n_dims, node.attribute("pads") or [0] * 2 * n_dims
    return shape is None or shape.other[dim] > 1 or strides[dim - 2] > 1 or any(pads[dim - 2 :: n_dims])


def conv_transpose(ledger: Ledger, node: Node) -> None:
    """ConvTranspose: input channels are dim 0 of the weight, output channels dim 1, repeated in every group."""
    x, w = node.inputs[:2]
    groups = node.attribute("group", 1)
    source = ledger.flat(node, x, 1)
    if groups == 1:
        _contract(ledger, node, source, w, 0)
        out = ledger.flat(node, w, 1)
        if out is None:
            return
    elif ledger.size(w, 0) == groups and ledger.size(w, 1) == 1:  # depthwise
        out = ledger.flat(node, w, 0)
        if out is None or source is None:
            ledger.freeze_all((out, source), f"{node.label}: depthwise on {x}, which cannot be cut")
            if out is None:
                return
        else:
            ledger.tie(source, out)
    else:
        if source is not None:
            ledger.balance(source.reshape(groups, -1))
            _contract(ledger, node, source, w, 0)
        column = ledger.flat(node, w, 1)
        out = None if column is None else np.tile(column, groups)
        if out is None:
            return
    _bias(ledger, node, 2, out)
    ledger.set(node.outputs[0], 1, out)


def _contract(ledger: Ledger, node: Node, source: IntArray | None, weight: str, dim: int) -> None:
    """Tie contracted input channels to a dim of the weight; channels that cannot be cut leave the weight whole."""
    if source is not None:
        tie_or_freeze(ledger, node, source, weight, dim)


def _bind_grouped(ledger: Ledger, node: Node, weight: str, grid: IntArray) -> None:
    """Let dim 1 of a grouped Conv's weight have ids of its own for every group."""
    axis = (weight, 1)
    if weight not in ledger.graph.tensors or axis in ledger.entries:
        columns = ledger.flat(node, weight, 1)
        if columns is None:
            ledger.freeze(grid, f"{node.label}: its weight {weight} cannot be cut")
        else:
            ledger.tie(grid, np.broadcast_to(columns, grid.shape))
        return
    ledger.mentioned.add((weight, 1, node.index))
    ledger.entries[axis] = Entries(grid, (0,))


def _bias(ledger: Ledger, node: Node, position: int, ids: IntArray) -> None:
    if len(node.inputs) > position and node.inputs[position]:
        tie_or_freeze(ledger, node, ids, node.inputs[position], 0)


def conv_repair(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Conv: as `group_repair`; along dims that are channels elsewhere, zeros where some went."""
    shape = editor.graph.shape(node.inputs[0])
    for dim in range(2, shape.rank if shape is not None else 0):
        mask = editor.cut.mask(node.inputs[0], dim)
        if mask is not None and slides(editor.graph, node, dim):
            editor.among_zeros(proto, dim, mask.reshape(-1, mask.shape[-1])[0])  # `slide` has tied the rows
    group_repair(editor, node, proto)


def group_repair(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Depthwise convolutions: one group for every channel that stays."""
    groups, shape = node.attribute("group", 1), editor.graph.shape(node.inputs[0])
    if groups > 1 and shape is not None and shape.other[1] == groups and editor.cut.mask(node.inputs[0], 1) is not None:
        editor.attribute(proto, "group", editor.cut.size(node.inputs[0], 1))


def conv_macs(graph: Graph, node: Node) -> list[Product]:
    """Every place of the output times the weight of one; dims it slides along, cut, are computed whole all the same."""
    x, w, y = *node.inputs[:2], node.outputs[0]
    _, kernel, out = sizes_of(graph, x, w, y)
    whole = [None if dim > 1 and slides(graph, node, dim) else (y, dim) for dim in range(len(out))]
    return [((*out, *kernel[1:]), [*whole, *((w, dim) for dim in range(1, len(kernel)))])]


def conv_transpose_macs(graph: Graph, node: Node) -> list[Product]:
    """Every place of the input times the weight of one."""
    x, w = node.inputs[:2]
    places, kernel, _ = sizes_of(graph, x, w, node.outputs[0])
    axes: list[Axis | None] = [*((x, dim) for dim in range(len(places))), *((w, dim) for dim in range(1, len(kernel)))]
    return [((*places, *kernel[1:]), axes)]


def kernel_shape(graph: Graph, node: Node) -> tuple[int, ...]:
    """Return the spatial kernel of a convolution or pool; () where neither attribute nor weight tells it."""
    kernel = node.attribute("kernel_shape")
    if kernel is None and op_of(node).kernel and len(node.inputs) > 1 and node.inputs[1] in graph.tensors:
        kernel = graph.tensors[node.inputs[1]].dims[2:]
    return tuple(kernel or ())


def conv_edge(graph: Graph, node: Node) -> str:
    """Return the edge type of a Conv: its kernel and its kind of groups."""
    kernel = kernel_shape(graph, node)
    square = bool(kernel) and len(set(kernel)) == 1 and str(kernel[0]) in KERNELS
    weight = graph.shape(node.inputs[1]) if node.inputs[1] in graph.tensors else None
    kind = ""
    if node.attribute("group", 1) > 1:
        kind = "-depthwise" if weight is not None and weight.dims[1] == 1 else "-grouped"
    return f"conv{kernel[0] if square else '-other'}{kind}"


CONV = Op(
    "Conv", conv_ties, contracts=True, out_dim=lambda node, rank: 0, refit=True, kernel=True, repair=conv_repair,
    in_channels=lambda dims, groups: dims[1] * groups, shrinks=True, channels="first", layout="blocked",
    macs=conv_macs, keeps_zero=from_weight(1, 0), when_empty=Vanishing("product", ((2,),)), edge=conv_edge,
)  # fmt: skip


def is_conv(node: Node) -> bool:
    """Whether a node is a Conv of the standard."""
    return op_of(node) is CONV


OPS = register(
    CONV,
    Op(
        "ConvTranspose", conv_transpose, out_dim=lambda node, rank: 1, refit=True, kernel=True, repair=group_repair,
        in_channels=lambda dims, groups: dims[0], shrinks=True, channels="first",
        macs=conv_transpose_macs, keeps_zero=from_weight(1, 1), when_empty=Vanishing("product", ((2,),)), edge="conv-transpose",
    ),
    Op("DeformConv", deformable, repair=conv_repair, macs=conv_macs),
    Op("FusedConv", fused_conv, MICROSOFT, repair=conv_repair, macs=conv_macs, begins_with=(CONV.op_type, 3)),
)  # fmt: skip

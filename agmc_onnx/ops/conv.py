"""Convolutions: how channels pass through them, and the dims they slide along."""

from __future__ import annotations

import numpy as np

from agmc_onnx.arrays import IntArray
from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ops.zeros import removed_are_zero
from agmc_onnx.ties.ledger import Entries, Ledger, tie_or_freeze


def conv(ledger: Ledger, node: Node, bias: int = 2) -> None:
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
        conv(ledger, node, bias=3)


def slide(ledger: Ledger, node: Node) -> None:
    """Conv along dims that are channels elsewhere: one entry at a time passes; with neighbours, zeros keep their places.

    Cut, the entries that stay are first put back among zeros (`agmc_onnx.ops.repairs.conv`); so what goes must be zero.
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
            for ids in (out, source):
                if ids is not None:
                    ledger.freeze(ids, f"{node.label}: depthwise on {x}, which cannot be cut")
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

"""Repairs: nodes that name a size in an attribute or a constant, made true after a cut. One function an op."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from agmc_onnx.arrays import Mask
from agmc_onnx.graph.view import Node
from agmc_onnx.ops import fused_repairs as fused
from agmc_onnx.ops.conv import slides
from agmc_onnx.ops.editor import Editor
from agmc_onnx.ops.move import pad_amounts, slice_bounds
from agmc_onnx.ops.recurrent import GATES
from agmc_onnx.ties.ledger import Ledger, Shuffle

Repair = Callable[[Editor, Node, onnx.NodeProto], None]


def conv(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Depthwise Conv and ConvTranspose: one group for every channel that stays. Conv along channels: zeros where some went."""
    shape = editor.graph.shape(node.inputs[0])
    for dim in range(2, shape.rank if shape is not None and node.op_type == "Conv" else 0):
        mask = editor.cut.mask(node.inputs[0], dim)
        if mask is not None and slides(editor.graph, node, dim):
            editor.among_zeros(proto, dim, mask)
    groups = node.attribute("group", 1)
    dim = 1
    if groups > 1 and editor.cut.mask(node.inputs[0], 1) is not None:
        shape = editor.graph.shape(node.inputs[0])
        assert shape is not None
        if shape.other[dim] == groups:
            editor.attribute(proto, "group", editor.cut.size(node.inputs[0], dim))


def reshape(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Reshape: the target names the new sizes; an open size that was computed becomes -1."""
    cut, graph = editor.cut, editor.graph
    shuffle = cut.channels.shuffles.get(node.index)
    if shuffle is not None:
        _shuffle(editor, proto, shuffle)
        return
    y = node.outputs[0]
    view = cut.channels.views.get(node.index)
    if view is not None and cut.is_cut(view.outputs[0]):
        editor.bypass(node, view)
        return
    if not (cut.is_cut(y) or cut.is_cut(node.inputs[0]) or editor.reads_cut_size(node)):
        return
    shape = graph.shape(y)
    assert shape is not None
    target = graph.value(node.inputs[1]) if len(node.inputs) > 1 else np.array(node.attribute("shape"), np.int64)
    if target is None:
        new = [cut.size(y, dim) if shape.is_fixed(dim) else -1 for dim in range(shape.rank)]
    else:
        given = target.ravel().tolist()
        new = [cut.size(y, d) if size > 0 and cut.mask(y, d) is not None else size for d, size in enumerate(given)]
        if new == given:
            return
    if len(node.inputs) > 1:
        editor.constant(proto, 1, new)
    else:
        editor.attribute(proto, "shape", new)


def _shuffle(editor: Editor, proto: onnx.NodeProto, shuffle: Shuffle) -> None:
    """Channel shuffle: stays a shuffle where what is kept is a rectangle, else becomes a Gather."""
    cut = editor.cut
    first, middle, last = shuffle.chain
    mask = cut.mask(first.inputs[0], shuffle.dim)
    if mask is None:
        return
    size, rows = mask.size, shuffle.rows
    permutation = np.arange(size).reshape(rows, -1).T.ravel()
    rank = np.cumsum(mask) - 1
    index = rank[permutation[mask[permutation]]]
    kept = int(mask.sum())
    editor.forget((*first.outputs, *middle.outputs))
    if kept % rows == 0 and (index == np.arange(kept).reshape(rows, -1).T.ravel()).all():
        for node, sizes in ((first, [rows, kept // rows]), (last, [kept])):
            shape = editor.graph.shape(node.outputs[0])
            assert shape is not None
            new = [shape.other[d] if shape.is_fixed(d) else -1 for d in range(shape.rank)]
            new[shuffle.dim : shuffle.dim + len(sizes)] = sizes
            target = editor.proto_of(node)
            if len(node.inputs) > 1:
                editor.constant(target, 1, new)
            else:
                editor.attribute(target, "shape", new)
        return
    for node in (middle, last):
        editor.drop(node)
    editor.gather(proto, last.outputs[0], shuffle.dim, index)


def expand(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Expand: the target names the new sizes; 1 keeps the input's own size."""
    cut, y = editor.cut, node.outputs[0]
    source, shape = editor.graph.shape(node.inputs[0]), editor.graph.shape(y)
    if not (cut.is_cut(y) or editor.reads_cut_size(node)) or source is None or shape is None:
        return
    new: list[int | None] = []
    for dim in range(shape.rank):
        own = dim - shape.rank + source.rank
        same = own >= 0 and (source.dims[own], source.other[own]) == (shape.dims[dim], shape.other[dim])
        new.append(1 if same else cut.size(y, dim) if shape.is_fixed(dim) else None)
    given = editor.graph.shape(node.inputs[1])
    if None not in new:
        editor.constant(proto, 1, [size for size in new if size is not None])
    elif given is not None and given.other == (shape.rank,):
        editor.mix(proto, 1, new)


def constant_of_shape(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """ConstantOfShape: the sizes that are cut."""
    cut, y = editor.cut, node.outputs[0]
    shape = editor.graph.shape(y)
    if shape is None or not cut.is_cut(y):
        return
    fixed = [cut.size(y, dim) if shape.is_fixed(dim) else None for dim in range(shape.rank)]
    if None not in fixed:
        editor.constant(proto, 0, [size for size in fixed if size is not None])
    else:
        editor.mix(proto, 0, fixed)


def split(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Split: the size of every part."""
    cut = editor.cut
    rank = editor.graph.shape(node.inputs[0]).rank  # type: ignore[union-attr]
    axis = node.attribute("axis", 0) % rank
    if cut.mask(node.inputs[0], axis) is None:
        return
    sizes = [cut.size(y, axis) for y in node.outputs]
    if editor.graph.opset >= 13:
        editor.constant(proto, 1, sizes)
        editor.attribute(proto, "num_outputs", None)
    else:
        editor.attribute(proto, "split", sizes)


def slice_(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Slice: bounds along cut dims move; a strided one becomes a Gather."""
    cut, x = editor.cut, node.inputs[0]
    bounds = slice_bounds(Ledger(editor.graph), node) or {}
    moved: dict[int, tuple[int, int]] = {}
    for dim, part in bounds.items():
        mask = cut.mask(x, dim)
        if mask is None:
            continue
        row: Mask = mask if mask.ndim == 1 else mask[0]
        picked = np.arange(row.size)[part]
        if part.step not in (None, 1):
            index = (np.cumsum(row) - 1)[picked[row[picked]]]
            editor.gather(proto, proto.output[0], dim, index)
            return
        before = int(row[: picked[0]].sum())
        moved[dim] = (before, before + int(row[picked].sum()))
    if not moved:
        return
    rank = editor.graph.shape(x).rank  # type: ignore[union-attr]
    if len(node.inputs) > 1:
        starts, ends, axes = (None if v is None else v.ravel().tolist() for v in _slice_inputs(editor, node))
    else:
        starts, ends, axes = (list(node.attribute(n) or []) or None for n in ("starts", "ends", "axes"))
    assert starts is not None and ends is not None
    for i, axis in enumerate(axes if axes is not None else range(len(starts))):
        if axis % rank in moved:
            starts[i], ends[i] = moved[axis % rank]
    if len(node.inputs) > 1:
        editor.constant(proto, 1, starts)
        editor.constant(proto, 2, ends)
        if axes is not None:
            editor.constant(proto, 3, axes)
    else:
        editor.attribute(proto, "starts", starts)
        editor.attribute(proto, "ends", ends)


def _slice_inputs(editor: Editor, node: Node) -> list[np.ndarray | None]:
    names = [*node.inputs[1:4], "", ""][:3]
    return [editor.graph.value(name) if name else None for name in names]


def gather(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Gather: constant indices name entries by their new places."""
    cut, x = editor.cut, node.inputs[0]
    rank = editor.graph.shape(x).rank  # type: ignore[union-attr]
    axis = node.attribute("axis", 0) % rank
    mask = cut.mask(x, axis)
    picked = editor.graph.value(node.inputs[1])
    if mask is None or picked is None:
        return
    row: Mask = mask if mask.ndim == 1 else mask[0]  # rows that differ are tied before they are gathered from
    editor.constant(proto, 1, (np.cumsum(row) - 1)[picked[row[picked]]])


def pad(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Pad: as many padded places as stay."""
    cut, y = editor.cut, node.outputs[0]
    amounts = pad_amounts(Ledger(editor.graph), node)
    if amounts is None or not cut.is_cut(y):
        return
    new = list(amounts)
    for dim, (before, after) in enumerate(amounts):
        mask = cut.mask(y, dim)
        if mask is not None and (before or after):
            row = mask if mask.ndim == 1 else mask[0]
            new[dim] = (int(row[:before].sum()), int(row[row.size - after :].sum()))
    if new == amounts:
        return
    flat = [before for before, _ in new] + [after for _, after in new]
    for name in ("pads", "paddings"):
        if node.attribute(name) is not None:
            editor.attribute(proto, name, flat)
            return
    editor.constant(proto, 1, flat)
    if len(proto.input) > 3:
        editor.constant(proto, 3, list(range(len(new))))


def resize(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Resize: constant target sizes name the channels too."""
    cut, y = editor.cut, node.outputs[0]
    if node.op_type != "Resize" or len(node.inputs) < 4 or not node.inputs[3] or not cut.is_cut(y):
        return
    sizes = editor.graph.value(node.inputs[3])
    shape = editor.graph.shape(y)
    if sizes is not None and shape is not None and sizes.size == shape.rank:
        given = sizes.ravel().tolist()
        editor.constant(proto, 3, [cut.size(y, d) if cut.mask(y, d) is not None else s for d, s in enumerate(given)])


def recurrent(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """LSTM, GRU, RNN: the number of hidden units."""
    if editor.cut.mask(node.inputs[2], 2) is not None:
        editor.attribute(proto, "hidden_size", editor.cut.size(node.inputs[2], 2))


REPAIRS: dict[tuple[str, str], Repair] = {
    **{("", op): recurrent for op in GATES},
    ("", "Attention"): fused.attention,
    ("", "ConstantOfShape"): constant_of_shape,
    ("", "Conv"): conv,
    ("", "ConvTranspose"): conv,
    ("", "DeformConv"): conv,
    ("", "Expand"): expand,
    ("", "Gather"): gather,
    ("", "Pad"): pad,
    ("", "Reshape"): reshape,
    ("", "RotaryEmbedding"): fused.rotary,
    ("", "Resize"): resize,
    ("", "Slice"): slice_,
    ("", "Split"): split,
    ("com.microsoft", "Attention"): fused.fused_attention,
    ("com.microsoft", "FusedConv"): conv,
    ("com.microsoft", "GroupQueryAttention"): fused.grouped_query,
    ("com.microsoft", "MultiHeadAttention"): fused.multi_head,
    ("com.microsoft", "RotaryEmbedding"): fused.rotary,
}

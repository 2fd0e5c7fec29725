"""Reshapes: blocks of dims that become one another, channel shuffles, and detours through an open dim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from agmc_onnx.arrays import IntArray
from agmc_onnx.graph.registry import Attributes
from agmc_onnx.graph.shapes import Shape
from agmc_onnx.graph.view import Node
from agmc_onnx.ops.editor import Editor
from agmc_onnx.ops.grouped import grouped_statistics
from agmc_onnx.ops.heads import normed_heads
from agmc_onnx.ops.passing import only_user
from agmc_onnx.ops.table import ARRANGES, Op, op_of, register
from agmc_onnx.ops.zeros import where_first_is
from agmc_onnx.ties.ledger import Entries, Ledger, Shuffle

Block = tuple[list[int], list[int]]  # consecutive dims before and after a reshape that hold the same entries
_LARGEST_GRID = 1 << 23  # ids of a reshaped block; beyond that the block is left whole
_LONGEST_DETOUR = 6  # nodes
_KEEPS_MAPS = ("activation", "add", "batchnorm", "identity", "mul", "norm", "pad", "relu", "resize")  # edge types
_DEEPEST_MAP = 6  # nodes looked ahead for a convolution


def reshape_ties(ledger: Ledger, node: Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: blocks of dims with the same number of entries become one another.

    A flat axis split into (R, C/R) varies from row to row and every row keeps equally many; a channel shuffle
    (split, transpose, merge) is one permutation, whatever is kept.
    """
    x, y = node.inputs[0], node.outputs[0]
    if node.op_type == "Reshape" and (
        _shuffle(ledger, node)
        or _strided_view(ledger, node)
        or normed_heads(ledger, node)
        or grouped_statistics(ledger, node)
    ):
        return
    before, after = ledger.shape(x), ledger.shape(y)
    if x in ledger.graph.tensors and ledger.graph.is_float(x):
        for dim in range(before.rank):
            ledger.axis(node, x, dim)
    if not ledger.labelled(x):
        return
    blocks = match_blocks(before, after)
    if blocks is None:
        return
    for dims, to in blocks:
        labelled = [dim for dim in dims if (x, dim) in ledger.entries]
        if len(labelled) > 1 and x in ledger.graph.tensors:  # a kernel made flat: its channels move, its places stay
            wide = [dim for dim in labelled if before.other[dim] > 1] or labelled
            for dim in wide[1:]:
                if len(ledger.graph.consumers[x]) == 1:
                    del ledger.entries[x, dim]
                else:
                    ledger.freeze(
                        ledger.entries[x, dim].ids, f"{node.label}: merges dimension {dim} of {x} into another"
                    )
            labelled = wide[:1]
        if len(labelled) == 1:
            _reshape_block(ledger, node, labelled[0], (dims, to), blocks)


def _reshape_block(ledger: Ledger, node: Node, dim: int, block: Block, blocks: list[Block]) -> None:
    """Carry the ids of `dim` from its block of input dims to the block of output dims it becomes."""
    x, y = node.inputs[0], node.outputs[0]
    before, after = ledger.shape(x), ledger.shape(y)
    wide = [d for d in block[0] if before.other[d] > 1]
    wide_to = [d for d in block[1] if after.other[d] > 1]
    entries = ledger.axis(node, x, dim)
    assert entries is not None
    if wide == [dim] and len(wide_to) == 1:
        ids, rows = _move_rows(ledger, entries, blocks, before, after)
        ledger.set(y, wide_to[0], ids, rows)
        return
    if not all(before.is_fixed(d) for d in wide) and (
        _with_open_batch(ledger, node, dim, wide, wide_to) or _detour(ledger, node, dim)
    ):
        return
    sizes = [before.other[d] for d in wide]
    if math.prod(sizes) > _LARGEST_GRID or not all(before.is_fixed(d) for d in wide):
        ledger.freeze(entries.ids, f"{node.label}: mixes dimension {dim} of {x} with an open size")
        return
    # Rows inside the block stay apart only where they are whole and lie outside of `dim`: merging (R, C) in that order
    # keeps the entries' order whatever each row keeps, merging (C, R) does not.
    inside = [r for r in entries.rows if r in wide]
    lost = [r for r in inside if r > dim or before.other[r] != entries.ids.shape[entries.rows.index(r)]]
    entries = ledger.collapse(entries, lost)
    inside = [r for r in entries.rows if r in wide]
    outside = Entries(entries.ids, entries.rows)
    ids, rows = _move_rows(ledger, outside, blocks, before, after, skip=inside)
    n_outside = len(rows)
    lead = ids.shape[:n_outside]
    places = [before.other[d] if d in inside or d == dim else 1 for d in wide]
    grid = np.broadcast_to(ids.reshape(*lead, *places), (*lead, *sizes))
    grid = grid.reshape(*lead, *(after.other[d] for d in wide_to))
    varies = [i for i in range(len(wide_to)) if (grid != grid.take([0], axis=n_outside + i)).any()]
    if not varies:
        ledger.freeze(entries.ids, f"{node.label}: dimension {dim} of {x} is cut apart in an unknown way")
        return
    is_channel = len(varies) > 1 and not rows and wide_to[varies[0]] == 1
    if is_channel and (_becomes_kernel(ledger, y) or _becomes_map(ledger, y)):
        first = np.moveaxis(grid, varies[0], 0).reshape(grid.shape[varies[0]], -1)  # (channels, places)
        ledger.tie(first, np.broadcast_to(first[:, :1], first.shape))
        ledger.set(y, 1, first[:, 0])
        return
    index = tuple(slice(None) if i in varies else 0 for i in range(len(wide_to)))
    grid = grid[(*(slice(None) for _ in lead), *index)]
    found = Entries(grid, (*rows, *(wide_to[i] for i in varies[:-1])))
    found = found.permuted({row: row for row in found.rows})
    if len(varies) > 1:
        ledger.balance(found.ids)
    ledger.set(y, wide_to[varies[-1]], found.ids, found.rows)


def _becomes_kernel(ledger: Ledger, value: str) -> bool:
    """Whether a value made of constants alone is the weight of a convolution: channels, then the places of the kernel."""
    users = ledger.graph.consumers.get(value, ())
    return value in ledger.graph.weights and any(
        (op_of(user).kernel and position == 1)
        or (user.op_type in ("Mul", "Add", "Sub", "Div") and _becomes_kernel(ledger, user.outputs[0]))
        for user, position in users
    )


def _becomes_map(ledger: Ledger, value: str, depth: int = 0) -> bool:
    """Whether a value is read as a map by a convolution: its channels are units, not its columns."""
    return depth < _DEEPEST_MAP and any(
        (op_of(user).kernel and position == 0)
        or (op_of(user).edge in _KEEPS_MAPS and _becomes_map(ledger, user.outputs[0], depth + 1))
        for user, position in ledger.graph.consumers.get(value, ())
    )


def _with_open_batch(ledger: Ledger, node: Node, dim: int, wide: list[int], wide_to: list[int]) -> bool:
    """Carry ids through (batch, R*C) -> (batch*R, C) or back: how PyTorch's attention puts heads beside an open batch.

    Rows of the first kind repeat along the joined dim with period R.
    """
    x, y = node.inputs[0], node.outputs[0]
    entries = ledger.entries[x, dim]
    size, last = ledger.size(x, dim), wide_to[-1]
    new = ledger.size(y, last)
    if wide[-1] != dim or len(wide_to) < 2 or not ledger.shape(y).is_fixed(last):
        return False
    if size % new == 0 and not entries.rows:
        grid = entries.ids.reshape(size // new, new)
        ledger.balance(grid)
        ledger.set(y, last, grid, (wide_to[-2],))
        return True
    if entries.rows == (wide[-2],) and entries.ids.size == new:
        ledger.set(y, last, entries.ids.ravel())
        return True
    return False


def _detour(ledger: Ledger, node: Node, dim: int) -> bool:
    """Carry ids through a chain of Reshape and Transpose that hides the channels in an open dim, and gives them back.

    (batch, C, height, width) -> (batch * C * rows, ...) -> ... -> (batch, C, patches, area), as mobile attention unfolds its
    patches. On the way the channels must lie in one open dim alone: whatever stays of them, each reshape still means the same,
    where that dim is what is left. Of sizes that are all computed the repair sees to it in the first reshape and the last.
    """
    graph = ledger.graph
    x = node.inputs[0]
    start = ledger.shape(x)
    if math.prod(start.other) > _LARGEST_GRID or ledger.labelled(x) != [dim]:
        return False
    size, labels = start.other[dim], _labels(start, dim)
    chain: list[Node] = []
    current: Node | None = node
    while current is not None and len(chain) < _LONGEST_DETOUR:
        chain.append(current)
        y = current.outputs[0]
        shape = graph.shape(y)
        if shape is None or y in graph.outputs or y in graph.captured:
            return False
        labels = (
            labels.reshape(shape.other) if current.op_type == "Reshape" else labels.transpose(current.attribute("perm"))
        )
        varies = _varies(labels)
        if len(varies) != 1:
            return False
        if current is not node and not shape.is_fixed(varies[0]) and not _takes_the_rest(ledger, current):
            return False
        if shape.is_fixed(varies[0]):
            line = np.moveaxis(labels, varies[0], -1).reshape(-1, labels.shape[varies[0]])[0]
            if not np.array_equal(line, np.arange(size)) or current.op_type != "Reshape":
                return False
            ids = ledger.flat(node, x, dim)
            assert ids is not None
            ledger.set(y, varies[0], ids)
            ledger.skipped.update(n.index for n in chain[1:])
            return True
        current = only_user(graph, y)
        if current is not None and (current.op_type not in ("Reshape", "Transpose") or current.domain):
            current = None
    return False


def _labels(shape: Shape, dim: int) -> IntArray:
    """Return the index along a dim of every entry of a value, in the value's shape."""
    index = np.arange(shape.other[dim]).reshape([-1 if d == dim else 1 for d in range(shape.rank)])
    return np.broadcast_to(index, shape.other)


def _varies(labels: IntArray) -> list[int]:
    return [d for d in range(labels.ndim) if (labels != labels.take([0], axis=d)).any()]


def _takes_the_rest(ledger: Ledger, node: Node) -> bool:
    """Whether the one open size of a reshape may be whatever is left, so that channels may hide in it."""
    shape = ledger.shape(node.outputs[0])
    is_named = node.op_type != "Reshape" or ledger.graph.value(node.inputs[1]) is not None
    return is_named or sum(not shape.is_fixed(dim) for dim in range(shape.rank)) == 1


def _strided_view(ledger: Ledger, node: Node) -> bool:
    """Treat a Reshape into one dim and a Gather of all its entries in their order as nothing: how a strided view is written.

    PyTorch's exporter computes the indices from strides; they are evaluated here for two batches, in ops that are linear in
    the batch, so that they are the same for all.
    """
    graph = ledger.graph
    x, y = node.inputs[0], node.outputs[0]
    gather, start = only_user(graph, y), ledger.shape(x)
    if gather is None or gather.op_type != "Gather" or ledger.shape(y).rank != 1:
        return False
    if graph.shape(gather.outputs[0]) != start:
        return False
    index = graph.linear_pair(gather.inputs[1])
    if index is None or any(
        not np.array_equal(given, np.arange(math.prod(sizes)).reshape(sizes))
        for given, sizes in zip(index, (start.dims, start.other), strict=True)
    ):
        return False
    for dim in ledger.labelled(x):
        entries = ledger.axis(node, x, dim)
        if entries is not None:
            ledger.set(gather.outputs[0], dim, entries.ids, entries.rows)
    ledger.skipped.add(gather.index)
    ledger.views[node.index] = gather
    return True


def _move_rows(
    ledger: Ledger, entries: Entries, blocks: list[Block], before: Shape, after: Shape, skip: Sequence[int] = ()
) -> tuple[IntArray, tuple[int, ...]]:
    """Follow the row dims of entries through a reshape.

    Args:
        ledger: Where ties go, if rows must become one.
        entries: Of the input.
        blocks: Matched blocks of dims.
        before: Shape of the input.
        after: Shape of the output.
        skip: Row dims to leave where they are: they come last in what is returned, before the entries themselves.

    Returns:
        Ids (*periods, *skipped, size), and the output dims of the first ones, ascending.
    """
    moved: dict[int, list[int]] = {}  # row dim -> output dims that its index is spread over
    for row in [r for r in entries.rows if r not in skip]:
        period = entries.ids.shape[entries.rows.index(row)]
        dims, to = next(block for block in blocks if row in block[0])
        wide, wide_to = ([d for d in part if shape.other[d] > 1] for part, shape in ((dims, before), (to, after)))
        stride = math.prod(before.other[d] for d in wide if d > row)
        same = [d for d in wide_to if math.prod(after.other[t] for t in wide_to if t > d) == stride]
        if same and after.other[same[-1]] % period == 0:
            moved[row] = [same[-1]]
        elif wide == [row] and period == before.other[row] and all(after.is_fixed(d) for d in wide_to):
            moved[row] = wide_to
        else:
            entries = ledger.collapse(entries, [row])
    if len({d for dims in moved.values() for d in dims}) != sum(len(dims) for dims in moved.values()):
        entries, moved = ledger.collapse(entries, list(moved)), {}  # two rows became one dim
    sizes: list[int] = []
    rows: list[int] = []
    kept: list[int] = []
    order_rows = [r for r in entries.rows if r not in skip] + [r for r in entries.rows if r in skip]
    ids = entries.ids.transpose([*(entries.rows.index(r) for r in order_rows), len(order_rows)])
    for row, period in zip(order_rows, ids.shape, strict=False):
        if row in skip:
            kept.append(period)
        elif len(moved[row]) == 1:
            sizes.append(period)
            rows += moved[row]
        else:
            sizes += [after.other[d] for d in moved[row]]
            rows += moved[row]
    ids = ids.reshape(*sizes, *kept, ids.shape[-1])
    order = np.argsort(rows, kind="stable").tolist()
    ids = ids.transpose([*order, *range(len(rows), ids.ndim)])
    return ids, tuple(sorted(rows))


def match_blocks(before: Shape, after: Shape) -> list[Block] | None:
    """Return the smallest blocks of consecutive dims that hold the same entries on both sides, or None."""
    blocks: list[Block] = []
    i = j = 0
    while i < before.rank or j < after.rank:
        dims, to = [i] if i < before.rank else [], [j] if j < after.rank else []
        i, j = i + len(dims), j + len(to)
        while True:
            left = [math.prod(shape[d] for d in dims) for shape in (before.dims, before.other)]
            right = [math.prod(shape[d] for d in to) for shape in (after.dims, after.other)]
            if left == right:
                break
            if left[1] < right[1] or (left[1] == right[1] and left[0] < right[0]):
                if i == before.rank:
                    return None
                dims.append(i)
                i += 1
            else:
                if j == after.rank:
                    return None
                to.append(j)
                j += 1
        blocks.append((dims, to))
    return blocks


def _shuffle(ledger: Ledger, node: Node) -> bool:
    """Treat Reshape, Transpose, Reshape as one permutation of a single dim, if that is what they are."""
    graph = ledger.graph
    chain = [node]
    for op in ("Transpose", "Reshape"):
        user = only_user(graph, chain[-1].outputs[0])
        if user is None or user.op_type != op:
            return False
        chain.append(user)
    x, y = node.inputs[0], chain[2].outputs[0]
    shapes = [graph.shape(v) for v in (x, node.outputs[0], chain[1].outputs[0], y)]
    if any(shape is None for shape in shapes):
        return False
    start, split, _, end = (s for s in shapes if s is not None)
    found = shuffle_dim(start.other, split.other, chain[1].attribute("perm"), end.other)
    if found is None or ledger.labelled(x) != [found[0]]:
        return False
    dim, rows = found
    ids = ledger.flat(node, x, dim)
    assert ids is not None
    ledger.set(y, dim, ids.reshape(rows, -1).T.ravel())
    ledger.skipped.update(n.index for n in chain[1:])
    ledger.shuffles[node.index] = Shuffle(tuple(chain), dim, rows)
    return True


def shuffle_dim(
    start: Sequence[int], split: Sequence[int], perm: Sequence[int] | None, end: Sequence[int]
) -> tuple[int, int] | None:
    """Return (dim, rows) where a split, transpose and merge permute one dim, else None.

    Args:
        start: Sizes before.
        split: Sizes after the first reshape.
        perm: Permutation of the transpose.
        end: Sizes after the second reshape.
    """
    if tuple(start) != tuple(end) or len(split) != len(start) + 1 or perm is None:
        return None
    for dim in range(len(start)):
        swapped = [*range(dim), dim + 1, dim, *range(dim + 2, len(split))]
        same = tuple(split[:dim]) == tuple(start[:dim]) and tuple(split[dim + 2 :]) == tuple(start[dim + 1 :])
        if same and list(perm) == swapped and split[dim] * split[dim + 1] == start[dim]:
            return dim, split[dim]
    return None


def reshape_repair(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Reshape: the target names the new sizes; an open size that was computed becomes -1, and several stay computed."""
    cut, graph = editor.cut, editor.graph
    shuffle = cut.channels.shuffles.get(node.index)
    if shuffle is not None:
        _shuffle_repair(editor, proto, shuffle)
        return
    y = node.outputs[0]
    view = cut.channels.views.get(node.index)
    if view is not None and cut.is_cut(view.outputs[0]):
        editor.bypass(node, view)
        return
    if cut.runs(y, 2) is not None:
        editor.forget([value for value, _ in cut.channels.runs])
        editor.constant(proto, 1, [0, cut.size(y, 1), -1])
        editor.attribute(proto, "allowzero", None)
        return
    if not (cut.is_cut(y) or cut.is_cut(node.inputs[0]) or editor.reads_cut_size(node)):
        return
    shape = graph.shape(y)
    assert shape is not None
    target = graph.value(node.inputs[1]) if len(node.inputs) > 1 else np.array(node.attribute("shape"), np.int64)
    if target is None:
        fixed = [cut.size(y, dim) if shape.is_fixed(dim) else None for dim in range(shape.rank)]
        if fixed.count(None) > 1:
            if not cut.is_cut(y):  # the channels hide in an open dim (`_detour`): it is what is left
                fixed = _hidden(editor, node, shape)
            if any(size is not None for size in fixed):
                editor.mix(proto, 1, fixed)
            return
        new = [-1 if size is None else size for size in fixed]
    else:
        given = target.ravel().tolist()
        new = [cut.size(y, d) if size > 0 and cut.mask(y, d) is not None else size for d, size in enumerate(given)]
        if new == given:
            return
    if len(node.inputs) > 1:
        editor.constant(proto, 1, new)
    else:
        editor.attribute(proto, "shape", new)


def _hidden(editor: Editor, node: Node, shape: Shape) -> list[int | None]:
    """Return -1 for the dim of a reshape's output in which the cut dim of its input lies; None for the others."""
    before = editor.graph.shape(node.inputs[0])
    assert before is not None
    cut = [dim for dim in range(before.rank) if editor.cut.mask(node.inputs[0], dim) is not None]
    found = _varies(_labels(before, cut[0]).reshape(shape.other)) if len(cut) == 1 else []
    return [-1 if found == [dim] else None for dim in range(shape.rank)]


def _shuffle_repair(editor: Editor, proto: onnx.NodeProto, shuffle: Shuffle) -> None:
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
            target = node.proto
            if len(node.inputs) > 1:
                editor.constant(target, 1, new)
            else:
                editor.attribute(target, "shape", new)
        return
    for node in (middle, last):
        editor.drop(node)
    editor.gather(proto, last.outputs[0], shuffle.dim, index)


def _axes(inputs: list[Any], attributes: Attributes) -> list[int] | None:
    if len(inputs) > 1 and inputs[1] is not None:
        return [int(axis) for axis in inputs[1].ravel()]
    found: list[int] | None = attributes.get("axes")
    return found


def _unsqueeze(inputs: list[Any], attributes: Attributes) -> np.ndarray | None:
    axes = _axes(inputs, attributes)
    return None if axes is None else np.expand_dims(inputs[0], tuple(axes))


def _squeeze(inputs: list[Any], attributes: Attributes) -> np.ndarray:
    axes = _axes(inputs, attributes)
    return np.squeeze(inputs[0], None if axes is None else tuple(axes))


def _reshape(inputs: list[Any], attributes: Attributes) -> np.ndarray:
    x, target = inputs[0], inputs[1].tolist()
    if not attributes.get("allowzero", 0):
        target = [x.shape[i] if size == 0 else size for i, size in enumerate(target)]
    return x.reshape(target)


def _moves(op_type: str, **facts: Any) -> Op:
    return Op(op_type, reshape_ties, keeps_zero=where_first_is, edge="reshape", **facts)


OPS = register(
    _moves("Reshape", repair=reshape_repair, shape_inputs=(1,), evaluate=_reshape, channels="first", **ARRANGES),
    _moves("Squeeze", evaluate=_squeeze, **ARRANGES),
    _moves("Unsqueeze", evaluate=_unsqueeze, **ARRANGES),
    _moves("Flatten"),
)

"""Ops that move entries and compute nothing: the ids move with them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from agmc_onnx.arrays import IntArray
from agmc_onnx.graph.shapes import Shape
from agmc_onnx.graph.view import FLOATS, Node
from agmc_onnx.ops.reshape import reshape
from agmc_onnx.ties.ledger import Entries, Handler, Ledger


def carry(
    ledger: Ledger,
    node: Node,
    source: str,
    target: str,
    dims: Mapping[int, int],
    picked: Mapping[int, IntArray] | None = None,
    picked_dim: int | None = -1,
) -> None:
    """Give the ids of some dims of one value to dims of another; dims not named must be whole.

    Args:
        ledger: Where ids are kept.
        node: The node whose rule asks.
        source: An input of the node.
        target: An output of the node.
        dims: Dim of `source` to dim of `target`.
        picked: Dims of `source` not in `dims` of which only some entries go on: their indices. Ids that differ along such a
            dim are picked too.
        picked_dim: Dim of `target` that the picked dim becomes (-1: the same number); None where it is gone.
    """
    picked = picked or {}
    for dim, to in dims.items():
        if ledger.size(source, dim) == 1 or ledger.size(source, dim) != ledger.size(target, to):
            continue  # broadcast, or resized: an axis that is labelled all the same is frozen by not being mentioned
        entries = ledger.axis(node, source, dim)
        if entries is None:
            continue
        entries = _pick_rows(ledger, source, entries, picked)
        places = {
            d: place
            for d, place in {**dims, **{row: row if picked_dim == -1 else picked_dim for row in picked}}.items()
            if d in picked or place is None or ledger.size(source, d) == ledger.size(target, place)
        }
        kept = ledger.collapse(entries, [row for row in entries.rows if places.get(row) is None])
        moved = kept.permuted({row: place for row, place in places.items() if place is not None})
        ledger.set(target, to, moved.ids, moved.rows)


def _pick_rows(ledger: Ledger, value: str, entries: Entries, picked: Mapping[int, IntArray]) -> Entries:
    """Return entries after some indices were picked along their row dims; an index without a dim drops the row."""
    for row in [row for row in entries.rows if row in picked]:
        at = entries.rows.index(row)
        if entries.ids.shape[at] != ledger.size(value, row):
            entries = ledger.collapse(entries, [row])
            continue
        ids = entries.ids.take(picked[row], axis=at)
        if ids.ndim == entries.ids.ndim:
            entries = Entries(ids, entries.rows)
        else:
            entries = Entries(ids, tuple(r for r in entries.rows if r != row))
    return entries


def transpose(ledger: Ledger, node: Node) -> None:
    """Transpose: dims change places."""
    x = node.inputs[0]
    rank = ledger.shape(x).rank
    perm = node.attribute("perm") or list(range(rank))[::-1]
    carry(ledger, node, x, node.outputs[0], {source: target for target, source in enumerate(perm)})


def concat(ledger: Ledger, node: Node) -> None:
    """Concat: ids stand one after the other along the joined dim; the other dims are tied across the inputs."""
    y = node.outputs[0]
    rank = ledger.shape(y).rank
    axis = node.attribute("axis", 1) % rank
    all_weights = all(name in ledger.graph.weights for name in node.inputs)
    for dim in range(rank):
        if dim != axis:
            active = [
                (v, ledger.axis(node, v, dim)) for v in node.inputs if all_weights or v not in ledger.graph.tensors
            ]
            known = [entries for _, entries in active if entries is not None]
            if known:
                known += [e for v in node.inputs if v in ledger.graph.tensors and (e := ledger.axis(node, v, dim))]
            if known and len(known) >= len(node.inputs):
                joined = ledger.collapse(known[0], [r for r in known[0].rows if r == axis])
                for entries in known[1:]:
                    joined = ledger.meet(joined, ledger.collapse(entries, [r for r in entries.rows if r == axis]))
                ledger.set(y, dim, joined.ids, joined.rows)
            else:
                for entries in known:
                    ledger.freeze(entries.ids, f"{node.label}: an input cannot be cut along dimension {dim}")
            continue
        entries_of = {v: ledger.axis(node, v, dim) for v in node.inputs if v not in ledger.graph.tensors}
        if all_weights:
            entries_of = {v: ledger.axis(node, v, dim) for v in node.inputs}
        if all(e is None for e in entries_of.values()):
            continue
        alike = {(e.rows, e.ids.shape[:-1]) for e in entries_of.values() if e is not None}
        if len(alike) == 1 and all(entries_of.get(v) is not None for v in node.inputs):
            rows, _ = alike.pop()
            ledger.set(y, dim, np.concatenate([e.ids for v in node.inputs if (e := entries_of[v])], axis=-1), rows)
            continue
        parts = []
        for v in node.inputs:
            ids = ledger.flat(node, v, dim)
            parts.append(ledger.fixed(ledger.size(v, dim), f"{node.label}: {v} cannot be cut") if ids is None else ids)
        ledger.set(y, dim, np.concatenate(parts))


def split(ledger: Ledger, node: Node) -> None:
    """Split: each output takes its part of the ids."""
    x = node.inputs[0]
    rank = ledger.shape(x).rank
    axis = node.attribute("axis", 0) % rank
    start = 0
    entries = ledger.axis(node, x, axis)
    for y in node.outputs:
        if not y:
            return
        stop = start + ledger.size(y, axis)
        part = np.arange(start, stop)
        carry(ledger, node, x, y, {dim: dim for dim in range(rank) if dim != axis}, {axis: part})
        if entries is not None:
            if entries.rows:
                ledger.balance(entries.ids[..., part])
            ledger.set(y, axis, entries.ids[..., part], entries.rows)
        start = stop


def slice_(ledger: Ledger, node: Node) -> None:
    """Slice: ids are sliced along every dim whose bounds are known."""
    x, y = node.inputs[0], node.outputs[0]
    rank = ledger.shape(x).rank
    bounds = slice_bounds(ledger, node)
    if bounds is None:
        return
    whole = {dim: dim for dim in range(rank) if dim not in bounds}
    picked = {dim: np.arange(ledger.size(x, dim))[part] for dim, part in bounds.items()}
    for dim, part in bounds.items():
        entries = ledger.axis(node, x, dim)
        if entries is not None:
            entries = _pick_rows(ledger, x, entries, picked)
            strided = part.step not in (None, 1)
            if strided:  # becomes a Gather, of the same places in every row
                entries = ledger.collapse(entries, entries.rows)
            of_size = entries.ids[..., part].shape[-1] == ledger.size(y, dim)
            if (strided and len(bounds) > 1) or not ledger.shape(x).is_fixed(dim) or not of_size:
                ledger.freeze(entries.ids, f"{node.label}: bounds along dimension {dim} are not fixed")
            else:
                ids = entries.ids[..., part]
                if entries.rows:  # the entries before the slice too, so that it begins at one place in every row
                    ledger.balance(ids)
                    ledger.balance(entries.ids[..., : part.indices(entries.ids.shape[-1])[0]])
                ledger.set(y, dim, ids, entries.rows)
    carry(ledger, node, x, y, whole, picked)


def slice_bounds(ledger: Ledger, node: Node) -> dict[int, slice] | None:
    """Return the slice of every sliced dim, or None where a bound is not known."""
    rank = ledger.shape(node.inputs[0]).rank
    if len(node.inputs) > 1:
        given = [ledger.graph.value(v) if v else None for v in node.inputs[1:]]
        if any(value is None for value, name in zip(given, node.inputs[1:], strict=True) if name):
            return None
        starts, ends, axes, steps = (None if v is None else v.ravel().tolist() for v in [*given, None, None][:4])
    else:
        starts, ends, axes, steps = node.attribute("starts"), node.attribute("ends"), node.attribute("axes"), None
    if starts is None or ends is None:
        return None
    axes = axes if axes is not None else list(range(len(starts)))
    steps = steps if steps is not None else [1] * len(starts)
    found = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        dim = int(axis) % rank
        size = ledger.size(node.inputs[0], dim)
        stop: int | None = int(end)
        if step < 0:
            stop = None if end < -size else stop
        found[dim] = slice(int(start), stop, int(step))
        if found[dim].indices(size) == (0, size, 1):
            del found[dim]
    return found


def gather(ledger: Ledger, node: Node) -> None:
    """Gather: constant indices pick ids; other dims pass around the indices' dims."""
    x, indices = node.inputs[:2]
    y = node.outputs[0]
    rank, inner = ledger.shape(x).rank, ledger.shape(indices).rank
    axis = node.attribute("axis", 0) % rank
    picked = ledger.graph.value(indices)
    others = {dim: dim if dim < axis else dim - 1 + inner for dim in range(rank) if dim != axis}
    carry(ledger, node, x, y, others, {} if picked is None or inner > 1 else {axis: picked}, axis if inner else None)
    if picked is None or inner > 1:
        return
    entries = ledger.axis(node, x, axis) if (x, axis) in ledger.entries else None
    if entries is None:
        return
    if inner == 0:
        ledger.freeze(entries.ids, f"{node.label}: picks a single entry of dimension {axis} of {x}")
    else:
        ledger.set(y, axis, ledger.column(entries)[picked])


def pad(ledger: Ledger, node: Node) -> None:
    """Pad: ids pass; padded places are entries of their own, cut with whatever they meet."""
    x, y = node.inputs[0], node.outputs[0]
    rank = ledger.shape(x).rank
    amounts = pad_amounts(ledger, node)
    if amounts is None:
        return
    mode = node.attribute("mode", "constant")
    for dim in range(rank):
        before, after = amounts[dim]
        entries = ledger.axis(node, x, dim) if ledger.size(x, dim) > 1 else None
        if entries is None:
            continue
        entries = ledger.collapse(entries, [row for row in entries.rows if amounts[row] != (0, 0)])
        if (before, after) == (0, 0):
            ledger.set(y, dim, entries.ids, entries.rows)
        elif mode == "constant" and min(before, after) >= 0:
            lead = entries.ids.shape[:-1]
            ends = [ledger.fresh(math.prod(lead) * n).reshape(*lead, n) for n in (before, after)]
            for part in ends:
                ledger.balance(part)
            ledger.set(y, dim, np.concatenate([ends[0], entries.ids, ends[1]], axis=-1), entries.rows)
        else:
            ledger.freeze(entries.ids, f"{node.label}: {mode} padding along dimension {dim}")


def pad_amounts(ledger: Ledger, node: Node) -> list[tuple[int, int]] | None:
    """Return (before, after) for every dim, or None where they are not known."""
    rank = ledger.shape(node.inputs[0]).rank
    given = node.attribute("pads") or node.attribute("paddings")
    if given is None:
        value = ledger.graph.value(node.inputs[1])
        if value is None:
            return None
        given = value.ravel().tolist()
    axes = list(range(rank))
    if len(node.inputs) > 3 and node.inputs[3]:
        named = ledger.graph.value(node.inputs[3])
        if named is None:
            return None
        axes = [int(a) % rank for a in named.ravel()]
    amounts = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        amounts[axis] = (int(given[i]), int(given[i + len(axes)]))
    return amounts


def expand(ledger: Ledger, node: Node) -> None:
    """Expand: dims of the input pass; along one that is widened all entries are equal, so any of them may go."""
    x, y = node.inputs[0], node.outputs[0]
    before, after = ledger.shape(x), ledger.shape(y)
    shift = after.rank - before.rank
    given = ledger.graph.shape(node.inputs[1])
    if not can_name_expand(before, after) and (given is None or given.other != (after.rank,)):
        return
    carry(ledger, node, x, y, {dim: dim + shift for dim in range(before.rank)})
    for dim in range(shift, after.rank):
        if before.other[dim - shift] == 1 and after.other[dim] > 1 and after.is_fixed(dim):
            ledger.set(y, dim, ledger.fresh(after.other[dim]))


def can_name_expand(before: Shape, after: Shape) -> bool:
    """Whether the target of an Expand can be written anew: every open dim is one of the input's own."""
    return all(
        after.is_fixed(dim)
        or (
            (own := dim - after.rank + before.rank) >= 0
            and (before.dims[own], before.other[own]) == (after.dims[dim], after.other[dim])
        )
        for dim in range(after.rank)
    )


def constant_of_shape(ledger: Ledger, node: Node) -> None:
    """ConstantOfShape: equal entries, so any of them may go; initial states of recurrent nodes are made so."""
    y = node.outputs[0]
    shape = ledger.shape(y)
    given = ledger.graph.shape(node.inputs[0])
    if given is None or given.other != (shape.rank,) or not ledger.graph.consumers.get(y):
        return
    value = node.attribute("value")
    if value is not None and value.data_type not in FLOATS:
        return  # numbers to compute sizes with
    for dim in range(shape.rank):
        if shape.is_fixed(dim) and shape.other[dim] > 1:
            ledger.set(y, dim, ledger.fresh(shape.other[dim]))


def tile(ledger: Ledger, node: Node) -> None:
    """Tile: ids repeat with the entries; along dims of fixed sizes these tell how often."""
    x, y = node.inputs[0], node.outputs[0]
    before, after = ledger.shape(x), ledger.shape(y)
    for dim in range(before.rank):
        if after.is_fixed(dim) and before.other[dim] > 1 and after.other[dim] % before.other[dim] == 0:
            entries = ledger.axis(node, x, dim)
            if entries is None:
                continue
            entries = ledger.collapse(entries, [row for row in entries.rows if before.other[row] != after.other[row]])
            times = after.other[dim] // before.other[dim]
            ledger.set(y, dim, np.concatenate([entries.ids] * times, axis=-1), entries.rows)


def resize(ledger: Ledger, node: Node) -> None:
    """Resize, Upsample: batch and channels pass, resized dims must be whole."""
    x, y = node.inputs[0], node.outputs[0]
    rank = ledger.shape(x).rank
    carry(ledger, node, x, y, {dim: dim for dim in (0, 1) if dim < rank})


def depth_to_space(ledger: Ledger, node: Node) -> None:
    """DepthToSpace (pixel shuffle): the channels that make one output channel live and die together."""
    ids = ledger.flat(node, node.inputs[0], 1)
    if ids is None:
        return
    cells = node.attribute("blocksize") ** 2
    grid = ids.reshape(-1, cells).T if node.attribute("mode", "DCR") == "CRD" else ids.reshape(cells, -1)
    ledger.tie(grid[1:], np.broadcast_to(grid[0], grid[1:].shape))
    ledger.set(node.outputs[0], 1, grid[0])


def space_to_depth(ledger: Ledger, node: Node) -> None:
    """SpaceToDepth: every channel is repeated, once a cell."""
    ids = ledger.flat(node, node.inputs[0], 1)
    if ids is not None:
        ledger.set(node.outputs[0], 1, np.tile(ids, node.attribute("blocksize") ** 2))


RULES: dict[str, Handler] = {
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": reshape,
    "Gather": gather,
    "Pad": pad,
    "Reshape": reshape,
    "Resize": resize,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": reshape,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": reshape,
    "Upsample": resize,
}

"""Ops that move entries and compute nothing: the ids move with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from agmc_onnx.channels.axes import Entries, Handler, Ids, Ledger, Shuffle
from agmc_onnx.model.graph import Node
from agmc_onnx.model.shapes import Shape

IntArray = npt.NDArray[np.int64]
Block = tuple[list[int], list[int]]  # consecutive dims before and after a reshape that hold the same entries
_LARGEST_GRID = 1 << 23  # ids of a reshaped block; beyond that the block is left whole


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
        places = {**dims, **{row: row if picked_dim == -1 else picked_dim for row in picked}}
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


def reshape(ledger: Ledger, node: Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: blocks of dims with the same number of entries become one another.

    A flat axis split into (R, C/R) varies from row to row and every row keeps equally many; a channel shuffle
    (split, transpose, merge) is one permutation, whatever is kept.
    """
    x, y = node.inputs[0], node.outputs[0]
    if node.op_type == "Reshape" and _shuffle(ledger, node):
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
    open_sizes = sum(not after.is_fixed(dim) for dim in range(after.rank))
    if node.op_type == "Reshape" and open_sizes > 1 and ledger.graph.value(node.inputs[1]) is None:
        return  # a target computed at run time with two open sizes cannot be written anew
    for dims, to in blocks:
        labelled = [dim for dim in dims if (x, dim) in ledger.entries]
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
    if not all(before.is_fixed(d) for d in wide) and _with_open_batch(ledger, node, dim, wide, wide_to):
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
    index = tuple(slice(None) if i in varies else 0 for i in range(len(wide_to)))
    grid = grid[(*(slice(None) for _ in lead), *index)]
    found = Entries(grid, (*rows, *(wide_to[i] for i in varies[:-1])))
    found = found.permuted({row: row for row in found.rows})
    if len(varies) > 1:
        ledger.balance(found.ids)
    ledger.set(y, wide_to[varies[-1]], found.ids, found.rows)


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


def _move_rows(
    ledger: Ledger, entries: Entries, blocks: list[Block], before: Shape, after: Shape, skip: Sequence[int] = ()
) -> tuple[Ids, tuple[int, ...]]:
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
        users = graph.consumers.get(chain[-1].outputs[0], [])
        if len(users) != 1 or users[0][0].op_type != op or users[0][1] != 0 or chain[-1].outputs[0] in graph.outputs:
            return False
        chain.append(users[0][0])
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
            strided = part.step not in (None, 1) and len(bounds) > 1
            if strided or not ledger.shape(x).is_fixed(dim) or entries.ids[..., part].shape[-1] != ledger.size(y, dim):
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
    elif not entries.rows:
        ledger.set(y, axis, entries.ids[picked])


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
            ids = ledger.flat(node, x, dim)
            assert ids is not None
            ledger.set(y, dim, np.concatenate([ledger.fresh(before), ids, ledger.fresh(after)]))
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
    """Expand: dims of the input pass, new or widened ones have no ids."""
    x, y = node.inputs[0], node.outputs[0]
    shift = ledger.shape(y).rank - ledger.shape(x).rank
    known = ledger.graph.value(node.inputs[1]) is not None
    for dim in range(ledger.shape(x).rank):
        if known or not ledger.labelled(x):
            carry(ledger, node, x, y, {dim: dim + shift})


def tile(ledger: Ledger, node: Node) -> None:
    """Tile: ids repeat with the entries."""
    x, y = node.inputs[0], node.outputs[0]
    repeats = ledger.graph.value(node.inputs[1])
    if repeats is None:
        return
    for dim, times in enumerate(repeats.ravel().tolist()):
        if ledger.size(x, dim) == 1:
            continue
        ids = ledger.flat(node, x, dim)
        if ids is not None:
            ledger.set(y, dim, np.tile(ids, int(times)))


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

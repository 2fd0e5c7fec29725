"""Ops that move entries and compute nothing: the ids move with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx

from agmc_onnx.graph.registry import Attributes
from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ops.editor import Editor
from agmc_onnx.ops.passing import carry, origin, pick_rows
from agmc_onnx.ops.table import ARRANGES, PICKS, Op, Vanishing, register
from agmc_onnx.ops.zeros import Removed, where_all_are, where_first_is
from agmc_onnx.ties.ledger import Axis, Ledger


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
    taken = [v for v in node.inputs if all_weights or v not in ledger.graph.tensors]
    for dim in range(rank):
        if dim != axis:
            known = [e for v in taken if (e := ledger.axis(node, v, dim)) is not None]
            if known:
                known += [e for v in node.inputs if v in ledger.graph.tensors and (e := ledger.axis(node, v, dim))]
            if known and len(known) >= len(node.inputs):
                joined = reduce(ledger.meet, (ledger.collapse(e, [r for r in e.rows if r == axis]) for e in known))
                ledger.set(y, dim, joined.ids, joined.rows)
            else:
                whole = next((v for v in node.inputs if v and (v, dim) not in ledger.entries), node.inputs[0])
                why = f"{node.label}: it meets {origin(ledger.graph, whole)}, which keeps dimension {dim} whole"
                ledger.freeze_all(known, why)
            continue
        entries_of = {v: ledger.axis(node, v, dim) for v in taken}
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
    """Split: each output is a slice."""
    x, start = node.inputs[0], 0
    axis = node.attribute("axis", 0) % ledger.shape(x).rank
    for y in filter(None, node.outputs):
        stop = start + ledger.size(y, axis)
        _slice_to(ledger, node, y, {axis: slice(start, stop)})
        start = stop


def slice_(ledger: Ledger, node: Node) -> None:
    """Slice: ids are sliced along every dim whose bounds are known; open dims have none, whatever their bounds."""
    bounds = slice_bounds(ledger.graph, node)
    if bounds is not None:
        _slice_to(ledger, node, node.outputs[0], bounds)


def _slice_to(ledger: Ledger, node: Node, y: str, bounds: Mapping[int, slice | None]) -> None:
    """Give an output the ids of a slice of the first input."""
    x = node.inputs[0]
    picked = {dim: np.arange(ledger.size(x, dim))[part] for dim, part in bounds.items() if part is not None}
    for dim, part in bounds.items():
        entries = ledger.axis(node, x, dim)
        if entries is None:
            continue
        if part is None:
            ledger.freeze(entries.ids, f"{node.label}: bounds along dimension {dim} depend on an open size")
            continue
        entries = pick_rows(ledger, x, entries, picked)
        strided = part.step not in (None, 1)
        if strided:  # becomes a Gather, of the same places in every row
            entries = ledger.collapse(entries, entries.rows)
        ids = entries.ids[..., part]
        if (strided and len(bounds) > 1) or not ledger.shape(x).is_fixed(dim) or ids.shape[-1] != ledger.size(y, dim):
            ledger.freeze(entries.ids, f"{node.label}: bounds along dimension {dim} are not fixed")
            continue
        if entries.rows:  # the entries before the slice too, so that it begins at one place in every row
            ledger.balance(ids)
            ledger.balance(entries.ids[..., : part.indices(entries.ids.shape[-1])[0]])
        ledger.set(y, dim, ids, entries.rows)
    carry(ledger, node, x, y, {dim: dim for dim in range(ledger.shape(x).rank) if dim not in bounds}, picked)


def slice_bounds(graph: Graph, node: Node) -> dict[int, slice | None] | None:
    """Return the slice of every sliced dim, None for bounds that depend on an open size; None for unknown dims."""
    shape, parts = graph.shape(node.inputs[0]), _slice_parts(graph, node)
    if shape is None or parts is None:
        return None
    found: dict[int, slice | None] = {}
    for start, end, axis, step in zip(*parts, strict=True):
        assert axis is not None and step is not None
        size = shape.other[axis % shape.rank]
        if start is None or end is None:
            found[axis % shape.rank] = None
            continue
        part = slice(start, None if step < 0 and end < -size else end, step)
        if part.indices(size) != (0, size, 1):
            found[axis % shape.rank] = part
    return found


def _slice_parts(graph: Graph, node: Node) -> list[list[int | None]] | None:
    """Return starts, ends (None where one depends on an open size), axes and steps, or None where they are not known."""
    starts: list[int | None] | None
    axes: list[int | None] | None
    if len(node.inputs) > 1:
        given = [(name, graph.sizes(name) if name else None) for name in (*node.inputs[1:], "", "")[:4]]
        if any(name and value is None for name, value in given[2:]):
            return None
        first, last, axes, steps = (value for _, value in given)
        count = next((len(value) for _, value in given if value is not None), None)
        if count is None:
            return None
        unknown: list[int | None] = [None] * count
        starts, ends = first or unknown, last or unknown
    else:
        starts, ends, axes = (node.attribute(name) for name in ("starts", "ends", "axes"))
        steps = None
    if starts is None or ends is None:
        return None
    n = len(starts)
    axes, steps = list(range(n)) if axes is None else list(axes), steps or [1] * n
    return None if None in axes or None in steps else [list(starts), list(ends), axes, steps]


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
    if inner == 0 and _only_measured(ledger.graph, y):
        return
    if inner == 0:
        ledger.freeze(entries.ids, f"{node.label}: picks a single entry of dimension {axis} of {x}")
    else:
        ledger.set(y, axis, ledger.column(entries)[picked])


def _only_measured(graph: Graph, value: str) -> bool:
    """Whether nothing but the shape of a value is read."""
    users = graph.consumers.get(value, ())
    is_seen = value in graph.outputs or value in graph.captured
    return bool(users) and not is_seen and all(user.op_type in ("Shape", "Size") for user, _ in users)


def gather_nd(ledger: Ledger, node: Node) -> None:
    """GatherND: the last dims of the data, which indices do not reach, pass behind the dims of the indices."""
    x, indices = node.inputs[:2]
    rank, n_dims = ledger.shape(x).rank, ledger.shape(indices).rank
    first = node.attribute("batch_dims", 0) + ledger.shape(indices).other[-1]
    carry(ledger, node, x, node.outputs[0], {dim: n_dims - 1 + dim - first for dim in range(first, rank)})


def gather_elements(ledger: Ledger, node: Node) -> None:
    """GatherElements: dims beside the searched one are tied to those of the indices; these are of one size or not touched."""
    x, indices = node.inputs[:2]
    _together(ledger, node, (x, indices))


def scatter_elements(ledger: Ledger, node: Node) -> None:
    """ScatterElements: dims beside the one scattered along are tied in data, indices and updates."""
    _together(ledger, node, node.inputs[:3])


def _together(ledger: Ledger, node: Node, names: Sequence[str]) -> None:
    rank = ledger.shape(names[0]).rank
    for dim in set(range(rank)) - {node.attribute("axis", 0) % rank}:
        if len({ledger.size(name, dim) for name in names}) == 1 and ledger.size(names[0], dim) > 1:
            why = f"{node.label}: data, indices and updates cannot all be cut along dimension {dim}"
            _tied(ledger, node, [(name, dim) for name in names], why)


def _tied(ledger: Ledger, node: Node, axes: Sequence[Axis], why: str) -> None:
    """Let dims of inputs live and die together, as the first one's dim of the output; where one must be whole, all stay."""
    found = [ledger.axis(node, *axis) for axis in axes]
    known = [ledger.column(entries) for entries in found if entries is not None]
    if len(known) < len(found):
        ledger.freeze_all(known, why)
        return
    for other in known[1:]:
        ledger.tie(known[0], other)
    ledger.set(node.outputs[0], axes[0][1], known[0])


def scatter_nd(ledger: Ledger, node: Node) -> None:
    """ScatterND: the last dims of data and updates, which indices do not reach, are tied."""
    x, indices, updates = node.inputs[:3]
    rank, rank_updates = ledger.shape(x).rank, ledger.shape(updates).rank
    for dim in range(ledger.shape(indices).other[-1], rank):
        why = f"{node.label}: data and updates cannot both be cut along dimension {dim}"
        _tied(ledger, node, [(x, dim), (updates, dim - rank + rank_updates)], why)


def reverse_sequence(ledger: Ledger, node: Node) -> None:
    """ReverseSequence: dims beside batch and time pass."""
    x = node.inputs[0]
    taken = {node.attribute("batch_axis", 1), node.attribute("time_axis", 0)}
    carry(ledger, node, x, node.outputs[0], {dim: dim for dim in range(ledger.shape(x).rank) if dim not in taken})


def col2im(ledger: Ledger, node: Node) -> None:
    """Col2Im: the places of a block that make one channel live and die together."""
    block = ledger.graph.value(node.inputs[2])
    ids = ledger.flat(node, node.inputs[0], 1)
    if ids is None or block is None:
        return
    grid = ids.reshape(-1, math.prod(block.tolist()))
    ledger.tie(grid, np.broadcast_to(grid[:, :1], grid.shape))
    ledger.set(node.outputs[0], 1, grid[:, 0])


def pad(ledger: Ledger, node: Node) -> None:
    """Pad: ids pass; padded places are entries of their own, cut with whatever they meet."""
    x, y = node.inputs[0], node.outputs[0]
    rank = ledger.shape(x).rank
    amounts = pad_amounts(ledger.graph, node)
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
        elif mode == "constant" and before is not None and after is not None and min(before, after) >= 0:
            lead = entries.ids.shape[:-1]
            ends = [ledger.fresh(math.prod(lead) * n).reshape(*lead, n) for n in (before, after)]
            for part in ends:
                ledger.balance(part)
            ledger.set(y, dim, np.concatenate([ends[0], entries.ids, ends[1]], axis=-1), entries.rows)
        else:
            how = "an amount that depends on an open size" if before is None or after is None else f"{mode} padding"
            ledger.freeze(entries.ids, f"{node.label}: {how} along dimension {dim}")


def pad_amounts(graph: Graph, node: Node) -> list[tuple[int | None, int | None]] | None:
    """Return (before, after) for every dim, None for what depends on an open size; or None where they are not known."""
    shape = graph.shape(node.inputs[0])
    assert shape is not None
    amounts: list[tuple[int | None, int | None]] = [(0, 0)] * shape.rank
    given, axes = _pad_parts(graph, node, shape.rank)
    if given is None or axes is None:
        return None
    for i, axis in enumerate(axes):
        amounts[axis] = (given[i], given[i + len(axes)])
    return amounts


def _pad_parts(graph: Graph, node: Node, rank: int) -> tuple[list[int | None] | None, list[int] | None]:
    """Return the amounts before, then after, of some dims, and the dims; None for what is not known."""
    given = node.attribute("pads") or node.attribute("paddings")
    given = graph.sizes(node.inputs[1]) if given is None else list(given)
    if len(node.inputs) <= 3 or not node.inputs[3]:
        return given, list(range(rank))
    named = graph.value(node.inputs[3])
    return given, None if named is None else [int(axis) % rank for axis in named.ravel()]


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


def split_repair(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Split: the size of every part."""
    cut = editor.cut
    rank = editor.shape(node.inputs[0]).rank
    axis = node.attribute("axis", 0) % rank
    if cut.mask(node.inputs[0], axis) is None:
        return
    sizes = [cut.size(y, axis) for y in node.outputs]
    if editor.graph.opset >= 13:
        editor.constant(proto, 1, sizes)
        editor.attribute(proto, "num_outputs", None)
    else:
        editor.attribute(proto, "split", sizes)


def slice_repair(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Slice: bounds along cut dims move; a strided one becomes a Gather."""
    cut, x = editor.cut, node.inputs[0]
    bounds, parts = slice_bounds(editor.graph, node) or {}, _slice_parts(editor.graph, node)
    moved: dict[int, tuple[int, int]] = {}
    for dim, part in bounds.items():
        row = cut.row(x, dim)
        if row is None or part is None:
            continue
        picked = np.arange(row.size)[part]
        if part.step not in (None, 1):
            index = (np.cumsum(row) - 1)[picked[row[picked]]]
            editor.gather(proto, node.outputs[0], dim, index)
            return
        before = int(row[: picked[0]].sum())
        moved[dim] = (before, before + int(row[picked].sum()))
    if not moved or parts is None:
        return
    starts, ends, axes, _ = parts
    rank = editor.shape(x).rank
    new = [moved.get(int(axis or 0) % rank, (None, None)) for axis in axes]
    for position, name, given in ((1, "starts", starts), (2, "ends", ends)):
        values = [
            pair[position - 1] if pair[position - 1] is not None else old for pair, old in zip(new, given, strict=True)
        ]
        if len(node.inputs) == 1:
            editor.attribute(proto, name, [int(value or 0) for value in values])
        else:
            editor.numbers(proto, position, values)
    if len(node.inputs) > 3 and node.inputs[3]:
        editor.numbers(proto, 3, axes)


def gather_repair(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Gather: constant indices name entries by their new places."""
    cut, x = editor.cut, node.inputs[0]
    rank = editor.shape(x).rank
    axis = node.attribute("axis", 0) % rank
    row = cut.row(x, axis)  # rows that differ are tied before they are gathered from
    picked = editor.graph.value(node.inputs[1])
    if row is None or picked is None:
        return
    if _only_measured(editor.graph, node.outputs[0]):
        editor.constant(proto, 1, np.zeros_like(picked))
        return
    editor.constant(proto, 1, (np.cumsum(row) - 1)[picked[row[picked]]])


def pad_repair(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Pad: as many padded places as stay."""
    cut, y, x = editor.cut, node.outputs[0], editor.graph.shape(node.inputs[0])
    assert x is not None
    given, axes = _pad_parts(editor.graph, node, x.rank)
    if given is None or axes is None or not cut.is_cut(y):
        return
    new = list(given)
    for i, dim in enumerate(axes):
        row, before, after = cut.row(y, dim), given[i], given[i + len(axes)]
        if row is not None and before is not None and after is not None and (before or after):
            new[i], new[i + len(axes)] = int(row[:before].sum()), int(row[row.size - after :].sum())
    if new == given:
        return
    name = next((name for name in ("pads", "paddings") if node.attribute(name) is not None), None)
    if name is None:
        editor.numbers(proto, 1, new)
    else:
        editor.attribute(proto, name, [int(amount or 0) for amount in new])


def resize_repair(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Resize: target sizes name the channels too."""
    cut, y = editor.cut, node.outputs[0]
    if node.op_type != "Resize" or len(node.inputs) < 4 or not node.inputs[3] or not cut.is_cut(y):
        return
    shape, given = editor.graph.shape(y), editor.graph.shape(node.inputs[3])
    assert shape is not None
    axes = [axis % shape.rank for axis in node.attribute("axes", range(shape.rank))]
    if given is not None and given.other == (len(axes),) and any(cut.mask(y, dim) is not None for dim in axes):
        sizes = editor.graph.sizes(node.inputs[3]) or [None] * len(axes)
        new = [cut.size(y, d) if cut.mask(y, d) is not None else s for d, s in zip(axes, sizes, strict=True)]
        editor.numbers(proto, 3, new)


def pad_empty(node: Node) -> Vanishing | None:
    """Pad: zero where its input is, if zeros are what it puts there."""
    is_zero = (len(node.inputs) < 3 or not node.inputs[2]) and not node.attribute("value", 0.0)
    return Vanishing("keep") if is_zero else None


def concat_zero(asked: Removed) -> bool:
    """Concat: 0 where all its inputs are; along the joined dim where those are that can be cut."""
    ledger, node, dim = asked.ledger, asked.node, asked.dim
    if node.attribute("axis", 1) % ledger.shape(asked.value).rank != dim:
        return where_all_are(asked)
    return all(asked.at(name, dim) for name in node.inputs if (name, dim) in ledger.entries)


def _slice(inputs: list[Any], attributes: Attributes) -> np.ndarray:
    x = inputs[0]
    starts: Any
    ends: Any
    if len(inputs) > 1:
        starts, ends, axes, steps = (None if v is None else v.ravel().tolist() for v in [*inputs[1:], None, None][:4])
    else:
        starts, ends, axes, steps = attributes["starts"], attributes["ends"], attributes.get("axes"), None
    index = [slice(None)] * x.ndim
    for i, axis in enumerate(axes if axes is not None else range(len(starts))):
        index[axis] = slice(starts[i], ends[i], steps[i] if steps is not None else 1)
    return x[tuple(index)]


OPS = register(
    Op(
        "Transpose", transpose, computes_sizes=True, linear_in="each", channels="first", keeps_zero=where_first_is,
        edge="reshape",
        evaluate=lambda inputs, attributes: np.transpose(inputs[0], attributes.get("perm")),
    ),
    Op(
        "Concat", concat, **ARRANGES, keeps_zero=concat_zero, when_empty=Vanishing("join"), edge="concat",
        evaluate=lambda inputs, attributes: np.concatenate(inputs, axis=attributes["axis"]),
    ),
    Op(
        "Split", split, repair=split_repair, shape_inputs=(1,), **PICKS,
        shrinks=True, when_empty=Vanishing("split"), selects=True, edge="split",
    ),
    Op("SplitToSequence", edge="split"),
    Op(
        "Slice", slice_, repair=slice_repair, shape_inputs=(1, 2, 3, 4), **PICKS,
        evaluate=_slice, keeps_zero=where_first_is, selects=True, edge="split", layout="plain",
    ),
    Op(
        "Gather", gather, repair=gather_repair, **PICKS,
        keeps_zero=where_first_is, selects=True, edge="split",
        evaluate=lambda inputs, attributes: np.take(inputs[0], inputs[1], axis=attributes.get("axis", 0)),
    ),
    Op("GatherND", gather_nd, keeps_zero=where_first_is, edge="split"),
    Op("ScatterND", scatter_nd, computes_sizes=True),
    Op("ScatterElements", scatter_elements),
    Op("GatherElements", gather_elements, arranges=True, linear_in="first", keeps_zero=where_first_is, edge="split"),
    Op("ReverseSequence", reverse_sequence, keeps_zero=where_first_is),
    Op("Col2Im", col2im, shape_inputs=(1, 2), shrinks=True),
    Op("Pad", pad, repair=pad_repair, shape_inputs=(1,), shrinks=True, when_empty=pad_empty, edge="pad", layout="plain"),
    Op("Tile", tile, shape_inputs=(1,), keeps_zero=where_first_is, edge="reshape"),
    Op("Resize", resize, repair=resize_repair, shape_inputs=(2, 3), keeps_zero=where_first_is, edge="resize"),
    Op("Upsample", resize, shape_inputs=(1,), keeps_zero=where_first_is, edge="resize"),
    Op("DepthToSpace", depth_to_space, keeps_zero=where_first_is, edge="reshape"),
    Op("SpaceToDepth", space_to_depth, keeps_zero=where_first_is, edge="reshape"),
)  # fmt: skip

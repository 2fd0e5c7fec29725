"""Fused attention: queries meet keys inside every head, and what the heads give follows the values.

The head size shrinks, the number of heads stays. The default scale is one over the root of the head size, so a cut pins it.
Where the head size may not change, whole heads go: see `agmc_onnx.ops.heads`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from agmc_onnx.arrays import IntArray
from agmc_onnx.graph.registry import Attributes, Dims
from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ops.editor import Editor
from agmc_onnx.ops.heads import FLAT_RANK, cut_queries, has_past, past_length, stay, tie_heads
from agmc_onnx.ops.table import MICROSOFT, Op, Product, register, sizes_of
from agmc_onnx.ties.ledger import Entries, Ledger


def attention_ties(ledger: Ledger, node: Node) -> None:
    """Attention of opset 23: queries, keys and values with heads in a dim of their own, or flat with their number named."""
    q, k, v = node.inputs[:3]
    y = node.outputs[0]
    is_flat = ledger.shape(q).rank == FLAT_RANK
    if has_past(ledger, node, (4, 5)):
        heads, kv_heads = (node.attribute(f"{of}_num_heads", 1) for of in ("q", "kv"))
        if not is_flat or heads == kv_heads:
            stay(ledger, node)
        else:
            cut_queries(ledger, node, [ledger.flat(node, name, 2) for name in (q, k, v)], heads, kv_heads)
            tie_heads(ledger, node, 3, ledger.entries.get((y, 2)), heads)
        return
    if is_flat:
        _flat(ledger, node, node.attribute("q_num_heads"), node.attribute("kv_num_heads"))
        return
    same_heads = ledger.size(q, 1) == ledger.size(k, 1)
    found = [ledger.axis(node, name, 3) for name in (q, k, v)]
    found = [None if e is None else ledger.collapse(e, [r for r in e.rows if r == 2 or not same_heads]) for e in found]
    _meet(ledger, node, found[0], found[1])
    if found[2] is not None:
        ledger.set(y, 3, found[2].ids, found[2].rows)


def multi_head(ledger: Ledger, node: Node) -> None:
    """MultiHeadAttention of onnxruntime: flat queries, keys and values, and one bias for the three."""
    if has_past(ledger, node, (6, 7)):
        stay(ledger, node)
        return
    operands = [name for name in node.inputs[:3] if name and ledger.shape(name).rank == FLAT_RANK]
    if len(operands) < 3:
        return
    ids = _flat(ledger, node, node.attribute("num_heads"), node.attribute("num_heads"))
    bias = node.inputs[3] if len(node.inputs) > 3 else ""
    if not bias:
        return
    known = [part for part in ids if part is not None]
    own = ledger.flat(node, bias, 0)
    if own is not None and len(known) == 3:
        ledger.tie(own, np.concatenate(known))
    else:
        ledger.freeze_all(known, f"{node.label}: its bias {bias} cannot be cut with it")


def fused_attention(ledger: Ledger, node: Node) -> None:
    """Attention of onnxruntime: one weight makes queries, keys and values; its columns stand one after the other."""
    x, w = node.inputs[:2]
    if has_past(ledger, node, (4,)):
        stay(ledger, node)
        return
    if node.attribute("do_rotary", 0):
        return
    source, columns = ledger.flat(node, x, 2), ledger.flat(node, w, 1)
    rows = ledger.flat(node, w, 0)
    if source is not None and rows is not None:
        ledger.tie(source, rows)
    elif source is not None:
        ledger.freeze(source, f"{node.label}: its weight {w} cannot be cut")
    if columns is None:
        return
    q, k, v = np.split(columns, np.cumsum(hidden_sizes(node, columns.size))[:2])
    heads = node.attribute("num_heads")
    ledger.tie(q, k)
    for part in (q, k, v):
        ledger.balance(part.reshape(heads, -1))
    if len(node.inputs) > 2 and node.inputs[2]:
        own = ledger.flat(node, node.inputs[2], 0)
        if own is None:
            ledger.freeze(columns, f"{node.label}: its bias cannot be cut")
        else:
            ledger.tie(own, columns)
    ledger.set(node.outputs[0], 2, v)


def hidden_sizes(node: Node, columns: int) -> list[int]:
    """Return how many columns of the weight of onnxruntime's Attention are queries, keys and values."""
    return list(node.attribute("qkv_hidden_sizes") or [columns // 3] * 3)


def _flat(ledger: Ledger, node: Node, q_heads: int, kv_heads: int) -> list[IntArray | None]:
    """Queries, keys and values (batch, length, heads * size): heads of queries share the keys of their number."""
    q, k, v = (ledger.flat(node, name, 2) for name in node.inputs[:3])
    grids = [
        None if ids is None else ids.reshape(n, -1)
        for ids, n in zip((q, k, v), (q_heads, kv_heads, kv_heads), strict=True)
    ]
    for grid in grids:
        if grid is not None:
            ledger.balance(grid)
    times = q_heads // kv_heads
    if grids[0] is not None and grids[1] is not None:
        ledger.tie(grids[0], np.repeat(grids[1], times, axis=0))
    else:
        _meet(ledger, node, *(None if g is None else Entries(g.ravel()) for g in grids[:2]))
    if grids[2] is not None:
        ledger.set(node.outputs[0], 2, np.repeat(grids[2], times, axis=0).ravel())
    return [q, k, v]


def _meet(ledger: Ledger, node: Node, queries: Entries | None, keys: Entries | None) -> None:
    if queries is not None and keys is not None:
        ledger.meet(queries, keys)
    else:
        ledger.freeze_all((queries, keys), f"{node.label}: queries and keys cannot both be cut")


def attention_repair(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Attention of opset 23: the scale; or, where whole heads of queries went, their number."""
    q, k = node.inputs[:2]
    shape = editor.shape(q)
    dim = shape.rank - 1
    if editor.cut.is_cut(k):
        editor.forget(node.outputs[1:])  # keys and values that nobody takes
    if dim == 2 and editor.cut.mask(q, 2) is not None and editor.cut.mask(k, 2) is None:
        size = shape.other[2] // node.attribute("q_num_heads")
        editor.attribute(proto, "q_num_heads", editor.cut.size(q, 2) // size)
    elif editor.cut.mask(q, dim) is not None and node.attribute("scale") is None:
        editor.attribute(proto, "scale", _scale(shape.other[dim], 1 if dim == 3 else node.attribute("q_num_heads")))


def multi_head_repair(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """MultiHeadAttention: the scale."""
    q = node.inputs[0]
    shape = editor.graph.shape(q)
    if editor.cut.is_cut(node.outputs[0]):
        editor.forget(node.outputs[1:])  # keys and values that nobody takes
    if editor.cut.mask(q, 2) is not None and not node.attribute("scale", 0.0) and shape is not None:
        editor.attribute(proto, "scale", _scale(shape.other[2], node.attribute("num_heads")))


def fused_attention_repair(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Attention of onnxruntime: the scale, and how many columns are queries, keys and values."""
    mask = editor.cut.mask(node.inputs[1], 1)
    if mask is None:
        return
    editor.forget(node.outputs[1:])  # keys and values that nobody takes
    sizes = hidden_sizes(node, mask.size)
    starts = [0, sizes[0], sizes[0] + sizes[1]]
    kept = [int(mask[at : at + size].sum()) for at, size in zip(starts, sizes, strict=True)]
    editor.attribute(proto, "qkv_hidden_sizes", kept)
    if not node.attribute("scale", 0.0):
        editor.attribute(proto, "scale", _scale(sizes[0], node.attribute("num_heads")))


def _scale(hidden: int, heads: int) -> float:
    return float((hidden // heads) ** -0.5)


def attention_macs(graph: Graph, node: Node) -> list[Product]:
    """Scores and their product with the values, in every head."""
    x, y = node.inputs[0], node.outputs[0]
    query, key, out = sizes_of(graph, x, node.inputs[1] or x, y)
    at = len(query) - 1
    pairs = (query[at - 1], key[at - 1] if len(key) == len(query) else query[at - 1])
    return [
        ((*query[: at - 1], *pairs, size), [*((x, dim) for dim in range(at - 1)), None, None, axis])
        for size, axis in ((query[at], (x, at)), (out[at], (y, at)))
    ]


def fused_attention_macs(graph: Graph, node: Node) -> list[Product]:
    """Queries, keys and values made of the input, then as `attention_macs`.

    Queries and values are as many columns as half of all columns and of the output; an odd number of pairs loses one.
    """
    x, w, y = *node.inputs[:2], node.outputs[0]
    query, columns, out = sizes_of(graph, x, w, y)
    pairs = (query[0], query[1] * query[1] // 2)
    return [
        ((*query[:2], *columns), [None, None, (x, 2), (w, 1)]),
        ((*pairs, columns[1]), [None, None, (w, 1)]),
        ((*pairs, out[2]), [None, None, (y, 2)]),
    ]


def fused_attention_shape(dims: Sequence[Any], attributes: Attributes) -> list[Dims | None]:
    """As many columns as there are of values."""
    sizes = attributes.get("qkv_hidden_sizes")
    return [(*dims[0][:2], sizes[2] if sizes else dims[1][1] // 3)]


def multi_head_shape(dims: Sequence[Any], attributes: Attributes) -> list[Dims | None]:
    """The result, and keys and values with heads in a dim of their own."""
    query, key, value = dims[:3]
    if len(query) != 3 or len(value) not in (3, 4):
        return []
    out = (*query[:2], value[2] if len(value) == 3 else value[1] * value[3])
    if len(key) != 3 or len(value) != 3:
        return [out]
    heads = attributes["num_heads"]
    length = key[1] + past_length(dims, 6)
    return [out, *((query[0], heads, length, x[2] // heads) for x in (key, value))]


OPS = register(
    Op("Attention", attention_ties, repair=attention_repair, macs=attention_macs),
    Op(
        "MultiHeadAttention", multi_head, MICROSOFT, repair=multi_head_repair, macs=attention_macs,
        shape=multi_head_shape,
    ),
    Op(
        "Attention", fused_attention, MICROSOFT, repair=fused_attention_repair, macs=fused_attention_macs,
        shape=fused_attention_shape,
    ),
)  # fmt: skip

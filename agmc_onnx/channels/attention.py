"""Fused attention: queries meet keys inside every head, and what the heads give follows the values.

The head size shrinks, the number of heads stays. The default scale is one over the root of the head size, so a cut pins it
(`agmc_onnx.pruning.fused`).
"""

from __future__ import annotations

import numpy as np

from agmc_onnx.channels.axes import Entries, Ids, Ledger, tie_or_freeze
from agmc_onnx.channels.moves import carry
from agmc_onnx.model.graph import Node

_FLAT_RANK = 3  # of queries whose heads lie in one dim: (batch, length, heads * size)
_PAST_OF_ATTENTION, _PAST_OF_MULTI_HEAD = 4, (6, 7)  # input positions


def attention(ledger: Ledger, node: Node) -> None:
    """Attention of opset 23: queries, keys and values with heads in a dim of their own, or flat with their number named."""
    q, k, v = node.inputs[:3]
    y = node.outputs[0]
    if any(node.inputs[4:6]) or any(ledger.graph.consumers.get(name) for name in node.outputs[1:] if name):
        return
    if ledger.shape(q).rank == 3:
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
    if any(node.inputs[i] for i in _PAST_OF_MULTI_HEAD if i < len(node.inputs)) or any(node.outputs[1:]):
        return
    if (
        len(node.inputs) < 3
        or not all(node.inputs[:3])
        or any(ledger.shape(name).rank != 3 for name in node.inputs[:3])
    ):
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
        for part in known:
            ledger.freeze(part, f"{node.label}: its bias {bias} cannot be cut with it")


def fused_attention(ledger: Ledger, node: Node) -> None:
    """Attention of onnxruntime: one weight makes queries, keys and values; its columns stand one after the other."""
    x, w = node.inputs[:2]
    has_past = len(node.inputs) > _PAST_OF_ATTENTION and node.inputs[_PAST_OF_ATTENTION]
    if has_past or any(node.outputs[1:]) or node.attribute("do_rotary", 0):
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


def rotary(ledger: Ledger, node: Node) -> None:
    """RotaryEmbedding: entries that are turned together live and die together, the same ones in all heads, which share angles.

    Where only a part of a head is turned, it stays whole: the attribute that names the part may not become 0.
    """
    x = node.inputs[0]
    cos, sin = node.inputs[1:3] if not node.domain else node.inputs[2:4]
    rank, heads = ledger.shape(x).rank, node.attribute("num_heads", 0)
    hidden = ledger.shape(x).other[-1]
    size = hidden if rank > _FLAT_RANK else 2 * ledger.shape(cos).other[-1]
    if hidden % size or (heads and rank == _FLAT_RANK and hidden // heads != size):
        return
    if node.attribute("rotary_embedding_dim", 0) not in (0, size) or 2 * ledger.shape(cos).other[-1] != size:
        return
    carry(ledger, node, x, node.outputs[0], {dim: dim for dim in range(rank - 1)})
    ids = ledger.flat(node, x, rank - 1)
    if ids is None:
        return
    grid = ids.reshape(-1, size)
    ledger.tie(grid, grid[:1])
    one = grid[0]
    first, second = (one[::2], one[1::2]) if node.attribute("interleaved", 0) else (one[: size // 2], one[size // 2 :])
    ledger.tie(first, second)
    for angles in (cos, sin):
        tie_or_freeze(ledger, node, first, angles, ledger.shape(angles).rank - 1)
    ledger.set(node.outputs[0], rank - 1, ids)


def grouped_query(ledger: Ledger, node: Node) -> None:
    """GroupQueryAttention of onnxruntime: its kernels take heads of whole blocks of entries only, so all of them stay."""
    for name in filter(None, node.inputs):
        ledger.freeze_value(name, f"{node.label}: onnxruntime runs it with heads of 8 or 16 entries at a time only")


def hidden_sizes(node: Node, columns: int) -> list[int]:
    """Return how many columns of the weight of onnxruntime's Attention are queries, keys and values."""
    return list(node.attribute("qkv_hidden_sizes") or [columns // 3] * 3)


def _flat(ledger: Ledger, node: Node, q_heads: int, kv_heads: int) -> list[Ids | None]:
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
        return
    for entries in (queries, keys):
        if entries is not None:
            ledger.freeze(entries.ids, f"{node.label}: queries and keys cannot both be cut")

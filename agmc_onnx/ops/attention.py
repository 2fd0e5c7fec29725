"""Fused attention: queries meet keys inside every head, and what the heads give follows the values.

The head size shrinks, the number of heads stays. The default scale is one over the root of the head size, so a cut pins it
(`agmc_onnx.ops.fused_repairs`). Where the head size may not change, whole heads go: see `grouped_query`.
"""

from __future__ import annotations

import numpy as np

from agmc_onnx.arrays import IntArray
from agmc_onnx.graph.view import Node
from agmc_onnx.ops.move import carry
from agmc_onnx.ops.reshape import feeds_grouped_query
from agmc_onnx.ties.ledger import Entries, Ledger, tie_or_freeze

_FLAT_RANK = 3  # of queries whose heads lie in one dim: (batch, length, heads * size)
_PAST = {  # input positions of keys and values of earlier calls
    ("", "Attention"): (4, 5),
    ("com.microsoft", "Attention"): (4,),
    ("com.microsoft", "GroupQueryAttention"): (3, 4),
    ("com.microsoft", "MultiHeadAttention"): (6, 7),
}
_BIAS_OF_GROUPED, _SINK_OF_GROUPED = 10, 11  # input positions


def attention(ledger: Ledger, node: Node) -> None:
    """Attention of opset 23: queries, keys and values with heads in a dim of their own, or flat with their number named."""
    q, k, v = node.inputs[:3]
    y = node.outputs[0]
    is_flat = ledger.shape(q).rank == _FLAT_RANK
    if _has_past(ledger, node):
        heads, kv_heads = (node.attribute(f"{of}_num_heads", 1) for of in ("q", "kv"))
        if not is_flat or heads == kv_heads:
            _stay(ledger, node)
        else:
            _cut_queries(ledger, node, [ledger.flat(node, name, 2) for name in (q, k, v)], heads, kv_heads)
            _tie_heads(ledger, node, 3, ledger.entries.get((y, 2)), heads)
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
    if _has_past(ledger, node):
        _stay(ledger, node)
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
    if _has_past(ledger, node):
        _stay(ledger, node)
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


def rotary(ledger: Ledger, node: Node) -> None:
    """RotaryEmbedding: entries that are turned together live and die together, the same ones in all heads, which share angles.

    Where only a part of a head is turned, it stays whole: the attribute that names the part may not become 0.
    """
    x = node.inputs[0]
    if _turns_whole_heads(ledger, node):
        return
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
    """GroupQueryAttention of onnxruntime: whole heads go, since its kernels take heads of 8 or 16 entries at a time only.

    A head of keys and values goes with all heads of queries that share it. Where keys and values of earlier calls come in or
    go out, their heads stay, and of the queries that share one equally many go everywhere.
    """
    heads, kv_heads = node.attribute("num_heads"), node.attribute("kv_num_heads")
    if any(_is_used(ledger, name) for name in node.outputs[3:]):
        return
    found: list[IntArray | None] = [None if not name else ledger.flat(node, name, 2) for name in node.inputs[:3]]
    if found[0] is not None and not any(node.inputs[1:3]):  # one value holds all three
        size = found[0].size // (heads + 2 * kv_heads)
        found = list(np.split(found[0], [heads * size, (heads + kv_heads) * size]))
    if _has_past(ledger, node) or kv_heads == 1:
        if heads == kv_heads:
            _stay(ledger, node)
            return
        _cut_queries(ledger, node, found, heads, kv_heads)
    else:
        _cut_shared(ledger, node, found, heads, kv_heads)
    made = ledger.entries.get((node.outputs[0], 2))
    _tie_heads(ledger, node, _BIAS_OF_GROUPED, made, heads)
    _tie_heads(ledger, node, _SINK_OF_GROUPED, made, heads)


def _turns_whole_heads(ledger: Ledger, node: Node) -> bool:
    """Tie the entries of every head where only GroupQueryAttention uses them, which takes or leaves heads; return whether."""
    x, y = node.inputs[0], node.outputs[0]
    cos = node.inputs[1] if not node.domain else node.inputs[2]
    if ledger.shape(x).rank != _FLAT_RANK:
        return False
    heads = node.attribute("num_heads", 0) or ledger.size(x, 2) // (2 * ledger.shape(cos).other[-1])
    if not feeds_grouped_query(ledger, y, heads):
        return False
    ids = ledger.flat(node, x, 2)
    if ids is None:
        return False
    grid = ids.reshape(heads, -1)
    ledger.tie(grid, np.broadcast_to(grid[:, :1], grid.shape))
    carry(ledger, node, x, y, {0: 0, 1: 1})
    ledger.set(y, 2, ids)
    return True


def _cut_shared(ledger: Ledger, node: Node, found: list[IntArray | None], heads: int, kv_heads: int) -> None:
    """Let a head of keys and values be one unit with the heads of queries that share it."""
    known = [ids.reshape(kv_heads, -1) for ids in found if ids is not None]
    if len(known) < len(found):
        for ids in known:
            ledger.freeze(ids, f"{node.label}: queries, keys and values cannot all be cut")
        return
    units = known[1][:, :1]
    for grid in known:
        ledger.tie(grid, np.broadcast_to(units, grid.shape))
    y = node.outputs[0]
    ledger.set(y, 2, np.repeat(units.ravel(), ledger.size(y, 2) // kv_heads))
    for name in filter(None, node.outputs[1:3]):
        ledger.set(name, 1, units.ravel())


def _cut_queries(ledger: Ledger, node: Node, found: list[IntArray | None], heads: int, kv_heads: int) -> None:
    """Let a head of queries be one unit; every head of keys keeps equally many, and none of those goes."""
    for ids in found[1:]:
        if ids is not None:
            ledger.freeze(ids, f"{node.label}: {_why_cached(node)}")
    if found[0] is None:
        return
    queries = found[0].reshape(heads, -1)
    ledger.tie(queries, np.broadcast_to(queries[:, :1], queries.shape))
    ledger.balance(found[0].reshape(kv_heads, -1))
    y = node.outputs[0]
    ledger.set(y, 2, np.repeat(queries[:, 0], ledger.size(y, 2) // heads))


def _tie_heads(ledger: Ledger, node: Node, position: int, made: Entries | None, heads: int) -> None:
    """Let an input with an entry for every head of queries follow them: a bias (.., heads, queries, keys), or (heads,)."""
    name = node.inputs[position] if len(node.inputs) > position else ""
    if not name or made is None:
        return
    dim = ledger.shape(name).rank - _FLAT_RANK if ledger.shape(name).rank > 1 else 0
    if dim >= 0 and ledger.size(name, dim) > 1:
        tie_or_freeze(ledger, node, made.ids.reshape(heads, -1)[:, 0], name, dim)


def _is_used(ledger: Ledger, value: str) -> bool:
    graph = ledger.graph
    return bool(value) and (value in graph.consumers or value in graph.outputs or value in graph.captured)


def _has_past(ledger: Ledger, node: Node) -> bool:
    """Whether keys and values of earlier calls come in, or go out for later ones."""
    places = _PAST[node.domain, node.op_type]
    comes = any(node.inputs[at] for at in places if at < len(node.inputs))
    return comes or any(_is_used(ledger, name) for name in node.outputs[1:])


def _why_cached(node: Node) -> str:
    if node.attribute("kv_num_heads", 0) == 1:
        return "its only head of keys and values must stay"
    return "its heads of keys and values must stay, since a cache holds them; a model exported without cache has no such limit"


def _stay(ledger: Ledger, node: Node) -> None:
    for name in filter(None, node.inputs):
        ledger.freeze_value(name, f"{node.label}: {_why_cached(node)}")


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
        return
    for entries in (queries, keys):
        if entries is not None:
            ledger.freeze(entries.ids, f"{node.label}: queries and keys cannot both be cut")

"""Whole heads: GroupQueryAttention, whose heads go or stay, and what turns or normalises heads one by one before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from agmc_onnx.arrays import IntArray
from agmc_onnx.graph.registry import Attributes, Dims, same_as_first
from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ops.editor import Editor
from agmc_onnx.ops.norm import layer_norm
from agmc_onnx.ops.passing import carry, only_user
from agmc_onnx.ops.table import MICROSOFT, Op, Product, op_of, register, sizes_of
from agmc_onnx.ties.ledger import Entries, Ledger, tie_or_freeze

FLAT_RANK = 3  # of queries whose heads lie in one dim: (batch, length, heads * size)
_BIAS, _SINK = 10, 11  # input positions


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
    if has_past(ledger, node, (3, 4)) or kv_heads == 1:
        if heads == kv_heads:
            stay(ledger, node)
            return
        cut_queries(ledger, node, found, heads, kv_heads)
    else:
        _cut_shared(ledger, node, found, heads, kv_heads)
    made = ledger.entries.get((node.outputs[0], 2))
    tie_heads(ledger, node, _BIAS, made, heads)
    tie_heads(ledger, node, _SINK, made, heads)


def _cut_shared(ledger: Ledger, node: Node, found: list[IntArray | None], heads: int, kv_heads: int) -> None:
    """Let a head of keys and values be one unit with the heads of queries that share it."""
    known = [ids.reshape(kv_heads, -1) for ids in found if ids is not None]
    if len(known) < len(found):
        ledger.freeze_all(known, f"{node.label}: queries, keys and values cannot all be cut")
        return
    units = known[1][:, :1]
    for grid in known:
        ledger.tie(grid, np.broadcast_to(units, grid.shape))
    y = node.outputs[0]
    ledger.set(y, 2, np.repeat(units.ravel(), ledger.size(y, 2) // kv_heads))
    for name in filter(None, node.outputs[1:3]):
        ledger.set(name, 1, units.ravel())


def cut_queries(ledger: Ledger, node: Node, found: list[IntArray | None], heads: int, kv_heads: int) -> None:
    """Let a head of queries be one unit; every head of keys keeps equally many, and none of those goes."""
    ledger.freeze_all(found[1:], f"{node.label}: {_why_cached(node)}")
    if found[0] is None:
        return
    queries = found[0].reshape(heads, -1)
    ledger.tie(queries, np.broadcast_to(queries[:, :1], queries.shape))
    ledger.balance(found[0].reshape(kv_heads, -1))
    y = node.outputs[0]
    ledger.set(y, 2, np.repeat(queries[:, 0], ledger.size(y, 2) // heads))


def tie_heads(ledger: Ledger, node: Node, position: int, made: Entries | None, heads: int) -> None:
    """Let an input with an entry for every head of queries follow them: a bias (.., heads, queries, keys), or (heads,)."""
    name = node.inputs[position] if len(node.inputs) > position else ""
    if not name or made is None:
        return
    dim = ledger.shape(name).rank - FLAT_RANK if ledger.shape(name).rank > 1 else 0
    if dim >= 0 and ledger.size(name, dim) > 1:
        tie_or_freeze(ledger, node, made.ids.reshape(heads, -1)[:, 0], name, dim)


def has_past(ledger: Ledger, node: Node, places: Sequence[int]) -> bool:
    """Whether keys and values of earlier calls come in, at these positions, or go out for later ones."""
    comes = any(node.inputs[at] for at in places if at < len(node.inputs))
    return comes or any(_is_used(ledger, name) for name in node.outputs[1:])


def _is_used(ledger: Ledger, value: str) -> bool:
    graph = ledger.graph
    return bool(value) and (value in graph.consumers or value in graph.outputs or value in graph.captured)


def _why_cached(node: Node) -> str:
    if node.attribute("kv_num_heads", 0) == 1:
        return "its only head of keys and values must stay"
    return "its heads of keys and values must stay, since a cache holds them; a model exported without cache has no such limit"


def stay(ledger: Ledger, node: Node) -> None:
    """Keep everything that a node with a cache reads."""
    for name in filter(None, node.inputs):
        ledger.freeze_value(name, f"{node.label}: {_why_cached(node)}")


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
    size = hidden if rank > FLAT_RANK else 2 * ledger.shape(cos).other[-1]
    if hidden % size or (heads and rank == FLAT_RANK and hidden // heads != size):
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


def _turns_whole_heads(ledger: Ledger, node: Node) -> bool:
    """Tie the entries of every head where only GroupQueryAttention uses them, which takes or leaves heads; return whether."""
    x, y = node.inputs[0], node.outputs[0]
    cos = node.inputs[1] if not node.domain else node.inputs[2]
    if ledger.shape(x).rank != FLAT_RANK:
        return False
    heads = node.attribute("num_heads", 0) or ledger.size(x, 2) // (2 * ledger.shape(cos).other[-1])
    if not _feeds_grouped_query(ledger, y, heads):
        return False
    ids = ledger.flat(node, x, 2)
    if ids is None:
        return False
    grid = ids.reshape(heads, -1)
    ledger.tie(grid, np.broadcast_to(grid[:, :1], grid.shape))
    carry(ledger, node, x, y, {0: 0, 1: 1})
    ledger.set(y, 2, ids)
    return True


def normed_heads(ledger: Ledger, node: Node) -> bool:
    """Tie the entries of every head where heads are normalised one by one, then taken or left whole; return whether.

    Reshape (batch, length, heads * size) to (batch, length * heads, size), a normalisation of the last dim, Reshape back, for
    GroupQueryAttention: how queries and keys are normalised (Henry et al. 2020, arXiv:2010.04245). None of them names heads.
    """
    graph, x = ledger.graph, node.inputs[0]
    shape, apart = ledger.shape(x), ledger.shape(node.outputs[0])
    norm = only_user(graph, node.outputs[0])
    back = only_user(graph, norm.outputs[0]) if norm is not None and op_of(norm).ties is layer_norm else None
    if shape.rank != 3 or apart.rank != 3 or apart.is_fixed(1) or norm is None or back is None:
        return False
    if norm.attribute("axis", -1) not in (-1, 2) or any(norm.outputs[1:]):
        return False
    y, size = back.outputs[0], apart.other[2]
    if back.op_type != "Reshape" or ledger.shape(y) != shape or graph.value(back.inputs[1]) is None:
        return False
    if not _feeds_grouped_query(ledger, y, shape.other[2] // size):
        return False
    ids = ledger.flat(node, x, 2)
    if ids is not None:
        grid = ids.reshape(-1, size)
        ledger.tie(grid, np.broadcast_to(grid[:, :1], grid.shape))
        ledger.set(y, 2, ids)
        ledger.skipped.update((norm.index, back.index))
    return ids is not None


def _feeds_grouped_query(ledger: Ledger, value: str, heads: int) -> bool:
    """Whether only GroupQueryAttention uses a value, as that many heads of queries or of keys, turned before or not."""
    graph = ledger.graph
    users = graph.consumers.get(value, ())
    if not users or value in graph.outputs or value in graph.captured:
        return False

    def takes(user: Node, at: int) -> bool:
        if user.op_type == "RotaryEmbedding" and at == 0:
            return _feeds_grouped_query(ledger, user.outputs[0], heads)
        is_packed = not any(user.inputs[1:3])
        if user.op_type != "GroupQueryAttention" or at > 1 or is_packed:
            return False
        return user.attribute("kv_num_heads" if at else "num_heads") == heads

    return all(takes(user, at) for user, at in users)


def grouped_query_repair(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """GroupQueryAttention: the numbers of heads that stay."""
    q, k = node.inputs[:2]
    size = editor.shape(node.outputs[0]).other[2] // node.attribute("num_heads")
    heads = editor.cut.size(node.outputs[0], 2) // size
    editor.attribute(proto, "num_heads", heads)
    kv_heads = editor.cut.size(k, 2) // size if k else (editor.cut.size(q, 2) // size - heads) // 2
    editor.attribute(proto, "kv_num_heads", kv_heads)


def rotary_repair(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """RotaryEmbedding: where they are named, how many entries of a head are turned, and how many heads there are."""
    x, heads = node.inputs[0], node.attribute("num_heads", 0)
    angles = node.inputs[1] if not node.domain else node.inputs[2]
    shape = editor.graph.shape(angles)
    if node.attribute("rotary_embedding_dim", 0) and shape is not None:
        editor.attribute(proto, "rotary_embedding_dim", 2 * editor.cut.size(angles, shape.rank - 1))
    hidden = editor.graph.shape(x)
    if heads and hidden is not None and hidden.rank == 3 and not editor.cut.is_cut(angles):
        editor.attribute(proto, "num_heads", editor.cut.size(x, 2) * heads // hidden.other[2])


def grouped_query_macs(graph: Graph, node: Node) -> list[Product]:
    """Scores and their product with the values, of a call without past; the operands may lie in one value."""
    y = node.outputs[0]
    _, (batch, length, hidden) = sizes_of(graph, node.inputs[0], y)
    return [((batch, length, length, hidden), [None, None, None, (y, 2)])] * 2


def grouped_query_shape(dims: Sequence[Any], attributes: Attributes) -> list[Dims | None]:
    """The result, and keys and values with heads in a dim of their own."""
    query, heads, kv_heads = dims[0], attributes["num_heads"], attributes["kv_num_heads"]
    is_packed = len(dims) < 2 or dims[1] is None
    size = query[2] // (heads + 2 * kv_heads) if is_packed else query[2] // heads
    present = (query[0], kv_heads, query[1] + past_length(dims, 3), size)
    return [(*query[:2], heads * size), present, present]


def past_length(dims: Sequence[Any], position: int) -> int:
    """Return how many keys of earlier calls come in, (batch, heads, length, size)."""
    past = dims[position] if len(dims) > position else None
    return past[2] if past is not None else 0


OPS = register(
    Op(
        "GroupQueryAttention", grouped_query, MICROSOFT, repair=grouped_query_repair, macs=grouped_query_macs,
        shape=grouped_query_shape,
    ),
    Op("RotaryEmbedding", rotary, repair=rotary_repair, shape=same_as_first),
    Op("RotaryEmbedding", rotary, MICROSOFT, repair=rotary_repair, shape=same_as_first),
)  # fmt: skip

"""Shapes of what ops of onnxruntime's own domain give, and GroupNormalization; onnx's inference does not know them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx

Dims = tuple[int, ...]
Attributes = dict[str, Any]
Rule = Callable[[Sequence[Dims | None], Attributes], list[Dims | None]]
_STANDARD = {"FusedConv": ("Conv", 3), "FusedGemm": ("Gemm", 3)}  # fused op: the op it begins with, and its inputs
_ACTIVATION = ("activation", "activation_params", "activation_alpha", "activation_beta", "activation_gamma")


def standard_node(node: onnx.NodeProto) -> onnx.NodeProto | None:
    """Return a node of the standard whose output has the same shape, or None."""
    if node.op_type not in _STANDARD:
        return None
    op_type, n_inputs = _STANDARD[node.op_type]
    made = onnx.helper.make_node(op_type, node.input[:n_inputs], node.output)
    made.attribute.extend(a for a in node.attribute if a.name not in _ACTIVATION)
    return made


def fused_shapes(node: onnx.NodeProto, dims: Sequence[Dims | None]) -> list[Dims | None]:
    """Return the shapes of a node's outputs, as far as they are known.

    Args:
        node: A node that onnx's inference does not understand.
        dims: Shape of every input, None for one left out.
    """
    rule = _RULES.get(node.op_type)
    if rule is None or not dims or dims[0] is None:
        return []
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    try:
        return rule(dims, attributes)
    except (IndexError, KeyError, TypeError):  # an input it needs is missing or has another rank
        return []


def _same(dims: Sequence[Dims | None], _: Attributes) -> list[Dims | None]:
    return [dims[0]]


def _skip(dims: Sequence[Dims | None], _: Attributes) -> list[Dims | None]:
    return [dims[0], None, None, dims[0]]


def _embed(dims: Sequence[Any], _: Attributes) -> list[Dims | None]:
    out = (*dims[0], dims[2][1])
    return [out, (dims[0][0],), out]


def _attention(dims: Sequence[Any], attributes: Attributes) -> list[Dims | None]:
    sizes = attributes.get("qkv_hidden_sizes")
    return [(*dims[0][:2], sizes[2] if sizes else dims[1][1] // 3)]


def _multi_head(dims: Sequence[Any], attributes: Attributes) -> list[Dims | None]:
    query, key, value = dims[:3]
    if len(query) != 3 or len(value) not in (3, 4):
        return []
    out = (*query[:2], value[2] if len(value) == 3 else value[1] * value[3])
    if len(key) != 3 or len(value) != 3:
        return [out]
    heads = attributes["num_heads"]
    length = key[1] + _past_length(dims, 6)
    return [out, *((query[0], heads, length, x[2] // heads) for x in (key, value))]


def _grouped_query(dims: Sequence[Any], attributes: Attributes) -> list[Dims | None]:
    query, heads, kv_heads = dims[0], attributes["num_heads"], attributes["kv_num_heads"]
    is_packed = len(dims) < 2 or dims[1] is None
    size = query[2] // (heads + 2 * kv_heads) if is_packed else query[2] // heads
    present = (query[0], kv_heads, query[1] + _past_length(dims, 3), size)
    return [(*query[:2], heads * size), present, present]


def _past_length(dims: Sequence[Any], position: int) -> int:
    """Return how many keys of earlier calls come in, (batch, heads, length, size)."""
    past = dims[position] if len(dims) > position else None
    return past[2] if past is not None else 0


def _matmul(dims: Sequence[Any], attributes: Attributes) -> list[Dims | None]:
    a, b = dims[:2]
    if len(a) < 2 or len(b) < 2 or attributes.get("transBatchA", 0) or attributes.get("transBatchB", 0):
        return []
    row = a[-1] if attributes.get("transA", 0) else a[-2]
    column = b[-2] if attributes.get("transB", 0) else b[-1]
    rank = max(len(a), len(b)) - 2
    batch = [(1,) * (rank - len(v) + 2) + tuple(v[:-2]) for v in (a, b)]
    return [(*(max(x, y) for x, y in zip(*batch, strict=True)), row, column)]


def _split_gelu(dims: Sequence[Any], _: Attributes) -> list[Dims | None]:
    return [(*dims[0][:-1], dims[0][-1] // 2)]


_SAME = """
    BiasAdd BiasGelu BiasSoftmax FastGelu Gelu GroupNorm GroupNormalization LayerNormalization QuickGelu RotaryEmbedding
    SimplifiedLayerNormalization
"""
_RULES: dict[str, Rule] = {
    **dict.fromkeys(_SAME.split(), _same),
    "Attention": _attention,
    "BiasSplitGelu": _split_gelu,
    "EmbedLayerNormalization": _embed,
    "FusedMatMul": _matmul,
    "GroupQueryAttention": _grouped_query,
    "MultiHeadAttention": _multi_head,
    "SkipLayerNormalization": _skip,
    "SkipSimplifiedLayerNormalization": _skip,
}

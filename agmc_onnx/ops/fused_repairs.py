"""Repairs of fused attention: the scale that the head size used to give, and the sizes that an attribute names."""

from __future__ import annotations

import onnx

from agmc_onnx.graph.view import Node
from agmc_onnx.ops.attention import hidden_sizes
from agmc_onnx.ops.editor import Editor


def attention(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Attention of opset 23: the scale; or, where whole heads of queries went, their number."""
    q, k = node.inputs[:2]
    shape = editor.graph.shape(q)
    assert shape is not None
    dim = shape.rank - 1
    if editor.cut.is_cut(k):
        editor.forget(node.outputs[1:])  # keys and values that nobody takes
    if dim == 2 and editor.cut.mask(q, 2) is not None and editor.cut.mask(k, 2) is None:
        size = shape.other[2] // node.attribute("q_num_heads")
        editor.attribute(proto, "q_num_heads", editor.cut.size(q, 2) // size)
    elif editor.cut.mask(q, dim) is not None and node.attribute("scale") is None:
        editor.attribute(proto, "scale", _scale(shape.other[dim], 1 if dim == 3 else node.attribute("q_num_heads")))


def multi_head(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """MultiHeadAttention: the scale."""
    q = node.inputs[0]
    shape = editor.graph.shape(q)
    if editor.cut.is_cut(node.outputs[0]):
        editor.forget(node.outputs[1:])  # keys and values that nobody takes
    if editor.cut.mask(q, 2) is not None and not node.attribute("scale", 0.0) and shape is not None:
        editor.attribute(proto, "scale", _scale(shape.other[2], node.attribute("num_heads")))


def fused_attention(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
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


def grouped_query(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """GroupQueryAttention: the numbers of heads that stay."""
    q, k = node.inputs[:2]
    shape = editor.graph.shape(node.outputs[0])
    assert shape is not None
    size = shape.other[2] // node.attribute("num_heads")
    heads = editor.cut.size(node.outputs[0], 2) // size
    editor.attribute(proto, "num_heads", heads)
    kv_heads = editor.cut.size(k, 2) // size if k else (editor.cut.size(q, 2) // size - heads) // 2
    editor.attribute(proto, "kv_num_heads", kv_heads)


def rotary(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """RotaryEmbedding: where they are named, how many entries of a head are turned, and how many heads there are."""
    x, heads = node.inputs[0], node.attribute("num_heads", 0)
    angles = node.inputs[1] if not node.domain else node.inputs[2]
    shape = editor.graph.shape(angles)
    if node.attribute("rotary_embedding_dim", 0) and shape is not None:
        editor.attribute(proto, "rotary_embedding_dim", 2 * editor.cut.size(angles, shape.rank - 1))
    hidden = editor.graph.shape(x)
    if heads and hidden is not None and hidden.rank == 3 and not editor.cut.is_cut(angles):
        editor.attribute(proto, "num_heads", editor.cut.size(x, 2) * heads // hidden.other[2])


def _scale(hidden: int, heads: int) -> float:
    return float((hidden // heads) ** -0.5)

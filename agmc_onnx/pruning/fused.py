"""Repairs of fused attention: the scale that the head size used to give, and the sizes that an attribute names."""

from __future__ import annotations

import onnx

from agmc_onnx.channels.attention import hidden_sizes
from agmc_onnx.model.graph import Node
from agmc_onnx.pruning.editor import Editor


def attention(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Attention of opset 23: the scale."""
    q = node.inputs[0]
    shape = editor.graph.shape(q)
    assert shape is not None
    dim = shape.rank - 1
    if editor.cut.mask(q, dim) is not None and node.attribute("scale") is None:
        editor.attribute(proto, "scale", _scale(shape.other[dim], 1 if dim == 3 else node.attribute("q_num_heads")))


def multi_head(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """MultiHeadAttention: the scale."""
    q = node.inputs[0]
    shape = editor.graph.shape(q)
    if editor.cut.mask(q, 2) is not None and not node.attribute("scale", 0.0) and shape is not None:
        editor.attribute(proto, "scale", _scale(shape.other[2], node.attribute("num_heads")))


def fused_attention(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Attention of onnxruntime: the scale, and how many columns are queries, keys and values."""
    mask = editor.cut.mask(node.inputs[1], 1)
    if mask is None:
        return
    sizes = hidden_sizes(node, mask.size)
    starts = [0, sizes[0], sizes[0] + sizes[1]]
    kept = [int(mask[at : at + size].sum()) for at, size in zip(starts, sizes, strict=True)]
    editor.attribute(proto, "qkv_hidden_sizes", kept)
    if not node.attribute("scale", 0.0):
        editor.attribute(proto, "scale", _scale(sizes[0], node.attribute("num_heads")))


def rotary(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """RotaryEmbedding: the number of entries of a head that are turned, where it is named."""
    angles = node.inputs[1] if not node.domain else node.inputs[2]
    shape = editor.graph.shape(angles)
    if node.attribute("rotary_embedding_dim", 0) and shape is not None:
        editor.attribute(proto, "rotary_embedding_dim", 2 * editor.cut.size(angles, shape.rank - 1))


def _scale(hidden: int, heads: int) -> float:
    return float((hidden // heads) ** -0.5)

"""Ops of onnxruntime's own domain: what its optimiser fuses out of the ops of the standard."""

from __future__ import annotations

from agmc_onnx.graph.view import Node
from agmc_onnx.ops import attention
from agmc_onnx.ops import computing as ops
from agmc_onnx.ops.conv import conv
from agmc_onnx.ties.ledger import Handler, Ledger, tie_or_freeze


def fused_conv(ledger: Ledger, node: Node) -> None:
    """FusedConv: a Conv, then the sum with another value, then an activation."""
    conv(ledger, node)
    y = node.outputs[0]
    other = node.inputs[3] if len(node.inputs) > 3 else ""
    if not other:
        return
    out, added = ledger.entries.get((y, 1)), ledger.axis(node, other, 1)
    if out is not None and added is not None:
        ledger.meet(out, added)
    else:
        for entries in (out, added):
            if entries is not None:
                ledger.freeze(entries.ids, f"{node.label}: its operand {other} cannot be cut with it")


def fused_matmul(ledger: Ledger, node: Node) -> None:
    """FusedMatMul: a product of operands that may be transposed, times a number."""
    if not (node.attribute("transBatchA", 0) or node.attribute("transBatchB", 0)):
        ops.product(ledger, node, bool(node.attribute("transA", 0)), bool(node.attribute("transB", 0)))


def skip_norm(ledger: Ledger, node: Node) -> None:
    """SkipLayerNormalization, SkipSimplifiedLayerNormalization: a sum, normalised; the sum is an output of its own."""
    is_simple = node.op_type == "SkipSimplifiedLayerNormalization"
    names = [*node.inputs, "", ""]
    bias = names[3] if is_simple else names[4]
    operands = [name for name in (*names[:2], bias) if name]
    targets = [name for at, name in enumerate(node.outputs) if name and at in (0, 3)]
    if not node.outputs[0] or any(ledger.graph.consumers.get(name) for name in node.outputs[1:3] if name):
        return
    for output in targets:
        ops.broadcast(ledger, node, operands, output)
    dim = ledger.shape(node.outputs[0]).rank - 1
    entries = ledger.entries.get((node.outputs[0], dim))
    if entries is not None:
        ledger.normalise(entries.ids, node)
        for name in [names[2]] if is_simple else names[2:4]:
            if name:
                tie_or_freeze(ledger, node, entries.ids, name, 0)


def embed_norm(ledger: Ledger, node: Node) -> None:
    """EmbedLayerNormalization: a sum of three embeddings, normalised."""
    tables = [name for name in node.inputs[2:5] if name]
    ids = ledger.flat(node, tables[0], 1)
    if ids is None:
        return
    for name in tables[1:]:
        tie_or_freeze(ledger, node, ids, name, 1)
    for name in node.inputs[5:7]:
        tie_or_freeze(ledger, node, ids, name, 0)
    ledger.normalise(ids, node)
    for at in (0, 2):
        if at < len(node.outputs) and node.outputs[at]:
            ledger.set(node.outputs[at], 2, ids)


def split_gelu(ledger: Ledger, node: Node) -> None:
    """BiasSplitGelu: the first half of the last dim times the gelu of the second."""
    x, y = node.inputs[0], node.outputs[0]
    dim = ledger.shape(x).rank - 1
    ids = ledger.flat(node, x, dim)
    if ids is None:
        return
    tie_or_freeze(ledger, node, ids, node.inputs[1], 0)
    half = ids.size // 2
    ledger.tie(ids[:half], ids[half:])
    ledger.set(y, dim, ids[:half])


RULES: dict[tuple[str, str], Handler] = {
    **{("com.microsoft", op): ops.elementwise for op in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")},
    ("com.microsoft", "Attention"): attention.fused_attention,
    ("com.microsoft", "BiasSplitGelu"): split_gelu,
    ("com.microsoft", "EmbedLayerNormalization"): embed_norm,
    ("com.microsoft", "FusedConv"): fused_conv,
    ("com.microsoft", "FusedGemm"): ops.gemm,
    ("com.microsoft", "FusedMatMul"): fused_matmul,
    ("com.microsoft", "GroupQueryAttention"): attention.grouped_query,
    ("com.microsoft", "MultiHeadAttention"): attention.multi_head,
    ("com.microsoft", "RotaryEmbedding"): attention.rotary,
    ("com.microsoft", "SkipLayerNormalization"): skip_norm,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): skip_norm,
    ("", "SimplifiedLayerNormalization"): ops.layer_norm,
}

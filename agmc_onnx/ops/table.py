"""The table of op rules: by domain and op type, from the modules that hold them."""

from __future__ import annotations

from agmc_onnx.graph.view import Node
from agmc_onnx.ops import attention
from agmc_onnx.ops import computing as ops
from agmc_onnx.ops import contrib as fused
from agmc_onnx.ties.ledger import Handler

RULES: dict[tuple[str, str], Handler] = {
    **ops.RULES,
    **fused.RULES,
    ("", "Attention"): attention.attention,
    ("", "RotaryEmbedding"): attention.rotary,
}


def rule_of(node: Node) -> Handler | None:
    """Return the rule of a node, or None for an op the table does not have."""
    return RULES.get((node.domain, node.op_type))

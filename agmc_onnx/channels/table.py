"""The table of op rules: by domain and op type, from the modules that hold them."""

from __future__ import annotations

from agmc_onnx.channels import attention, fused, ops
from agmc_onnx.channels.axes import Handler
from agmc_onnx.model.graph import Node

RULES: dict[tuple[str, str], Handler] = {
    **ops.RULES,
    **fused.RULES,
    ("", "Attention"): attention.attention,
    ("", "RotaryEmbedding"): attention.rotary,
}


def rule_of(node: Node) -> Handler | None:
    """Return the rule of a node, or None for an op the table does not have."""
    return RULES.get((node.domain, node.op_type))

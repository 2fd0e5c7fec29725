"""Signatures of a graph under edit: equal exactly when what is exported would be equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs


def sign_tensor(tensor: gs.Tensor) -> tuple[Any, ...]:
    """Return name and type of a tensor, or which values a constant holds."""
    if isinstance(tensor, gs.Constant):
        return (tensor.name, "constant", id(tensor._values))
    return (tensor.name, tensor.dtype, None if tensor.shape is None else tuple(tensor.shape))


def sign_node(node: gs.Node) -> tuple[Any, ...]:
    """Return everything of a node that is exported."""
    attributes = tuple((name, sign(value)) for name, value in node.attrs.items())
    inputs = tuple(sign_tensor(tensor) for tensor in node.inputs)
    outputs = tuple(sign_tensor(tensor) for tensor in node.outputs)
    return (node.op, node.name, node.domain or "", inputs, outputs, attributes)


def sign(value: Any) -> Any:
    """Return the signature of an attribute's value."""
    if isinstance(value, gs.Constant):
        return sign_tensor(value)
    if isinstance(value, gs.Graph):
        inputs = tuple(sign_tensor(tensor) for tensor in value.inputs)
        outputs = tuple(sign_tensor(tensor) for tensor in value.outputs)
        return (value.name, value.doc_string, inputs, outputs, tuple(sign_node(node) for node in value.nodes))
    if isinstance(value, list | tuple):
        return tuple((type(item).__name__, item) for item in value)
    if isinstance(value, np.ndarray):
        return ("array", id(value))
    return (type(value).__name__, value)

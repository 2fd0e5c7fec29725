"""What the author of a network called its layers, as far as exporters carry it over; else where they stand."""

from __future__ import annotations

import re

from agmc_onnx.graph.view import Graph, Node

# onnx::Conv_127, const_fold_opt__422, val_12, node_conv2d_3, Conv_5, p2o.Conv.3, Conv
_NUMBERED = re.compile(r"onnx::\w+|const_fold_opt__\d+|_?val_?\d+|_v_\d+|(p2o\.)?[A-Z][A-Za-z]*([._]\d+)?|node_\w+")
_ENDS = re.compile(r"[./](weights?|kernel|W|w|bias|ReadVariableOp|MatMul|Conv[123]D)(:\d+)?$|__\d+$|:\d+$")
_TENSORFLOW = re.compile(r"(Conv[123]D|DepthwiseConv2?[dD](Native)?|BiasAdd|MatMul|ReadVariableOp|FusedBatchNormV3)\d*")
_CALLS = ("StatefulPartitionedCall", "PartitionedCall")


def is_numbered(name: str) -> bool:
    """Whether a name says nothing but the number that a tool gave it.

    Module paths (`layer1.0.conv1.weight`, `/stages.0/conv1/Conv`) and names of the author's are not.
    """
    if not name or name.isdigit():
        return True
    return bool(_NUMBERED.fullmatch(name))


def layer_name(graph: Graph, group: str) -> str:
    """Return what a person calls the layer that makes a group's channels.

    Args:
        graph: The graph that the group was found in.
        group: The group's name: a weight, or another value; `#2` behind it is of groups of one name.

    Returns:
        The weight's name without its end (`layer1.0.conv1`), else the module of the node that reads or makes it, else the node's
        place among those of its type (`Conv 12 of 55`), else the name as it is.
    """
    value, hash_, number = group.partition("#")
    behind = f" ({number})" if hash_ else ""
    if not is_numbered(value) and value in graph.tensors:
        return _shortened(value) + behind
    reads = graph.consumers.get(value, ()) if value in graph.tensors else ()
    node = next((node for node, _ in reads), None) or graph.producer.get(value)
    if node is None:
        return group
    path = _module(node)
    return (path or _place(graph, node)) + behind


def _shortened(name: str) -> str:
    """Return a value's name without what every weight's ends with."""
    parts = [part for part in name.split("/") if part and part not in _CALLS]
    text = "/".join(parts)
    while (shorter := _ENDS.sub("", text)) != text:
        text = shorter
    return text or name


def _module(node: Node) -> str:
    """Return the module a node stands in: "stages.0.0/conv1" of /stages/stages.0/stages.0.0/conv1/Conv, or ""."""
    fused = [re.sub(r"__\d+$", "", name) for name in node.proto.name.split(";")]  # of converters from TensorFlow Lite
    layers = [name for name in fused if re.match(r"Conv|Depthwise|MatMul", name.split("/")[-1])]
    if len(layers) > 1:  # such a name also lists layers that share a constant with this one
        return ""
    name = (layers or fused)[0]
    parts = [part for part in name.split("/") if part and part not in _CALLS]
    if len(parts) < 2:
        return "" if is_numbered(name) else name
    while len(parts) > 1 and (re.fullmatch(rf"{node.op_type}(_\d+)?", parts[-1]) or _TENSORFLOW.fullmatch(parts[-1])):
        parts.pop()
    return "/".join(
        part for part, after in zip(parts, [*parts[1:], ""], strict=True) if not after.startswith(f"{part}.")
    )


def _place(graph: Graph, node: Node) -> str:
    """Return a node's place among those of its type, the first being 1."""
    alike = [one.index for one in graph.nodes if one.op_type == node.op_type]
    return f"{node.op_type} {alike.index(node.index) + 1} of {len(alike)}"

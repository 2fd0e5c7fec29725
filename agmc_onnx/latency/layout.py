"""Keep onnxruntime's blocked convolution layout across shortcuts that leave it.

A shortcut of Slice and Pad (ResNet's option A) gives an ordinary tensor. onnxruntime then adds it in the ordinary layout,
and so all that follows: every later block of the trunk is reordered in and out, and its Add and Relu run by themselves
instead of inside the Conv. A MaxPool of one element changes nothing, but onnxruntime runs it in the blocked layout, where
the trunk then stays: ResNet-56 gets 10 to 15 % faster, cut or not.
"""

from __future__ import annotations

import onnx

from agmc_onnx.graph.edit import Change, Input, Made, edited
from agmc_onnx.graph.view import graph_of
from agmc_onnx.ops.table import op_of

SUFFIX = "/blocked"


def keep_layout(model: onnx.ModelProto, block: int) -> onnx.ModelProto:
    """Return the model with one-element MaxPools where a shortcut leaves the layout; the model itself where none does.

    Args:
        model: Of NCHW convolutions; not changed.
        block: Channels of a block (`latency.tables.layout_block`); other widths could not stay in the layout.
    """
    if block <= 1:
        return model
    graph = graph_of(model)
    maker = {name: node for node in graph.nodes for name in node.outputs}
    found = []
    for node in graph.nodes:
        makers = [maker.get(name) for name in node.inputs]
        if node.op_type != "Add" or any(one is None for one in makers):
            continue
        known = [one for one in makers if one is not None]
        for position, (one, other) in enumerate(zip(known, reversed(known), strict=True)):
            shape = graph.shape(node.inputs[position])
            if op_of(one).layout != "plain" or op_of(other).layout != "blocked" or shape is None:
                continue
            weight = graph.tensors.get(other.inputs[1])
            is_float = weight is not None and weight.data_type == onnx.TensorProto.FLOAT
            if is_float and len(shape.dims) == 4 and shape.dims[1] % block == 0:
                found.append((node, position))
    changes: list[Change] = []
    for node, position in found:
        source = node.inputs[position]
        pool = Made("MaxPool", (source,), (source + SUFFIX,), (("kernel_shape", (1, 1)),), name=source + SUFFIX)
        changes += [pool, Input(node.outputs[0], position, source + SUFFIX)]
    return edited(model, changes) if changes else model

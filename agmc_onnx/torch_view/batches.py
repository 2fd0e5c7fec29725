"""Models of a fixed batch of one, so that they take several samples at a time while they learn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import torch
from torch import Tensor

from agmc_onnx.graph.edit import with_arrays
from agmc_onnx.graph.view import graph_of
from agmc_onnx.torch_view.module import TorchGraph

_TOLERANCE = 1e-3  # of the largest output: rounding of another order of sums


def with_open_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with Reshape targets that keep their first dim where they write it as 1; it answers as before.

    Args:
        model: Not changed.
    """
    graph = graph_of(model)
    targets: dict[str, np.ndarray] = {}
    for name in graph.tensors:
        users = graph.consumers.get(name, [])
        if not users or any(
            node.op_type != "Reshape" or place != 1 or node.attribute("allowzero", 0) for node, place in users
        ):
            continue
        shapes = [graph.shape(node.inputs[0]) for node, _ in users]
        target = np.array(graph.array(name))
        if target.size and target[0] == 1 and all(shape is not None and shape.dims[:1] == (1,) for shape in shapes):
            target[0] = 0  # the size of the input's own dim
            targets[name] = target
    changed = with_arrays(model, targets)
    if changed is model:
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
    changed.graph.ClearField("value_info")
    weights = {tensor.name for tensor in changed.graph.initializer}
    for value in (*changed.graph.input, *changed.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.name not in weights and len(dims):
            dims[0].dim_param = "samples"
    return changed


def takes_batches(module: TorchGraph, feed: Mapping[str, Tensor]) -> bool:
    """Return whether a module answers to two samples at once as to each alone.

    Args:
        module: Of what `with_open_batch` gave.
        feed: Two samples.
    """
    module.eval()
    try:
        with torch.no_grad():
            both = module.run(feed)
            alone = [module.run({name: value[i : i + 1] for name, value in feed.items()}) for i in range(2)]
    except (RuntimeError, ValueError, IndexError):
        return False
    for name, value in both.items():
        apart = [one[name] for one in alone]
        if (
            not value.dim()
            or any(one.shape[1:] != value.shape[1:] or len(one) != 1 for one in apart)
            or len(value) != 2
        ):
            return False
        apart_value = torch.cat(apart)
        if (value - apart_value).abs().max() > _TOLERANCE * apart_value.abs().max():
            return False
    return True

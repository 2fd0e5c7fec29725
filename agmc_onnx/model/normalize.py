"""The one known form of a model that the analysis starts from."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import SparseValues

from agmc_onnx.model.graph import captured_names, constant_tensor
from agmc_onnx.model.protobuf import copy_fields
from agmc_onnx.model.rewire import LAST_IR_WITH_INPUTS, rewire

_NUMBERS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def normalize(model: onnx.ModelProto, dense: bool = False) -> onnx.ModelProto:
    """Return the model with every shared constant untied: each user of a copy owns its tensor.

    Exporters store equal tensors once and give the other users an `Identity` of it. Such an Identity (in the main
    graph, of an initializer, of a Constant node, or of another such Identity) becomes an initializer under the name of
    its output, so that cutting one user's channels leaves the others alone. Data in another file is referred to, not
    read. Initializers and Constant nodes that nobody uses after that are dropped. Nothing else is changed.

    What stays an Identity: one whose output is a graph output, and one of an overridable initializer, whose numbers are
    known only when the model runs.

    Args:
        model: Any model; not changed.
        dense: Also make the sparse initializers dense that nodes of the main graph use.

    Returns:
        A new model, or the model itself when there is nothing to do.
    """
    overridable = set() if model.ir_version <= LAST_IR_WITH_INPUTS else {i.name for i in model.graph.input}
    outputs = {output.name for output in model.graph.output}
    if not (dense and model.graph.sparse_initializer) and not _has_copies(model, overridable, outputs):
        return model
    if not model.graph.sparse_initializer:
        return _untied(model, overridable, outputs)

    def edit(graph: gs.Graph) -> None:
        for node in graph.nodes:
            if _is_default(node.domain) and node.op == "Identity" and node.outputs[0].name not in outputs:
                values = _constant_values(node.inputs[0], overridable)
                if values is not None:
                    copy = node.outputs[0]
                    node.outputs.clear()
                    copy.to_constant(values)
        if dense:
            for tensor in graph.tensors().values():
                if isinstance(tensor, gs.Constant) and isinstance(tensor._values, SparseValues):
                    _ = tensor.values  # once read, a sparse constant is dense

    return rewire(model, edit)


def _untied(model: onnx.ModelProto, overridable: set[str], outputs: set[str]) -> onnx.ModelProto:
    """Return a model with dense constants after `normalize`."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in overridable}
    copies: dict[str, onnx.TensorProto] = {}
    gone = set()
    for node in graph.node:
        if not _is_default(node.domain):
            continue
        if node.op_type == "Constant":
            tensor = constant_tensor(node)
            if tensor is not None:
                constants[node.output[0]] = tensor
        elif node.op_type == "Identity" and node.output[0] not in outputs and node.input[0] in constants:
            constants[node.output[0]] = copies[node.output[0]] = constants[node.input[0]]
            gone.add(node.output[0])
    orphans = {node.input[0] for node in graph.node if node.output and node.output[0] in gone} - outputs
    for node in graph.node:
        if not (node.output and node.output[0] in gone):
            orphans.difference_update(node.input, captured_names(node))
    result = onnx.ModelProto()
    copy_fields(model, result, but={"graph"})
    copy_fields(graph, result.graph, but={"node", "initializer", "input"})
    unused = gone | {name for name in orphans if name not in overridable}
    result.graph.node.extend(node for node in graph.node if not (node.output and node.output[0] in unused))
    result.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name not in unused)
    result.graph.input.extend(value for value in graph.input if value.name not in unused)
    for name, tensor in copies.items():
        if name in orphans:  # only other copies were made of it
            continue
        made = result.graph.initializer.add()
        made.CopyFrom(tensor)
        made.name = name
        if model.ir_version <= LAST_IR_WITH_INPUTS:
            info = onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
            result.graph.input.append(info)
    return result


def _has_copies(model: onnx.ModelProto, overridable: set[str], outputs: set[str]) -> bool:
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer} | {s.values.name for s in graph.sparse_initializer}
    constants -= overridable
    for node in graph.node:
        if _is_default(node.domain):
            if node.op_type == "Identity" and node.input[0] in constants and node.output[0] not in outputs:
                return True
            if node.op_type == "Constant" and any(a.name == "value" or a.name in _NUMBERS for a in node.attribute):
                constants.add(node.output[0])
    return False


def _constant_values(tensor: gs.Tensor, overridable: set[str]) -> object | None:
    """Return what a constant holds, not loaded where it need not be, or None for another tensor."""
    if isinstance(tensor, gs.Constant):
        return None if tensor.name in overridable else tensor._values
    if len(tensor.inputs) == 1 and tensor.inputs[0].op == "Constant" and _is_default(tensor.inputs[0].domain):
        for name, value in tensor.inputs[0].attrs.items():
            if name == "value":
                return value._values
            if name in _NUMBERS:
                return np.array(value, _NUMBERS[name])
    return None


def _is_default(domain: str | None) -> bool:
    return domain in (None, "", "ai.onnx")

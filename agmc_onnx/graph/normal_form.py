"""The one known form of a model that the analysis starts from."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data
from onnx_graphsurgeon.ir.tensor import SparseValues

from agmc_onnx.graph.bodies import bodies_in, with_weights_outside
from agmc_onnx.graph.edit import LAST_IR_WITH_INPUTS, Change, Gone, Input, edited, rewire
from agmc_onnx.graph.fold import evaluate_node
from agmc_onnx.graph.inline import unwrapped
from agmc_onnx.graph.registry import graph_op
from agmc_onnx.graph.sequences import without_sequences
from agmc_onnx.graph.view import captured_names, constant_tensor

_STATISTICS = frozenset(
    f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
)
_FLOATS = frozenset(
    (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
)
_NUMBERS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def normalize(model: onnx.ModelProto, dense: bool = False) -> onnx.ModelProto:
    """Return the model with every shared constant untied, each user of a copy owns its tensor, and statistics of weights known.

    Exporters store equal tensors once and give the other users an `Identity` of it. Such an Identity (in the main
    graph, of an initializer, of a Constant node, or of another such Identity) becomes an initializer under the name of
    its output, so that cutting one user's channels leaves the others alone. Data in another file is referred to, not
    read. Initializers and Constant nodes that nobody uses after that are dropped.

    Networks that standardise their weights take means and variances of them each time they run. Such a statistic (what a
    Reduce makes of constants alone, a quarter of their size or less) becomes an initializer under its own name: it is
    that of the whole weight, also when some of its channels are cut. Nodes that nobody needs after that are dropped.
    Vectors of one number (zero biases, scales of one), which exporters share among layers of the same width, are copied for
    each user, so that they tie no layers to each other. Local functions are inlined, and an If
    that fixed sizes decide is its branch (`unwrapped`). Weights of branches and bodies are among the model's own
    (`with_weights_outside`), and sequences whose parts are known are plain ops (`without_sequences`). Nothing else is changed.

    What stays an Identity: one whose output is a graph output, and one of an overridable initializer, whose numbers are
    known only when the model runs.

    Args:
        model: Any model; not changed.
        dense: Also make the sparse initializers dense that nodes of the main graph use.

    Returns:
        A new model, or the model itself when there is nothing to do.
    """
    model = with_weights_outside(without_sequences(unwrapped(model)))
    overridable = set() if model.ir_version <= LAST_IR_WITH_INPUTS else {i.name for i in model.graph.input}
    outputs = {output.name for output in model.graph.output}
    if model.ir_version > LAST_IR_WITH_INPUTS:
        model = _with_own_fillers(_with_known_statistics(model, overridable, outputs), overridable)
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


def _with_known_statistics(model: onnx.ModelProto, overridable: set[str], outputs: set[str]) -> onnx.ModelProto:
    """Return the model with the statistics of its constants computed, or the model itself where there are none."""
    graph = model.graph
    if not any(node.op_type in _STATISTICS for node in graph.node):
        return model
    tensors = {t.name: t for t in graph.initializer if t.name not in overridable and not uses_external_data(t)}
    made: dict[str, onnx.NodeProto] = {}  # values that constants alone make, and what makes them
    wanted = []
    for node in graph.node:
        if node.op_type == "Constant" and constant_tensor(node) is not None:
            tensors[node.output[0]] = constant_tensor(node)
        elif (
            _is_default(node.domain)
            and not ((known := graph_op(node.domain, node.op_type)) and known.is_random)
            and not any(captured_names(node))
            and len(node.output) == 1
        ):
            used = [name for name in node.input if name]
            if used and all(name in tensors or name in made for name in used):
                made[node.output[0]] = node
                if node.op_type in _STATISTICS and node.output[0] not in outputs:
                    wanted.append(node)
    opset = next((entry.version for entry in model.opset_import if _is_default(entry.domain)), 0)
    arrays: dict[str, np.ndarray | None] = {}
    found = {}
    for node in wanted:
        value, given = _value(node.output[0], made, tensors, opset, arrays), arrays.get(node.input[0])
        if value is not None and given is not None and 4 * value.size <= given.size:
            found[node.output[0]] = value
    return edited(model, [Gone(name) for name in found], found) if found else model


def _value(
    name: str,
    made: dict[str, onnx.NodeProto],
    tensors: dict[str, onnx.TensorProto],
    opset: int,
    arrays: dict[str, np.ndarray | None],
) -> np.ndarray | None:
    """Return the numbers of a value that constants alone make; None where they cannot be computed."""
    if name not in arrays:
        if name in tensors:
            arrays[name] = numpy_helper.to_array(tensors[name])
        else:
            node = made[name]
            feeds = {used: _value(used, made, tensors, opset, arrays) for used in node.input if used}
            known = {used: value for used, value in feeds.items() if value is not None}
            arrays[name] = evaluate_node(node, known, opset)[0] if len(known) == len(feeds) else None
    return arrays[name]


def _with_own_fillers(model: onnx.ModelProto, overridable: set[str]) -> onnx.ModelProto:
    """Return the model with a copy of every shared vector of one number for each of its users, or the model itself."""
    graph = model.graph
    users = Counter(name for node in (*graph.node, *_nodes_inside(graph)) for name in set(node.input))
    shared = {
        tensor.name: tensor
        for tensor in graph.initializer
        if users[tensor.name] > 1 and tensor.name not in overridable and _is_filler(tensor)
    }
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | {t.name for t in graph.initializer}
    seen: Counter[str] = Counter()
    changes: list[Change] = []
    copies: dict[str, onnx.TensorProto] = {}

    def own(used: str) -> str:
        seen[used] += 1
        name = f"{used}__{seen[used]}"
        if seen[used] == 1 or name in taken:
            return used
        copies[name] = shared[used]
        return name

    for node in graph.node if shared else ():
        for name in [used for used in dict.fromkeys(node.input) if used in shared]:
            if (new := own(name)) != name:
                changes += [Input(node.output[0], at, new) for at, used in enumerate(node.input) if used == name]
    result = edited(model, changes, copies) if changes else model
    inside = [node for node in _nodes_inside(graph) if not shared.keys().isdisjoint(node.input)] if shared else []
    if not inside:
        return result
    known = set(copies)
    new_inputs = [[own(name) if name in shared else name for name in node.input] for node in inside]
    if result is model:
        result = onnx.ModelProto()
        result.CopyFrom(model)
    there = [node for node in _nodes_inside(result.graph) if not shared.keys().isdisjoint(node.input)]
    for node, inputs in zip(there, new_inputs, strict=True):
        node.input[:] = inputs
    for name in filter(lambda name: name not in known, copies):
        result.graph.initializer.add().CopyFrom(copies[name])
        result.graph.initializer[-1].name = name
    return result


def _nodes_inside(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes of the branches and bodies that nodes of a graph hold."""
    return [node for _, _, body in bodies_in(graph) for node in body.node]


def _is_filler(tensor: onnx.TensorProto) -> bool:
    if len(tensor.dims) != 1 or tensor.dims[0] < 2 or tensor.data_type not in _FLOATS or uses_external_data(tensor):
        return False
    values = numpy_helper.to_array(tensor)
    return bool((values == values[0]).all())


def _untied(model: onnx.ModelProto, overridable: set[str], outputs: set[str]) -> onnx.ModelProto:
    """Return a model with dense constants after `normalize`."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name not in overridable}
    copies: dict[str, onnx.TensorProto] = {}
    for node in model.graph.node:
        if not _is_default(node.domain):
            continue
        if node.op_type == "Constant":
            tensor = constant_tensor(node)
            if tensor is not None:
                constants[node.output[0]] = tensor
        elif node.op_type == "Identity" and node.output[0] not in outputs and node.input[0] in constants:
            constants[node.output[0]] = copies[node.output[0]] = constants[node.input[0]]
    return edited(model, [Gone(name) for name in copies], copies)


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

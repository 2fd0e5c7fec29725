"""A differentiable view of an ONNX graph: the graph stays the truth, its floating constants become parameters.

No converter library covers what both exporters of PyTorch, tf2onnx and Caffe2 write (docs, `research/stack.md` 5); an
interpreter over a table of ops does, at no measurable cost per training step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from agmc_onnx.errors import ModelError
from agmc_onnx.graph.edit import with_arrays
from agmc_onnx.graph.view import Graph, Node, graph_of
from agmc_onnx.torch_view.math_ops import ARITHMETIC, PRODUCTS, Call, Op
from agmc_onnx.torch_view.nn_ops import NETWORK
from agmc_onnx.torch_view.shape_ops import SHAPES

OPS: dict[str, Op] = {**ARITHMETIC, **SHAPES, **PRODUCTS, **NETWORK}
# Inputs that hold settings, not weights: never trained.
_SETTINGS = {
    "BatchNormalization": (3, 4), "Clip": (1, 2), "Dropout": (1, 2), "OneHot": (2,), "Pad": (2,), "Pow": (1,),
    "Range": (0, 1, 2), "Resize": (1, 2), "Upsample": (1,),
}  # fmt: skip
# Inputs that hold weights even where they have a single element; elsewhere one number is a setting (an epsilon, a scale).
_WEIGHTS = {
    "BatchNormalization": (1, 2), "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2), "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2), "MatMul": (0, 1),
    "PRelu": (1,),
}  # fmt: skip


# Ops whose output neither they themselves nor their gradient look at again, so that it may be overwritten,
FRESH = ("Conv", "ConvTranspose", "BatchNormalization", "Add", "Gemm")
OVERWRITING = ("Relu", "Clip")  # and the ops that can, in `torch_view.math_ops`


def prepare(node: Node, opset: int) -> Call:
    """Return a node in the form that runs again and again.

    Raises:
        ModelError: If torch has no counterpart of its op here.
    """
    if node.domain or node.op_type not in OPS:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise ModelError(
            f"{node.label}: torch has no counterpart of this op here, got {name}; expected one of the "
            f"{len(OPS)} ops that can be differentiated. Use --recover compensate."
        )
    attributes = {a.name: node.attribute(a.name) for a in node.proto.attribute}
    return Call(node.op_type, node.inputs, node.outputs, attributes, opset, node.label)


def run_node(node: Node | Call, inputs: Sequence[Tensor | None], opset: int = 17) -> tuple[Tensor | None, ...]:
    """Return the outputs of one node.

    Args:
        node: Of `agmc_onnx.graph.view`, or what `prepare` made of it (faster where it runs often).
        inputs: One tensor an input, None where it is left out.
        opset: Version of the default operator set, where `node` is not prepared.

    Raises:
        ModelError: If torch has no counterpart of its op here, or it fails on these inputs.
    """
    call = node if isinstance(node, Call) else prepare(node, opset)
    try:
        found = OPS[call.op_type](call, *inputs)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        shapes = ", ".join("none" if x is None else str(tuple(x.shape)) for x in inputs)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{call.label}: torch cannot run this node, got {reason!r} for inputs of shapes {shapes}; "
            "expected outputs. Check the model with onnxruntime."
        ) from error
    return found if isinstance(found, tuple) else (found,)


def to_tensor(array: np.ndarray) -> Tensor:
    """Return a numpy array, bfloat16 included, as a tensor with memory of its own.

    Raises:
        ModelError: If it holds strings.
    """
    if array.dtype.kind in "OSUT":
        raise ModelError(
            "model: an input of strings, got no numbers to refit with; expected numbers. Use --recover none."
        )
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    if array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array))


class TorchGraph(nn.Module):
    """An ONNX graph as a module.

    Floating constants of more than one element, and all that stand where weights do, are parameters; BatchNormalization
    statistics, other floats and what is computed from them alone are buffers. A tensor that several nodes share is one
    parameter. In training mode BatchNormalization uses, and updates, statistics.

    Attributes:
        inputs, outputs: Names of the graph's inputs and outputs.
        names: Value name of every parameter and buffer that is a constant of the graph, by its name in the module.
    """

    def __init__(self, model: onnx.ModelProto | Graph, folder: Path | None = None) -> None:
        """Prepare every node.

        Args:
            model: A model, or the view of one; not changed.
            folder: Folder of the model file, needed where tensors lie in other files.

        Raises:
            ModelError: If torch has no counterpart of some op here.
        """
        super().__init__()
        graph = model if isinstance(model, Graph) else graph_of(model, folder)
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self.names: dict[str, str] = {}
        self._key: dict[str, str] = {}  # value -> name in the module
        self._plain: dict[str, Tensor] = {}  # whole numbers: they stay on the CPU
        for name in graph.tensors:
            self._add_constant(graph, name)
        self.calls = tuple(self._fold(graph))
        self._check(graph)
        self._last = last_uses(self.calls, self.outputs)
        self._in_place = self._find_in_place()
        self._swish = self._with_swish()

    def _add_constant(self, graph: Graph, name: str) -> None:
        tensor = to_tensor(graph.array(name))
        if not tensor.is_floating_point():
            self._plain[name] = tensor
            return
        key = f"t{len(self._key)}"
        self._key[name], self.names[key] = key, name
        if _is_learned(graph, name, tensor.numel()):
            self.register_parameter(key, nn.Parameter(tensor))
        else:
            self.register_buffer(key, tensor)

    def _fold(self, graph: Graph) -> Iterable[Call]:
        """Prepare the nodes; run once and for all those that depend on settings alone."""
        known = set(self._plain) | {n for n, k in self._key.items() if k not in self._parameters}
        for node in graph.nodes:
            call = prepare(node, graph.opset)
            used = [name for name in node.inputs if name]
            if not used or any(name not in known for name in used) or any(o in graph.outputs for o in node.outputs):
                yield call
                continue
            for name, value in zip(node.outputs, run_node(call, [self.constant(n) for n in node.inputs]), strict=False):
                if name and value is not None:
                    known.add(name)
                    if value.is_floating_point():
                        self._key[name] = f"t{len(self._key)}"
                        self.register_buffer(self._key[name], value.clone(), persistent=False)
                    else:
                        self._plain[name] = value

    def _check(self, graph: Graph) -> None:
        made = {*self._plain, *self._key, *graph.inputs}
        for call in self.calls:
            for name in call.inputs:
                if name and name not in made:
                    raise ModelError(
                        f"{call.label}: input {name!r} cannot be read here, got a sparse or text constant; "
                        "expected numbers. Make sparse initializers dense first."
                    )
            made.update(call.outputs)

    def _find_in_place(self) -> set[int]:
        """Return the nodes that may overwrite their input: a fresh value that nobody else will need."""
        users = Counter(name for call in self.calls for name in call.inputs)
        fresh = {o for call in self.calls if call.op_type in FRESH for o in call.outputs[:1] if users[o] == 1}
        fresh -= set(self.outputs)
        return {i for i, call in enumerate(self.calls) if call.op_type in OVERWRITING and call.inputs[0] in fresh}

    def _with_swish(self) -> tuple[Call | None, ...]:
        """Return the nodes with x * sigmoid(x) as one of them; None stands for a Sigmoid that is part of such a one.

        Forward and backward, it is a fifth of the time of networks that are made of it.
        """
        users: dict[str, list[int]] = {}
        for i, call in enumerate(self.calls):
            for name in call.inputs:
                users.setdefault(name, []).append(i)
        found: list[Call | None] = list(self.calls)
        for i, call in enumerate(self.calls):
            behind = users.get(call.outputs[0], [])
            if call.op_type == "Sigmoid" and len(behind) == 1 and call.outputs[0] not in self.outputs:
                product = self.calls[behind[0]]
                if product.op_type == "Mul" and {*product.inputs} == {call.inputs[0], call.outputs[0]}:
                    found[i] = None
                    found[behind[0]] = replace(product, op_type="Swish", inputs=call.inputs)
        return tuple(found)

    def constant(self, name: str) -> Tensor | None:
        """Return the parameter, buffer or whole numbers of a constant value; None for any other value."""
        if name in self._key:
            key = self._key[name]
            return self._parameters[key] if key in self._parameters else self._buffers[key]
        return self._plain.get(name)

    def train(self, mode: bool = True) -> TorchGraph:
        """Let BatchNormalization learn statistics, or not."""
        super().train(mode)
        for call in self.calls:
            call.training = mode
        return self

    def freeze_statistics(self) -> TorchGraph:
        """Keep BatchNormalization's stored statistics, in training mode too."""
        for call in self.calls:
            call.training = False
        return self

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the graph's outputs.

        Args:
            inputs: In the order of the graph's inputs.
        """
        found = self.run(dict(zip(self.inputs, inputs, strict=True)))
        return tuple(found[name] for name in self.outputs)

    def run(
        self, feed: Mapping[str, Tensor], wanted: Sequence[str] | None = None, cut: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """Return values of the graph; everything else is freed after its last use.

        Args:
            feed: Graph inputs by name.
            wanted: Names of values; the graph's outputs where None is given. Nodes behind the last of them do not run.
            cut: Some of the wanted: what is behind them gets them without their gradient, so that a loss of a value
                teaches only the nodes since the last cut.
        """
        names = self.outputs if wanted is None else tuple(wanted)
        missing, found = set(names), dict[str, Tensor]()
        values: dict[str, Tensor | None] = dict(feed)
        self._collect(values, missing, found)
        for name in list(missing):
            constant = self.constant(name)
            if constant is not None:
                found[name] = constant
                missing.discard(name)
        gates = {call.outputs[0] for call, own in zip(self.calls, self._swish, strict=True) if own is None}
        for index, call in enumerate(self._swish if self.training and gates.isdisjoint(names) else self.calls):
            if not missing:
                break
            if call is None:
                continue
            inputs = [
                None if not name else values[name] if name in values else self.constant(name) for name in call.inputs
            ]
            call.overwrites = index in self._in_place and call.inputs[0] not in names
            values.update(zip(call.outputs, run_node(call, inputs), strict=False))
            del inputs
            for name in call.outputs:
                if name in missing:
                    value = values[name]
                    assert value is not None
                    found[name] = value
                    missing.discard(name)
                    if name in cut:
                        values[name] = value.detach()
            for name in self._last[index]:
                values.pop(name, None)
        if missing:
            raise ModelError(
                f"model: no such values, got {sorted(missing)}; expected names of the graph. Correct them."
            )
        return found

    @staticmethod
    def _collect(values: Mapping[str, Tensor | None], missing: set[str], found: dict[str, Tensor]) -> None:
        for name in list(missing):
            value = values.get(name)
            if value is not None:
                found[name] = value
                missing.discard(name)


def last_uses(calls: Sequence[Call], outputs: Iterable[str]) -> list[tuple[str, ...]]:
    """Return, for every node, the values that nobody needs after it."""
    kept, seen = set(outputs), set[str]()
    found: list[tuple[str, ...]] = []
    for call in reversed(calls):
        names = {name for name in (*call.inputs, *call.outputs) if name} - kept - seen
        seen |= names
        found.append(tuple(names))
    return found[::-1]


def _is_learned(graph: Graph, name: str, n_elements: int) -> bool:
    uses = [(node.op_type, position) for node, position in graph.consumers.get(name, ())]
    if any(position in _WEIGHTS.get(op, ()) for op, position in uses):
        return True
    return n_elements > 1 and any(position not in _SETTINGS.get(op, ()) for op, position in uses)


def to_model(module: TorchGraph, proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the module's numbers in place of its own.

    Args:
        module: Made from `proto`, or from a model with the same constants.
        proto: Not changed; tensors that did not change are shared with it.

    Raises:
        ModelError: If a tensor's shape is another one.
    """
    new: dict[str, np.ndarray] = {}
    for key, name in module.names.items():
        tensor = module.constant(name)
        assert tensor is not None, key
        new[name] = tensor.detach().to("cpu", torch.float64 if tensor.dtype == torch.float64 else torch.float32).numpy()
    return with_arrays(proto, new)

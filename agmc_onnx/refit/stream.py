"""Activations of a network, node by node for all samples at once."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from agmc_onnx.data.samples import Samples
from agmc_onnx.errors import ModelError
from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ops.conv import is_conv
from agmc_onnx.ops.norm import is_stored
from agmc_onnx.refit.options import RecoverOptions
from agmc_onnx.torch_view.foreign import Foreign
from agmc_onnx.torch_view.math_ops import Call
from agmc_onnx.torch_view.module import FRESH, OVERWRITING, last_uses, prepare, run_node, to_tensor

Values = dict[str, Tensor]
_CACHED = 4_000_000  # numbers in a value of one batch: larger ones are slower per sample


def read_batches(samples: Samples, options: RecoverOptions, graph: Graph, at_most: int | None = None) -> list[Values]:
    """Return the feeds of at most `options.n_samples` samples, images with channels last in memory.

    Batches are as large as `options.batch_size`, but small enough for the largest value of the graph to stay in cache, and
    not larger than `at_most`.
    """
    per_sample = max((math.prod(s.dims) for name, s in graph.shapes.items() if name not in graph.tensors), default=1)
    size = max(1, min(options.batch_size, _CACHED // per_sample, at_most or options.batch_size))
    found = []
    for feed, _ in samples.take(options.n_samples).batches(size):
        found.append({name: channels_last(to_tensor(array)) for name, array in feed.items()})
    return found


def channels_last(value: Tensor) -> Tensor:
    """Return an image or a kernel with its channels last in memory, which is faster; anything else as it is."""
    if value.dim() == 4 and value.is_floating_point():
        return value.contiguous(memory_format=torch.channels_last)
    return value


class Stream:
    """A network run over all batches side by side, node after node; what torch does not know runs in onnxruntime.

    Attributes:
        graph: The network.
        constants: Its constants by name; replace one, and the nodes that have not run yet use the new one.
        at: Number of nodes that have run in every batch.
        pinned: Values that are kept although no later node uses them.
    """

    def __init__(self, graph: Graph, batches: Sequence[Values], memory_bytes: int) -> None:
        """Prepare the nodes.

        Args:
            graph: The network.
            batches: Feeds; not changed.
            memory_bytes: Of values kept over all batches.
        """
        self.graph = graph
        self.constants = {name: channels_last(to_tensor(graph.array(name))) for name in graph.tensors}
        self.at = 0
        self.pinned: set[str] = set()
        self._calls = [_prepared(node, graph) for node in graph.nodes]
        self._last = last_uses(self._calls, ())
        self._values: list[Values] = [dict(batch) for batch in batches]
        self._memory_bytes = memory_bytes
        self._folded: dict[int, tuple[Tensor, Tensor]] = {}  # of a convolution: weight and bias with what follows it
        self._scales = self._find_scales()  # BatchNormalization nodes by the convolution whose output only they read
        self._scaled = {scale: index for index, scale in self._scales.items()}
        self._makers = {call.outputs[0]: i for i, call in enumerate(self._calls) if call.op_type in FRESH}

    @property
    def n_batches(self) -> int:
        """Number of batches."""
        return len(self._values)

    def advance(self, to: int) -> bool:
        """Run the nodes before number `to` in all batches, unless their values would take too much memory.

        Returns:
            Whether they have run; if not, `peek` computes values from the earlier ones that are kept.
        """
        self._folded = {}  # constants may have changed
        if to <= self.at:
            return True
        first = self._run(self._values[0], to)
        n_bytes = sum({v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in first.values()}.values())
        if n_bytes * self.n_batches > self._memory_bytes:
            return False
        self._values[0] = first
        for i in range(1, self.n_batches):
            self._values[i] = self._run(self._values[i], to)
        self.at = to
        return True

    def _run(self, start: Values, to: int) -> Values:
        values = dict(start)
        for index in range(self.at, to):
            call = self._calls[index]
            call.overwrites = call.op_type in OVERWRITING and self._is_spare(call.inputs[0])
            self._step(index, values, range(self.at, to))
            call.overwrites = False  # a peek overwrites nothing
            for name in self._last[index]:
                if name not in self.pinned:
                    values.pop(name, None)
        return values

    def _find_scales(self) -> dict[int, int]:
        found = {}
        for index, call in enumerate(self._calls):
            users = self.graph.consumers.get(call.outputs[0], []) if is_conv(self.graph.nodes[index]) else []
            if len(users) != 1 or users[0][1] != 0 or not is_stored(users[0][0]):
                continue
            after = self._calls[users[0][0].index]
            if all(name in self.constants for name in (*call.inputs[1:], *after.inputs[1:])):
                found[index] = users[0][0].index
        return found

    def _convolve(self, index: int, scale: int, values: Values) -> None:
        """Run a convolution with the BatchNormalization behind it folded into its weight."""
        call, after = self._calls[index], self._calls[scale]
        if index not in self._folded:
            weight, *bias = (self.constants[name] for name in call.inputs[1:] if name)
            gamma, beta, mean, variance = (self.constants[name] for name in after.inputs[1:5])
            factor = gamma / torch.sqrt(variance + after.get("epsilon", 1e-5))
            moved = (bias[0] - mean if bias else -mean) * factor + beta
            self._folded[index] = weight * factor.reshape(-1, *[1] * (weight.dim() - 1)), moved
        x = values[call.inputs[0]] if call.inputs[0] in values else self.constants[call.inputs[0]]
        (value,) = run_node(call, [x, *self._folded[index]])
        assert value is not None
        values[after.outputs[0]] = value

    def _is_spare(self, name: str) -> bool:
        """Whether a value may be overwritten by the node that runs now: made in this run, and nobody else looks at it."""
        made = self._makers.get(name, -1) >= self.at
        is_shared = name in self.graph.captured or len(self.graph.consumers[name]) > 1
        return made and name not in self.pinned and not is_shared

    def _step(self, index: int, values: Values, among: Container[int]) -> None:
        """Run one of several nodes; a BatchNormalization runs together with its convolution where both are among them."""
        if self._scales.get(index, -1) in among:
            self._convolve(index, self._scales[index], values)
        elif self._scaled.get(index, -1) not in among:
            self._call(index, values)

    def _call(self, index: int, values: Values) -> None:
        call = self._calls[index]
        if not isinstance(call, Foreign):
            inputs = [
                None if not name else values[name] if name in values else self.constants[name] for name in call.inputs
            ]
            try:
                found = run_node(call, inputs)
            except ModelError:  # a form of the op that torch does not know
                self._calls[index] = call = Foreign(self.graph.nodes[index], self.graph)
            else:
                values.update((n, v) for n, v in zip(call.outputs, found, strict=False) if n and v is not None)
        if isinstance(call, Foreign):
            values.update(call.run(values))

    def peek(self, batch: int, wanted: Sequence[str]) -> Values:
        """Return values of one batch; what is not kept is computed by the nodes it depends on, and forgotten."""
        values = self._values[batch]
        missing = [name for name in wanted if name not in values and name not in self.constants]
        if missing:
            values = dict(values)
            needed = self._needed(missing, values)
            for index in needed:
                self._step(index, values, needed)
        return {name: values[name] if name in values else self.constants[name] for name in wanted}

    def _needed(self, names: Sequence[str], values: Values) -> list[int]:
        found: set[int] = set()
        pending = list(names)
        while pending:
            name = pending.pop()
            if name in values or name in self.constants or not name:
                continue
            node = self.graph.producer[name]
            if node.index not in found:
                found.add(node.index)
                pending.extend(self._calls[node.index].inputs)
        return sorted(found)

    def give_bias(self, index: int, name: str, bias: Tensor) -> None:
        """Let a node that has not run yet add a bias that it had not."""
        self.constants[name] = bias
        call = self._calls[index]
        self._calls[index] = replace(call, inputs=(*call.inputs[:2], name))

    def release(self, name: str) -> None:
        """Forget a pinned value, if no node needs it any more."""
        self.pinned.discard(name)
        if not any(name in call.inputs for call in self._calls[self.at :]):
            for values in self._values:
                values.pop(name, None)


def _prepared(node: Node, graph: Graph) -> Call:
    try:
        return prepare(node, graph.opset)
    except ModelError:
        return Foreign(node, graph)

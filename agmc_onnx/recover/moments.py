"""Activations of a network, node by node for all samples at once, and second moments of what a node multiplies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agmc_onnx.measuring.data import Samples
from agmc_onnx.model.graph import Graph, Node
from agmc_onnx.recover.options import RecoverOptions
from agmc_onnx.recover.torch_graph import last_uses, prepare, run_node, to_tensor
from agmc_onnx.recover.torch_nn_ops import transposed_pads, window_pads
from agmc_onnx.recover.torch_ops import Call

FloatArray = npt.NDArray[np.float64]
Values = dict[str, Tensor]
_CACHED = 4_000_000  # numbers in a value of one batch: larger ones are slower per sample


def read_batches(samples: Samples, options: RecoverOptions, graph: Graph, at_most: int | None = None) -> list[Values]:
    """Return the feeds of at most `options.n_samples` samples, images with channels last in memory.

    Batches are as large as `options.batch_size`, but small enough for the largest value of the graph to stay in cache, and
    not larger than `at_most`.
    """
    per_sample = max((math.prod(shape.dims) for shape in graph.shapes.values()), default=1)
    size = max(1, min(options.batch_size, _CACHED // per_sample, at_most or options.batch_size))
    found = []
    for feed, _ in samples.take(options.n_samples).batches(size):
        found.append({name: _channels_last(to_tensor(array)) for name, array in feed.items()})
    return found


def _channels_last(value: Tensor) -> Tensor:
    if value.dim() == 4 and value.is_floating_point():
        return value.contiguous(memory_format=torch.channels_last)
    return value


class Stream:
    """A network run over all batches side by side, node after node.

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

        Raises:
            ModelError: If torch has no counterpart of some op.
        """
        self.graph = graph
        self.constants = {name: _channels_last(to_tensor(graph.array(name))) for name in graph.tensors}
        self.at = 0
        self.pinned: set[str] = set()
        self._calls = [prepare(node, graph.opset) for node in graph.nodes]
        self._last = last_uses(self._calls, ())
        self._values: list[Values] = [dict(batch) for batch in batches]
        self._memory_bytes = memory_bytes

    @property
    def n_batches(self) -> int:
        """Number of batches."""
        return len(self._values)

    def advance(self, to: int) -> bool:
        """Run the nodes before number `to` in all batches, unless their values would take too much memory.

        Returns:
            Whether they have run; if not, `peek` computes values from the earlier ones that are kept.
        """
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
            self._call(self._calls[index], values)
            for name in self._last[index]:
                if name not in self.pinned:
                    values.pop(name, None)
        return values

    def _call(self, call: Call, values: Values) -> None:
        inputs = [None if not name else values[name] if name in values else self.constants[name] for name in call.inputs]
        for name, value in zip(call.outputs, run_node(call, inputs), strict=False):
            if name and value is not None:
                values[name] = value

    def peek(self, batch: int, wanted: Sequence[str]) -> Values:
        """Return values of one batch; what is not kept is computed by the nodes it depends on, and forgotten."""
        values = self._values[batch]
        missing = [name for name in wanted if name not in values and name not in self.constants]
        if missing:
            values = dict(values)
            for index in self._needed(missing, values):
                self._call(self._calls[index], values)
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
                pending.extend(node.inputs)
        return sorted(found)

    def give_bias(self, index: int, name: str, bias: Tensor) -> None:
        """Let a node that has not run yet add a bias that it had not."""
        self.constants[name] = bias
        call = self._calls[index]
        self._calls[index] = replace(call, inputs=(*call.inputs[:2], name))

    def release(self, name: str) -> None:
        """Forget a pinned value, if no node needs it any more."""
        self.pinned.discard(name)
        if not any(node.index >= self.at for node, _ in self.graph.consumers.get(name, ())):
            for values in self._values:
                values.pop(name, None)


def to_rows(value: Tensor, channel_dim: int) -> Tensor:
    """Return a value as (positions, channels): every place of all other dims is a position."""
    return value.movedim(channel_dim, -1).reshape(-1, value.shape[channel_dim])


class Patches:
    """What a linear node multiplies its weight with, at chosen output positions.

    With u of shape (groups, positions, width) and the weight as `matrix` of shape (groups, channels / groups, width), the
    node's output is u @ matrix.T, group after group. The width runs over the kernel's places, then the input channels.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        n_groups: Groups of a convolution; else 1.
    """

    def __init__(self, node: Node, opset: int) -> None:
        self.node = node
        self.n_groups = int(node.attribute("group", 1)) if node.op_type.startswith("Conv") else 1
        self._call = prepare(node, opset)

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the weight as (groups, channels / groups, width)."""
        g = self.n_groups
        if self.node.op_type == "Conv":
            o, c = weight.shape[:2]
            return weight.reshape(g, o // g, c, -1).permute(0, 1, 3, 2).reshape(g, o // g, -1)
        if self.node.op_type == "ConvTranspose":
            i, c = weight.shape[:2]
            return weight.reshape(g, i // g, c, -1).permute(0, 2, 3, 1).reshape(g, c, -1)
        is_turned = self.node.op_type == "Gemm" and self._call.get("transB", 0)
        return (weight if is_turned else weight.t())[None]

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Return the weight, in the shape and type of `like`, that `matrix` turns into the given one."""
        g = self.n_groups
        if self.node.op_type == "Conv":
            o, c = like.shape[:2]
            found = matrix.reshape(g, o // g, -1, c).permute(0, 1, 3, 2).reshape(like.shape)
        elif self.node.op_type == "ConvTranspose":
            i, c = like.shape[:2]
            found = matrix.reshape(g, c, -1, i // g).permute(0, 3, 1, 2).reshape(like.shape)
        else:
            is_turned = self.node.op_type == "Gemm" and self._call.get("transB", 0)
            found = matrix[0] if is_turned else matrix[0].t()
        return _channels_last(found.to(like.dtype).contiguous())

    def output_sizes(self, x: Tensor, weight: Tensor) -> tuple[int, ...]:
        """Return the sizes of the output's dims but the channels, in the order of `to_rows`."""
        if not self.node.op_type.startswith("Conv"):
            return tuple(x.shape[:-1])
        call, kernel, sizes = self._call, list(weight.shape[2:]), list(x.shape[2:])
        strides, dilations = call.get("strides") or [1] * len(kernel), call.get("dilations") or [1] * len(kernel)
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        if self.node.op_type == "Conv":
            pads = window_pads(call, sizes, kernel, strides, dilations)
            out = [(n + a + b - span) // s + 1 for n, (a, b), span, s in zip(sizes, pads, spans, strides, strict=True)]
        else:
            pads, extra = transposed_pads(call, sizes, kernel)
            out = [
                (n - 1) * s + span + e - a - b
                for n, s, span, e, (a, b) in zip(sizes, strides, spans, extra, pads, strict=True)
            ]
        return (x.shape[0], *out)

    def take(self, x: Tensor, weight: Tensor, positions: npt.NDArray[np.int64]) -> Tensor:
        """Return u at some output positions, (groups, positions, width).

        Args:
            x: The node's input.
            weight: The node's weight; only its shape matters.
            positions: Rows of `to_rows` of the output.
        """
        if not self.node.op_type.startswith("Conv"):
            u = x.reshape(-1, x.shape[-1]).index_select(0, torch.from_numpy(positions))
            alpha = self._call.get("alpha", 1.0)
            return (u if alpha == 1 else u * alpha)[None]
        index, inside = self._sources(x, weight, positions)
        rows = to_rows(x, 1)
        u = rows.index_select(0, torch.from_numpy(index.ravel()))  # (positions * places, input channels)
        if not inside.all():
            u *= torch.from_numpy(inside.ravel()).to(u.dtype)[:, None]
        g = self.n_groups
        if g == 1:
            return u.reshape(1, positions.size, -1)
        return u.reshape(positions.size, index.shape[1], g, -1).permute(2, 0, 1, 3).reshape(g, positions.size, -1)

    def _sources(
        self, x: Tensor, weight: Tensor, positions: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return the input position behind every place of the kernel, (positions, places), and whether there is one."""
        call, kernel, sizes = self._call, list(weight.shape[2:]), list(x.shape[2:])
        rank = len(kernel)
        strides, dilations = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
        is_conv = self.node.op_type == "Conv"
        pads = window_pads(call, sizes, kernel, strides, dilations) if is_conv else transposed_pads(call, sizes, kernel)[0]
        at = np.unravel_index(positions, self.output_sizes(x, weight))
        places = np.indices(kernel).reshape(rank, -1)
        index = np.broadcast_to(at[0][:, None], (positions.size, places.shape[1]))
        inside = np.ones(index.shape, bool)
        for i in range(rank):
            if is_conv:
                source = at[i + 1][:, None] * strides[i] + places[i] * dilations[i] - pads[i][0]
            else:
                turned = at[i + 1][:, None] + pads[i][0] - places[i] * dilations[i]
                source = turned // strides[i]
                inside &= turned % strides[i] == 0
            inside &= (source >= 0) & (source < sizes[i])
            index = index * sizes[i] + source.clip(0, sizes[i] - 1)
        return index, inside


def sample_positions(
    n_available: int, n_rows: int, n_total_rows: int, limit: int, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Return the output positions of one batch that are looked at, ascending.

    Args:
        n_available: Positions of this batch.
        n_rows: Samples of this batch.
        n_total_rows: Samples of all batches.
        limit: Positions over all batches.
        generator: Chooses them.
    """
    wanted = -(-limit * n_rows // n_total_rows)
    if wanted >= n_available:
        return np.arange(n_available)
    return np.sort(generator.choice(n_available, wanted, replace=False))


@dataclass
class Moments:
    """Sums over positions of u, u u^T and, where there is a residual, u r^T, in float64.

    Attributes:
        n: Number of positions.
        u: (groups, width).
        uu: (groups, width, width).
        r: (groups, channels / groups).
        ur: (groups, width, channels / groups).
    """

    n: int
    u: Tensor
    uu: Tensor
    r: Tensor
    ur: Tensor

    @classmethod
    def empty(cls, n_groups: int, width: int, channels: int) -> Moments:
        """Return sums over no positions."""
        return cls(0, *(torch.zeros(n_groups, *shape, dtype=torch.float64)
                        for shape in ((width,), (width, width), (channels,), (width, channels))))  # fmt: skip

    def add(self, u: Tensor, r: Tensor | None = None) -> None:
        """Add positions; products of a batch are float32, which is 1e-6 of a diagonal entry: far below any ridge.

        Args:
            u: (groups, positions, width).
            r: (groups, positions, channels / groups).
        """
        self.n += u.shape[1]
        self.u += u.sum(1)
        turned = u.transpose(1, 2)
        self.uu += torch.matmul(turned, u)
        if r is not None:
            self.r += r.sum(1)
            self.ur += torch.matmul(turned, r)

    def __add__(self, other: Moments) -> Moments:
        """Return the sums over the positions of both."""
        return Moments(self.n + other.n, self.u + other.u, self.uu + other.uu, self.r + other.r, self.ur + other.ur)

    def error(self, step: Tensor, offset: Tensor) -> float:
        """Return sum |step^T u + offset - r|^2 over the positions, less sum |r|^2, which is not known.

        Args:
            step: (groups, width, channels / groups).
            offset: (groups, channels / groups).
        """
        fitted = torch.einsum("gwo,gwo->", step, self.uu @ step) + self.n * (offset * offset).sum()
        mixed = torch.einsum("gwo,gw,go->", step, self.u, offset)
        return float(fitted + 2 * mixed - 2 * (step * self.ur).sum() - 2 * (offset * self.r).sum())

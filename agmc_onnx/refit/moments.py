"""What a linear node multiplies at chosen positions, and its second moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agmc_onnx.arrays import IntArray, Mask
from agmc_onnx.graph.view import Node
from agmc_onnx.ops.conv import is_conv
from agmc_onnx.ops.table import op_of
from agmc_onnx.refit.sites import Site
from agmc_onnx.refit.stream import Stream, channels_last
from agmc_onnx.torch_view.module import prepare
from agmc_onnx.torch_view.nn_ops import transposed_pads, window_pads

_DEAD = 1e-6  # a channel scaled down this much beside the others has nothing to say about its weights
_BLOCK = 144  # columns of a Gram matrix that are multiplied at a time
_POSITIONS = 1000  # that are worth a product, where the matrix is narrow
_WAITING = 1 << 24  # numbers of patches that wait for a product, at most: 64 MB


def to_rows(value: Tensor, channel_dim: int) -> Tensor:
    """Return a value as (positions, channels): every place of all other dims is a position."""
    return value.movedim(channel_dim, -1).reshape(-1, value.shape[channel_dim])


@dataclass(frozen=True)
class Places:
    """Where the patches of chosen output positions lie in a node's input.

    Attributes:
        at: The positions, int64 (positions,).
        index: Rows of the input, int64 (positions * places of the kernel,).
        outside: Which of them stand for padding, or None for none.
    """

    at: Tensor
    index: Tensor
    outside: Tensor | None


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
        self.n_groups = int(node.attribute("group", 1)) if op_of(node).kernel else 1
        self._is_conv, self._has_kernel = is_conv(node), op_of(node).kernel
        self._call = prepare(node, opset)

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the weight as (groups, channels / groups, width)."""
        g = self.n_groups
        if self._is_conv:
            o, c = weight.shape[:2]
            return weight.reshape(g, o // g, c, -1).permute(0, 1, 3, 2).reshape(g, o // g, -1)
        if self._has_kernel:
            i, c = weight.shape[:2]
            return weight.reshape(g, i // g, c, -1).permute(0, 2, 3, 1).reshape(g, c, -1)
        is_turned = self.node.op_type == "Gemm" and self._call.get("transB", 0)
        return (weight if is_turned else weight.t())[None]

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Return the weight, in the shape and type of `like`, that `matrix` turns into the given one."""
        g = self.n_groups
        if self._is_conv:
            o, c = like.shape[:2]
            found = matrix.reshape(g, o // g, -1, c).permute(0, 1, 3, 2).reshape(like.shape)
        elif self._has_kernel:
            i, c = like.shape[:2]
            found = matrix.reshape(g, c, -1, i // g).permute(0, 3, 1, 2).reshape(like.shape)
        else:
            is_turned = self.node.op_type == "Gemm" and self._call.get("transB", 0)
            found = matrix[0] if is_turned else matrix[0].t()
        return channels_last(found.to(like.dtype).contiguous())

    def output_sizes(self, x: Tensor, weight: Tensor) -> tuple[int, ...]:
        """Return the sizes of the output's dims but the channels, in the order of `to_rows`."""
        if not self._has_kernel:
            return tuple(x.shape[:-1])
        call, kernel, sizes = self._call, list(weight.shape[2:]), list(x.shape[2:])
        strides, dilations = call.get("strides") or [1] * len(kernel), call.get("dilations") or [1] * len(kernel)
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        if self._is_conv:
            pads = window_pads(call, sizes, kernel, strides, dilations)
            out = [(n + a + b - span) // s + 1 for n, (a, b), span, s in zip(sizes, pads, spans, strides, strict=True)]
        else:
            pads, extra = transposed_pads(call, sizes, kernel)
            out = [
                (n - 1) * s + span + e - a - b
                for n, s, span, e, (a, b) in zip(sizes, strides, spans, extra, pads, strict=True)
            ]
        return (x.shape[0], *out)

    def places(self, x: Tensor, weight: Tensor, positions: IntArray) -> Places:
        """Return where the patches of some output positions lie in the node's input; its channels do not matter.

        Args:
            x: The node's input; only its shape matters.
            weight: The node's weight; only its shape matters.
            positions: Rows of `to_rows` of the output.
        """
        if not self._has_kernel:
            return Places(torch.from_numpy(positions), torch.from_numpy(positions), None)
        index, inside = self._sources(x, weight, positions)
        outside = None if inside.all() else torch.from_numpy(np.flatnonzero(~inside.ravel()))
        return Places(torch.from_numpy(positions), torch.from_numpy(index.ravel()), outside)

    def take(self, x: Tensor, places: Places) -> Tensor:
        """Return u at some output positions, (groups, positions, width).

        Args:
            x: The node's input.
            places: Of these positions.
        """
        if not self._has_kernel:
            u = x.reshape(-1, x.shape[-1]).index_select(0, places.index)
            alpha = self._call.get("alpha", 1.0)
            return (u if alpha == 1 else u * alpha)[None]
        u = to_rows(x, 1).index_select(0, places.index)  # (positions * kernel places, input channels)
        if places.outside is not None:
            u.index_fill_(0, places.outside, 0)
        n, g = len(places.at), self.n_groups
        if g == 1:
            return u.reshape(1, n, -1)
        # positions last in memory: a batch of products of narrow matrices is 60 times as slow otherwise
        return u.reshape(n, len(places.index) // n, g, -1).permute(2, 1, 3, 0).reshape(g, -1, n).transpose(1, 2)

    def _sources(self, x: Tensor, weight: Tensor, positions: IntArray) -> tuple[IntArray, Mask]:
        """Return the input position behind every place of the kernel, (positions, places), and whether there is one."""
        call, kernel, sizes = self._call, list(weight.shape[2:]), list(x.shape[2:])
        rank = len(kernel)
        strides, dilations = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
        is_conv = self._is_conv
        pads = (
            window_pads(call, sizes, kernel, strides, dilations) if is_conv else transposed_pads(call, sizes, kernel)[0]
        )
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
) -> IntArray:
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


class Line:
    """A site's output as a line from its patches to its target.

    Attributes:
        sizes: Groups, width, channels / groups.
    """

    def __init__(self, site: Site, stream: Stream, patches: Patches) -> None:
        matrix = patches.matrix(stream.constants[site.weight]).float()
        g, n, width = matrix.shape
        self.sizes = g, width, n
        scale, shift = (torch.from_numpy(v).float() for v in (site.scale, site.shift))
        own_bias = site.node.inputs[2] if len(site.node.inputs) > 2 else ""
        if own_bias:
            beta = site.node.attribute("beta", 1.0) if site.node.op_type == "Gemm" else 1.0
            shift = shift + scale * stream.constants[own_bias].reshape(-1) * beta
        self._turned = (matrix * scale.reshape(g, n, 1)).transpose(1, 2)
        self._scale, self._shift = scale, shift
        self._back = torch.where(scale.abs() > _DEAD * scale.abs().max(), 1 / scale, torch.zeros_like(scale))

    def residual(self, u: Tensor, target: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Return what the target lacks, (positions, channels), of the target's rows and those of what is added."""
        y = torch.matmul(u, self._turned).permute(1, 0, 2).reshape(u.shape[1], -1)
        r = target - y
        r -= self._shift
        for value in others:
            r -= value
        return r

    def moved(self, u: Tensor, step: Tensor, offset: Tensor) -> Tensor:
        """Return what a correction adds to the target's value, (positions, channels).

        Args:
            u: (groups, positions, width).
            step: Of the weight, (groups, width, channels / groups).
            offset: Of the bias, (groups, channels / groups).
        """
        y = torch.matmul(u, step.to(u.dtype)) + offset.to(u.dtype)[:, None]
        return y.permute(1, 0, 2).reshape(u.shape[1], -1) * self._scale

    def before_scale(self, r: Tensor) -> Tensor:
        """Return a residual as one of the node's own output, (groups, positions, channels / groups)."""
        g, _, n = self.sizes
        return (r * self._back).reshape(-1, g, n).permute(1, 0, 2)


class Waiting:
    """Patches and what goes with them, batch after batch, until there are so many that their product is worth adding up."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, ...]] = []
        self._n_positions = 0

    def add(self, u: Tensor, *rows: Tensor) -> bool:
        """Add a batch.

        Args:
            u: (groups, positions, width).
            rows: (positions, channels) each.

        Returns:
            Whether there are enough.
        """
        self._parts.append((u, *rows))
        self._n_positions += u.shape[1]
        width = u.shape[2]
        enough = max(2 * width, _POSITIONS)
        return self._n_positions > enough or u.shape[0] * self._n_positions * width > _WAITING

    def take(self) -> tuple[Tensor, ...] | None:
        """Return what was added since the last time, in one piece; None for nothing."""
        parts, self._parts, self._n_positions = self._parts, [], 0
        if len(parts) < 2:
            return parts[0] if parts else None
        first, *rows = zip(*parts, strict=True)
        if len(first[0]) == 1:
            u = torch.cat(first, 1)
        else:
            u = torch.cat([part.transpose(1, 2) for part in first], 2).transpose(1, 2)
        return u, *(torch.cat(row) for row in rows)


def gram(u: Tensor) -> Tensor:
    """Return u^T u, (groups, width, width); blocks below the diagonal are mirrored, not computed.

    Args:
        u: (groups, positions, width).
    """
    width = u.shape[2]
    n_blocks = -(-width // _BLOCK)
    if n_blocks == 1:
        return torch.matmul(u.transpose(1, 2), u)
    found = u.new_empty(u.shape[0], width, width)
    size = -(-width // n_blocks)
    for start in range(0, width, size):
        stop = min(start + size, width)
        rows = torch.matmul(u[:, :, start:stop].transpose(1, 2), u[:, :, start:])
        found[:, start:stop, start:] = rows
        found[:, stop:, start:stop] = rows[:, :, stop - start :].transpose(1, 2)
    return found


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
        """Add positions; their products are float32, which is 1e-6 of a diagonal entry: far below any ridge.

        Args:
            u: (groups, positions, width).
            r: (groups, positions, channels / groups).
        """
        self.n += u.shape[1]
        self.u += u.sum(1)
        self.uu += gram(u)
        if r is not None:
            self.add_residual(u, r)

    def add_residual(self, u: Tensor, r: Tensor) -> None:
        """Add what residuals have to do with positions that are known already; both as in `add`."""
        self.r += r.sum(1)
        self.ur += torch.matmul(r.transpose(1, 2), u).transpose(1, 2)  # this way round in two thirds of the time

    def restart(self) -> None:
        """Forget the residuals; what is known of the inputs stays."""
        self.r.zero_()
        self.ur.zero_()

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


class Positions:
    """Positions themselves in place of sums over them, where they are fewer than the width; used as `Moments` are.

    Attributes:
        n: Number of positions.
    """

    def __init__(self) -> None:
        self.n = 0
        self._u: list[Tensor] = []
        self._r: list[Tensor] = []

    def add(self, u: Tensor, r: Tensor) -> None:
        """Add positions; both as in `Moments.add`."""
        self.n += u.shape[1]
        self._u.append(u)
        self._r.append(r)

    def add_residual(self, u: Tensor, r: Tensor) -> None:
        """Add residuals of positions that are known already, in the same order."""
        self._r.append(r)

    def restart(self) -> None:
        """Forget the residuals."""
        self._r = []

    def inputs(self) -> Tensor:
        """Return u of all positions, (groups, positions, width)."""
        return torch.cat(self._u, 1)

    def residuals(self) -> Tensor:
        """Return r of all positions, (groups, positions, channels / groups)."""
        return torch.cat(self._r, 1)

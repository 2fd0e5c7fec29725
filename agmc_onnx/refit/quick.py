"""A refit that costs next to nothing: every node towards its own old output, from moments of the original taken once.

With S the covariance of what a node multiplies its weight W with, and inputs R removed, the best weight for the rest is

    W_K + W_R S_RK S_KK^-1,

whatever the rest of the candidate is. So it is found once for every set of inputs and looked up after that. What the nodes
before a node get wrong is not corrected: the full refit (`compensate`) does that, once, for the candidates that matter.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from scipy.linalg import cho_factor, cho_solve

from agmc_onnx.arrays import FloatArray, IntArray, Mask
from agmc_onnx.data.samples import Samples
from agmc_onnx.graph.external import take
from agmc_onnx.ops.vanish import closer_of
from agmc_onnx.refit.compensation import write_back
from agmc_onnx.refit.curves import is_elementwise
from agmc_onnx.refit.moments import Moments, Patches, sample_positions
from agmc_onnx.refit.options import RecoverOptions
from agmc_onnx.refit.sites import Site, find_sites
from agmc_onnx.refit.stream import Stream, read_batches
from agmc_onnx.ties.cut import Cut
from agmc_onnx.ties.groups import Channels


@dataclass(frozen=True, eq=False)
class _Node:
    """A node whose inputs can be cut, and what its refit needs.

    Attributes:
        site: Where it stands.
        patches: Of the node.
        axis: Of its input's channels.
        weight: float32 (groups, channels / groups, width).
        covariance: float32 (groups, width, width), with the ridge.
        mean: float32 (groups, width).
    """

    site: Site
    patches: Patches
    axis: tuple[str, int]
    weight: FloatArray
    covariance: FloatArray
    mean: FloatArray


class QuickRefit:
    """Refits candidate after candidate; a drop-in for `Compensator` inside a search.

    Attributes:
        channels: Analysis of the original.
        options: n_samples, n_positions, quick_ridge, max_width and memory_bytes count here.
    """

    def __init__(self, channels: Channels, samples: Samples, options: RecoverOptions | None = None) -> None:
        """Run the original on the samples.

        Args:
            channels: Analysis of the original.
            samples: Calibration samples; labels are not looked at.
            options: Those of the refit.

        Raises:
            ModelError: If the model has an op without a counterpart in torch.
        """
        self.channels = channels
        self.options = options or RecoverOptions()
        with torch.no_grad():
            self._nodes = self._measure(samples)
        self._known: OrderedDict[tuple[int, bytes], tuple[FloatArray, FloatArray]] = OrderedDict()
        self._bytes = 0

    def _measure(self, samples: Samples) -> list[_Node]:
        channels, options, graph = self.channels, self.options, self.channels.graph
        batches = read_batches(samples, options, graph)
        n_rows = [len(next(iter(batch.values()))) for batch in batches]
        stream = Stream(graph, batches, options.memory_bytes)
        found = []
        for number, site in enumerate(find_sites(graph)):
            patches, weight = Patches(site.node, graph.opset), stream.constants[site.weight]
            matrix = patches.matrix(weight).float()
            g, _, width = matrix.shape
            shape = graph.shape(site.x)
            if shape is None or width > options.max_width:
                continue
            axis = (site.x, site.channel_dim % shape.rank)
            if (
                axis not in channels.axes
                or channels.axes[axis].units.ndim != 1
                or is_elementwise(g, width, weight.shape)
            ):
                continue
            stream.advance(site.node.index)
            generator = np.random.default_rng([options.seed, number])
            moments = Moments.empty(g, width, 1)
            for i, rows in enumerate(n_rows):
                x = stream.peek(i, [site.x])[site.x]
                n_available = int(np.prod(patches.output_sizes(x, weight)))
                at = sample_positions(n_available, rows, sum(n_rows), options.n_positions, generator)
                moments.add(patches.take(x, patches.places(x, weight, at)))
            mean = moments.u / moments.n
            covariance = moments.uu / moments.n - mean[:, :, None] * mean[:, None, :]
            ridge = max(options.quick_ridge, options.thin_ridge * width / moments.n)
            size = covariance.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12) * ridge
            covariance += size[:, None, None] * torch.eye(width, dtype=torch.float64)
            found.append(_Node(site, patches, axis, matrix.numpy(), covariance.float().numpy(), mean.float().numpy()))
        return found

    def __call__(self, kept: Sequence[IntArray], pruned: onnx.ModelProto) -> onnx.ModelProto:
        """Return a pruned model, refitted.

        Args:
            kept: For each prunable group the kept positions.
            pruned: What `Surgeon(channels).cut(kept)` returned; not changed.
        """
        cut = Cut(self.channels, kept)
        masks = cut.tensor_axes()
        changed: dict[str, np.ndarray] = {}
        added: dict[str, np.ndarray] = {}
        gone = closer_of(self.channels)(i for i, positions in enumerate(kept) if not len(positions)).gone
        for number, node in enumerate(self._nodes):
            mask = cut.mask(*node.axis)
            if mask is None or node.site.node.index in gone:
                continue
            site = node.site
            weight, offset = self._solved(number, mask)
            changed[site.weight] = take(weight, masks[site.weight]) if site.weight in masks else weight
            if site.bias is not None:
                bias = self.channels.graph.array(site.bias)
                moved = bias + (offset * site.bias_scale).reshape(bias.shape)
                changed[site.bias] = take(moved, masks[site.bias]) if site.bias in masks else moved
            elif site.can_add_bias:
                axis = cut.mask(site.node.outputs[0], 1)  # only nodes with channels there may get a bias
                added[site.node.outputs[0]] = (offset if axis is None else offset[axis]).astype(np.float32)
        return write_back(pruned, changed, added)

    def _solved(self, number: int, mask: Mask) -> tuple[FloatArray, FloatArray]:
        """Return the weight of a node, of the original's shape, and its bias' change, for the inputs that stay."""
        key = (number, np.packbits(mask).tobytes())
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        node = self._nodes[number]
        g, n, width = node.weight.shape
        per_group = mask.reshape(g, 1, -1)
        stays = np.broadcast_to(per_group, (g, width // per_group.shape[2], per_group.shape[2])).reshape(g, width)
        weight, offset = np.zeros_like(node.weight), np.zeros((g, n), np.float32)
        has_bias = node.site.bias is not None or node.site.can_add_bias
        for i in range(g):
            k, r = np.flatnonzero(stays[i]), np.flatnonzero(~stays[i])
            lost = node.weight[i][:, r]
            second, cross = node.covariance[i][np.ix_(k, k)], node.covariance[i][np.ix_(k, r)]
            if not has_bias:
                second = second + np.outer(node.mean[i][k], node.mean[i][k])
                cross = cross + np.outer(node.mean[i][k], node.mean[i][r])
            step = cho_solve(cho_factor(second, lower=True, overwrite_a=True, check_finite=False), cross @ lost.T).T
            weight[i][:, k] = node.weight[i][:, k] + step
            if has_bias:
                offset[i] = lost @ node.mean[i][r] - step @ node.mean[i][k]
        like = torch.empty(self.channels.graph.tensors[node.site.weight].dims[:])
        found = node.patches.weight(torch.from_numpy(weight), like).numpy(), offset.reshape(-1)
        self._known[key] = found
        self._bytes += found[0].nbytes + found[1].nbytes
        while self._bytes > self.options.memory_bytes and len(self._known) > 1:
            _, old = self._known.popitem(last=False)
            self._bytes -= old[0].nbytes + old[1].nbytes
        return found

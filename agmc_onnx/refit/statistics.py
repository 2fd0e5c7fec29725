"""Means and variances put right, and nothing else: the cheapest recovery, and what other tools mean by the word.

A BatchNormalization gets the statistics that its input has in the pruned network (Li et al. 2020, EagleEye,
arXiv:2007.02491, sec. 3.3). A linear node without one behind it gets another bias, so that the mean of every channel is the
original's (Nagel et al. 2019, arXiv:1906.04721, sec. 4.2). Both in graph order, each on what the nodes before it give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from torch import Tensor

from agmc_onnx.arrays import IntArray
from agmc_onnx.data.samples import Samples
from agmc_onnx.graph.view import Graph, Node, graph_of
from agmc_onnx.ops.norm import is_stored
from agmc_onnx.refit.compensation import aims, write_back
from agmc_onnx.refit.moments import to_rows
from agmc_onnx.refit.options import RecoverOptions
from agmc_onnx.refit.sites import Site, find_sites
from agmc_onnx.refit.stream import Stream, read_batches
from agmc_onnx.ties.cut import Cut
from agmc_onnx.ties.groups import Channels


class Restatement:
    """Corrects candidate after candidate of one network; a drop-in for `Compensator`.

    Attributes:
        channels: Analysis of the original.
        options: n_samples, batch_size and memory_bytes count here.
    """

    def __init__(self, channels: Channels, samples: Samples, options: RecoverOptions | None = None) -> None:
        """Read the samples.

        Args:
            channels: Analysis of the original.
            samples: Calibration samples; labels are not looked at.
            options: Those of the recovery.
        """
        self.channels, self.options = channels, options or RecoverOptions()
        self._batches = read_batches(samples, self.options, channels.graph)

    def __call__(self, kept: Sequence[IntArray], pruned: onnx.ModelProto) -> onnx.ModelProto:
        """Return a pruned model with its statistics put right.

        Args:
            kept: For each prunable group the kept positions.
            pruned: What `Surgeon(channels).cut(kept)` returned; not changed.

        Raises:
            ModelError: If the model has an op without a counterpart in torch.
        """
        with torch.no_grad():
            return self._restated(Cut(self.channels, kept), pruned, aims(self.channels, kept))

    def _restated(self, cut: Cut, pruned: onnx.ModelProto, aim: Mapping[str, str]) -> onnx.ModelProto:
        graph = graph_of(pruned, self.channels.graph.folder)
        new = Stream(graph, self._batches, self.options.memory_bytes)
        old = Stream(self.channels.graph, self._batches, self.options.memory_bytes)
        sites = {site.node.index: site for site in find_sites(graph) if _has_place(graph, site)}
        old.pinned = {aim.get(site.target, site.target) for site in sites.values()}
        changed: dict[str, np.ndarray] = {}
        added: dict[str, np.ndarray] = {}
        for node in graph.nodes:
            if has_statistics(graph, node):
                new.advance(node.index)
                for name, value in zip(node.inputs[3:5], _mean_and_variance(new, node.inputs[0]), strict=True):
                    new.constants[name] = value.to(new.constants[name].dtype)
                    changed[name] = new.constants[name].numpy()
            elif node.index in sites:
                site = sites[node.index]
                wanted = aim.get(site.target, site.target)
                lacking = self._lacking(site, wanted, cut, old, new)
                if lacking is not None:
                    _shift(site, lacking, new, changed, added)
                old.release(wanted)
        return write_back(pruned, changed, added)

    def _lacking(self, site: Site, aim: str, cut: Cut, old: Stream, new: Stream) -> Tensor | None:
        """Return by how much the mean of a site's target is below that of the original's value `aim`, float64 (channels,).

        None where they do not match.
        """
        shape = cut.graph.shape(site.target)
        if site.target not in cut.graph.producer or shape is None:
            return None
        mask = cut.mask(site.target, site.channel_dim % shape.rank)
        if mask is not None and mask.ndim != 1:
            return None
        old.advance(old.graph.producer[aim].index + 1)
        new.advance(site.node.index)
        wanted, found = _mean(old, aim, site.channel_dim), _mean(new, site.target, site.channel_dim)
        return (wanted if mask is None else wanted[torch.from_numpy(np.flatnonzero(mask))]) - found


def has_statistics(graph: Graph, node: Node) -> bool:
    """Return whether a node is a BatchNormalization with stored statistics of its own."""
    if not is_stored(node):
        return False
    names = node.inputs[3:5]
    return all(name in graph.tensors and len(graph.consumers[name]) == 1 for name in names) and len(set(names)) == 2


def _has_place(graph: Graph, site: Site) -> bool:
    """Whether a site can take a correction of its mean that no stored statistics behind it take out again."""
    users = graph.consumers.get(site.node.outputs[0], [])
    is_normalised = len(users) == 1 and has_statistics(graph, users[0][0])
    return not is_normalised and (site.bias is not None or site.can_add_bias)


def _mean(stream: Stream, value: str, channel_dim: int) -> Tensor:
    total, n = torch.zeros((), dtype=torch.float64), 0
    for batch in range(stream.n_batches):
        rows = to_rows(stream.peek(batch, [value])[value], channel_dim)
        total, n = total + rows.sum(0, dtype=torch.float64), n + rows.shape[0]
    return total / n


def _mean_and_variance(stream: Stream, value: str) -> tuple[Tensor, Tensor]:
    mean = _mean(stream, value, 1)
    total, n = torch.zeros_like(mean), 0
    for batch in range(stream.n_batches):
        rows = to_rows(stream.peek(batch, [value])[value], 1)
        total, n = total + ((rows - mean.to(rows.dtype)) ** 2).sum(0, dtype=torch.float64), n + rows.shape[0]
    return mean, total / n


def _shift(
    site: Site, lacking: Tensor, new: Stream, changed: dict[str, np.ndarray], added: dict[str, np.ndarray]
) -> None:
    """Move a site's bias, or give it one."""
    scale = torch.from_numpy(site.scale)
    offset = torch.where(scale != 0, lacking / scale, torch.zeros_like(lacking))  # of the node's own output
    if site.bias is not None:
        bias = new.constants[site.bias]
        moved = offset * torch.from_numpy(site.bias_scale)
        new.constants[site.bias] = (bias.double() + moved.reshape(bias.shape)).to(bias.dtype)
        changed[site.bias] = new.constants[site.bias].numpy()
    else:
        output = site.node.outputs[0]
        fresh = offset.to(new.constants[site.weight].dtype)
        added[output] = fresh.numpy()
        new.give_bias(site.node.index, f"{output}__agmc_bias", fresh)

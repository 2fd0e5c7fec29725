"""Importances that look at activations or gradients: what the plain norms of `pruning.importance` cannot know."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np

from agmc_onnx.arrays import FloatArray, IntArray
from agmc_onnx.data.samples import Samples
from agmc_onnx.errors import UsageError
from agmc_onnx.refit.curves import Consumer, Curves, error_curves, measure_consumers, moment_importance
from agmc_onnx.refit.options import Counting, RecoverOptions
from agmc_onnx.ties.groups import Channels

_AT_ONCE = 1 << 28  # bytes of activations that one backward pass may keep


class Measurements:
    """What the original's activations on the calibration samples say about its units; measured when asked for, once.

    Attributes:
        channels: Analysis of the original.
        samples: Calibration samples; labels are not looked at.
        options: As for `measure_consumers`.
        counting: Says how far the loops are.
    """

    def __init__(
        self,
        channels: Channels,
        samples: Samples,
        options: RecoverOptions | None = None,
        counting: Counting = lambda what: iter,
    ) -> None:
        self.channels, self.samples, self.counting = channels, samples, counting
        self.options = options or RecoverOptions()

    @cached_property
    def consumers(self) -> list[Consumer]:
        """The nodes that mix prunable units."""
        each = self.counting("activations")
        return measure_consumers(self.channels, self.samples, self.options, each)

    def scores(self, name: str) -> FloatArray:
        """Return the importance of every unit by a row of `MEASURED`, (n_units,).

        Raises:
            UsageError: If there is no such row.
            ModelError: If the model has an op without a counterpart in torch.
        """
        if name not in MEASURED:
            raise UsageError(f"importance: unknown name, got {name!r}; expected one of {', '.join(MEASURED)}.")
        return MEASURED[name](self)

    def curves(self, scores: FloatArray, least: int = 1) -> Curves:
        """Return every group's refit error at every width from `least` on, the highest scores kept."""
        consumers, each = self.consumers, self.counting("error curves")
        return error_curves(self.channels, scores, consumers=consumers, least=least, each=each)


def moments(measured: Measurements) -> FloatArray:
    """Return how long each unit survives when those go first that the others make up for best; see `moment_importance`."""
    return moment_importance(measured.channels, consumers=measured.consumers)


def activations(measured: Measurements) -> FloatArray:
    """Return what each unit's removal adds to the squared error of its consumers, if only their biases make up for it.

    The squared norm of the weights that a unit is multiplied with, times its variance, over the variance of what comes out;
    Sun et al. 2023, arXiv:2306.11695, eq. 1, for whole channels and without what the mean carries.
    """
    total = np.zeros(measured.channels.n_units)
    for consumer in measured.consumers:
        power = (consumer.weight**2).sum(1) * np.diagonal(consumer.covariance, axis1=1, axis2=2)  # (groups, width)
        known = consumer.units >= 0
        np.add.at(total, consumer.units[known], power[known] / max(consumer.variance, 1e-30))
    return total


def taylor(measured: Measurements) -> FloatArray:
    """Return the squared change of the answers, to first order, that switching a unit off makes, without labels.

    With g the gradient of the answers and a the activations, the mean over samples of (sum over positions of g a)^2;
    Molchanov et al. 2019, arXiv:1906.10771, eq. 8. The answers are pulled in random directions whose covariance is the
    Fisher information of the class scores (of other outputs: the identity), as the true loss has no gradient at the original.
    """
    import torch

    from agmc_onnx.refit.goals import output_goals
    from agmc_onnx.refit.sites import find_sites
    from agmc_onnx.refit.stream import read_batches
    from agmc_onnx.torch_view.module import TorchGraph

    channels, options = measured.channels, measured.options
    graph = channels.graph
    axes: dict[tuple[str, int], IntArray] = {}
    for site in find_sites(graph):
        shape = graph.shape(site.x)
        axis = None if shape is None else channels.axes.get((site.x, site.channel_dim % shape.rank))
        if shape is not None and axis is not None and axis.units.ndim == 1 and site.x in graph.producer:
            axes[site.x, site.channel_dim % shape.rank] = axis.units
    module, goals = TorchGraph(graph).eval(), output_goals(graph)
    names = [name for name, _ in axes]
    per_sample = 4 * sum(math.prod(shape.dims) for shape in graph.shapes.values())
    generator = torch.Generator().manual_seed(options.seed)
    total = np.zeros(channels.n_units)
    for feed in read_batches(measured.samples, options, graph, max(1, _AT_ONCE // max(per_sample, 1))):
        found = module.run(feed, [*names, *(value for goal in goals for value in goal.values)])
        answers = [found[value] for goal in goals for value in goal.values]
        pulls = []
        for is_scores, answer in zip([goal.is_scores for goal in goals for _ in goal.values], answers, strict=True):
            signs = torch.randint(0, 2, answer.shape, generator=generator).to(answer.dtype) * 2 - 1
            if is_scores:
                p = torch.softmax(answer.detach(), 1)
                drawn = p.sqrt() * signs
                signs = drawn - p * drawn.sum(1, keepdim=True)
            pulls.append(signs)
        gradients = torch.autograd.grad(answers, [found[name] for name in names], pulls, allow_unused=True)
        for (name, dim), gradient in zip(axes, gradients, strict=True):
            if gradient is not None:
                product = (gradient * found[name].detach()).movedim(dim, -1)
                sums = product.reshape(product.shape[0], -1, product.shape[-1]).sum(1)  # (samples, channels)
                np.add.at(total, axes[name, dim], (sums**2).sum(0).double().numpy())
    return total


MEASURED: dict[str, Callable[[Measurements], FloatArray]] = {
    "moments": moments,
    "activations": activations,
    "taylor": taylor,
}

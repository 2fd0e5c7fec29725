"""What the removal of units costs after a refit, from second moments of the original's activations taken once.

With S the covariance of what a node multiplies its weight W with, and units R removed, the best refit of the rest leaves

    error(R) = trace(W_R (S_RR - S_RK S_KK^-1 S_KR) W_R^T)

of its output. If the units are ordered from the last to be removed to the first and S = L L^T is factorised in that
order, the error of every width follows at once: removing all columns from k on costs the sum over columns j >= k of
|(W L)_j|^2. Removing units one by one so that each step costs least is the greedy backward elimination of optimal brain
surgeon (Hassibi and Stork 1993), block by block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import cholesky, solve_triangular

from agmc_onnx.arrays import FloatArray, IntArray
from agmc_onnx.data.samples import Samples
from agmc_onnx.errors import BudgetError
from agmc_onnx.refit.moments import Moments, Patches, sample_positions, to_rows
from agmc_onnx.refit.options import Each, RecoverOptions
from agmc_onnx.refit.sites import find_sites
from agmc_onnx.refit.stream import Stream, read_batches
from agmc_onnx.ties.groups import Channels

_STEPS = 64  # of an elimination: more than that many units go several at a time
# Ridge of the covariance as a share of its mean diagonal: at least _RIDGE, more where samples are few beside the width, or
# units would seem to be made up for by others that merely fit the samples.
_RIDGE, _THIN, _MOST = 1e-4, 0.1, 0.5


@dataclass(frozen=True, eq=False)
class Consumer:
    """A node that mixes the units of a group, and the statistics of the original there.

    Attributes:
        name: The node's label.
        n_groups: Groups of the node (Conv `group`).
        weight: float64 (groups, channels / groups, width), times what the output is scaled by before its target.
        covariance: float64 (groups, width, width) of what the weight multiplies, less its mean, plus the ridge.
        units: int (groups, width), the unit that each entry of the width belongs to.
        variance: Sum over channels of the variance of the target.
    """

    name: str
    weight: FloatArray
    covariance: FloatArray
    units: IntArray
    variance: float


@dataclass(frozen=True, eq=False)
class Curves:
    """Refit error of every prunable group by its number of kept units.

    Attributes:
        counts: For each group the kept counts, ascending, ending with all units.
        errors: For each group the error at these counts over the variance of the consumers' targets, summed over
            consumers; 0 at the last.
    """

    counts: tuple[IntArray, ...]
    errors: tuple[FloatArray, ...]

    def error(self, group: int, n_kept: int) -> float:
        """Return a group's error at any count, interpolated between the known ones."""
        return float(np.interp(n_kept, self.counts[group], self.errors[group]))


def measure_consumers(
    channels: Channels, samples: Samples, options: RecoverOptions | None = None, each: Each = iter
) -> list[Consumer]:
    """Return the statistics of every node that mixes prunable units, in topological order.

    One pass over the original; what `error_curves` and `moment_importance` start from.

    Args:
        channels: Analysis of the original.
        samples: Calibration samples; labels are not looked at.
        options: n_samples, n_curve_positions, batch_size, memory_bytes and seed count here.
        each: Hands on the nodes.
    """
    options = options or RecoverOptions()
    graph = channels.graph
    prunable = np.zeros(channels.n_units, bool)
    for group in channels.groups:
        prunable[group.units] = True
    batches = read_batches(samples, options, graph)
    lead = graph.inputs[0]
    n_rows = [batch[lead].shape[0] if batch[lead].dim() else 1 for batch in batches]
    stream = Stream(graph, batches, options.memory_bytes)
    found = []
    with torch.no_grad():
        for number, site in each(list(enumerate(find_sites(graph)))):
            weight = stream.constants[site.weight]
            patches = Patches(site.node, graph.opset)
            matrix = patches.matrix(weight).double()
            g, n, width = matrix.shape
            units = _units_of(channels, site.x, site.channel_dim, g, width)
            if units is None or not prunable[units[units >= 0]].any() or is_elementwise(g, width, weight.shape):
                continue
            stream.advance(site.node.index)
            generator = np.random.default_rng([options.seed, number])
            moments = Moments.empty(g, width, n)
            total = torch.zeros(2, g * n, dtype=torch.float64)
            for i, rows in enumerate(n_rows):
                values = stream.peek(i, [site.x, site.target])
                n_available = int(np.prod(patches.output_sizes(values[site.x], weight)))
                at = sample_positions(n_available, rows, sum(n_rows), options.n_curve_positions, generator)
                places = patches.places(values[site.x], weight, at)
                moments.add(patches.take(values[site.x], places))
                target = to_rows(values[site.target], site.channel_dim).index_select(0, torch.from_numpy(at))
                total += torch.stack([target.sum(0), (target * target).sum(0)])
            mean = moments.u / moments.n
            covariance = (moments.uu / moments.n - mean[:, :, None] * mean[:, None, :]).numpy()
            first, second = (total / moments.n).numpy()
            scaled = matrix.numpy() * site.scale.reshape(g, n, 1)
            variance = float((second - first**2).sum())
            found.append(Consumer(site.node.label, scaled, _ridged(covariance, moments.n), units, variance))
    return found


def is_elementwise(n_groups: int, width: int, shape: Sequence[int]) -> bool:
    """Return whether a convolution is depthwise: its outputs live and die with its inputs, so nothing is mixed.

    Args:
        n_groups: Of the convolution.
        width: Kernel places times input channels of one group.
        shape: Of the weight.
    """
    return n_groups > 1 and width == math.prod(shape[2:])


def _units_of(channels: Channels, x: str, dim: int, n_groups: int, width: int) -> IntArray | None:
    """Return the unit behind every entry of a node's patches, (groups, width), -1 for none."""
    shape = channels.graph.shape(x)
    if shape is None:
        return None
    axis = channels.axes.get((x, dim % shape.rank))
    if axis is None or axis.units.ndim != 1:
        return None
    per_group = axis.units.reshape(n_groups, 1, -1)
    return np.tile(per_group, (1, width // per_group.shape[2], 1)).reshape(n_groups, width)


def _ridged(covariance: FloatArray, n: int) -> FloatArray:
    ridge = min(max(_RIDGE, _THIN * covariance.shape[1] / n), _MOST)
    scale = np.trace(covariance, axis1=1, axis2=2) / covariance.shape[1]
    scale = np.where(scale > 0, scale, 1.0)
    return covariance + ridge * scale[:, None, None] * np.eye(covariance.shape[1])


def error_curves(
    channels: Channels,
    scores: FloatArray,
    samples: Samples | None = None,
    options: RecoverOptions | None = None,
    consumers: Sequence[Consumer] | None = None,
    least: int = 1,
    each: Each = iter,
) -> Curves:
    """Return every group's refit error at every width.

    Args:
        channels: Analysis of the original.
        scores: float (n_units,), higher is kept longer.
        samples: Calibration samples; not needed with `consumers`.
        options: As for `measure_consumers`.
        consumers: Of `measure_consumers`, where they are known already.
        least: Smallest width, 0 or 1.
        each: Hands on the groups.
    """
    if consumers is None:
        assert samples is not None
        consumers = measure_consumers(channels, samples, options)
    counts, errors = [], []
    for group in each(channels.groups):
        order = group.units[np.argsort(-scores[group.units], kind="stable")]
        error = np.zeros(group.n_units + 1)
        for consumer in consumers:
            for part in _parts(consumer, group.units):
                error += _nested_errors(*part, order) / max(consumer.variance, 1e-30)
        counts.append(np.arange(least, group.n_units + 1))
        errors.append(error[least:])
    return Curves(tuple(counts), tuple(errors))


_Part = tuple[FloatArray, FloatArray, IntArray]  # weight (channels, width), covariance (width, width), units (width,)


def _parts(consumer: Consumer, units: IntArray) -> list[_Part]:
    """Return the groups of a consumer that some of the units stand in."""
    found = []
    for weight, covariance, own in zip(consumer.weight, consumer.covariance, consumer.units, strict=True):
        if np.isin(own, units).any():
            found.append((weight, covariance, own))
    return found


def _nested_errors(weight: FloatArray, covariance: FloatArray, own: IntArray, order: IntArray) -> FloatArray:
    """Return the error with the first 0, 1, ... units of an order kept, (len(order) + 1,)."""
    place = np.full(max(int(own.max()), int(order.max())) + 2, -1, np.int64)
    place[order] = np.arange(order.size)
    rank = place[own]  # -1 for entries of other groups: they always stay, first in the factorisation
    by_rank = np.argsort(rank, kind="stable")
    factor = cholesky(covariance[np.ix_(by_rank, by_rank)], lower=True)
    power = ((weight[:, by_rank] @ factor) ** 2).sum(0)
    per_unit = np.zeros(order.size)
    np.add.at(per_unit, rank[by_rank][rank[by_rank] >= 0], power[rank[by_rank] >= 0])
    return np.concatenate([np.cumsum(per_unit[::-1])[::-1], [0.0]])


def moment_importance(
    channels: Channels,
    samples: Samples | None = None,
    options: RecoverOptions | None = None,
    consumers: Sequence[Consumer] | None = None,
) -> FloatArray:
    """Return for every unit how long a greedy elimination with refit keeps it.

    In each group the unit whose removal costs least after a refit of all the group's consumers goes first; the score is
    the position at which it goes, 1 for the first, over the number of units. Frozen units, and those of groups that no
    node mixes, score 0.

    Args:
        channels: Analysis of the original.
        samples: Calibration samples; not needed with `consumers`.
        options: As for `measure_consumers`.
        consumers: Of `measure_consumers`, where they are known already.

    Returns:
        Float64 (channels.n_units,); higher is kept.
    """
    if consumers is None:
        assert samples is not None
        consumers = measure_consumers(channels, samples, options)
    scores = np.zeros(channels.n_units)
    for group in channels.groups:
        parts = [
            (weight / np.sqrt(max(consumer.variance, 1e-30)), covariance, own)
            for consumer in consumers
            for weight, covariance, own in _parts(consumer, group.units)
        ]
        if parts:
            for position, unit in enumerate(_eliminate(parts, group.units)):
                scores[unit] = (position + 1) / group.n_units
    return scores


def _eliminate(parts: Sequence[_Part], units: IntArray) -> list[int]:
    """Return the units in the order in which greedy elimination removes them, a 64th of a large group at a time."""
    states = []
    for weight, covariance, own in parts:
        factor = solve_triangular(cholesky(covariance, lower=True), np.eye(len(covariance)), lower=True)
        states.append([weight.copy(), factor.T @ factor, own])
    left = units
    gone: list[int] = []
    at_once = -(-units.size // _STEPS)
    while left.size:
        cost = np.zeros(left.size)
        for weight, inverse, own in states:
            cost += _removal_costs(weight, inverse, own, left)
        order = np.argsort(cost, kind="stable")[:at_once]
        gone.extend(left[order].tolist())
        left = np.delete(left, order)
        for state in states:
            weight, inverse, own = state
            is_mine = np.isin(own, gone[-order.size :])
            mine, rest = np.flatnonzero(is_mine), np.flatnonzero(~is_mine)
            if mine.size:
                ratio = np.linalg.solve(inverse[np.ix_(mine, mine)], inverse[np.ix_(mine, rest)])
                weight = weight[:, rest] - weight[:, mine] @ ratio
                state[:] = weight, inverse[np.ix_(rest, rest)] - inverse[np.ix_(rest, mine)] @ ratio, own[rest]
    return gone


def _removal_costs(weight: FloatArray, inverse: FloatArray, own: IntArray, units: IntArray) -> FloatArray:
    """Return trace(W_i (S^-1_ii)^-1 W_i^T) of every unit, (len(units),)."""
    order = np.argsort(own, kind="stable")
    sorted_own = own[order]
    starts, ends = np.searchsorted(sorted_own, units), np.searchsorted(sorted_own, units, side="right")
    sizes = ends - starts
    cost = np.zeros(len(units))
    for size in np.unique(sizes[sizes > 0]).tolist():
        which = np.flatnonzero(sizes == size)
        index = order[starts[which][:, None] + np.arange(size)]  # (units, size)
        blocks = inverse[index[:, :, None], index[:, None, :]]
        columns = weight[:, index].transpose(1, 2, 0)  # (units, size, channels)
        cost[which] = (columns * np.linalg.solve(blocks, columns)).sum((1, 2))
    return cost


def greedy_widths(
    curves: Curves,
    cost: Callable[[IntArray], int],
    n_units: Sequence[int] | IntArray,
    step: Sequence[int] | IntArray,
    min_keep: Sequence[int] | IntArray,
    budget: int,
) -> IntArray:
    """Return kept counts within a budget: again and again the step with the least error per unit of cost saved.

    From full width downwards until the budget is met; then steps are taken back, the most useful first, as long as the
    budget allows.

    Args:
        curves: Of `error_curves`.
        cost: Cost at kept counts (n_groups,).
        n_units: Units of every group.
        step: Units that go at a time; a group whose step is its number of units stays whole.
        min_keep: Least kept count.
        budget: Largest cost.

    Raises:
        BudgetError: If the budget is below the cost of all groups at their least width.
    """
    full, size, least = (np.asarray(a, np.int64) for a in (n_units, step, min_keep))
    widths = full.copy()
    now = start = cost(widths)
    while now > budget:
        best, best_price, best_now = -1, np.inf, now
        for group in range(full.size):
            fewer = _fewer(int(widths[group]), int(size[group]))
            if fewer < least[group] or fewer == widths[group]:
                continue
            saved = now - _with(cost, widths, group, fewer)
            if saved <= 0:
                continue
            price = (curves.error(group, fewer) - curves.error(group, int(widths[group]))) / saved
            if price < best_price:
                best, best_price, best_now = group, price, now - saved
        if best < 0:
            share = now / start
            raise BudgetError(
                f"budget: cannot be reached, got {budget / start:.3f} of the original; expected at least {share:.3f}, "
                "where every group is at its least width. Allow narrower groups or a larger budget.",
                share,
            )
        widths[best] = _fewer(int(widths[best]), int(size[best]))
        now = best_now
    while True:
        gains = []
        for group in range(full.size):
            more = min(int(widths[group] // size[group] + 1) * int(size[group]), int(full[group]))
            if more > widths[group]:
                added = _with(cost, widths, group, more) - now
                if now + added <= budget:
                    gain = curves.error(group, int(widths[group])) - curves.error(group, more)
                    gains.append((gain / max(added, 1), group, more, added))
        if not gains:
            return widths
        _, group, more, added = max(gains)
        widths[group] = more
        now += added


def _fewer(width: int, step: int) -> int:
    """Return the next lower multiple of a step."""
    return (width - 1) // step * step


def _with(cost: Callable[[IntArray], int], widths: IntArray, group: int, width: int) -> int:
    changed = widths.copy()
    changed[group] = width
    return cost(changed)

"""Bring proposed ratios to the budget: the paper's Algorithm 1 as printed, and the one that hits the true cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from agmc_onnx.arrays import FloatArray, IntArray
from agmc_onnx.errors import UsageError
from agmc_onnx.search.problem import Problem

CLOSE_ENOUGH = 5e-4  # share of the full cost; a result this close below the budget is not repaired any further
MAX_REPAIRS = 12  # repair rounds; each tries one step up of every group that may still fit
MAX_FIRST_TRIALS = 240  # cost calls of the first repair round, which also looks further along the path
MAX_RAISE = 2  # steps a group may be raised above the common scaling


@runtime_checkable
class ManyCosts(Protocol):
    """A cost that counts several candidates at once, far quicker than one after the other."""

    def of_each(self, kept: IntArray) -> IntArray:
        """Return the costs (n,) at kept counts (n, n_groups)."""
        ...


def algorithm1_literal(
    a: npt.ArrayLike,
    w: npt.ArrayLike,
    d: float,
    a_max: float = 0.8,
    skip_first: bool = False,
    update_sum_in_place: bool = False,
) -> FloatArray:
    """Return the prune ratios a' as printed (AGMC, sec. 3.4.4, alg. 1).

    It can miss the budget (the share lost to `a_max` is given to nobody), and never corrects over-pruning;
    `meet_target` is what the search uses. All zero `a` would be 0/0: then nothing is added.

    Args:
        a: (n_groups,) proposed prune ratios in 0..1.
        w: (n_groups,) size of every layer, same unit as `d`.
        d: Size to remove.
        a_max: Upper bound of the ratios; 0.8 in the published code, no value in the paper.
        skip_first: Start the loop at 1 although actions are counted from 0, as printed.
        update_sum_in_place: Recompute the sum of `a` inside the loop, another reading of line 6.

    Returns:
        float64 (n_groups,), the ratios after re-scaling.
    """
    ratios = np.array(a, dtype=np.float64)
    sizes = np.asarray(w, dtype=np.float64)
    missing = d - float(sizes @ ratios)
    total = float(ratios.sum())
    if missing <= 0 or total == 0:
        return ratios
    for i in range(1 if skip_first else 0, len(ratios)):
        share = ratios[i] / (ratios.sum() if update_sum_in_place else total)
        ratios[i] = min(a_max, ratios[i] + missing * share / sizes[i])
    return ratios


@dataclass(frozen=True)
class Rescaled:
    """Kept counts that meet a budget.

    Attributes:
        kept: int64 (n_groups,), kept units.
        keep_ratio: float64 (n_groups,), kept units / units, in (0, 1].
        reached: Cost of `kept`.
        feasible: Whether the budget can be met at all; if not, `kept` is the smallest network allowed.
        best_reachable: Smallest cost that can be reached.
    """

    kept: IntArray
    keep_ratio: FloatArray
    reached: int
    feasible: bool
    best_reachable: int


def met(problem: Problem, keep_ratio: FloatArray) -> Rescaled:
    """Return a problem's kept counts in the proportions proposed, within its budget; see `meet_target`."""
    if problem.meet is not None:
        found: Rescaled = problem.meet(keep_ratio)
        return found
    if problem.depth is not None:
        return problem.depth.met(problem, keep_ratio)
    return meet_target(keep_ratio, problem.cost, problem.n_units, problem.step, problem.min_keep, problem.budget)


def rounded(problem: Problem, keep_ratio: FloatArray) -> Rescaled:
    """Return kept counts in the very proportions proposed, whatever they cost: the search of a policy without a budget."""
    units, steps, least = problem.n_units, problem.step, problem.min_keep
    wanted = np.rint(np.clip(keep_ratio, 0.0, 1.0) * units / steps).astype(np.int64) * steps
    kept = np.where(wanted + steps > units, units, np.maximum(wanted, least))
    return Rescaled(kept, kept / units, int(problem.cost(kept)), True, int(problem.cost(least)))


def meet_target(
    keep_ratio: npt.ArrayLike,
    cost: Callable[[IntArray], int],
    n_units: npt.ArrayLike,
    step: npt.ArrayLike,
    min_keep: npt.ArrayLike,
    budget: int,
) -> Rescaled:
    """Return kept counts in the proportions proposed whose true cost is at most the budget, and close to it.

    Prune ratios 1 - keep_ratio are multiplied by one common factor, as AGMC, sec. 3.4.4, alg. 1 does when all W are equal, both
    ways: a proposal that prunes too much is relaxed. As the factor grows from zero, groups lose their steps one after
    the other (at the factor where the rounding tips over); the order of these events is a path from nothing removed
    to everything removed, and the factor is bisected on the true integer cost along it. Groups with a prune ratio of
    0 (all of them, if all are 0) come after all others, uniformly. Then single steps are given back, each time the
    one that lands closest below the budget.

    The result does not depend on the order of the groups (except that of groups which tie in every respect), and
    neither path nor trials depend on the budget, so that a larger budget never reaches less (each round takes the
    largest cost that fits; where two budgets first differ, the larger one took a cost the smaller one could not
    afford).

    Args:
        keep_ratio: (n_groups,) proposal in 0..1.
        cost: True coupled cost of kept counts; never falls when a count grows.
        n_units: (n_groups,) units.
        step: (n_groups,) a kept count is a multiple of it, or `n_units`.
        min_keep: (n_groups,) smallest kept count.
        budget: Largest cost allowed.

    Returns:
        The counts; never above the budget when it is feasible.

    Raises:
        UsageError: If a proposal is not finite, or the arrays do not fit each other.
    """
    units = np.asarray(n_units, dtype=np.int64)
    least = np.asarray(min_keep, dtype=np.int64)
    steps = np.broadcast_to(np.asarray(step, dtype=np.int64), units.shape)
    ratio = np.asarray(keep_ratio, dtype=np.float64)
    _check(ratio, units, steps, least)
    least = np.minimum(-(-least // steps) * steps, units)
    floor_cost = int(cost(least.copy()))
    if floor_cost > budget:
        return Rescaled(least.copy(), least / units, floor_cost, False, floor_cost)
    path = _Path(1.0 - np.clip(ratio, 0.0, 1.0), units, steps, least)
    full_cost = int(cost(units.copy()))
    if full_cost <= budget:
        return Rescaled(units.copy(), np.ones(len(units)), full_cost, True, floor_cost)
    low, high, reached = 0, path.n_events, floor_cost  # cost after low events > budget >= cost after high events
    while high - low > 1:
        middle = (low + high) // 2
        middle_cost = int(cost(path.kept_after(middle)))
        if middle_cost <= budget:
            high, reached = middle, middle_cost
        else:
            low = middle
    kept = path.kept_after(high)
    if budget - reached > CLOSE_ENOUGH * full_cost:
        kept, reached = _give_back(path, high, reached, cost, budget=budget, close=CLOSE_ENOUGH * full_cost)
    return Rescaled(kept, kept / units, reached, True, floor_cost)


def costs_of(cost: Callable[[IntArray], int], kept: IntArray) -> IntArray:
    """Return the costs (n,) of kept counts (n, n_groups), all at once where the cost can (`pruning.cost.Cost`)."""
    return cost.of_each(kept) if isinstance(cost, ManyCosts) else np.array([int(cost(one)) for one in kept])


def _check(ratio: FloatArray, units: IntArray, steps: IntArray, least: IntArray) -> None:
    """Raise if the arguments of `meet_target` do not fit each other."""
    if not ratio.shape == units.shape == least.shape or ratio.ndim != 1:
        raise UsageError(
            f"meet_target: shapes differ, got {ratio.shape}, {units.shape}, {least.shape}; expected one length."
        )
    if not np.all(np.isfinite(ratio)):
        raise UsageError(f"meet_target: keep_ratio is not finite, got {ratio}; expected numbers in 0..1.")
    if np.any(least < 1) or np.any(least > units) or np.any(steps < 1):
        raise UsageError("meet_target: expected 1 <= min_keep <= n_units and step >= 1 for every group.")


class _Path:
    """Kept counts along the common scaling, one group losing one step at each event."""

    def __init__(self, prune: FloatArray, units: IntArray, steps: IntArray, least: IntArray) -> None:
        """Order the events; `prune` is the proposal, (n_groups,) in 0..1."""
        self.units, self.steps = units, steps
        self.top = (units - 1) // steps  # multiples of the step below all units; kept = top * step after one event
        n_steps = np.where(least < units, self.top - least // steps + 1, 0)
        group = np.repeat(np.arange(len(units)), n_steps)
        level = np.arange(len(group)) - np.repeat(np.cumsum(n_steps) - n_steps, n_steps)  # steps lost before
        before = self._level_kept(group, level)
        after = self._level_kept(group, level + 1)
        removed = 1.0 - (before + after) / (2.0 * units[group])  # prune ratio at which rounding tips over
        joins = prune[group] > 0
        factor = np.where(joins, removed / np.where(joins, prune[group], 1.0), removed)
        order = np.lexsort((group, prune[group], units[group], factor, ~joins))
        self.event_group = group[order]
        self.n_events = len(order)

    def _level_kept(self, group: IntArray, level: IntArray) -> IntArray:
        """Return kept counts of groups that lost `level` steps."""
        return np.where(level == 0, self.units[group], (self.top[group] - level + 1) * self.steps[group])

    def levels_after(self, n_events: int) -> IntArray:
        """Return int64 (n_groups,), steps every group lost in the first events."""
        return np.bincount(self.event_group[:n_events], minlength=len(self.units)).astype(np.int64)

    def kept_at(self, levels: IntArray) -> IntArray:
        """Return int64 (..., n_groups), kept counts when every group lost that many steps (..., n_groups)."""
        return self._level_kept(np.arange(len(self.units)), levels)

    def kept_after(self, n_events: int) -> IntArray:
        """Return int64 (n_groups,), kept counts after the first events."""
        return self.kept_at(self.levels_after(n_events))


def _give_back(
    path: _Path, start: int, reached: int, cost: Callable[[IntArray], int], *, budget: int, close: float
) -> tuple[IntArray, int]:
    """Return kept counts and cost after giving single steps back, best fit first.

    The first round also tries one step up from the next points of the path, which amounts to exchanging steps. A step
    that did not fit once never fits later, because the cost does not fall when other counts grow.
    """
    lowest = np.maximum(path.levels_after(start) - MAX_RAISE, 0)
    levels = path.levels_after(start)
    n_ahead = min(max(MAX_FIRST_TRIALS // len(levels), 1), 8)
    trials = np.array([path.levels_after(after) for after in range(start, min(start + n_ahead, path.n_events + 1))])
    may_fit = np.ones(len(levels), dtype=bool)
    for _ in range(MAX_REPAIRS):
        trial, group = np.nonzero((trials > lowest) & may_fit)
        if not len(group):
            break
        raised = trials[trial]
        raised[np.arange(len(group)), group] -= 1
        costs = costs_of(cost, path.kept_at(raised))
        fits = costs <= budget
        may_fit = np.isin(np.arange(len(levels)), group[fits])
        best = int(np.where(fits, costs, -1).argmax())
        if not fits[best] or costs[best] <= reached:
            break
        reached, levels = int(costs[best]), raised[best]
        if budget - reached <= close:
            break
        trials = levels[None]
    return path.kept_at(levels), reached

"""Greedy on refit-error curves: a handcrafted policy that needs a handful of evaluations."""

from __future__ import annotations

import numpy as np

from agmc_onnx.arrays import FloatArray
from agmc_onnx.policies.guide.prior import N_SETS, greedy_ratios, spread, widths_without
from agmc_onnx.policies.handcrafted import ListPolicy
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.problem import Outcome, Problem

N_NEAR, N_WIDTHS = 3, 9  # sets near the best one, and other widths without it (all there are), that are measured


def greedy_policy(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> ListPolicy | DeepGreedy:
    """Return the policy that proposes the greedy widths, with and without the groups that shortcuts join, and means of them.

    Source: ours. The error of a width is what is left of the consumers' outputs after a refit, each group alone
    (`refit.curves`), and again what the network's answers lose (`refit.divergence`); widths shrink by the step with the
    least loss per unit of cost. Without data the share of the importance that goes stands in for both.
    """
    if problem.depth is not None:
        return DeepGreedy(problem)
    candidates = greedy_ratios(problem)
    return ListPolicy(candidates or [np.full(problem.n_groups, 0.5)])


class DeepGreedy:
    """Greedy widths without more and more branches; then closer to the best of these, and other widths there.

    Source: ours. Branches go in the order of `search.depth.Depth.chain`; how many, measured candidates say.
    """

    def __init__(self, problem: Problem) -> None:
        assert problem.depth is not None
        self.problem = problem
        self.sets = problem.depth.chain(problem)
        self.waiting = spread(self.sets, N_SETS)
        self.n_episodes = len(self.waiting) + N_NEAR + N_WIDTHS
        self._tried: list[tuple[float, int]] = []  # reward, place in `sets`
        self._rest: list[FloatArray] | None = None
        self._at = 0
        self._known: dict[int, list[FloatArray]] = {}

    def _widths(self, place: int) -> list[FloatArray]:
        if place not in self._known:
            self._known[place] = widths_without(self.problem, self.sets[place])
        return self._known[place]

    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return the next proposal."""
        if self.waiting:
            self._at = self.sets.index(self.waiting.pop(0))
        elif self._near():
            self._at = self._near()[0]
        else:
            self._at = max(self._tried)[1]
            self._rest = self._widths(self._at)[1:] if self._rest is None else self._rest
            return self._rest.pop(0) if self._rest else self._widths(self._at)[0]
        self._tried.append((-np.inf, self._at))
        return self._widths(self._at)[0]

    def _near(self) -> list[int]:
        """Return the sets next to the best one that were not tried, the nearest first, while some may still be."""
        if len(self._tried) >= len(spread(self.sets, N_SETS)) + N_NEAR:
            return []
        tried, best = {place for _, place in self._tried}, max(self._tried)[1]
        return sorted(set(range(len(self.sets))) - tried, key=lambda place: (abs(place - best), place))

    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Note what came of a set."""
        self._tried = [(max(was, reward) if place == self._at else was, place) for was, place in self._tried]

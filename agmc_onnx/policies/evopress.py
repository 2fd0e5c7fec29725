"""EvoPress (Sieberling et al. 2025, arXiv:2410.14649): evolution by swaps that keep the budget. No table of errors, no networks.

Its alg. 1 is a (1 + lambda) evolution: offspring of the best candidate so far, by few level switches (one group gives, another
takes), and selection in several steps, each on more data with fewer survivors. Here the widths of groups are the levels, a
switch is a step of each, and the true cost says what fits. The steps of the selection are the search's: where candidates race
(`measuring.racing`), one that falls behind the best is measured on few images only, and survivors on more.
"""

from __future__ import annotations

import numpy as np

from agmc_onnx.arrays import FloatArray, IntArray
from agmc_onnx.search.budget import met
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.problem import Outcome, Problem

MOST_SWITCHES = 3  # of an offspring; the smaller of two draws of 1 to so many (published code)
MAX_TRIES = 64  # of an offspring that was not proposed yet


class EvoPressPolicy:
    """Begins at the uniform widths; each proposal is an offspring of the best candidate observed."""

    def __init__(self, problem: Problem, options: SearchOptions, rng: np.random.Generator) -> None:
        """Begin with nothing observed."""
        self.problem, self.n_episodes = problem, options.n_episodes
        self.best: tuple[float, IntArray] | None = None
        self.seen: set[tuple[int, ...]] = set()

    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return float64 (n_groups,) keep ratios of an offspring; at first those of the uniform widths."""
        kept = met(self.problem, np.full(self.problem.n_groups, 0.5)).kept
        if self.best is not None:
            for _ in range(MAX_TRIES):
                kept = self._offspring(self.best[1], rng)
                if tuple(kept.tolist()) not in self.seen:
                    break
        self.seen.add(tuple(kept.tolist()))
        return np.asarray(kept / self.problem.n_units)

    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Keep the best: offspring that are no worse take their parent's place (elitist selection, alg. 1)."""
        if self.best is None or reward >= self.best[0]:
            kept = np.rint(np.asarray(keep_ratio_executed) * self.problem.n_units).astype(np.int64)
            self.best = reward, kept

    def _offspring(self, parent: IntArray, rng: np.random.Generator) -> IntArray:
        """Return a parent's widths after a few level switches, within the budget."""
        kept = parent.copy()
        for _ in range(int(rng.integers(1, MOST_SWITCHES + 1, 2).min())):
            order = rng.permutation(self.problem.n_groups)
            taker = next((g for g in order.tolist() if kept[g] < self.problem.n_units[g]), None)
            if taker is not None:
                self._step(kept, taker, 1)
            for giver in [g for g in order.tolist() if g != taker]:
                if self.problem.cost(kept) <= self.problem.budget:
                    break
                self._step(kept, giver, -1)
        return kept

    def _step(self, kept: IntArray, group: int, sign: int) -> None:
        """Move a group's kept count by one step, in place, within its limits; below the least its branch goes."""
        if self._switched(kept, group, sign):
            return
        whole, step, least = (int(a[group]) for a in (self.problem.n_units, self.problem.step, self.problem.min_keep))
        top = (whole - 1) // step * step  # the largest multiple below all units
        down = top if kept[group] == whole else int(kept[group]) - step
        up = whole if kept[group] >= top else int(kept[group]) + step
        kept[group] = min(up, whole) if sign > 0 else max(down, least)

    def _switched(self, kept: IntArray, group: int, sign: int) -> bool:
        """Let the smallest branch of a group go, or come back at its least widths, in place; return whether that was the step."""
        depth, least = self.problem.depth, np.asarray(self.problem.min_keep)
        holding = [] if depth is None else [b for b, groups in enumerate(depth.groups) if group in groups]
        if depth is None or not holding or not (kept[group] == 0 if sign > 0 else kept[group] == least[group]):
            return False
        branch = min(holding, key=lambda b: len(depth.groups[b]))
        if sign > 0:
            kept[depth.groups[branch]] = least[depth.groups[branch]]
            return True
        gone = {b for b, groups in enumerate(depth.groups) if not kept[groups].any()} | {branch}
        if depth.possible(gone) != gone:
            return False
        kept[depth.nothing(gone)] = 0
        return True

"""Searches without networks: per-layer sensitivity (FP), global ranking, local search, Optuna's TPE, and CMA-ES."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from agmc_onnx.arrays import FloatArray, IntArray
from agmc_onnx.policies.guide.prior import ScoreCurves, greedy_candidates
from agmc_onnx.policies.handcrafted import ListPolicy
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.policy import SMALLEST
from agmc_onnx.search.problem import Outcome, Problem

RATIOS = (0.5, 0.25, 0.75)  # keep ratios at which sensitivity is measured, in this order
LEAST = 0.05  # smallest keep ratio that TPE and CMA-ES propose
CMAES_WIDTH = 0.05  # deviation of keep ratios with which CMA-ES begins


def global_ranking(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> ListPolicy:
    """Return the policy that ranks the units of all groups together, and removes the lowest until the budget is met.

    Scores are divided by the mean of their group, as in Molchanov et al. 2017, arXiv:1611.06440, section 2.2 (there the
    L2 norm of the layer; the mean does not depend on the number of units). Without scores all groups are alike.
    """
    if problem.scores is None:
        return ListPolicy([np.full(problem.n_groups, 0.5)])
    scaled = [np.asarray(s, np.float64) / max(float(np.mean(s)), 1e-30) for s in problem.scores]
    every = np.unique(np.concatenate(scaled))
    steps = np.asarray(problem.step, np.int64)

    def kept_above(threshold: float) -> IntArray:
        counts = np.array([int((s >= threshold).sum()) for s in scaled], np.int64)
        whole = counts >= problem.n_units
        return np.where(whole, problem.n_units, np.clip(counts // steps * steps, problem.min_keep, problem.n_units))

    low, high = 0, len(every) - 1  # thresholds by place: the cost falls with it
    while low < high:
        middle = (low + high) // 2
        if problem.cost(kept_above(float(every[middle]))) <= problem.budget:
            high = middle
        else:
            low = middle + 1
    return ListPolicy([kept_above(float(every[low])) / problem.n_units])


class SensitivityPolicy:
    """Measures every group alone, then goes greedily down the measured curves; Li et al. 2017 (FP), arXiv:1608.08710, 3.2.

    The measurements are not at the budget, so they are no candidates; each takes the place of an episode, so that this
    policy has as many evaluations as any other. A group that no episode was left for gets the mean curve.

    Attributes:
        n_extra: Evaluations made outside of episodes so far.
    """

    def __init__(self, problem: Problem, n_episodes: int) -> None:
        """Plan the measurements: the whole network, all groups at the first of `RATIOS`, then at the second, and so on."""
        self.problem = problem
        n_final = 1 + int(problem.is_joined is not None and bool(problem.is_joined.any()))
        plan = [(group, ratio) for ratio in RATIOS for group in range(problem.n_groups)]
        self.plan = plan[: max(n_episodes - n_final - 1, 0)]
        self.n_episodes = min(n_final, n_episodes)
        self.n_extra = 0
        self.waiting: list[FloatArray] | None = None

    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return the next candidate; the first call measures."""
        if self.waiting is None:
            curves = self._measured()
            self.waiting = list(greedy_candidates(self.problem, curves))
        return self.waiting.pop(0) if self.waiting else np.full(self.problem.n_groups, 0.5)

    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Learn nothing more."""

    def _measured(self) -> ScoreCurves:
        """Return the metric lost at the measured widths, never less at a smaller one."""
        problem = self.problem
        units, steps = np.asarray(problem.n_units, np.int64), np.asarray(problem.step, np.int64)
        ratios: list[dict[float, float]] = [{1.0: 0.0} for _ in units]
        if self.plan:
            whole = self._metric(units)
            for group, ratio in self.plan:
                kept = units.copy()
                kept[group] = max(round(ratio * units[group] / steps[group]) * steps[group], problem.min_keep[group])
                ratios[group][float(kept[group] / units[group])] = max(whole - self._metric(kept), 0.0)
        grid = np.linspace(0.0, 1.0, 65)
        lines: list[Any] = [_falling(known, grid) if len(known) > 1 else None for known in ratios]
        seen = [line for line in lines if line is not None]
        mean = np.mean(seen, axis=0) if seen else 1.0 - grid
        counts = tuple(np.arange(1, n + 1) for n in units.tolist())
        lines = [mean if line is None else line for line in lines]
        return ScoreCurves(
            counts, tuple(np.interp(c / c[-1], grid, line) for c, line in zip(counts, lines, strict=True))
        )

    def _metric(self, kept: IntArray) -> float:
        """Return the metric at kept counts."""
        self.n_extra += 1
        return self.problem.evaluate(kept.copy()).judged


def _falling(known: dict[float, float], grid: FloatArray) -> FloatArray:
    """Return a loss that falls with the keep ratio at the points of a grid, twice the lowest measured one at 0."""
    ratio = np.array(sorted(known))
    loss = np.maximum.accumulate(np.array([known[r] for r in ratio.tolist()])[::-1])[::-1]
    loss = loss + 1e-3 * (1.0 - ratio)  # of steps that cost nothing, the largest first
    return np.interp(grid, np.concatenate([[0.0], ratio]), np.concatenate([[2.0 * loss[0]], loss]))


class LocalPolicy:
    """Random local search: noise on a few groups of the best candidate so far; stays where it is better."""

    def __init__(self, problem: Problem, n_episodes: int) -> None:
        """Start from the uniform ratio, or from what is observed first."""
        self.n_episodes = n_episodes
        self.n_groups = problem.n_groups
        self.width = 0.3
        self.best: tuple[float, FloatArray] | None = None

    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return the best candidate with noise on two groups or more, a quarter of all on average."""
        if self.best is None:
            return np.full(self.n_groups, 0.5)
        chosen = rng.random(self.n_groups) < 0.25
        chosen[rng.permutation(self.n_groups)[:2]] = True
        moved = self.best[1] + chosen * self.width * rng.standard_normal(self.n_groups)
        return np.clip(moved, SMALLEST, 1.0)

    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Keep the best; the noise grows by a fifth after a better candidate and shrinks by 4 % after another."""
        if self.best is None or reward > self.best[0]:
            self.width = min(self.width * 1.2, 0.4) if self.best is not None else self.width
            self.best = reward, np.array(keep_ratio_executed, np.float64)
        else:
            self.width = max(self.width * 0.96, 0.08)


class TpePolicy:
    """Optuna's tree-structured Parzen estimator (Akiba et al. 2019, arXiv:1907.10902) through its ask-and-tell interface."""

    def __init__(self, problem: Problem, options: SearchOptions, rng: np.random.Generator) -> None:
        """Make the study."""
        self.n_episodes = options.n_episodes
        self.optuna = importlib.import_module("optuna")
        self.optuna.logging.set_verbosity(self.optuna.logging.ERROR)
        uniform = self.optuna.distributions.FloatDistribution(LEAST, 1.0)
        self.space = {f"keep_{group}": uniform for group in range(problem.n_groups)}
        sampler = self.optuna.samplers.TPESampler(seed=int(rng.integers(2**31)), multivariate=True)
        self.study = self.optuna.create_study(direction="maximize", sampler=sampler)
        self.trial: Any = None

    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return the sampler's next point."""
        self.trial = self.study.ask(self.space)
        return np.array([self.trial.params[name] for name in self.space])

    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Tell the study; a candidate it did not ask for is added at the ratios executed."""
        if self.trial is not None:
            self.study.tell(self.trial, reward)
            self.trial = None
            return
        ratios = np.clip(keep_ratio_executed, LEAST, 1.0).tolist()
        params = dict(zip(self.space, ratios, strict=True))
        self.study.add_trial(self.optuna.trial.create_trial(params=params, distributions=self.space, value=reward))


class CmaesPolicy:
    """CMA-ES (Hansen 2016, arXiv:1604.00772) as in the package cmaes, which Optuna uses too.

    It learns from no candidates but its own, so it begins at the best one observed before: Optuna's sampler would begin in the
    middle of the space.
    """

    def __init__(self, problem: Problem, options: SearchOptions, rng: np.random.Generator) -> None:
        """Find the package."""
        self.n_episodes, self.n_groups = options.n_episodes, problem.n_groups
        self.cmaes, self.seed = importlib.import_module("cmaes"), int(rng.integers(2**31))
        self.best: tuple[float, FloatArray] | None = None
        self.optimizer: Any = None
        self.asked: FloatArray | None = None
        self.told: list[tuple[FloatArray, float]] = []

    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return the next point of a generation."""
        start = np.full(self.n_groups, 0.5) if self.best is None else self.best[1]
        if self.n_groups == 1:  # the budget decides; and a covariance needs two
            return start
        if self.optimizer is None:
            bounds = np.tile([LEAST, 1.0], (self.n_groups, 1))
            self.optimizer = self.cmaes.CMA(mean=start, sigma=CMAES_WIDTH, bounds=bounds, seed=self.seed)
        self.asked = np.asarray(self.optimizer.ask(), np.float64)
        return self.asked

    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Keep the best, and tell whole generations, at the ratios asked for."""
        if self.best is None or reward > self.best[0]:
            self.best = reward, np.clip(keep_ratio_executed, LEAST, 1.0)
        if self.asked is None:
            return
        self.told.append((self.asked, -reward))
        self.asked = None
        if len(self.told) == self.optimizer.population_size:
            self.optimizer.tell(self.told)
            self.told = []


def sensitivity(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> SensitivityPolicy:
    """Return the policy that measures every group alone."""
    return SensitivityPolicy(problem, options.n_episodes)


def local(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> LocalPolicy:
    """Return random local search."""
    return LocalPolicy(problem, options.n_episodes)


def tpe(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> TpePolicy:
    """Return Optuna's tree-structured Parzen estimator."""
    return TpePolicy(problem, options, rng)


def cmaes(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> CmaesPolicy:
    """Return CMA-ES."""
    return CmaesPolicy(problem, options, rng)

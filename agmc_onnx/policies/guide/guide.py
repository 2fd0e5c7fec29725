"""What guides a policy that learns: from the episodes so far, which widths near its own lose least.

A policy proposes; the guide climbs from there on its error model, and the search evaluates what it finds. So a network need
not learn again what the error curves and a linear model of them say already.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agmc_onnx.arrays import FloatArray
from agmc_onnx.policies.guide import generalist
from agmc_onnx.policies.guide.error_model import ErrorModel, Tables, normalised
from agmc_onnx.policies.guide.linear_budget import fit_linear_budget
from agmc_onnx.policies.guide.prior import best_curves
from agmc_onnx.search.budget import met
from agmc_onnx.search.depth import GONE
from agmc_onnx.search.policy import SMALLEST
from agmc_onnx.search.problem import Curves, Problem

N_GRID = 33  # keep ratios at which an error curve is read
FARTHEST, NEAREST = 0.3, 0.15  # how far a climb may move a keep ratio, in the first and in the last episode
N_NEIGHBOURS, N_CENTRES = 96, 8  # plans tried beside the best episodes, and how many of those
N_SWITCHED = 24  # plans tried in which other branches are gone than in one of the best episodes
N_MOVED = 3  # groups in which a neighbour differs, on average
PATIENCE = 6  # episodes without a better one after which it looks there, too
PER_PREFERRED = 3  # groups for each of the prior's candidates that a search measures
DRAWN_EVERY = 2  # from then on one proposal of so many is chosen by drawn weights


class Guide:
    """Episodes, the error model fitted to them, and the budget near the best one.

    Attributes:
        model: The error model.
        budget: Linear, near the best episode; before the first, near the uniform solution.
        best: Reward and keep ratios float32 (n_groups,) of the best episode, or None.
        is_taught: Whether the error model starts from what the generalist says.
    """

    def __init__(
        self, problem: Problem, n_episodes: int, generator: torch.Generator, use_generalist: bool = True
    ) -> None:
        """Read the curves; `generator` is the only source of randomness."""
        self.problem, self.n_episodes, self.generator = problem, n_episodes, generator
        self.budget = fit_linear_budget(problem)
        self.tables = error_tables(problem, self.budget.keep_ratio)
        told = self._told() if use_generalist else None
        self.is_taught = told is not None
        # later errors count more (`policies.guide.prior.later_counts_more`); here as weights learned from candidates do, linearly
        depth = (torch.arange(problem.n_groups) + 0.5) / problem.n_groups
        self._shapes = [(2 * depth).expand(self.tables.errors.shape[:2])]
        if told is not None:  # the episodes say which of both holds here
            self._shapes.insert(0, told)
        self.model = ErrorModel.fit(self.tables, torch.zeros(0, problem.n_groups), torch.zeros(0), self._shapes)
        self.best: tuple[float, Tensor] | None = None
        self._episodes: list[tuple[Tensor, float]] = []
        self._seen: set[tuple[int, ...]] = set()
        self._n_favourites = self._n_stale = 0

    def observe(self, actions: Tensor, reward: float) -> None:
        """Learn from an episode: executed keep ratios (n_groups,) and the reward."""
        kept = np.rint(actions.double().numpy() * self.problem.n_units).astype(np.int64)
        self._seen.add(tuple(kept.tolist()))
        self._episodes.append((actions, reward))
        self._n_stale += 1
        if self.best is None or reward > self.best[0]:
            self.best, self._n_stale = (reward, actions), 0
            self.budget = fit_linear_budget(self.problem, kept)
        rewards = normalised(torch.tensor([reward for _, reward in self._episodes]))
        actions = torch.stack([actions for actions, _ in self._episodes])
        self.model = ErrorModel.fit(self.tables, actions, rewards, self._shapes)

    def preferred(self, candidates: list[FloatArray], least: int, n: int | None = None) -> list[FloatArray]:
        """Return the n of these keep ratios (n_groups,) that the generalist expects to lose least, its favourite first.

        What is judged is what they are executed as. Where it says nothing all of them, as they are. By default one for every
        `PER_PREFERRED` groups, at least `least`: the more groups, the more weights to learn before own plans are better.
        """
        if not self.is_taught:
            return candidates
        n = n or max(least, self.problem.n_groups // PER_PREFERRED)
        executed = [met(self.problem, one).keep_ratio for one in candidates]
        expected = self.model.expected(torch.as_tensor(np.array(executed)))
        return [candidates[place] for place in expected.argsort(descending=True, stable=True)[:n].tolist()]

    def centres(self, n: int) -> Tensor:
        """Return keep ratios (n, n_groups) to climb from: the best episode's, and means of the best 2, 4, 8 ... episodes.

        What is good by chance is averaged out, and errors are nearly convex: see `policies.guide.prior.blends`.
        """
        ordered = sorted(self._episodes, key=lambda episode: -episode[1])
        return torch.stack([torch.stack([a for a, _ in ordered[: 2**i]]).mean(0) for i in range(n)])

    def climb(self, starts: Tensor, reach: float | None = None) -> Tensor:
        """Return what loses least near each of `starts` (n, n_groups); the first by expected weights, the rest by drawn ones.

        Args:
            starts: Keep ratios.
            reach: How far one may move; by default less the more episodes are done.
        """
        done = min(len(self._episodes) / max(self.n_episodes, 1), 1.0)
        near = FARTHEST + (NEAREST - FARTHEST) * done if reach is None else reach
        return self.model.climb(self.budget.rescale(starts), self.budget, self.generator, near)

    def neighbours(self) -> Tensor:
        """Return keep ratios (N_NEIGHBOURS, n_groups) a step or two away, in a few groups, from one of the best episodes.

        Where steps are large, all climbs end at the same few plans, and those are old soon; what is a step away need not be. As
        long as climbs find better plans they are the better proposals, most of all among many groups.
        """
        best = sorted(self._episodes, key=lambda episode: -episode[1])[:N_CENTRES]
        shape = (N_NEIGHBOURS, self.problem.n_groups)
        centre = torch.randint(len(best), shape[:1], generator=self.generator)
        moved = torch.rand(shape, generator=self.generator) < N_MOVED / self.problem.n_groups
        steps = torch.tensor([-2, -1, 1, 2])[torch.randint(4, shape, generator=self.generator)]
        step = torch.as_tensor(np.asarray(self.problem.step) / np.asarray(self.problem.n_units))
        return torch.stack([actions for actions, _ in best]).double()[centre] + moved * steps * step

    def switched(self) -> Tensor:
        """Return keep ratios (N_SWITCHED, n_groups) of one of the best episodes, but with a branch more gone, or back, or both.

        What is a motif's action is none of a climb's: on the way from a narrow branch to none at all the answers only get worse.
        """
        depth, best = self.problem.depth, sorted(self._episodes, key=lambda episode: -episode[1])[:N_CENTRES]
        if depth is None or not best:
            return torch.zeros(0, self.problem.n_groups, dtype=torch.float64)
        found = []
        for _ in range(N_SWITCHED):
            ratio = best[int(torch.randint(len(best), (), generator=self.generator))][0].double().clone()
            gone = [groups for groups in depth.groups if float(ratio[groups].max()) < GONE]
            left = [groups for groups in depth.groups if float(ratio[groups].max()) >= GONE]
            kind = int(torch.randint(3, (), generator=self.generator))
            for groups, value in ((left, 0.0), (gone, 1.0)):
                if groups and (kind == 2 or kind == int(value)):
                    which = groups[int(torch.randint(len(groups), (), generator=self.generator))]
                    ratio[which] = value * float(torch.rand((), generator=self.generator) / 2 + 0.5)
            found.append(ratio)
        return torch.stack(found)

    def favourite(self, starts: Tensor) -> FloatArray:
        """Return the best new keep ratios (n_groups,) that climbs find; from farther away where all near are old.

        What is judged is what they are executed as, brought to the budget in whole channels: a step of few channels is as
        large as what a climb gains. When the best episode is `PATIENCE` old, neighbours are judged too, and one of
        `DRAWN_EVERY` proposals is chosen by weights drawn from what they may be, so that what the model is wrong about is tried.

        Args:
            starts: float (n, n_groups), where climbs begin.
        """
        self._n_favourites += 1
        is_stuck = self._n_stale >= PATIENCE
        is_drawn = is_stuck and self._n_favourites % DRAWN_EVERY == 0
        for reach in (None, FARTHEST, 2 * FARTHEST):
            found = self.climb(starts, reach).double()
            more = [self.neighbours()] if is_stuck else []
            fresh = self._fresh(torch.cat([found, self.switched(), *more]))
            if fresh:
                executed = torch.as_tensor(np.array(list(fresh)) / self.problem.n_units)
                values = self.model.expected(executed, self.generator if is_drawn else None)
                return self._taken(fresh, int(values.argmax()))
        return self.first_new(starts)

    def first_new(self, candidates: Tensor) -> FloatArray:
        """Return the keep ratios (n_groups,) of the first candidate not proposed or seen yet; of the first if all were."""
        fresh = self._fresh(candidates)
        return self._taken(fresh, 0) if fresh else np.clip(candidates[0].double().numpy(), SMALLEST, 1.0)

    def _fresh(self, found: Tensor) -> dict[tuple[int, ...], FloatArray]:
        """Return these keep ratios (n, n_groups) by the kept counts they are executed as, without what was proposed or seen.

        Executed counts are no proposal for themselves: what is left of the budget may be spent otherwise the second time.
        """
        ratios = np.clip(found.double().numpy(), SMALLEST, 1.0)
        by_key: dict[tuple[int, ...], FloatArray] = {}
        for one in ratios:
            by_key.setdefault(tuple(met(self.problem, one).kept.tolist()), one)
        return {key: ratio for key, ratio in by_key.items() if key not in self._seen}

    def _taken(self, fresh: dict[tuple[int, ...], FloatArray], place: int) -> FloatArray:
        """Return one of them, which is seen from now on: others of a batch are proposed before it is observed."""
        key = list(fresh)[place]
        self._seen.add(key)
        return fresh[key]

    def _told(self) -> Tensor | None:
        """Return the generalist's weights (n_kinds, n_groups), or None where it has not what it was trained on."""
        if self.problem.curves is None or self.problem.divergence is None or self.problem.is_joined is None:
            return None
        if self.problem.density_weight is not None:
            return None  # densities are no groups of the graph
        budget = self.budget
        return generalist.weights_of(
            generalist.sight(self.problem, self.tables.errors, budget.weight, budget.keep_ratio)
        )


def error_tables(problem: Problem, around: Tensor) -> Tables:
    """Return what is known of the groups' errors, in units of what they vary near `around` (n_groups,).

    These are the refit errors and the divergence of the outputs where there is data; without it the share of the
    importance that goes, and the square of the share of units.
    """
    kinds = [on_grid(best_curves(problem), problem)]
    if problem.divergence is not None:
        kinds.append(on_grid(problem.divergence(), problem))
    elif problem.curves is None:
        kinds.append(np.tile((1.0 - np.linspace(0.0, 1.0, N_GRID)) ** 2, (problem.n_groups, 1)))
    return Tables(torch.as_tensor(np.array(kinds))).standardised(around.double())


def on_grid(curves: Curves, problem: Problem) -> FloatArray:
    """Return the errors (n_groups, N_GRID) at evenly spaced keep ratios."""
    grid = np.linspace(0.0, 1.0, N_GRID)
    errors = [
        np.interp(grid, counts / n, error)
        for counts, error, n in zip(curves.counts, curves.errors, problem.n_units.tolist(), strict=True)
    ]
    return np.array(errors)

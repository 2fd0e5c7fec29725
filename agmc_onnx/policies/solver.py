"""The solver: widths whose known errors add up to the least, under the true coupled cost, with a proof of how near that is.

A baseline that knows nothing but tables, as HALP (arXiv:2110.10811), SPDY (arXiv:2201.13096) and ZipLM (arXiv:2302.04089) do. A
convolution's cost is a product of two kept counts, so that costs are no sum over the groups; they are sums over pairs of them:

    cost(k) = cost(n) + sum_g u_g(k_g) + sum_{g < h} b_gh (n_g - k_g) (n_h - k_h).

Where layers may go, a group of a branch has the choice of 0 too, which all groups of the branch make together.

Each product of a width and a choice among widths is written with one part of the width for every choice (the convex hull of the
two), which makes a mixed-integer linear program of it; HiGHS (Huangfu and Hall 2018) branches and bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from agmc_onnx.arrays import FloatArray, IntArray
from agmc_onnx.policies.guide.prior import best_curves, later_counts_more
from agmc_onnx.search.budget import costs_of
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.problem import Curves, Outcome, Problem

MAX_NODES, MAX_S = (
    4000,
    60.0,
)  # of the branching: the first ends it alike on every machine, the second is for emergencies
N_CHECKS = 32  # random widths at which the pairwise form is compared with the true cost


@dataclass(frozen=True, eq=False)
class PairCost:
    """A coupled cost as a sum over groups and pairs of groups.

    Attributes:
        options: For each group the kept counts allowed, ascending; the last one keeps all.
        full: The cost of keeping all.
        alone: For each group what its options change of it, int, 0 at the last.
        pairs: int (n_pairs, 2), groups whose widths multiply.
        factor: float64 (n_pairs,), b of each pair.
        is_exact: Whether it is the true cost at all widths that were tried.
        atoms: Groups that keep nothing together; each has 0 among its options.
    """

    options: tuple[IntArray, ...]
    full: int
    alone: tuple[IntArray, ...]
    pairs: IntArray
    factor: FloatArray
    is_exact: bool
    atoms: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, problem: Problem) -> PairCost:
        """Return the form of a problem's cost, read off its differences at the full widths."""
        units, n = np.asarray(problem.n_units, np.int64), problem.n_groups
        options = tuple(
            np.unique(np.append(np.arange(least, whole + 1, step), whole))
            for least, whole, step in zip(problem.min_keep.tolist(), units.tolist(), problem.step.tolist(), strict=True)
        )
        full = int(problem.cost(units))
        atoms = () if problem.depth is None else tuple(map(tuple, problem.depth.atoms))

        def changed(*moves: tuple[int, int]) -> IntArray:
            kept = units.copy()
            for group, count in moves:
                kept[group] = count
            return kept

        alone = tuple(
            costs_of(problem.cost, np.array([changed((g, count)) for count in counts.tolist()])) - full
            for g, counts in enumerate(options)
        )
        every = np.array([(g, h) for g in range(n) for h in range(g + 1, n)], np.int64).reshape(-1, 2)
        least = np.array([counts[0] for counts in options])
        both = np.array([changed((g, least[g]), (h, least[h])) for g, h in every.tolist()]).reshape(len(every), n)
        lowest = np.array([one[0] for one in alone])
        rest = costs_of(problem.cost, both) - full - lowest[every].sum(axis=1)
        area = (units - least)[every].prod(axis=1)
        is_pair = (rest != 0) & (area > 0)
        pairs, factor = every[is_pair], rest[is_pair] / area[is_pair]
        for groups in atoms:  # the first has what the branch saves, less what its pairs say already
            nothing = changed(*((g, 0) for g in groups))
            within = np.isin(pairs, groups).all(axis=1)
            saved = int(problem.cost(nothing)) - full - float(units[pairs[within]].prod(axis=1) @ factor[within])
            for g in groups:
                own = np.concatenate([[round(saved) if g == groups[0] else 0], alone[g]])
                alone = (*alone[:g], own, *alone[g + 1 :])
                options = (*options[:g], np.concatenate([[0], options[g]]), *options[g + 1 :])
        made = cls(options, full, alone, pairs, factor, True, atoms)
        rng = np.random.default_rng(0)
        trials = np.array([[rng.choice(counts[counts > 0]) for counts in options] for _ in range(N_CHECKS)])
        for groups in atoms:
            trials[np.ix_(rng.random(N_CHECKS) < 0.3, np.array(groups))] = 0
        near = np.abs(made(trials) - costs_of(problem.cost, trials)).max() <= 1e-6 * max(full, 1)
        return replace(made, is_exact=bool(near))

    def __call__(self, kept: IntArray) -> FloatArray:
        """Return the costs (n,) at kept counts (n, n_groups)."""
        units = np.array([counts[-1] for counts in self.options])
        gone = units - kept
        alone = sum(
            one[np.searchsorted(counts, kept[:, g])]
            for g, (counts, one) in enumerate(zip(self.options, self.alone, strict=True))
        )
        return np.asarray(self.full + alone + (gone[:, self.pairs].prod(axis=2) * self.factor).sum(axis=1))


@dataclass(frozen=True, eq=False)
class Solution:
    """Widths, and how good they are.

    Attributes:
        kept: int64 (n_groups,).
        error: Sum of their errors.
        bound: No widths within the budget have a smaller sum, if the cost is what `PairCost` says.
        is_exact: Whether it is known to be the best: the cost is exact, and the gap 0.
    """

    kept: IntArray
    error: float
    bound: float
    is_exact: bool

    @property
    def gap(self) -> float:
        """(error - bound) / error, 0 or more."""
        return max(self.error - self.bound, 0.0) / max(abs(self.error), 1e-12)


def solve(errors: list[FloatArray], cost: PairCost, budget: int) -> Solution | None:
    """Return the widths with the least sum of errors whose cost is at most the budget.

    Args:
        errors: For each group its errors at `cost.options`.
        cost: The cost.
        budget: Largest cost allowed.

    Returns:
        The best found within `MAX_NODES`; None if none was.
    """
    sizes = [len(counts) for counts in cost.options]
    first = np.concatenate([[0], np.cumsum(sizes)])
    gone = [counts[-1] - counts for counts in cost.options]
    # Of each pair, the one with fewer options is the choice, and the other's units are divided among its options.
    pairs = [(g, h) if sizes[h] <= sizes[g] else (h, g) for g, h in cost.pairs.tolist()]
    starts = first[-1] + np.concatenate([[0], np.cumsum([sizes[h] for _, h in pairs])]).astype(np.int64)
    n_variables = int(starts[-1])
    entries: list[tuple[int, int, float]] = []
    low: list[float] = []
    high: list[float] = []

    def row(columns: IntArray, values: FloatArray | IntArray, least: float, most: float) -> None:
        entries.extend((len(low), int(c), float(v)) for c, v in zip(columns, values, strict=True))
        low.append(least)
        high.append(most)

    for g, size in enumerate(sizes):
        row(np.arange(first[g], first[g + 1]), np.ones(size), 1.0, 1.0)
    weights = np.zeros(n_variables)
    weights[: first[-1]] = np.concatenate(cost.alone)
    for (g, h), start, factor in zip(pairs, starts[:-1].tolist(), cost.factor.tolist(), strict=True):
        parts = np.arange(start, start + sizes[h])
        row(
            np.concatenate([parts, np.arange(first[g], first[g + 1])]),
            np.concatenate([np.ones(sizes[h]), -gone[g]]),
            0.0,
            0.0,
        )
        for part, chosen in zip(parts.tolist(), range(first[h], first[h + 1]), strict=True):
            row(np.array([part, chosen]), np.array([1.0, -float(gone[g].max())]), -np.inf, 0.0)
        weights[parts] = factor * gone[h]
    row(np.arange(n_variables), weights / budget, -np.inf, (budget - cost.full) / budget)
    for one, *others in cost.atoms:
        for other in others:
            row(np.array([first[one], first[other]]), np.array([1.0, -1.0]), 0.0, 0.0)
    rows, columns, values = zip(*entries, strict=True)
    matrix = coo_array((values, (rows, columns)), shape=(len(low), n_variables)).tocsc()
    goal = np.zeros(n_variables)
    goal[: first[-1]] = np.concatenate(errors)
    is_choice = np.arange(n_variables) < first[-1]
    found = milp(
        goal,
        constraints=LinearConstraint(matrix, low, high),
        integrality=is_choice.astype(int),
        bounds=Bounds(0.0, np.where(is_choice, 1.0, np.inf)),
        options={"node_limit": MAX_NODES, "time_limit": MAX_S, "mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    places = [int(found.x[first[g] : first[g + 1]].argmax()) for g in range(len(sizes))]
    kept = np.array([counts[place] for counts, place in zip(cost.options, places, strict=True)], np.int64)
    error = float(sum(one[place] for one, place in zip(errors, places, strict=True)))
    bound = min(float(found.mip_dual_bound), error)
    is_best = cost.is_exact and error - bound <= 1e-9 * max(abs(error), 1.0)
    return Solution(kept, error, bound, is_best)


class SolverPolicy:
    """Proposes the solution for every kind of known errors; guided, the one for what the error model expects.

    Attributes:
        notes: What to say of every solution: how near it is to the optimum.
    """

    def __init__(self, problem: Problem, options: SearchOptions, rng: np.random.Generator) -> None:
        """Read off the cost's form."""
        self.problem, self.cost = problem, PairCost.of(problem)
        self.kinds = known_errors(problem, self.cost)
        self.n_episodes = len(self.kinds)
        self.episode = 0
        self.told: list[FloatArray] | None = None
        self.notes: list[str] = []

    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return float64 (n_groups,) keep ratios of the solution for what was told, or for the next kind of errors."""
        errors = self.told or self.kinds[self.episode % len(self.kinds)]
        self.episode += 1
        found = solve(errors, self.cost, self.problem.budget)
        if found is None:
            self.notes.append(f"solver: nothing found in {MAX_NODES} nodes; the uniform widths are taken")
            return np.full(self.problem.n_groups, 0.5)
        said = "exact" if found.is_exact else "not exact"
        self.notes.append(
            f"solver: errors add up to {found.error:.6g}, bound {found.bound:.6g}, gap {found.gap:.2g}, {said}"
        )
        return found.kept / self.problem.n_units

    def know(self, table: FloatArray) -> None:
        """Take what actions cost from the guide's error model (n_groups, n_grid), at evenly spaced keep ratios."""
        grid = np.linspace(0.0, 1.0, np.asarray(table).shape[1])
        self.told = [
            np.interp(counts / counts[-1], grid, one)
            for counts, one in zip(self.cost.options, np.asarray(table, np.float64), strict=True)
        ]

    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Learn nothing: the guide does, and tells (`know`)."""


def known_errors(problem: Problem, cost: PairCost) -> list[list[FloatArray]]:
    """Return the errors of every group at its options, by kind: refit errors or their stand-in, these counted more further back,
    and what the outputs say, where there is data for them."""
    curves: list[Curves] = [best_curves(problem)]
    if problem.curves is not None:
        curves.append(later_counts_more(curves[0]))
    if problem.divergence is not None:
        curves.append(problem.divergence())
    return [
        [np.array([one.error(g, int(count)) for count in counts]) for g, counts in enumerate(cost.options)]
        for one in curves
    ]

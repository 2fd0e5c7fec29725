"""Candidates and curves that are known before the first evaluation, for every policy alike."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from agmc_onnx.arrays import FloatArray, IntArray
from agmc_onnx.errors import BudgetError
from agmc_onnx.search.depth import rest_of
from agmc_onnx.search.problem import Curves, Problem

LOG = logging.getLogger(__name__)
Float64Array = FloatArray
N_SETS = 6  # sets of branches gone that candidates are made of, from none to so many that the rest may stay whole


@dataclass(frozen=True, eq=False)
class ScoreCurves:
    """What stands in for refit errors where there is no data: the share of a group's importance that is removed.

    Attributes:
        counts: As `Curves`.
        errors: As `Curves`.
    """

    counts: tuple[IntArray, ...]
    errors: tuple[Float64Array, ...]

    def error(self, group: int, n_kept: int) -> float:
        """Return a group's error at any count, interpolated."""
        return float(np.interp(n_kept, self.counts[group], self.errors[group]))


def score_curves(problem: Problem) -> ScoreCurves:
    """Return the share of the squared scores that goes at every width; of equal scores where none are known."""
    counts, errors = [], []
    for group, n in enumerate(problem.n_units.tolist()):
        scores = np.ones(n) if problem.scores is None else np.asarray(problem.scores[group], np.float64)
        power = np.sort(scores)[::-1] ** 2
        total = float(power.sum())
        counts.append(np.arange(1, n + 1))
        errors.append(np.maximum(1.0 - np.cumsum(power) / total, 0.0) if total > 0 else 1.0 - counts[-1] / n)
    return ScoreCurves(tuple(counts), tuple(errors))


def best_curves(problem: Problem) -> Curves:
    """Return the refit-error curves, or what stands in for them without data; the log says which."""
    if problem.curves is not None:
        return problem.curves()
    LOG.info("no data for refit errors: the share of the importance that is removed stands in for them")
    return score_curves(problem)


def greedy_candidates(problem: Problem, curves: Curves) -> list[Float64Array]:
    """Return keep ratios (n_groups,) of the greedy widths: groups that no shortcut joins alone, then all groups.

    Widths shrink by the step with the least error per unit of cost saved (`refit.curves.greedy_widths`). A joined
    group has so many consumers that adding up their errors says too little, so both are offered; the first only where
    it meets the budget, and where any group is joined.
    """
    from agmc_onnx.refit.curves import Curves as RefitCurves
    from agmc_onnx.refit.curves import greedy_widths

    found: list[Float64Array] = []
    kinds = [problem.min_keep]
    if problem.is_joined is not None and problem.is_joined.any():
        kinds.insert(0, np.where(problem.is_joined, problem.n_units, problem.min_keep))
    table = RefitCurves(curves.counts, curves.errors)
    for least in kinds:
        try:
            kept = greedy_widths(table, problem.cost, problem.n_units, problem.step, least, problem.budget)
        except BudgetError:  # of the second kind the search itself will say so
            continue
        found.append(kept / problem.n_units)
    return found


def later_counts_more(curves: Curves) -> ScoreCurves:
    """Return curves times the square root of how far back in the network their group stands.

    What an early node gets wrong, the refits behind it make good in part. Weights learned from evaluated candidates of
    ResNet-20 grow about linearly from its first groups to its last; the root was better than the line on ResNet-56.
    """
    weight = np.sqrt((np.arange(len(curves.errors)) + 0.5) / len(curves.errors))
    return ScoreCurves(curves.counts, tuple(error * w for error, w in zip(curves.errors, weight.tolist(), strict=True)))


def greedy_kinds(problem: Problem) -> list[list[Float64Array]]:
    """Return `greedy_candidates` by what counts: refit errors or their stand-in; with data also errors that count more further
    back, and what the outputs say."""
    curves = best_curves(problem)
    kinds = [greedy_candidates(problem, curves)]
    if problem.curves is not None:
        kinds.append(greedy_candidates(problem, later_counts_more(curves)))
    if problem.divergence is not None:
        kinds.append(greedy_candidates(problem, problem.divergence()))
    return [kind for kind in kinds if kind]


def blends(kinds: list[list[Float64Array]]) -> list[Float64Array]:
    """Return means of greedy candidates; none where there is one kind of them only.

    Each kind goes to the edge of what it trusts. Errors are nearly convex in the widths, so halfway between two candidates
    less is lost than their mean, and at tight budgets less than the better one: ResNet-20 at 0.3 60.9 to 62.0 for six
    candidates, 64.1 for the first blend. It is halfway between trunks left whole and trunks cut, and halfway between errors and
    outputs; the second is the mean of all.
    """
    if len(kinds) < 2:
        return []
    plain, later, outputs = kinds[0], kinds[1], kinds[-1]
    trunks, judges = (later[0] + plain[-1]) / 2, (plain[-1] + outputs[-1]) / 2
    every = np.mean([ratio for kind in kinds for ratio in (kind[0], kind[-1])], axis=0)
    return _once([(trunks + judges) / 2, every, trunks, judges])


def greedy_ratios(problem: Problem) -> list[Float64Array]:
    """Return keep ratios (n_groups,) of the blends and then of the greedy candidates, once each.

    Where layers may go: the first of these for each of `N_SETS` sets of branches gone; then the rest of those with all layers.
    """
    if problem.depth is None:
        return widths_without(problem, frozenset())
    found = [widths_without(problem, gone) for gone in spread(problem.depth.chain(problem), N_SETS)]
    return _once([*(ratios[0] for ratios in found if ratios), *found[0][1:]])


def spread(sets: list[frozenset[int]], n: int) -> list[frozenset[int]]:
    """Return the first, the last, and evenly spaced ones between: n of them, or all where there are fewer."""
    places = np.unique(np.rint(np.linspace(0, len(sets) - 1, min(n, len(sets)))).astype(np.int64))
    return [sets[i] for i in places.tolist()]


def widths_without(problem: Problem, gone: frozenset[int]) -> list[Float64Array]:
    """Return keep ratios (n_groups,) of the blends and the greedy candidates of what is left without some branches, 0 there."""
    rest, left = (problem, np.arange(problem.n_groups)) if problem.depth is None else rest_of(problem, gone)
    kinds = greedy_kinds(rest)
    found: list[Float64Array] = []
    for ratio in _once([*blends(kinds), *(ratio for kind in kinds for ratio in kind)]):
        whole = np.zeros(problem.n_groups)
        whole[left] = ratio
        found.append(whole)
    if not found and problem.depth is not None:
        found = [np.where(np.isin(np.arange(problem.n_groups), left), 0.5, 0.0)]
    return found


def prior_candidates(problem: Problem) -> list[FloatArray]:
    """Return the candidates worth a try before anything is learned: the greedy ones where there are curves, then uniform."""
    greedy = greedy_ratios(problem) if problem.curves is not None else []
    return [*greedy, np.full(problem.n_groups, 0.5)]


def unchecked_candidates(problem: Problem) -> list[FloatArray]:
    """Return those of the prior's candidates that depend on no single rule: what to take where none will be evaluated."""
    if problem.depth is not None:
        return [*greedy_ratios(problem)]
    found = blends(greedy_kinds(problem)) if problem.curves is not None else []
    return [*found] or prior_candidates(problem)[:1]


def _once(ratios: list[Float64Array]) -> list[Float64Array]:
    found: list[Float64Array] = []
    for ratio in ratios:
        if not any(np.allclose(ratio, other, rtol=0, atol=1e-9) for other in found):
            found.append(ratio)
    return found

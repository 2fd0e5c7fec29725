"""Layers that go in a search: what is proposed, what the budget makes of it, and in which order branches go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agmc_onnx.arrays import IntArray
from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.view import graph_of
from agmc_onnx.ops import analyse
from agmc_onnx.policies.greedy import DeepGreedy
from agmc_onnx.search.budget import met
from agmc_onnx.search.depth import rest_of
from agmc_onnx.search.environment import Environment
from agmc_onnx.search.journal import Journal, Section
from agmc_onnx.search.problem import KnownCurves, Outcome, Problem
from tests.ties.test_closed import INCEPTION, RESIDUAL

LOSSES = {"w1": 0.1, "v1": 0.4}


def environment(losses: Callable[[list[IntArray]], float] | None, model=RESIDUAL) -> Environment:
    channels = analyse(graph_of(normalize(model)))
    counts = [np.arange(0 if losses else 1, g.n_units + 1) for g in channels.groups]
    curves = KnownCurves(tuple(counts), tuple(1.0 - c / c[-1] for c in counts))
    return Environment(
        channels, np.ones(channels.n_units), lambda model: Outcome(50.0), curves=lambda: curves, losses=losses
    )


def of_names(channels) -> Callable[[list[IntArray]], float]:
    """Return losses that add up, by the names of the groups that keep nothing."""
    names = [g.name for g in channels.groups]
    return lambda kept: sum(LOSSES.get(n, 0.0) for n, k in zip(names, kept, strict=True) if not len(k))


def problem(share: float, model=RESIDUAL) -> Problem:
    channels = analyse(graph_of(normalize(model)))
    found = environment(of_names(channels), model)
    return found.problem(found.macs, int(share * found.macs(found.n_units)))


def test_a_ratio_below_the_threshold_lets_the_whole_branch_go() -> None:
    found = problem(0.5)
    result = met(found, np.array([0.9, 0.8, 0.05, 0.05]))  # ws w1 v1 v2
    assert result.kept[2:].tolist() == [0, 0] and result.kept[:2].all()
    assert result.reached <= found.budget and result.keep_ratio[2] == 0


def test_one_narrow_group_of_two_is_no_proposal_to_go() -> None:
    assert met(problem(0.5), np.array([0.9, 0.8, 0.05, 0.6])).kept.all()


def test_no_more_goes_than_the_budget_asks_for() -> None:
    found = problem(0.9)
    assert met(found, np.full(4, 0.01)).kept.all()
    assert (met(problem(0.3), np.full(4, 0.01)).kept == 0).any()


def test_what_cannot_go_together_stays_in_part() -> None:
    found = problem(0.2, INCEPTION)
    kept = met(found, np.full(found.n_groups, 0.01)).kept
    assert kept[kept > 0].size >= 2  # the channels behind the sum of branches, and one branch


def test_branches_go_by_what_the_answers_lose_for_what_is_saved() -> None:
    found = problem(0.05)
    assert found.depth is not None
    names = [branch.name for branch in found.depth.closer.branches]
    assert [sorted(names[b] for b in gone) for gone in found.depth.chain(found)] == [[], ["w1"], ["v1", "w1"]]
    whole = found.depth.whole_but(found, {names.index("w1")})
    rest, left = rest_of(found, {names.index("w1")})
    assert rest.cost_full == found.cost(whole) and left.tolist() == [0, 2, 3]
    assert rest.cost.of_each(np.array([[6, 4, 3], [6, 2, 3]])).tolist() == [
        found.cost(np.array([6, 0, 4, 3])),
        found.cost(np.array([6, 0, 2, 3])),
    ]


def test_curves_know_what_nothing_costs_where_a_branch_may_go() -> None:
    curves = problem(0.5).curves()
    assert [c[0] for c in curves.counts] == [1, 0, 0, 0]
    assert curves.error(1, 0) == 1.0 and curves.error(2, 0) == 0.5  # of a branch of two groups each has half


def test_greedy_tries_sets_of_branches_then_widths_of_the_best() -> None:
    found = problem(0.3)
    policy = DeepGreedy(found)
    rng = np.random.default_rng(0)
    tried = []
    for _ in range(policy.n_episodes):
        ratio = policy.propose(rng)
        executed = met(found, ratio)
        tried.append(tuple(executed.kept.tolist()))
        policy.observe(executed.keep_ratio, float(executed.kept[1] == 0), Outcome(50.0))
    gone = [kept.count(0) for kept in tried]
    assert gone[0] == 0 and 1 in gone and all(kept[1] == 0 for kept in tried[4:])


def test_without_losses_all_layers_stay() -> None:
    found = environment(None)
    assert found.depth is None
    assert met(found.problem(found.macs, found.macs(found.n_units) // 2), np.full(4, 0.01)).kept.all()


@pytest.mark.parametrize("n", [1, 2])
def test_a_loss_is_measured_once(n: int) -> None:
    asked: list[int] = []

    def losses(kept: list[IntArray]) -> float:
        asked.append(sum(not len(k) for k in kept))
        return 1.0

    found = environment(losses)
    assert found.depth is not None
    for _ in range(n):
        found.depth.loss(frozenset({0}))
    assert asked == [1]


@pytest.mark.parametrize("of", [lambda journal: journal, lambda journal: Section(journal, 2)], ids=["run", "stage"])
def test_a_resumed_run_takes_losses_from_the_journal(
    tmp_path: Path, of: Callable[[Journal], Journal | Section]
) -> None:
    asked: list[int] = []

    def losses(kept: list[IntArray]) -> float:
        asked.append(sum(not len(k) for k in kept))
        return 0.1 * sum(not len(k) for k in kept)

    chains = []
    for _ in range(2):
        journal = Journal(tmp_path / "x.run", {"model": "a"}, resume=True)
        found = environment(losses)
        problem = found.problem(found.macs, int(0.05 * found.macs(found.n_units)))
        assert found.depth is not None
        found.depth.loss.kept_in(of(journal))
        chains.append(found.depth.chain(problem))
        journal.end(finished=False)
    assert chains[0] == chains[1] and len(asked) == 3  # each branch alone, and both; once
    assert journal.hint().startswith("What was measured is kept in")


def test_branches_go_where_the_least_widths_of_all_cost_more_than_the_budget() -> None:
    found = problem(0.5)
    least = found.cost(found.min_keep)
    tight = replace(found, budget=least - 1)
    result = met(tight, np.array([0.9, 0.8, 0.5, 0.6]))
    assert result.feasible and result.kept[2:].tolist() == [0, 0] and result.kept[:2].all()
    assert environment(of_names(found.depth.closer.channels)).smallest(found.cost) < least
    nothing_left = replace(found, budget=1)
    assert not met(nothing_left, np.full(4, 0.5)).feasible

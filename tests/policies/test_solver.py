"""The solver against every plan there is, on networks small enough to try them all."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from agmc_onnx.policies import make_policy
from agmc_onnx.policies.solver import PairCost, known_errors, solve
from agmc_onnx.search.loop import search
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.rewards import err
from tests.policies.test_agmc import known_answer
from tests.policies.test_greedy import with_curves
from tests.search.test_depth import problem as depth_problem


def small(n, step=4, seed=0):
    problem, _ = known_answer(seed, n, noise=0.0)
    steps = np.full(n, step)
    return dataclasses.replace(problem, step=steps, min_keep=np.minimum(steps, problem.n_units))


@pytest.mark.parametrize("seed", range(4))
def test_it_finds_the_best_of_all_plans_and_says_that_it_is_exact(seed):
    problem = small(4, 8, seed)
    cost = PairCost.of(problem)
    rng = np.random.default_rng(seed)
    errors = [np.sort(rng.random(len(counts)))[::-1] for counts in cost.options]
    plans = np.array(list(itertools.product(*cost.options)))
    sums = np.array([sum(e[list(c).index(k)] for e, c, k in zip(errors, cost.options, p, strict=True)) for p in plans])
    allowed = np.array([problem.cost(plan) <= problem.budget for plan in plans])
    found = solve(errors, cost, problem.budget)
    assert found.is_exact and found.gap < 1e-9
    assert found.error == pytest.approx(sums[allowed].min()) and problem.cost(found.kept) <= problem.budget


def test_the_cost_is_read_off_exactly_where_two_widths_multiply_and_not_where_three_do():
    problem = small(5)
    cost = PairCost.of(problem)
    assert cost.is_exact and len(cost.pairs) == 4  # a chain
    kept = np.array([counts[0] for counts in cost.options])
    assert cost(kept[None])[0] == pytest.approx(problem.cost(kept))
    three = dataclasses.replace(problem, cost=lambda kept: int(np.prod(kept[:3])))
    assert not PairCost.of(three).is_exact
    assert not solve(
        known_errors(three, PairCost.of(three))[0], PairCost.of(three), three.cost(three.n_units) // 2
    ).is_exact


def test_a_limit_on_nodes_leaves_a_gap_that_is_told(monkeypatch):
    monkeypatch.setattr("agmc_onnx.policies.solver.MAX_NODES", 1)
    problem, rng = small(12, 2), np.random.default_rng(0)
    cost = PairCost.of(problem)
    errors = [np.sort(rng.random(len(counts)))[::-1] for counts in cost.options]
    found = solve(errors, cost, problem.budget)
    assert found is None or found.bound <= found.error
    policy = make_policy(problem, SearchOptions("solver"), rng)
    policy.propose(rng)
    assert re.fullmatch(r"solver: (nothing found in 1 nodes.*|errors add up to .* gap .*exact)", policy.notes[0])


def test_with_the_true_curves_it_finds_at_least_what_greedy_does_and_guided_it_learns():
    problem, metric = with_curves()
    problem = dataclasses.replace(problem, step=np.full(12, 4), min_keep=np.full(12, 4))
    found = {}
    for name in ("solver", "greedy", "guided:solver"):
        rng = np.random.default_rng(0)
        policy = make_policy(problem, SearchOptions(name, 8), rng)
        found[name] = metric(search(problem, policy, err, 8, rng).kept)
    assert found["solver"] >= found["greedy"] - 1e-9
    assert found["guided:solver"] >= found["greedy"] - 1e-9


@pytest.mark.parametrize("share", [0.2, 0.4, 0.7])
def test_layers_go_where_that_is_the_best_of_all_plans(share):
    found = depth_problem(share)
    cost = PairCost.of(found)
    assert found.depth.atoms == [[1], [2, 3]] and cost.is_exact
    errors = known_errors(found, cost)[0]
    plans = np.array([p for p in itertools.product(*cost.options) if (p[2] == 0) == (p[3] == 0)])
    assert cost(plans) == pytest.approx([found.cost(plan) for plan in plans])
    sums = np.array([sum(e[list(c).index(k)] for e, c, k in zip(errors, cost.options, p, strict=True)) for p in plans])
    allowed = np.array([found.cost(plan) <= found.budget for plan in plans])
    best = solve(errors, cost, found.budget)
    assert best.is_exact and best.error == pytest.approx(sums[allowed].min())
    assert found.cost(best.kept) <= found.budget and (best.kept[2] == 0) == (best.kept[3] == 0)

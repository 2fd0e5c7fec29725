import dataclasses

import numpy as np
import pytest
import torch

from agmc_onnx.graph.view import graph_of
from agmc_onnx.ops import analyse
from agmc_onnx.policies import make_policy
from agmc_onnx.policies.guide.informed import Known
from agmc_onnx.policies.guide.prior import (
    ScoreCurves,
    blends,
    greedy_candidates,
    greedy_kinds,
    later_counts_more,
    prior_candidates,
    score_curves,
    unchecked_candidates,
)
from agmc_onnx.search.budget import met
from agmc_onnx.search.environment import Environment
from agmc_onnx.search.loop import search
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.problem import Outcome
from agmc_onnx.search.rewards import err
from tests.policies.test_agmc import known_answer


def with_curves(seed=0, n=12):
    """The known problem with its true curves: s_g * (1 - keep)^2."""
    problem, metric = known_answer(seed, n, noise=0.0)
    counts = tuple(np.arange(1, u + 1) for u in problem.n_units.tolist())
    errors = []
    for group, c in enumerate(counts):
        kept = np.tile(problem.n_units, (len(c), 1))
        kept[:, group] = c
        errors.append(np.array([100 - metric(k) for k in kept]))
    return dataclasses.replace(problem, curves=lambda: ScoreCurves(counts, tuple(errors))), metric


def run(name, problem, n_episodes=10):
    rng = np.random.default_rng(0)
    policy = make_policy(problem, SearchOptions(name, n_episodes=n_episodes), rng)
    return search(problem, policy, err, n_episodes, rng)


def test_greedy_finds_in_three_evaluations_what_random_does_not_in_fifty():
    problem, metric = with_curves()
    greedy = run("greedy", problem)
    assert len(greedy.history) == 3
    assert metric(greedy.kept) > metric(run("random", problem, 50).kept)
    assert problem.cost(greedy.kept) <= problem.budget


def test_joined_groups_stay_whole_in_the_first_candidate_and_may_go_in_the_second():
    problem, _ = with_curves()
    joined = np.arange(12) == 11
    problem = dataclasses.replace(problem, is_joined=joined)
    inner, everything = greedy_candidates(problem, problem.curves())
    assert inner[11] == 1 and everything[11] < 1
    kinds = greedy_kinds(problem)
    assert [len(kind) for kind in kinds] == [2, 2] and kinds[0][0].tolist() == inner.tolist()
    assert all(everything[11] <= one[11] < 1 for one in blends(kinds))
    assert [one.tolist() for one in unchecked_candidates(problem)] == [one.tolist() for one in blends(kinds)]


def test_a_blend_of_two_candidates_loses_less_than_they_do_on_average():
    problem, metric = with_curves()
    joined = np.arange(12) == 11
    problem = dataclasses.replace(problem, is_joined=joined)
    inner, everything = greedy_candidates(problem, problem.curves())
    one, other, between = (metric(met(problem, ratio).kept) for ratio in (inner, everything, (inner + everything) / 2))
    assert between > (one + other) / 2


def test_errors_count_more_further_back():
    problem, _ = with_curves()
    plain, later = problem.curves(), later_counts_more(problem.curves())
    share = [after[0] / before[0] for before, after in zip(plain.errors, later.errors, strict=True)]
    assert share == sorted(share) and share[-1] < 1
    flat, weighted = (greedy_candidates(problem, curves)[0] for curves in (plain, later))
    assert weighted[:4].mean() < flat[:4].mean() and weighted[-4:].mean() > flat[-4:].mean()


def test_a_budget_that_only_joined_groups_can_meet_leaves_one_candidate():
    problem, _ = with_curves()
    problem = dataclasses.replace(problem, is_joined=np.arange(12) > 0)
    assert len(greedy_candidates(problem, problem.curves())) == 1


def test_without_data_importance_stands_in_for_the_error_and_the_log_says_so(caplog):
    problem, _ = known_answer(0, n=3)
    scores = [np.array([4.0, 2.0] + [0.0] * (int(u) - 2)) for u in problem.n_units]
    problem = dataclasses.replace(problem, scores=scores)
    curves = score_curves(problem)
    assert [curves.error(0, k) for k in (1, 2, int(problem.n_units[0]))] == pytest.approx([0.2, 0.0, 0.0])
    with caplog.at_level("INFO", "agmc_onnx"):
        assert len(run("greedy", problem).history) == 1
    assert "no data for refit errors" in caplog.text
    assert len(prior_candidates(problem)) == 1


def test_a_guided_search_begins_with_the_prior_and_a_bare_one_does_not():
    problem, _ = with_curves(n=5)
    greedy, uniform = run("greedy", problem).history, run("uniform", problem).history[0]
    agmc = run("agmc", problem, len(greedy) + 2).history
    assert [r["kept"] for r in agmc[:-1]] == [*(r["kept"] for r in greedy), uniform["kept"]]
    assert run("guided:random", problem, 3).history[0]["kept"] == greedy[0]["kept"]
    assert run("bare:local", problem, 3).history[0]["kept"] == uniform["kept"]


def test_known_errors_lie_on_the_curve_and_carry_a_gradient():
    known = Known(torch.zeros(2, 1), torch.tensor([[3.0, 1.0, 0.0], [4.0, 2.0, 0.0]]))
    actions = torch.tensor([[0.25, 0.75], [1.0, 0.0]], requires_grad=True)
    errors = known.error(actions)
    torch.testing.assert_close(errors, torch.tensor([[2.0, 1.0], [0.0, 4.0]]))
    errors.sum().backward()
    torch.testing.assert_close(actions.grad, torch.tensor([[-4.0, -4.0], [-2.0, -4.0]]))


def test_the_environment_knows_joined_groups_and_makes_curves_once():
    import onnx.parser

    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y)
    <float[4, 3, 1, 1] a = {%s}, float[4, 4, 1, 1] b = {%s}, float[4, 4, 1, 1] c = {%s}, float[2, 4, 1, 1] d = {%s}>
    { p = Conv(x, a)  q = Conv(p, b)  r = Conv(q, c)  s = Add(p, r)  y = Conv(s, d) }"""
    weights = np.random.default_rng(0).standard_normal(64)
    parts = [", ".join(f"{w:.3f}" for w in weights[:n]) for n in (12, 16, 16, 8)]
    channels = analyse(graph_of(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text % tuple(parts)))))
    made = []

    def curves():
        made.append(ScoreCurves((np.array([1, 4]),) * 2, (np.array([0.5, 0.0]),) * 2))
        return made[-1]

    environment = Environment(channels, np.arange(channels.n_units, dtype=float), lambda m: Outcome(0.0), curves=curves)
    problem = environment.problem(environment.macs, environment.macs(environment.n_units) // 2)
    assert problem.is_joined.tolist() == [True, False]
    assert [s.tolist() == sorted(s.tolist(), reverse=True) for s in problem.scores] == [True, True]
    assert not made
    assert problem.curves() is problem.curves() and len(made) == 1

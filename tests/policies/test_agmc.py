import dataclasses

import numpy as np
import pytest

from agmc_onnx.arrays import GraphArrays
from agmc_onnx.errors import UsageError
from agmc_onnx.policies import make_policy
from agmc_onnx.policies.agmc.options import AgmcOptions
from agmc_onnx.policies.agmc.policy import AgmcPolicy
from agmc_onnx.policies.guide.informed import InformedAgmcOptions
from agmc_onnx.search.loop import search
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.problem import Outcome, Problem
from agmc_onnx.search.rewards import err

FAST = InformedAgmcOptions(hidden_size=64, n_updates=2)
PAPER = AgmcOptions(hidden_size=32, n_updates=1)


def known_answer(seed, n=12, noise=0.3):
    """Chain of convs, cost = sum of k_{g-1} * k_g, half the cost; metric = 100 - sum of s_g * (1 - keep_g)^2 + noise.

    Returns the problem and the metric without noise.
    """
    rng = np.random.default_rng(seed)
    units, one = np.sort(rng.choice([16, 32, 64], n)), np.ones(n, dtype=np.int64)
    sensitivity = np.exp(1.2 * np.sin(np.linspace(0, 6, n) + rng.uniform(0, 6)) + 0.5 * rng.standard_normal(n))
    sensitivity *= 50 / sensitivity.sum()
    disturb = np.random.default_rng(seed + 1000)

    def cost(kept):
        ends = np.concatenate([[3], kept, [10]])
        return int(np.sum(ends[:-1] * ends[1:] * (4096 // np.append(units, 64))))

    def metric(kept):
        return 100 - float(sensitivity @ (1 - kept / units) ** 2)

    def evaluate(kept):
        return Outcome(metric(kept) + noise * disturb.standard_normal(), 0.0, 0.0)

    n_nodes = 4 * n
    position = np.arange(n_nodes)
    x = np.stack([np.log(units)[position // 4], position / n_nodes, position % 4 == 0], axis=1).astype(np.float32)
    edges = np.stack([position[:-1], position[1:]])
    problem = Problem(
        n_units=units,
        step=one,
        min_keep=one,
        cost=cost,
        cost_full=cost(units),
        budget=cost(units) // 2,
        macs=cost,
        params=cost,
        graph=GraphArrays(x, edges, position[:-1] % 4, 4),
        features=x[::4],
        group_nodes=[np.arange(4 * g, 4 * g + 3) for g in range(n)],
        evaluate=evaluate,
    )
    return problem, metric


def run(name, seed, n_episodes, options=None, n=12):
    problem, metric = known_answer(seed, n)
    rng = np.random.default_rng(seed)
    own = options or {"agmc": FAST, "bare:agmc": PAPER}.get(name)
    policy = make_policy(problem, SearchOptions(name, n_episodes, own=own), rng)
    result = search(problem, policy, err, n_episodes, rng)
    return result, metric(result.kept)


def test_agmc_beats_random_search_and_uniform_with_the_same_evaluations():
    """Rounding differs between machines, so searches do: seeds 0 to 5 gave 97.0, random 96.7, uniform 95.5, spread 1.0."""
    found = {name: np.mean([run(name, seed, 100)[1] for seed in range(3)]) for name in ("agmc", "random", "uniform")}
    assert found["agmc"] > found["random"] - 0.2
    assert found["agmc"] > found["uniform"] + 0.8


def test_candidates_get_better_after_the_warm_up():
    result, _ = run("bare:agmc", 0, 60, dataclasses.replace(PAPER, hidden_size=64, actor_lr=1e-3))
    rewards = [record["reward"] for record in result.history]
    assert np.mean(rewards[-15:]) > np.mean(rewards[:15]) + 1.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_guide_makes_searches_of_40_episodes_better(seed):
    found, without = (run(name, seed, 40)[0].history for name in ("agmc", "bare:agmc"))
    late = [np.mean([record["reward"] for record in history[-20:]]) for history in (found, without)]
    assert late[0] > late[1] + 0.3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("agmc", FAST),
        ("bare:agmc", PAPER),
        ("agmc", dataclasses.replace(FAST, encoder="diffpool", carry_state=False)),
        ("bare:agmc", dataclasses.replace(PAPER, frozen_encoder=True, reward_on="final")),
    ],
    ids=["ours", "paper", "diffpool", "frozen"],
)
def test_the_same_seed_gives_the_same_candidates_below_the_budget(name, options):
    first, again = run(name, 1, 8, options, n=5)[0], run(name, 1, 8, options, n=5)[0]
    assert [r["kept"] for r in first.history] == [r["kept"] for r in again.history]
    problem, _ = known_answer(1, n=5)
    assert all(record["macs"] <= problem.budget for record in first.history)
    other = run(name, 2, 8, options, n=5)[0]
    assert [r["kept"] for r in first.history] != [r["kept"] for r in other.history]


def test_the_first_candidate_is_the_uniform_one():
    assert run("agmc", 3, 2)[0].history[0]["kept"] == run("uniform", 3, 1)[0].history[0]["kept"]


def test_warm_up_is_that_of_the_paper_and_a_quarter_of_a_short_search():
    assert [AgmcOptions().n_warmup(n) for n in (400, 800, 100, 2)] == [100, 100, 25, 0]
    assert [InformedAgmcOptions().n_warmup(n) for n in (400, 100, 2)] == [40, 10, 0]


def test_paper_warm_up_prunes_far_more_than_the_budget_before_rescaling():
    problem, _ = known_answer(0)
    rng = np.random.default_rng(0)
    policy = AgmcPolicy(problem, SearchOptions("bare:agmc", 400), rng)
    proposals = np.array([policy.propose(rng) for _ in range(50)])
    assert proposals.min() >= 0.01 and proposals.max() <= 1
    costs = [problem.cost(np.maximum(np.round(p * problem.n_units), 1).astype(int)) for p in proposals]
    assert np.mean(costs) < 0.7 * problem.budget


@pytest.mark.parametrize(
    ("name", "value", "choices"), [("encoder", "gat", "mean, diffpool"), ("reward_on", "first", "all, final")]
)
def test_an_unknown_choice_lists_the_choices(name, value, choices):
    with pytest.raises(UsageError, match=f"unknown {name}, got '{value}'; expected one of {choices}"):
        run("bare:agmc", 0, 2, dataclasses.replace(PAPER, **{name: value}))


def test_one_group_and_groups_without_nodes():
    problem, _ = known_answer(0, n=1)
    problem = dataclasses.replace(problem, group_nodes=[np.zeros(0, dtype=np.int64)])
    rng = np.random.default_rng(0)
    for name in ("agmc", "bare:agmc"):
        result = search(problem, make_policy(problem, SearchOptions(name, 8), rng), err, 8, rng)
        assert result.history[-1]["macs"] <= problem.budget

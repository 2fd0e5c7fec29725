import dataclasses
import sys

import numpy as np
import pytest
import torch

from agmc_onnx.errors import UsageError
from agmc_onnx.policies import make_policy
from agmc_onnx.policies.amc import AmcAgent, AmcPolicy, FeatureStates
from agmc_onnx.policies.blackbox import CMAES_WIDTH, CmaesPolicy
from agmc_onnx.policies.guide.linear_budget import LinearBudget
from agmc_onnx.search.loop import search
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.problem import Outcome
from agmc_onnx.search.rewards import err
from tests.policies.test_agmc import known_answer


def run(name, seed=0, n_episodes=60, n=12, noise=0.0, **fields):
    problem, metric = known_answer(seed, n, noise)
    problem = dataclasses.replace(problem, **fields)
    rng = np.random.default_rng(seed)
    policy = make_policy(problem, SearchOptions(name, n_episodes), rng)
    result = search(problem, policy, err, n_episodes, rng)
    return result, metric(result.kept), problem


@pytest.mark.parametrize("name", ["sensitivity", "local"])
def test_searches_beat_uniform(name):
    assert np.mean([run(name, s)[1] - run("uniform", s)[1] for s in range(3)]) > 0.5


def test_sensitivity_counts_its_measurements_and_knows_what_it_measured():
    result, _, _ = run("sensitivity", n_episodes=60)
    assert result.n_extra + len(result.history) <= 60
    assert result.n_extra == 1 + 36  # the whole network, and 12 groups at 3 ratios
    assert run("sensitivity", n_episodes=6)[0].n_extra == 5
    assert run("sensitivity", n_episodes=1)[0].n_extra == 0


def test_global_ranking_removes_the_lowest_scaled_scores():
    units = known_answer(0, 3)[0].n_units.tolist()
    scores = [
        np.linspace(2, 1, n) if g else np.concatenate([[100.0], np.full(n - 1, 1e-3)]) for g, n in enumerate(units)
    ]
    result, _, problem = run("global", n=3, scores=scores)
    assert result.kept[0] < 0.5 * units[0] and result.history[0]["macs"] <= problem.budget
    assert (result.kept[1:] > 1).all()


def test_local_search_stays_at_the_best():
    result, _, _ = run("local", n_episodes=30)
    rewards = [record["reward"] for record in result.history]
    assert max(rewards) > rewards[0] + 0.3


@pytest.mark.parametrize(("name", "package"), [("tpe", "optuna"), ("cmaes", "cmaes")])
def test_without_the_package_the_message_says_what_to_install(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=f"policy: {name} needs a package that is not installed, got {package}; .*pip"):
        run(name, n_episodes=2)


@pytest.mark.parametrize("name", ["tpe", "cmaes"])
def test_optuna_finds_more_than_its_first_points(name):
    pytest.importorskip("optuna")
    pytest.importorskip("cmaes")
    result, _, _ = run(name, n_episodes=40, n=5)
    rewards = [record["reward"] for record in result.history]
    assert len(rewards) == 40 and max(rewards[10:]) >= max(rewards[:10])


def test_cmaes_begins_at_the_best_candidate_observed():
    pytest.importorskip("cmaes")
    problem, _ = known_answer(0, 6)
    rng = np.random.default_rng(0)
    policy = CmaesPolicy(problem, SearchOptions(policy="cmaes", n_episodes=40), rng)
    good = np.linspace(0.2, 0.9, problem.n_groups)
    for ratios, reward in ((good, -1.0), (np.full(problem.n_groups, 0.5), -2.0)):
        policy.observe(ratios, reward, Outcome(0.0, 0.0))
    for _ in range(5):
        assert np.abs(policy.propose(rng) - good).mean() < 3 * CMAES_WIDTH
        policy.observe(good, -3.0, Outcome(0.0, 0.0))


def test_cmaes_goes_where_rewards_are_higher():
    pytest.importorskip("cmaes")
    problem, _ = known_answer(0, 6)
    rng = np.random.default_rng(0)
    policy = CmaesPolicy(problem, SearchOptions(policy="cmaes", n_episodes=400), rng)
    found = []
    for _ in range(400):
        found.append(policy.propose(rng))
        policy.observe(found[-1], -float(((found[-1] - 0.7) ** 2).sum()), Outcome(0.0, 0.0))
    assert np.abs(np.array(found[-20:]) - 0.7).max() < 0.05


def test_amc_states_are_the_eleven_features_and_a_walk_gives_the_same():
    states = FeatureStates(torch.rand(4, 8), torch.tensor([1.0, 2.0, 1.0, 4.0]))
    actions = torch.tensor([[0.5, 0.25, 1.0, 0.5]])
    s = states.states(actions)
    assert s.shape == (1, 4, 11)
    torch.testing.assert_close(s[0, :, 8], torch.tensor([0.0, 0.5, 2.0, 2.0]) / 8)  # removed before
    torch.testing.assert_close(s[0, :, 9], torch.tensor([7.0, 5.0, 4.0, 0.0]) / 8)  # still to come
    torch.testing.assert_close(s[0, :, 10], torch.tensor([1.0, 0.5, 0.25, 1.0]))
    walk = states.walk(1)
    stepped = [walk.step(t, actions[:, t - 1 : t] if t else torch.ones(1, 1)) for t in range(4)]
    torch.testing.assert_close(torch.stack(stepped, dim=1), s)


def test_the_constraint_leaves_the_later_groups_what_they_can_make_up_for():
    budget = LinearBudget(torch.ones(3), torch.full((3,), 0.5))
    states = FeatureStates(torch.rand(3, 8), budget.weight)
    agent = AmcAgent(lambda: states, budget, AmcPolicy.default, torch.Generator().manual_seed(0))
    assert float(agent.constrained([], torch.ones(1, 1))) == pytest.approx(1.0)
    assert float(agent.constrained([torch.ones(1, 1)], torch.ones(1, 1))) == pytest.approx(1 - (1.5 - 0.8))
    both = [torch.ones(1, 1), torch.full((1, 1), 0.3)]
    assert float(agent.constrained(both, torch.ones(1, 1))) == pytest.approx(0.2)


def test_amc_beats_uniform_and_uses_layer_features_where_there_are_some():
    assert run("amc", n_episodes=60)[1] > run("uniform")[1]
    layers = np.random.default_rng(0).random((12, 8)).astype(np.float32)
    assert run("amc", n_episodes=3, layers=layers)[0].history

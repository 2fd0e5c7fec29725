"""The generalist: an agent trained beforehand, and decisions without evaluations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from agmc_onnx.config import AgmcOptions, SearchOptions
from agmc_onnx.recover.curves import Curves
from agmc_onnx.search.loop import search
from agmc_onnx.search.policies import generalist, make_policy
from agmc_onnx.search.policies.agmc import AgmcPolicy
from agmc_onnx.search.rewards import err
from tests.test_agmc import known_answer


def with_curves(seed, n=12):
    """The known answer, with error curves that say it but for a factor that grows along the chain."""
    problem, _ = known_answer(seed, n, noise=0.0)
    counts = tuple(np.arange(1, units + 1) for units in problem.n_units)
    errors = tuple((1 - c / c[-1]) ** 2 * (1 + g) for g, c in enumerate(counts))
    curves = Curves(counts, errors)
    return replace(problem, curves=lambda: curves, is_joined=np.zeros(n, bool))


def policy_of(problem, use=True, seed=0):
    options = SearchOptions(n_episodes=0, agmc=AgmcOptions(generalist=use))
    return AgmcPolicy(problem, options, np.random.default_rng(seed))


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A generalist in a file of its own, made of an agent's first networks."""
    path = tmp_path / "generalist.safetensors"
    donor = policy_of(with_curves(0), use=False, seed=7).agent.networks
    generalist.save(donor, path)
    monkeypatch.setattr(generalist, "FILE", path)
    monkeypatch.setattr(generalist.fits, "__defaults__", (path,))
    monkeypatch.setattr(generalist.load, "__defaults__", (path,))
    return donor


def test_what_is_stored_fits_a_network_of_another_size(stored):
    policy = policy_of(with_curves(1, n=20))
    assert policy.is_generalist
    for name, tensor in generalist.shared_state(policy.agent.networks).items():
        assert torch.equal(tensor, generalist.shared_state(stored)[name])
    assert not policy.agent.networks.represent.identity.weight.any()
    assert torch.equal(policy.agent.targets.actor.layers[0].weight, stored.actor.layers[0].weight)


def test_an_agent_of_other_sizes_starts_from_scratch(stored):
    problem = with_curves(1)
    policy = AgmcPolicy(problem, SearchOptions(agmc=AgmcOptions(hidden_size=64)), np.random.default_rng(0))
    assert not policy.is_generalist
    bare = AgmcPolicy(replace(problem, curves=None), SearchOptions(), np.random.default_rng(0))
    assert not bare.is_generalist


def test_no_episodes_is_one_candidate_within_the_budget_and_the_same_every_time(stored):
    problem = with_curves(2)
    found = []
    for _ in range(2):
        rng = np.random.default_rng(3)
        policy = make_policy(problem, SearchOptions(policy="agmc", n_episodes=0), rng)
        found.append(search(problem, policy, err, 0, rng))
    assert found[0].kept.tolist() == found[1].kept.tolist() and len(found[0].history) == 1
    assert problem.cost(found[0].kept) <= problem.budget


@pytest.mark.parametrize("name", ["random", "local", "agmc", "amc"])
def test_every_policy_takes_no_episodes(name):
    problem = with_curves(2)
    rng = np.random.default_rng(0)
    policy = make_policy(problem, SearchOptions(policy=name, n_episodes=0), rng)
    assert len(search(problem, policy, err, 0, rng).history) == 1


def test_shared_networks_learn_together():
    one, other = policy_of(with_curves(0), use=False).agent, policy_of(with_curves(1, n=20), use=False).agent
    generalist.share(other.networks, one.networks)
    for agent, n in ((one, 12), (other, 20)):
        for value in (0.0, 1.0):
            agent.remember(torch.full((n,), 0.5 + value / 4), value)
    before = one.networks.actor.layers[0].weight.clone()
    other.optimizer = one.optimizer
    other.update()
    assert not torch.equal(one.networks.actor.layers[0].weight, before)

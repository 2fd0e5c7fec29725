import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from agmc_onnx.policies.agmc.ddpg import DdpgAgent, truncated_normal
from agmc_onnx.policies.agmc.options import AgmcOptions
from agmc_onnx.policies.agmc.states import GraphStates, GraphTensors
from agmc_onnx.policies.guide.informed import InformedAgent, InformedAgmcOptions, InformedStates, Known
from agmc_onnx.policies.guide.linear_budget import LinearBudget

SMALL = AgmcOptions(hidden_size=32, n_updates=1, batch_size=128, min_buffer_episodes=100, actor_lr=1e-3)
OURS = InformedAgmcOptions(hidden_size=32, n_updates=1)
BUDGET = LinearBudget(torch.ones(5), torch.full((5,), 0.5))


def make_agent(options=SMALL, n=5, seed=0):
    x = torch.eye(n)
    edges = torch.stack([torch.arange(n - 1), torch.arange(1, n)])
    members = torch.arange(n)
    graph = GraphTensors(x, edges, torch.zeros(n - 1, dtype=torch.long), 1, members, members)
    generator = torch.Generator().manual_seed(seed)
    if isinstance(options, AgmcOptions):
        agent = DdpgAgent(lambda: GraphStates(graph, options), n, options, generator, options.frozen_encoder)
    else:
        known = Known(torch.eye(n), torch.zeros(n, 33))
        states = partial(InformedStates, graph, options, known.features)
        agent = InformedAgent(states, 0.5, BUDGET, known, options, generator)
    generator = torch.Generator().manual_seed(1)
    for _ in range(30):
        actions = BUDGET.rescale(torch.rand(n, generator=generator))
        agent.remember(actions, float(-10 * (1 - actions[0]) ** 2))
    return agent


def parameters(module):
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def test_noise_is_a_truncated_normal():
    generator = torch.Generator().manual_seed(0)
    sample = truncated_normal(torch.full((4000,), 0.8), 0.3, generator).numpy()
    exact = stats.truncnorm(-0.8 / 0.3, 0.2 / 0.3, loc=0.8, scale=0.3)
    assert stats.kstest(sample, exact.cdf).pvalue > 0.01
    assert sample.min() >= 0 and sample.max() <= 1


def test_tiny_noise_at_the_bounds_is_finite():
    sample = truncated_normal(torch.tensor([0.0, 0.5, 1.0]), 1e-3, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(sample, [0.0, 0.5, 1.0], atol=6e-3)


def test_rescaled_actions_are_on_the_linear_budget_and_keep_their_proportions():
    budget = LinearBudget(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.6, 0.6, 0.6]))
    actions = torch.tensor([0.9, 0.8, 0.7], requires_grad=True)
    scaled = budget.rescale(actions)
    assert float((budget.weight * (1 - scaled)).sum().detach()) == pytest.approx(7 * 0.4, abs=1e-5)
    ratio = ((1 - scaled) / (1 - actions)).detach()
    torch.testing.assert_close(ratio, ratio[:1].expand(3))
    scaled[0].backward()
    assert float((actions.grad * (1 - actions.detach())).sum()) == pytest.approx(0, abs=1e-5)  # no gain in pruning less


@pytest.mark.parametrize("options", [OURS, SMALL, dataclasses.replace(SMALL, reward_on="final")])
def test_encoder_and_decoder_learn_unless_frozen(options):
    for frozen in (False, True):
        agent = make_agent(dataclasses.replace(options, frozen_encoder=frozen))
        modules = (
            agent.networks.represent.encoder,
            agent.networks.represent.decoder,
            agent.networks.actor,
            agent.networks.critic,
        )
        before = [parameters(module) for module in modules]
        agent.update()
        agent.update()
        moved = [not torch.equal(b, parameters(m)) for b, m in zip(before, modules, strict=True)]
        assert moved == [not frozen, not frozen, True, True]


def test_encoder_and_decoder_get_gradients_from_the_actor_alone():
    agent = make_agent()
    states = agent.networks.states(torch.rand(2, 5))
    agent.networks.actor(states).sum().backward()
    for module in (agent.networks.represent.encoder, agent.networks.represent.decoder):
        assert sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None) > 0


def test_targets_follow_by_tau():
    agent = make_agent(dataclasses.replace(SMALL, tau=0.25))
    old = parameters(agent.targets)
    agent.update()
    torch.testing.assert_close(parameters(agent.targets), 0.75 * old + 0.25 * parameters(agent.networks))


def test_targets_of_equation_11():
    agent = make_agent(dataclasses.replace(SMALL, gamma=0.5))
    actions, rewards = torch.rand(2, 5), torch.tensor([1.0, -2.0])
    states = agent.targets.states(actions)
    following = agent.targets.critic(states, agent.targets.actor(states))
    y = agent.target_values(actions, rewards)
    torch.testing.assert_close(y[:, -1], rewards)
    torch.testing.assert_close(y[:, 1], rewards + 0.5 * following[:, 2])
    agent.ddpg = dataclasses.replace(agent.ddpg, reward_on="final")
    torch.testing.assert_close(agent.target_values(actions, rewards)[:, 1], 0.5 * following[:, 2])


def test_baseline_is_a_moving_average_of_batch_means():
    agent = make_agent(AgmcOptions(hidden_size=16, batch_size=10_000, min_buffer_episodes=100))
    mean = float(np.mean([reward for _, reward in agent.replay]))
    agent.baseline = mean + 4.0
    _, rewards = agent.batch()
    assert agent.baseline == pytest.approx(mean + 2.0, abs=1e-4)
    assert float(rewards.mean()) == pytest.approx(-2.0, abs=1e-4)


def test_replay_holds_the_transitions_of_the_paper_and_not_less_than_the_episodes_asked_for():
    assert make_agent(dataclasses.replace(SMALL, buffer_size=50, min_buffer_episodes=1)).replay.maxlen == 10
    assert make_agent(dataclasses.replace(SMALL, buffer_size=50, min_buffer_episodes=20)).replay.maxlen == 20


def test_the_critic_learns_which_group_matters():
    agent = make_agent(OURS)
    for _ in range(150):
        agent.update()
    spared = torch.full((5,), 0.4)
    spared[0] = 0.9
    hurt = torch.full((5,), 0.6)
    hurt[0] = 0.1
    assert agent.judge(spared[None]) > agent.judge(hurt[None])
    actions = agent.budget.rescale(agent.rollout(1, 0.0)[0])
    assert actions[0] > actions[1:].mean() + 0.1


def test_noise_decays_to_its_floor():
    agent = make_agent(dataclasses.replace(SMALL, noise=0.5, noise_decay=0.95, noise_floor=0.02))
    agent.decay_noise()
    assert agent.sigma == pytest.approx(0.475)
    for _ in range(200):
        agent.decay_noise()
    assert agent.sigma == 0.02


@pytest.mark.parametrize("options", [SMALL, OURS])
def test_same_seed_same_updates_and_the_global_generator_is_left_alone(options):
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    first, again = make_agent(options, seed=4), make_agent(options, seed=4)
    assert [first.update() for _ in range(3)] == [again.update() for _ in range(3)]
    assert torch.equal(first.rollout(2, 0.1), again.rollout(2, 0.1))
    assert torch.equal(state, torch.random.get_rng_state())

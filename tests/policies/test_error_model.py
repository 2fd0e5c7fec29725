import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from agmc_onnx.policies.guide.error_model import ErrorModel, Tables
from agmc_onnx.policies.guide.linear_budget import LinearBudget

GRID = torch.linspace(0, 1, 33, dtype=torch.float64)


def tables(n_groups=8, n_kinds=1):
    power = torch.linspace(1.5, 4, n_groups, dtype=torch.float64)[:, None]
    kinds = [(1 - GRID) ** (power + kind) for kind in range(n_kinds)]
    return Tables(torch.stack(kinds)).standardised(torch.full((n_groups,), 0.6, dtype=torch.float64))


def episodes(table, n, noise=0.05, seed=0):
    """Return keep ratios of n episodes, their rewards of deviation about 1, and the weights behind them."""
    rng = np.random.default_rng(seed)
    weights = torch.as_tensor(np.exp(rng.normal(0, 1.2, table.errors.shape[1])))
    actions = torch.as_tensor(rng.uniform(0.3, 1, (n, len(weights))))
    rewards = -(table.at(actions)[:, 0] * weights).sum(1)
    rewards = (rewards - rewards.median()) / rewards.std(unbiased=False).clamp_min(1e-6)
    return actions, rewards + noise * torch.as_tensor(rng.standard_normal(n)), weights


def test_errors_are_linear_between_the_points_of_the_grid():
    table = Tables(torch.stack([torch.stack([1 - GRID, 2 - 2 * GRID])]))
    found = table.at(torch.tensor([[0.25, 0.5], [1.0, 0.01]]))
    assert torch.allclose(found, torch.tensor([[[0.75, 1.0]], [[0.0, 1.98]]], dtype=torch.float64))


def test_thirty_episodes_tell_which_errors_matter():
    table = tables()
    actions, rewards, weights = episodes(table, 230)
    before = -table.at(actions[30:]).sum((1, 2))
    model = ErrorModel.fit(table, actions[:30], rewards[:30])
    after = -table.at(actions[30:]).flatten(1) @ model.mean
    assert spearmanr(before, rewards[30:])[0] < 0.9
    assert spearmanr(after, rewards[30:])[0] > 0.95
    assert spearmanr(model.mean, weights)[0] > 0.7


def test_kinds_share_the_explanation():
    table = tables(n_kinds=2)
    actions, rewards, _ = episodes(table, 90)
    model = ErrorModel.fit(table, actions[:60], rewards[:60])
    after = -table.at(actions[60:]).flatten(1) @ model.mean
    assert model.mean.shape == (16,) and spearmanr(after, rewards[60:])[0] > 0.95


def test_what_hangs_on_several_widths_at_once_is_learned_too():
    table = tables()
    actions, rewards, _ = episodes(table, 300, noise=0.0)
    rewards = rewards + 10 * (actions[:, 0] - 0.65) * (actions[:, 1] - 0.65)
    model = ErrorModel.fit(table, actions[:240], rewards[:240])
    alone = -table.at(actions[240:]).flatten(1) @ model.mean
    assert model.rest is not None
    assert spearmanr(model.expected(actions[240:]), rewards[240:])[0] > spearmanr(alone, rewards[240:])[0] + 0.02
    far = torch.full((1, 8), 5.0, dtype=torch.float64)  # there the weights count alone
    assert float(model.rest(far).abs()) < 1e-6


def test_the_posterior_narrows_with_episodes():
    table = tables()
    actions, rewards, _ = episodes(table, 200)
    width = [float(ErrorModel.fit(table, actions[:n], rewards[:n]).root.diagonal().norm()) for n in (6, 40, 200)]
    assert width[0] > width[1] > width[2]


@pytest.mark.parametrize("n", [0, 1])
def test_without_episodes_all_groups_count_alike(n):
    table = tables()
    actions, rewards, _ = episodes(table, 1)
    model = ErrorModel.fit(table, actions[:n], rewards[:n])
    assert len(set(model.mean.tolist())) == 1 and float(model.mean[0]) > 0


def test_a_table_never_falls_where_less_is_kept_and_ends_at_nothing_removed():
    table = tables()
    actions, rewards, _ = episodes(table, 10, noise=2.0)
    model = ErrorModel.fit(table, actions, rewards)
    drawn = model.table(torch.Generator().manual_seed(3))
    assert bool((drawn[:, :-1] >= drawn[:, 1:]).all())
    assert not torch.equal(drawn, model.table())


def test_a_climb_stays_on_the_budget_and_spends_it_where_errors_matter():
    table = tables()
    actions, rewards, weights = episodes(table, 60)
    model = ErrorModel.fit(table, actions, rewards)
    budget = LinearBudget(torch.ones(8), torch.full((8,), 0.6))
    start = torch.full((3, 8), 0.6)
    found = model.climb(start, budget, torch.Generator().manual_seed(0))
    assert torch.allclose(found.mean(1), torch.full((3,), 0.6), atol=1e-3)
    assert float((found - 0.6).abs().max()) <= 0.35
    lost = -table.at(torch.cat([start[:1], found[:1]]))[:, 0] @ weights
    assert lost[1] > lost[0]
    assert spearmanr(found[0], weights)[0] > 0.3


def test_equal_rewards_teach_nothing():
    table = tables()
    actions, _, _ = episodes(table, 12)
    model = ErrorModel.fit(table, actions, torch.zeros(12))
    assert bool(torch.isfinite(model.mean).all()) and bool(torch.isfinite(model.root).all())


def test_episodes_say_which_of_two_priors_holds():
    table = tables()
    actions, _, _ = episodes(table, 8)
    n_groups = actions.shape[1]
    right = torch.linspace(0.1, 1.9, n_groups, dtype=torch.float64)[None]
    wrong = right.flip(1)
    errors = table.at(actions)
    rewards = -(errors * right).flatten(1).sum(1).double()
    rewards = (rewards - rewards.mean()) / rewards.std()
    none = torch.zeros(0, n_groups), torch.zeros(0)
    before = ErrorModel.fit(table, *none, [wrong, right]).mean
    assert torch.equal(before, ErrorModel.fit(table, *none, [wrong]).mean)
    after = ErrorModel.fit(table, actions[:6], rewards[:6], [wrong, right]).mean
    torch.testing.assert_close(after, ErrorModel.fit(table, actions[:6], rewards[:6], [right]).mean)

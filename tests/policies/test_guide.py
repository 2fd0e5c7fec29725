import dataclasses

import numpy as np
import torch

from agmc_onnx.policies.guide.error_model import ErrorModel
from agmc_onnx.policies.guide.guide import FARTHEST, N_CENTRES, N_NEIGHBOURS, NEAREST, PATIENCE, Guide
from agmc_onnx.search.budget import met
from tests.policies.test_agmc import known_answer
from tests.search.test_depth import problem as depth_problem


def guided(n_episodes=20, seed=0):
    problem, metric = known_answer(seed)
    return problem, metric, Guide(problem, n_episodes, torch.Generator().manual_seed(seed))


def watch(guide, problem, metric, ratios):
    executed = met(problem, np.asarray(ratios, np.float64))
    guide.observe(torch.as_tensor(executed.keep_ratio, dtype=torch.float32), metric(executed.kept))
    return executed


def test_a_candidate_that_was_an_episode_is_not_proposed_again():
    problem, metric, guide = guided()
    seen, other = torch.full((12,), 0.5), torch.linspace(0.3, 0.9, 12)
    watch(guide, problem, metric, seen)
    found = met(problem, guide.first_new(torch.stack([seen, other]))).kept
    np.testing.assert_array_equal(found, met(problem, other.double().numpy()).kept)
    watch(guide, problem, metric, other)
    assert guide.first_new(torch.stack([seen, other])).tolist() == seen.tolist()


def test_climbs_get_shorter_as_episodes_go_by():
    problem, metric, guide = guided(n_episodes=20)
    rng = np.random.default_rng(0)
    start = torch.full((1, 12), 0.5)
    moved = []
    for _ in range(20):
        watch(guide, problem, metric, rng.uniform(0.2, 1, 12))
        moved.append(float((guide.climb(start) - guide.budget.rescale(start)).abs().max()))
    assert moved[0] <= FARTHEST + 0.1 and moved[-1] <= NEAREST + 0.1
    assert np.mean(moved[:3]) > np.mean(moved[-3:])


def test_the_best_episode_moves_the_budget_with_it():
    problem, metric, guide = guided()
    watch(guide, problem, metric, np.full(12, 0.5))
    first = guide.budget
    executed = watch(guide, problem, lambda kept: 1e3, np.linspace(1, 0.2, 12))
    assert guide.budget is not first and guide.best is not None and guide.best[0] == 1e3
    torch.testing.assert_close(guide.budget.keep_ratio, torch.as_tensor(executed.keep_ratio, dtype=torch.float32))


def test_climbs_begin_at_means_of_the_best_episodes():
    problem, _, guide = guided()
    ratios = [np.full(12, 0.5), np.linspace(0.3, 0.9, 12), np.linspace(0.9, 0.3, 12)]
    rewards = zip(ratios, (1.0, 3.0, 2.0), strict=True)
    executed = [watch(guide, problem, lambda kept, r=reward: r, one) for one, reward in rewards]
    found = guide.centres(3).double().numpy()
    worst, best, middle = (one.keep_ratio for one in executed)
    np.testing.assert_allclose(found, [best, (best + middle) / 2, (best + middle + worst) / 3], atol=1e-6)


def test_where_all_near_are_old_it_looks_farther_away():
    problem, metric, guide = guided(n_episodes=3)
    for ratios in (np.full(12, 0.5), np.linspace(0.3, 0.9, 12), np.linspace(0.9, 0.3, 12)):
        watch(guide, problem, metric, ratios)
    for _ in range(4):
        before = set(guide._seen)
        proposal = guide.favourite(guide.best[1].expand(2, -1))
        assert tuple(met(problem, proposal).kept.tolist()) not in before
        watch(guide, problem, metric, proposal)


def test_what_is_judged_is_what_would_be_executed(monkeypatch):
    problem, metric, guide = guided()
    watch(guide, problem, metric, np.full(12, 0.5))
    judged = []

    def expected(self, ratios, generator=None):
        judged.append(ratios.double().numpy())
        return -ratios[:, 0]

    monkeypatch.setattr(ErrorModel, "expected", expected)
    found = guide.favourite(guide.best[1].expand(6, -1))
    assert len(judged) == 1 and len(judged[0]) > 1
    costs = [problem.cost(np.rint(ratios * problem.n_units).astype(int)) for ratios in judged[0]]
    assert max(costs) <= problem.budget
    executed = met(problem, found).keep_ratio
    assert any(np.allclose(executed, ratios, atol=1e-12) for ratios in judged[0])
    assert executed[0] == min(ratios[0] for ratios in judged[0])


def test_neighbours_are_whole_steps_away_from_one_of_the_best_episodes():
    problem, metric, guide = guided()
    rng = np.random.default_rng(0)
    executed = [watch(guide, problem, metric, rng.uniform(0.2, 1, 12)) for _ in range(8)]
    best = sorted(executed, key=lambda one: -metric(one.kept))[:N_CENTRES]
    found = guide.neighbours().numpy() * problem.n_units
    assert found.shape == (N_NEIGHBOURS, 12)
    moves = found[:, None] - np.array([one.kept for one in best])
    steps = moves / problem.step
    near = np.abs(steps - np.rint(steps)).max(-1) + 10 * (np.abs(steps).max(-1) > 2 + 1e-6)
    assert (near.min(1) < 1e-4).all()
    assert 1 < np.mean([np.abs(steps[i, near[i].argmin()]).round(3).astype(bool).sum() for i in range(96)]) < 5


def test_with_few_widths_there_is_still_something_new_beside_the_best():
    problem, metric = known_answer(0)
    coarse = dataclasses.replace(
        problem, step=np.maximum(problem.n_units // 4, 1), min_keep=np.maximum(problem.n_units // 4, 1)
    )
    guide = Guide(coarse, 60, torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    for _ in range(8):
        watch(guide, coarse, metric, rng.uniform(0.2, 1, 12))
    for _ in range(15):
        watch(guide, coarse, metric, guide.favourite(guide.centres(4)))
    assert len(guide._seen) >= 20


def test_once_nothing_better_is_found_it_looks_beside_the_best_and_draws_every_second_time(monkeypatch):
    problem, metric, guide = guided()
    watch(guide, problem, metric, np.full(12, 0.5))
    drawn, beside, plain, neighbours = [], [], ErrorModel.expected, guide.neighbours

    def expected(self, ratios, generator=None):
        drawn.append(generator is not None)
        return plain(self, ratios, generator)

    monkeypatch.setattr(ErrorModel, "expected", expected)
    monkeypatch.setattr(guide, "neighbours", lambda: (beside.append(len(drawn)), neighbours())[1])
    for _ in range(PATIENCE + 4):
        watch(guide, problem, lambda kept: -1e3, guide.favourite(guide.best[1].expand(2, -1)))
    assert drawn == [False] * PATIENCE + [False, True, False, True]
    assert beside == [PATIENCE + i for i in range(4)]
    watch(guide, problem, lambda kept: 1e3, np.linspace(0.3, 0.9, 12))
    guide.favourite(guide.best[1].expand(2, -1))
    assert len(beside) == 4 and drawn[-1] is False


def test_without_data_there_are_errors_of_two_kinds():
    problem, _ = known_answer(0)
    guide = Guide(dataclasses.replace(problem, scores=None), 5, torch.Generator().manual_seed(0))
    assert guide.tables.errors.shape[:2] == (2, 12)


def test_guided_proposals_are_better_than_random_ones():
    problem, metric, guide = guided(seed=1)
    rng = np.random.default_rng(1)
    random = [metric(watch(guide, problem, metric, rng.uniform(0.2, 1, 12)).kept) for _ in range(15)]
    found = guide.first_new(guide.climb(guide.best[1][None]))
    assert metric(met(problem, found).kept) > np.mean(random) + np.std(random)


def test_where_layers_may_go_branches_are_switched_beside_the_best_episodes():
    problem = depth_problem(0.4)
    guide = Guide(problem, 10, torch.Generator().manual_seed(0), use_generalist=False)
    assert len(guide.switched()) == 0
    guide.observe(torch.tensor([1.0, 0.5, 0.0, 0.0]), -1.0)
    found = guide.switched()
    gone = {tuple((one < 0.1).tolist()) for one in found}
    assert gone == {(False, True, True, True), (False, False, False, False), (False, True, False, False)}
    assert (found[:, 0] == 1).all() and float(found.max()) <= 1

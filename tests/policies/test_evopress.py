import dataclasses

import numpy as np

from agmc_onnx.policies.evopress import EvoPressPolicy
from agmc_onnx.search.loop import search
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.problem import Outcome
from agmc_onnx.search.rewards import err
from tests.policies.test_agmc import known_answer, run
from tests.search.test_depth import problem as depth_problem


def test_offspring_keep_the_budget_and_differ_in_few_groups():
    problem = known_answer(0, 12, noise=0.0)[0]
    problem = dataclasses.replace(problem, step=np.full(12, 4), min_keep=np.full(12, 4))
    rng = np.random.default_rng(0)
    policy = EvoPressPolicy(problem, SearchOptions("evopress", 60), rng)
    uniform = policy.propose(rng)
    policy.observe(uniform, -10.0, Outcome(90.0))
    for _ in range(50):
        kept = np.rint(policy.propose(rng) * problem.n_units).astype(int)
        assert problem.cost(kept) <= problem.budget
        assert (kept % 4 == 0).all() and (kept >= 4).all() and (kept <= problem.n_units).all()
        assert 0 < int((kept != np.rint(uniform * problem.n_units)).sum()) <= 12


def test_it_goes_on_from_the_best_and_ends_better_than_random():
    problem, metric = known_answer(0, 12, noise=0.0)
    rng = np.random.default_rng(0)
    policy = EvoPressPolicy(problem, SearchOptions("evopress", 60), rng)
    found = search(problem, policy, err, 60, rng)
    assert metric(found.kept) > run("random", 0, 60)[1]
    rewards = [record["reward"] for record in found.history]
    assert max(rewards) > rewards[0] + 0.5


def test_a_branch_goes_below_its_least_widths_and_comes_back_at_them():
    problem = depth_problem(0.3)
    policy, kept = (
        EvoPressPolicy(problem, SearchOptions("evopress", 60), np.random.default_rng(0)),
        np.array([6, 4, 1, 3]),
    )
    policy._step(kept, 2, -1)  # v1, of the branch of v1 and v2
    assert kept.tolist() == [6, 4, 0, 0]
    policy._step(kept, 3, 1)
    assert kept.tolist() == [6, 4, 1, 1]
    policy._step(kept, 0, -1)
    assert kept.tolist() == [5, 4, 1, 1]

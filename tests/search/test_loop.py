import json
import subprocess
import sys

import numpy as np
import pytest

from agmc_onnx.arrays import GraphArrays
from agmc_onnx.errors import BudgetError, UsageError
from agmc_onnx.policies import POLICIES, make_policy
from agmc_onnx.search.loop import search
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.problem import Outcome, Problem
from agmc_onnx.search.rewards import err


def small_problem(share=0.5, n=6):
    """Independent groups of 32 units; the metric falls with every group's own sensitivity."""
    units, one = np.full(n, 32), np.ones(n, dtype=np.int64)
    sensitivity = np.linspace(1, 10, n)
    evaluated = []

    def cost(kept):
        return int(kept.sum())

    def evaluate(kept):
        evaluated.append(tuple(kept.tolist()))
        return Outcome(100 - float(sensitivity @ (1 - kept / units) ** 2), 0.25, 0.5)

    path = np.stack([np.arange(n - 1), np.arange(1, n)])
    graph = GraphArrays(np.eye(n, dtype=np.float32), path, np.zeros(n - 1, dtype=np.int64), 1)
    nodes = [np.array([i]) for i in range(n)]
    problem = Problem(
        units, one, one, cost, cost(units), int(share * cost(units)), cost, lambda k: 3 * cost(k), graph,
        np.eye(n, dtype=np.float32), nodes, evaluate,
    )  # fmt: skip
    return problem, evaluated


def run(name, seed=0, n_episodes=8, problem=None, **arguments):
    problem = problem or small_problem()[0]
    rng = np.random.default_rng(seed)
    policy = make_policy(problem, SearchOptions(policy=name, n_episodes=n_episodes), rng)
    return search(problem, policy, err, n_episodes, rng, **arguments)


def test_a_search_ends_after_so_many_candidates_without_a_better_one():
    whole = run("random", n_episodes=60)
    rewards = [record["reward"] for record in whole.history]
    better = [i for i, reward in enumerate(rewards) if reward > max(rewards[:i], default=-np.inf)]
    waits = [b - a for a, b in zip(better, [*better[1:], 60], strict=True)]
    ended = next(a for a, wait in zip(better, waits, strict=True) if wait > 5)
    found = run("random", n_episodes=60, patience=5)
    assert len(found.history) == ended + 6 < 60
    assert found.history == [{**record, "wall_s": one["wall_s"]} for record, one in zip(whole.history, found.history)]  # noqa: B905


def test_a_search_ends_when_its_time_is_up_but_not_before_the_first_candidate():
    assert len(run("random", seconds=0.0).history) == 1
    assert len(run("random", seconds=600.0).history) == 8


def without_time(result):
    return [{k: v for k, v in record.items() if k != "wall_s"} for record in result.history]


@pytest.mark.parametrize("name", [f"{form}:{name}" for name in POLICIES for form in ("bare", "guided")])
def test_every_policy_meets_the_budget_and_repeats_for_a_seed(name):
    for module in POLICIES[name].needs:
        pytest.importorskip(module)
    first, again = run(name, seed=3), run(name, seed=3)
    assert without_time(first) == without_time(again)
    assert all(record["macs"] == 96 for record in first.history)
    assert first.reward == max(record["reward"] for record in first.history)
    assert [record["episode"] for record in first.history] == list(range(len(first.history)))
    json.dumps(first.history)


def test_fixed_policies_are_evaluated_once_and_random_as_often_as_asked():
    lengths = {name: len(run(name).history) for name in ("uniform", "shallow", "deep", "random")}
    assert lengths == {"uniform": 1, "shallow": 1, "deep": 1, "random": 8}


def test_shallow_and_deep_prune_the_end_they_are_named_after():
    assert np.all(np.diff(run("shallow").kept) > 0)
    assert np.all(np.diff(run("deep").kept) < 0)
    assert set(run("uniform").kept) == {16}


def test_known_outcomes_are_not_evaluated_again():
    first = run("random", seed=5)
    problem, evaluated = small_problem()
    known = {tuple(r["kept"]): Outcome(r["metric"], r["inference_s"], 0.0) for r in first.history[:5]}
    again = run("random", seed=5, problem=problem, known=known)
    assert len(evaluated) == 3
    assert without_time(again) == without_time(first)


@pytest.mark.parametrize(
    "name", [*(name for name, row in POLICIES.items() if row.batches), "bare:agmc", "guided:random"]
)
def test_a_batch_is_drawn_before_it_is_observed_and_evaluated_in_any_order(name):
    sizes = []

    def backwards(candidates):
        sizes.append(len(candidates))
        for place in reversed(range(len(candidates))):
            yield place, problem.evaluate(candidates[place])

    problem, _ = small_problem()
    alone = run(name, seed=4, problem=problem, batch=3)
    turned = run(name, seed=4, problem=problem, batch=3, evaluate_all=backwards)
    assert without_time(turned) == without_time(alone)
    assert len({tuple(r["kept"]) for r in alone.history}) == len(alone.history)
    assert sizes == ([1, 3, 3, 1] if len(alone.history) == 8 else [1])


def test_equal_candidates_of_a_batch_are_evaluated_once():
    class Stubborn:
        n_episodes = 4
        propose = staticmethod(lambda rng: np.full(6, 0.5))
        observe = staticmethod(lambda *_: None)

    problem, evaluated = small_problem()
    found = search(problem, Stubborn(), err, 4, np.random.default_rng(0), batch=2)
    assert len(evaluated) == 1
    assert [record["cached"] for record in found.history] == [False, True, True, True]


def test_an_interruption_gives_the_result_so_far():
    def stop(record):
        if record["episode"] == 2:
            raise KeyboardInterrupt

    result = run("random", on_episode=stop)
    assert result.interrupted and len(result.history) == 3
    assert result.reward == max(record["reward"] for record in result.history)


def test_an_impossible_budget_says_what_is_possible():
    problem, _ = small_problem(share=0.01)
    with pytest.raises(BudgetError, match=r"cannot be reached, got 0\.0052 .* at least 0\.0312") as caught:
        run("uniform", problem=problem)
    assert caught.value.best == pytest.approx(1 / 32)


def test_an_unknown_policy_lists_the_choices():
    with pytest.raises(UsageError, match="'best'; expected one of agmc, uniform, shallow, deep, random"):
        run("best")


def test_uniform_needs_no_torch():
    code = (
        "import sys; from agmc_onnx.policies import POLICIES; from agmc_onnx.search import loop;"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

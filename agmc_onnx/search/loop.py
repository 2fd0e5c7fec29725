"""The search itself: propose, meet the budget, evaluate, observe."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from agmc_onnx.errors import BudgetError
from agmc_onnx.search.budget import meet_target
from agmc_onnx.search.policies import Policy
from agmc_onnx.search.problem import IntArray, Outcome, Problem
from agmc_onnx.search.rewards import Reward

Record = dict[str, Any]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        kept: int64 (n_groups,), kept counts of the best candidate (the first of equals).
        reward: Its reward.
        history: One record an episode: episode, reward, metric, macs, params, kept, inference_s, wall_s, cached.
            Numbers are Python's own, ready for JSON; `wall_s` covers the whole episode (proposal, budget, evaluation,
            learning).
        interrupted: Whether Ctrl-C ended the search early.
    """

    kept: IntArray
    reward: float
    history: list[Record]
    interrupted: bool = False


def search(
    problem: Problem,
    policy: Policy,
    reward: Reward,
    n_episodes: int,
    rng: np.random.Generator,
    on_episode: Callable[[Record], None] | None = None,
    known: Mapping[tuple[int, ...], Outcome] | None = None,
) -> SearchResult:
    """Return the best candidate of a search; the same seed gives the same candidates.

    A candidate that was evaluated before is not evaluated again. So an interrupted search is resumed by running it
    again with the same seed and the outcomes of its history as `known`.

    Args:
        problem: What is searched.
        policy: Proposes; fresh, made for this problem.
        reward: Row of `agmc_onnx.search.rewards.REWARDS`.
        n_episodes: Episodes; a policy with fewer candidates of its own (`policy.n_episodes`) ends earlier. At least 1.
        rng: The one random generator.
        on_episode: Called with every record, for progress and for saving.
        known: Outcomes of earlier evaluations by kept counts.

    Returns:
        The best candidate and the history, also when Ctrl-C came after the first episode.

    Raises:
        BudgetError: If even the smallest candidate costs more than the budget.
    """
    outcomes = dict(known or {})
    history: list[Record] = []
    best_kept, best_reward, interrupted = problem.n_units, -np.inf, False
    try:
        for episode in range(max(1, min(n_episodes, policy.n_episodes))):
            start = time.perf_counter()
            proposal = policy.propose(rng)
            met = meet_target(proposal, problem.cost, problem.n_units, problem.step, problem.min_keep, problem.budget)
            if not met.feasible:
                best = met.best_reachable / problem.cost_full
                raise BudgetError(
                    f"search: the budget cannot be reached, got {problem.budget / problem.cost_full:.4f} of the original;"
                    f" expected at least {best:.4f}. Ask for more, or allow more channels to go.",
                    best,
                )
            key = tuple(met.kept.tolist())
            cached = key in outcomes
            if not cached:
                outcomes[key] = problem.evaluate(met.kept.copy())
            outcome = outcomes[key]
            macs, params = int(problem.macs(met.kept)), int(problem.params(met.kept))
            value = float(reward(outcome.metric, macs, params))
            policy.observe(met.keep_ratio, value, outcome)
            if value > best_reward:
                best_kept, best_reward = met.kept, value
            record = {
                "episode": episode,
                "reward": value,
                "metric": float(outcome.metric),
                "macs": macs,
                "params": params,
                "kept": met.kept.tolist(),
                "inference_s": float(outcome.inference_s),
                "wall_s": time.perf_counter() - start,
                "cached": cached,
            }
            history.append(record)
            if on_episode is not None:
                on_episode(record)
    except KeyboardInterrupt:
        if not history:
            raise
        interrupted = True
    return SearchResult(best_kept, best_reward, history, interrupted)

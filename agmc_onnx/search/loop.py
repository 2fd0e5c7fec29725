"""The search itself: propose, meet the budget, evaluate, observe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agmc_onnx.arrays import FloatArray, IntArray
from agmc_onnx.errors import BudgetError
from agmc_onnx.search.budget import Rescaled, met
from agmc_onnx.search.journal import Errors, EvaluateAll
from agmc_onnx.search.policy import Policy
from agmc_onnx.search.problem import Outcome, Problem
from agmc_onnx.search.rewards import Reward

Record = dict[str, Any]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        kept: int64 (n_groups,), kept counts of the best candidate (the first of equals).
        reward: Its reward.
        history: One record an episode: episode, reward, metric, fidelity, macs, params, kept, inference_s, wall_s, cached.
            Numbers are Python's own, ready for JSON; `wall_s` covers the whole episode (proposal, budget, evaluation,
            learning), where episodes of one batch share the time until their evaluations are done; `cached` says that
            an earlier episode had the same candidate. Where a race was lost, also n_images, the images it was measured on.
        interrupted: Whether Ctrl-C ended the search early.
        n_extra: Evaluations that the policy made beside the episodes, of networks that are no candidates.
    """

    kept: IntArray
    reward: float
    history: list[Record]
    interrupted: bool = False
    n_extra: int = 0


def search(
    problem: Problem,
    policy: Policy,
    reward: Reward,
    n_episodes: int,
    rng: np.random.Generator,
    on_episode: Callable[[Record], None] | None = None,
    known: Mapping[tuple[int, ...], Outcome] | None = None,
    batch: int = 1,
    evaluate_all: EvaluateAll | None = None,
    race: bool = False,
    seconds: float | None = None,
    patience: int | None = None,
) -> SearchResult:
    """Return the best candidate of a search; the same seed and batch give the same candidates.

    A candidate that was evaluated before is not evaluated again. So an interrupted search is resumed by running it
    again with the same seed and the outcomes of its history as `known`, or an `evaluate_all` that knows them.

    Args:
        problem: What is searched.
        policy: Proposes; fresh, made for this problem.
        reward: Row of `agmc_onnx.search.rewards.REWARDS`.
        n_episodes: Episodes; a policy with fewer candidates of its own (`policy.n_episodes`) ends earlier. At least 1.
        rng: The one random generator.
        on_episode: Called with every record, for progress.
        known: Outcomes of earlier evaluations by kept counts.
        batch: Proposals drawn before the outcome of the first of them is observed, at least 1; they are observed in the
            order drawn. The first episode is alone, since policies begin with the same proposal until they observe.
        evaluate_all: Evaluates different candidates, in any order; default: `problem.evaluate`, one after the other.
        race: Give it the errors of the best candidate before the batch too (of none before the first), so that it measures
            long only what keeps up.
        seconds: Propose nothing more after so many, but at least once.
        patience: Propose nothing more after so many episodes without a better candidate.

    Returns:
        The best candidate and the history, also when Ctrl-C came after the first episode.

    Raises:
        BudgetError: If even the smallest candidate costs more than the budget.
    """
    measure = evaluate_all or one_by_one(problem.evaluate)
    outcomes = dict(known or {})
    seen: set[tuple[int, ...]] = set()
    history: list[Record] = []
    best_kept, best_reward, interrupted = problem.n_units, -np.inf, False
    last_better = 0  # episodes until the best one
    best_errors: Errors = ()  # of the best candidate, where candidates race
    n_episodes = max(1, min(n_episodes, policy.n_episodes))
    begun = time.perf_counter()
    try:
        while len(history) < n_episodes:
            start = time.perf_counter()
            if seconds is not None and history and start - begun >= seconds:
                break
            if patience is not None and len(history) - last_better >= patience:
                break
            size = min(batch, n_episodes - len(history)) if history else 1
            proposed = [_met(problem, policy.propose(rng)) for _ in range(size)]
            fresh = {_key(met): met.kept.copy() for met in proposed if _key(met) not in outcomes}
            keys = list(fresh)
            rival = (best_errors,) if race else ()  # as of the start of the batch, whoever measures it
            for place, outcome in measure(list(fresh.values()), *rival):
                outcomes[keys[place]] = outcome
            shared_s = (time.perf_counter() - start) / size
            for met in proposed:
                start = time.perf_counter()
                outcome = outcomes[_key(met)]
                macs, params = int(problem.macs(met.kept)), int(problem.params(met.kept))
                value = float(reward(outcome.judged, macs, params))
                policy.observe(met.keep_ratio, value, outcome)
                if value > best_reward:
                    best_kept, best_reward = met.kept, value
                    last_better = len(history) + 1
                    best_errors = outcome.errors or best_errors
                record = {
                    "episode": len(history),
                    "reward": value,
                    "metric": float(outcome.metric),
                    "fidelity": outcome.fidelity,
                    "macs": macs,
                    "params": params,
                    "kept": met.kept.tolist(),
                    "inference_s": float(outcome.inference_s),
                    "wall_s": shared_s + time.perf_counter() - start,
                    "cached": _key(met) in seen,
                }
                if outcome.n_images is not None:
                    record["n_images"] = outcome.n_images
                seen.add(_key(met))
                history.append(record)
                if on_episode is not None:
                    on_episode(record)
    except KeyboardInterrupt:
        if not history:
            raise
        interrupted = True
    return SearchResult(best_kept, best_reward, history, interrupted, getattr(policy, "n_extra", 0))


def _key(met: Rescaled) -> tuple[int, ...]:
    return tuple(met.kept.tolist())


def one_by_one(evaluate: Callable[..., Outcome]) -> EvaluateAll:
    """Return what evaluates candidates in the order given, here and now."""

    def measure(candidates: Sequence[IntArray], *best: Errors) -> Iterator[tuple[int, Outcome]]:
        yield from ((place, evaluate(kept, *best)) for place, kept in enumerate(candidates))

    return measure


def _met(problem: Problem, proposal: FloatArray) -> Rescaled:
    """Return a proposal brought to the budget."""
    found = met(problem, proposal)
    if found.feasible:
        return found
    best = found.best_reachable / problem.cost_full
    raise BudgetError(
        f"search: the budget cannot be reached, got {problem.budget / problem.cost_full:.4f} of the original;"
        f" expected at least {best:.4f}. Ask for more, or allow more channels to go.",
        best,
    )

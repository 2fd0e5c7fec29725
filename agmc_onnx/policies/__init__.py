"""The policies: what decides how much of every group to keep.

torch is imported by the learned ones only, and only when one is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

from agmc_onnx.arrays import FloatArray
from agmc_onnx.errors import UsageError
from agmc_onnx.options import SearchOptions
from agmc_onnx.policies import blackbox as searching
from agmc_onnx.policies import handcrafted
from agmc_onnx.policies.guide.prior import prior_candidates, unchecked_candidates
from agmc_onnx.search.problem import Outcome, Problem


class Policy(Protocol):
    """Proposes keep ratios and learns from what came of them.

    Attributes:
        n_episodes: Episodes worth running; 1 for a fixed proposal.
    """

    n_episodes: int

    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return float (n_groups,) keep ratios in (0, 1]; the search brings them to the budget."""
        ...

    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Learn from the candidate that was made of the last proposal.

        Args:
            keep_ratio_executed: float (n_groups,), kept units / units after the budget was met.
            reward: Its reward.
            outcome: Its evaluation.
        """
        ...


@runtime_checkable
class TaughtPolicy(Policy, Protocol):
    """A policy that may have an opinion before any evaluation."""

    def preferred(self, candidates: list[FloatArray], n: int | None = None) -> list[FloatArray]:
        """Return the n of these keep ratios (n_groups,) that it likes best, its favourite first; all if it has no opinion.

        By default as many as it wants measured.
        """
        ...


class PrimedPolicy:
    """A policy that searches, with the prior's candidates before its own; it observes them as its own.

    If the policy has an opinion beforehand, only those it prefers: where groups are few, evaluations are better spent on its own
    (docs/results.md).
    """

    def __init__(self, policy: Policy, problem: Problem) -> None:
        self.policy, self.problem = policy, problem
        self.n_episodes = policy.n_episodes
        self.waiting: list[FloatArray] | None = None

    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return the prior's next candidate, then the policy's."""
        if self.waiting is None:
            self.waiting = _preferred(self.policy, prior_candidates(self.problem))
        return self.waiting.pop(0) if self.waiting else self.policy.propose(rng)

    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Hand on what came of a candidate."""
        self.policy.observe(keep_ratio_executed, reward, outcome)


class DecidedPolicy:
    """No learning: what a policy takes as it is, or the prior's first candidates where it has to learn."""

    def __init__(self, policy: Policy, problem: Problem, has_prior: bool, n: int, rng: np.random.Generator) -> None:
        """Decide on at most `n` candidates, of policies that search; of others on the first one."""
        offered = unchecked_candidates(problem) if has_prior else [policy.propose(rng)]
        self.waiting = _preferred(policy, offered, n)[:n]
        self.n_episodes = len(self.waiting)

    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return the next candidate, the favourite first."""
        return self.waiting.pop(0)

    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Learn nothing."""


def _preferred(policy: Policy, candidates: list[FloatArray], n: int | None = None) -> list[FloatArray]:
    """Return the candidates that a policy likes best, or all where it has no opinion before an evaluation."""
    return policy.preferred(candidates, n) if isinstance(policy, TaughtPolicy) else candidates


PolicyFactory = Callable[[Problem, SearchOptions, np.random.Generator], Policy]


def _agmc(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> Policy:
    """Return the AGMC policy."""
    from agmc_onnx.policies.agmc.policy import AgmcPolicy

    return AgmcPolicy(problem, options, rng)


def _amc(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> Policy:
    """Return AMC's features in the AGMC policy."""
    from agmc_onnx.policies.amc import AmcPolicy

    return AmcPolicy(problem, options, rng)


def _gnn_rl(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> Policy:
    """Return the GNN-RL policy."""
    from agmc_onnx.policies.gnn_rl.policy import GnnRlPolicy

    return GnnRlPolicy(problem, options, rng)


def _greedy(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> Policy:
    """Return the greedy policy."""
    from agmc_onnx.policies.greedy import greedy

    return greedy(problem, options, rng)


POLICIES: dict[str, PolicyFactory] = {
    "agmc": _agmc,
    "uniform": handcrafted.uniform,
    "shallow": handcrafted.shallow,
    "deep": handcrafted.deep,
    "random": handcrafted.random,
    "greedy": _greedy,
    "amc": _amc,
    "gnn-rl": _gnn_rl,
    "global": searching.global_ranking,
    "sensitivity": searching.sensitivity,
    "local": searching.local,
    "tpe": searching.tpe,
    "cmaes": searching.cmaes,
}


LEARNED = frozenset({"agmc", "amc", "gnn-rl", "greedy", "sensitivity"})  # the rows that use torch
# the rows whose `observe` needs no more than its arguments: they may propose again before they observe
TAKE_BATCHES = frozenset({"agmc", "amc", "uniform", "shallow", "deep", "random", "greedy", "global", "local"})
# the rows that propose a handful of candidates and learn nothing: quick enough to be asked again and again
TAKE_FEW = frozenset({"uniform", "shallow", "deep", "greedy", "sensitivity", "global"})
# the rows that search, and may begin with the prior's candidates
PRIMED = frozenset({"agmc", "amc", "gnn-rl", "local", "tpe", "cmaes"})


def make_policy(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> Policy:
    """Return the policy `options.policy` for this problem; with no episodes, the `n_decided` candidates it takes as it is.

    Raises:
        UsageError: If there is no such row in `POLICIES`.
    """
    if options.policy not in POLICIES:
        raise UsageError(f"policy: unknown name, got {options.policy!r}; expected one of {', '.join(POLICIES)}.")
    policy = POLICIES[options.policy](problem, options, rng)
    if not options.n_episodes:
        return DecidedPolicy(policy, problem, options.policy in PRIMED, options.n_decided, rng)
    return PrimedPolicy(policy, problem) if options.prior and options.policy in PRIMED else policy

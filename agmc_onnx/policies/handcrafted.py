"""Policies that learn nothing: the paper's rules of thumb (AGMC, section 4.2) and random search (section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agmc_onnx.arrays import FloatArray
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.problem import Outcome, Problem

HIGH, LOW = 0.8, 0.2  # prune ratios at the two ends of `shallow` and `deep`, before the budget is met


class ListPolicy:
    """Given proposals, one after the other; the search keeps the best."""

    def __init__(self, proposals: Sequence[FloatArray]) -> None:
        self.proposals = list(proposals)
        self.n_episodes = len(self.proposals)
        self.episode = 0

    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return the next proposal."""
        proposal = self.proposals[self.episode % self.n_episodes]
        self.episode += 1
        return proposal.copy()

    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Learn nothing."""


class RandomPolicy:
    """Independent keep ratios in U(0, 1), brought to the budget by the search like all others."""

    def __init__(self, n_groups: int, n_episodes: int) -> None:
        self.n_groups = n_groups
        self.n_episodes = n_episodes

    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return a new draw."""
        return 1.0 - rng.random(self.n_groups)

    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Learn nothing."""


def uniform(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> ListPolicy:
    """Return the policy that prunes all groups alike."""
    return ListPolicy([np.full(problem.n_groups, 0.5)])


def shallow(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> ListPolicy:
    """Return the policy that prunes the first groups most.

    The prune ratio falls linearly with the position; the papers say "aggressively prune shallow layers" and no more.
    """
    return ListPolicy([1.0 - np.linspace(HIGH, LOW, problem.n_groups)])


def deep(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> ListPolicy:
    """Return the policy that prunes the last groups most; see `shallow`."""
    return ListPolicy([1.0 - np.linspace(LOW, HIGH, problem.n_groups)])


def random(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> RandomPolicy:
    """Return random search, with as many episodes as the search has."""
    return RandomPolicy(problem.n_groups, options.n_episodes)

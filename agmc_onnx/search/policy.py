"""What a policy is to a search."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from agmc_onnx.arrays import FloatArray
from agmc_onnx.search.problem import Outcome

SMALLEST = 0.01  # smallest keep ratio proposed


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


class Beginning:
    """A policy that proposes given keep ratios first, and then what another one does.

    Attributes:
        n_episodes: One more than the other's.
    """

    def __init__(self, policy: Policy, begin: FloatArray) -> None:
        self._policy, self._begin, self._is_own = policy, begin, False
        self._waits = True
        self.n_episodes = policy.n_episodes + 1

    @property
    def notes(self) -> list[str]:
        """What the other has to say."""
        return list(getattr(self._policy, "notes", ()))

    @property
    def n_extra(self) -> int:
        """Evaluations that the other made beside the episodes."""
        return int(getattr(self._policy, "n_extra", 0))

    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return the given ratios once, then the other's."""
        self._is_own, self._waits = self._waits, False
        return self._begin if self._is_own else self._policy.propose(rng)

    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Let the other learn from what it proposed."""
        if not self._is_own:
            self._policy.observe(keep_ratio_executed, reward, outcome)

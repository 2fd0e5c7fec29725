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

"""The budget as a linear function of keep ratios, near one solution: what gradients and quick searches work with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agmc_onnx.arrays import IntArray
from agmc_onnx.search.budget import met
from agmc_onnx.search.problem import Problem


@dataclass(frozen=True)
class LinearBudget:
    """The budget, linear around the uniform solution; what the differentiable Algorithm 1 works with.

    Attributes:
        weight: float32 (n_groups,), cost per unit of keep ratio at the uniform solution; any positive scale.
        keep_ratio: float32 (n_groups,), the uniform solution.
        n_widths: Decisions from this one on have a budget of their own; None: all share one.
    """

    weight: Tensor
    keep_ratio: Tensor
    n_widths: int | None = None

    def rescale(self, actions: Tensor) -> Tensor:
        """Return actions (..., n_groups) on the linear budget: all prune ratios times one factor, differentiable."""
        n = actions.shape[-1] if self.n_widths is None else self.n_widths
        parts = []
        for part in (slice(0, n), slice(n, None)):
            prune, weight = 1.0 - actions[..., part], self.weight[part]
            target = (weight * (1.0 - self.keep_ratio[part])).sum()
            factor = target / (weight * prune).sum(dim=-1, keepdim=True).clamp(min=1e-6)
            parts.append((1.0 - factor * prune).clamp(0.0, 1.0))
        return parts[0] if n == actions.shape[-1] else torch.cat(parts, dim=-1)


def fit_linear_budget(problem: Problem, at: IntArray | None = None) -> LinearBudget:
    """Return a solution and the marginal cost of every group there; by default the uniform one.

    Args:
        problem: The network.
        at: int (n_groups,), kept counts of the solution.
    """
    kept = met(problem, np.full(problem.n_groups, 0.5)).kept if at is None else at
    reached, weight = problem.cost(kept), np.zeros(problem.n_groups)
    for group in range(problem.n_groups):
        moved = kept.copy()
        down = kept[group] > problem.min_keep[group]
        moved[group] = problem.min_keep[group] if down else problem.n_units[group]
        if at is not None:  # not so far: what it costs here
            moved[group] = np.clip(kept[group] + (-1 if down else 1) * problem.step[group], 1, problem.n_units[group])
        change = (kept[group] - moved[group]) / problem.n_units[group]
        weight[group] = (reached - problem.cost(moved)) / change if change else 0.0
    weight = np.maximum(weight / max(weight.max(), 1.0), 1e-6)
    n_widths = problem.n_groups
    if problem.density_weight is not None:
        n_widths -= len(problem.density_weight)
        weight[n_widths:] = problem.density_weight / problem.density_weight.max()
    return LinearBudget(
        torch.as_tensor(weight, dtype=torch.float32),
        torch.as_tensor(kept / problem.n_units, dtype=torch.float32),
        n_widths,
    )

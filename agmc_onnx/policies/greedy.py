"""Greedy on refit-error curves: a handcrafted policy that needs a handful of evaluations."""

from __future__ import annotations

import numpy as np

from agmc_onnx.policies.guide.prior import greedy_ratios
from agmc_onnx.policies.handcrafted import ListPolicy
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.problem import Problem


def greedy(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> ListPolicy:
    """Return the policy that proposes the greedy widths, with and without the groups that shortcuts join, and means of them.

    Source: ours. The error of a width is what is left of the consumers' outputs after a refit, each group alone
    (`refit.curves`), and again what the network's answers lose (`refit.divergence`); widths shrink by the step with the
    least loss per unit of cost. Without data the share of the importance that goes stands in for both.
    """
    candidates = greedy_ratios(problem)
    return ListPolicy(candidates or [np.full(problem.n_groups, 0.5)])

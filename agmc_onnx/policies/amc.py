"""AMC's hand-made features through the same agent (He et al. 2018, arXiv:1802.03494)."""

from __future__ import annotations

import numpy as np
import torch

from agmc_onnx.options import AgmcOptions
from agmc_onnx.policies.agmc.ddpg import Known
from agmc_onnx.policies.agmc.policy import AgmcPolicy
from agmc_onnx.policies.agmc.states import FeatureStates, States
from agmc_onnx.search.problem import Problem


class AmcPolicy(AgmcPolicy):
    """AGMC's agent, budget, warm-up and noise; only the states differ. `AgmcOptions.clamp` adds AMC's own constraint."""

    sees_graph = False

    def make_states(self, problem: Problem, options: AgmcOptions, known: Known | None) -> States:
        """Return the 11 features; columns in 0..1 as in the published code (mit-han-lab/amc)."""
        features = np.asarray(problem.features if problem.layers is None else problem.layers, np.float64)
        low, high = features.min(axis=0), features.max(axis=0)
        static = (features - low) / np.where(high > low, high - low, 1.0)
        return FeatureStates(torch.as_tensor(static, dtype=torch.float32), self.budget.weight)

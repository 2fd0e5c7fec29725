"""AMC (He et al. 2018, arXiv:1802.03494): hand-made features of every group, AGMC's agent, and a constraint of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from agmc_onnx.policies.agmc.ddpg import Agent, DdpgAgent
from agmc_onnx.policies.agmc.options import AgentOptions, DdpgOptions
from agmc_onnx.policies.agmc.policy import AgmcPolicy
from agmc_onnx.policies.agmc.states import States, Walk
from agmc_onnx.policies.guide.linear_budget import LinearBudget, fit_linear_budget
from agmc_onnx.search.problem import Problem

CLAMP_FLOOR = 0.2  # lowest keep ratio that the constraint counts on (lbound of mit-han-lab/amc)


class FeatureStates(nn.Module):
    """AMC's 11 features (He et al. 2018, arXiv:1802.03494, eq. 1): t, n, c, h, w, stride, k, FLOPs[t], reduced, rest, a_{t-1}.

    `reduced` is the share of the cost that earlier decisions removed, `rest` the share in later groups, both linear in the
    keep ratios (the paper's layers are independent, ours are coupled: marginal costs at the uniform solution stand in).
    Nothing is learned here.
    """

    def __init__(self, static: Tensor, weight: Tensor) -> None:
        """Keep what does not change.

        Args:
            static: float32 (n_groups, 8) in 0..1, the first eight features; any other number of columns will do.
            weight: float32 (n_groups,), cost per unit of keep ratio.
        """
        super().__init__()
        self.size = static.shape[1] + 3
        self.static, self.weight = static, weight / weight.sum()
        self.rest = self.weight.sum() - self.weight.cumsum(0)

    def states(self, actions: Tensor) -> Tensor:
        """Return the states (batch, n_groups, 11) of whole episodes with these actions (batch, n_groups)."""
        removed = self.weight * (1.0 - actions)
        reduced = removed.cumsum(1) - removed
        before = torch.cat([torch.ones_like(actions[:, :1]), actions[:, :-1]], dim=1)
        dynamic = torch.stack([reduced, self.rest.expand_as(reduced), before], dim=2)
        return torch.cat([self.static.expand(len(actions), -1, -1), dynamic], dim=2)

    def walk(self, n: int) -> Walk:
        """Begin n episodes."""
        return _FeatureWalk(self, n)


class _FeatureWalk:
    """Episodes in progress, with their actions so far."""

    def __init__(self, states: FeatureStates, n: int) -> None:
        self.owner = states
        self.actions = torch.ones(n, len(states.weight))

    def step(self, t: int, action: Tensor) -> Tensor:
        """Return s_t."""
        if t:
            self.actions[:, t - 1] = action[:, 0]
        return self.owner.states(self.actions)[:, t]


def amc_states(problem: Problem, weight: Tensor) -> FeatureStates:
    """Return the 11 features; columns in 0..1 as in the published code (mit-han-lab/amc)."""
    features = np.asarray(problem.features if problem.layers is None else problem.layers, np.float64)
    low, high = features.min(axis=0), features.max(axis=0)
    static = (features - low) / np.where(high > low, high - low, 1.0)
    return FeatureStates(torch.as_tensor(static, dtype=torch.float32), weight)


class AmcAgent(DdpgAgent):
    """DDPG whose actions leave the later groups what they can make up for."""

    def __init__(
        self,
        make_states: Callable[[], States],
        budget: LinearBudget,
        options: DdpgOptions,
        generator: torch.Generator,
    ) -> None:
        """Make the networks; arguments as of `DdpgAgent`, and the linear budget."""
        super().__init__(make_states, len(budget.weight), options, generator)
        self.budget = budget

    def constrained(self, before: list[Tensor], action: Tensor) -> Tensor:
        """Return the next action (n, 1), at most what lets the later groups still meet the budget (AMC, alg. 1).

        Later groups are taken at the lowest ratio, `CLAMP_FLOOR`.
        """
        t, weight = len(before), self.budget.weight
        target = (weight * (1.0 - self.budget.keep_ratio)).sum()
        earlier = torch.cat(before, dim=1) if before else action[:, :0]
        removed = ((1.0 - earlier) * weight[:t]).sum(dim=1, keepdim=True)
        later = weight[t + 1 :].sum() * (1.0 - CLAMP_FLOOR)
        most = 1.0 - (target - removed - later) / weight[t]
        return torch.minimum(action, most).clamp(CLAMP_FLOOR, 1.0)


class AmcPolicy(AgmcPolicy):
    """AMC's features and constraint in the place of encoder, decoder and none."""

    default: AgentOptions = DdpgOptions()

    def make_agent(self) -> Agent:
        """Return the agent with AMC's constraint."""
        assert isinstance(self.options, DdpgOptions)
        self.budget = fit_linear_budget(self.problem)
        return AmcAgent(self.make_states, self.budget, self.options, self.generator)

    def make_states(self) -> States:
        """Return AMC's features."""
        return amc_states(self.problem, self.budget.weight)

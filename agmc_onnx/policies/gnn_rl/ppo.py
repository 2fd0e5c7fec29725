"""Proximal policy optimisation with clipping (Schulman et al. 2017, arXiv:1707.06347), for episodes with one final reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from agmc_onnx.policies.gnn_rl.options import GnnRlOptions


class ActorCritic(Protocol):
    """Means of the actions and values of states; a torch module."""

    def means(self, observations: Tensor) -> Tensor:
        """Return (batch, n_actions), before squashing."""
        ...

    def values(self, observations: Tensor) -> Tensor:
        """Return (batch,)."""
        ...


@dataclass(frozen=True)
class Episode:
    """What was seen and done, and what came of it.

    Attributes:
        observations: float32 (n_steps, size).
        actions: float32 (n_steps, n_actions), before squashing.
        log_prob: float32 (n_steps,), of the actions when they were drawn.
        reward: The final reward; all steps have it as their return (no discount).
    """

    observations: Tensor
    actions: Tensor
    log_prob: Tensor
    reward: float


def log_prob(means: Tensor, sigma: float, actions: Tensor) -> Tensor:
    """Return the log density (batch,) of actions (batch, n_actions) under N(means, sigma^2), less a constant of n_actions.

    Squashing afterwards adds a term that does not depend on the means, so ratios of densities need none.
    """
    return -(((actions - means) / sigma) ** 2).sum(dim=-1) / 2 - actions.shape[-1] * float(
        torch.log(torch.tensor(sigma))
    )


def update(
    agent: ActorCritic,
    optimizer: torch.optim.Optimizer,
    episodes: Sequence[Episode],
    best: Sequence[Episode],
    sigma: float,
    options: GnnRlOptions,
) -> None:
    """Make `n_epochs` updates.

    Args:
        agent: Changed in place.
        optimizer: Of the agent's parameters.
        episodes: Drawn since the last update.
        best: The best episodes so far, imitated as far as they are better than expected (Oh et al. 2018,
            arXiv:1806.05635); may be empty.
        sigma: Width that all of them are judged with now.
        options: clip, n_epochs, value_weight, imitation and max_gradient count here.
    """
    seen = torch.tensor([e.reward for e in [*episodes, *best]])
    # Returns are the final rewards, normalised: GNN-RL, gnnrl/lib/RL/agent.py, Agent.update
    centre, spread = seen.mean(), seen.std(correction=0).clamp(min=1e-6)
    observations, actions, returns = _stack(episodes, float(centre), float(spread))
    old = torch.cat([e.log_prob for e in episodes])
    with torch.no_grad():
        advantage = returns - agent.values(observations)
        advantage = (advantage - advantage.mean()) / advantage.std(correction=0).clamp(min=1e-6)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(options.n_epochs):
        # L^CLIP = E[min(r A, clip(r, 1 - eps, 1 + eps) A)]: Schulman et al. 2017, arXiv:1707.06347, eq. 7
        ratio = (log_prob(agent.means(observations), sigma, actions) - old).clamp(-20.0, 20.0).exp()
        clipped = ratio.clamp(1 - options.clip, 1 + options.clip)
        loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
        # L^CLIP+VF = L^CLIP - c_1 (V - V_target)^2: Schulman et al. 2017, arXiv:1707.06347, eq. 9, without its entropy
        loss = loss + options.value_weight * ((agent.values(observations) - returns) ** 2).mean()
        if best and options.imitation:
            # (R - V)_+ |a - mu|^2: Oh et al. 2018, arXiv:1806.05635, eq. 2; ours
            good, done, gained = _stack(best, float(centre), float(spread))
            better = (gained - agent.values(good).detach()).clamp(min=0.0)
            distance = ((agent.means(good) - done) ** 2).mean(dim=1) / (2 * sigma**2)
            loss = loss + options.imitation * (better * distance).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, options.max_gradient)
        optimizer.step()


def _stack(episodes: Sequence[Episode], centre: float, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return observations, actions and normalised returns of all steps."""
    returns = [torch.full((len(e.actions),), (e.reward - centre) / spread) for e in episodes]
    return (
        torch.cat([e.observations for e in episodes]),
        torch.cat([e.actions for e in episodes]),
        torch.cat(returns),
    )

"""The DDPG agent over whole episodes (AGMC paper, section 3.4; DDPG: Lillicrap et al. 2016, arXiv:1509.02971).

The replay buffer holds actions and rewards of whole episodes, no states: states are recomputed through the current
encoder and decoder, so that both learn. All actions here are keep ratios.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from agmc_onnx.options import AgmcOptions
from agmc_onnx.policies.agmc.networks import Actor, Critic
from agmc_onnx.policies.agmc.states import States
from agmc_onnx.policies.guide.error_model import normalised
from agmc_onnx.policies.guide.linear_budget import LinearBudget


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch on one thread inside: these networks are too small to share, several threads are slower by a factor."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@dataclass(frozen=True)
class Known:
    """What is known of the groups before the first evaluation.

    Attributes:
        features: float32 (n_groups, n_features), static, standardised.
        table: float32 (n_groups, n_grid), error at keep ratios 0, 1 / (n_grid - 1), ..., 1, in units of the spread of an
            episode's sum; None where no curves are known.
    """

    features: Tensor
    table: Tensor | None

    def error(self, actions: Tensor) -> Tensor | None:
        """Return the errors of actions (..., n_groups), linear between the points, differentiable."""
        if self.table is None:
            return None
        last = self.table.shape[1] - 1
        at = actions.clamp(0.0, 1.0) * last
        below = at.detach().floor().clamp(max=last - 1).long()
        group = torch.arange(len(self.table)).expand_as(below)
        low, high = self.table[group, below], self.table[group, below + 1]
        return low + (at - below) * (high - low)


def truncated_normal(mean: Tensor, sigma: Tensor | float, generator: torch.Generator) -> Tensor:
    """Return samples of TN(mean, sigma^2, 0, 1) (eq. 9), float32 of mean's shape, by inversion of the distribution."""
    mean64 = mean.double()
    low, high = torch.special.ndtr(-mean64 / sigma), torch.special.ndtr((1.0 - mean64) / sigma)
    uniform = torch.rand(mean.shape, generator=generator, dtype=torch.float64)
    sample = mean64 + sigma * torch.special.ndtri((low + uniform * (high - low)).clamp(1e-12, 1 - 1e-12))
    return sample.clamp(0.0, 1.0).float()


class _Networks(nn.Module):
    """What makes states, actor and critic."""

    def __init__(self, states: States, options: AgmcOptions, first_action: float, has_table: bool) -> None:
        super().__init__()
        self.represent = states
        self.actor = Actor(states.size, options.hidden_size, first_action)
        weight = float(options.reward_on == "share")
        self.critic = Critic(states.size, options.hidden_size, n_known=int(has_table), known_weight=weight)

    def states(self, actions: Tensor) -> Tensor:
        """Return the states (batch, n_groups, d) of whole episodes with these actions (batch, n_groups)."""
        return self.represent.states(actions)


class DdpgAgent:
    """Actor, critic, their targets and the replay buffer.

    Attributes:
        sigma: Width of the exploration noise of the next episode.
    """

    def __init__(
        self,
        make_states: Callable[[], States],
        budget: LinearBudget,
        options: AgmcOptions,
        generator: torch.Generator,
        known: Known | None = None,
    ) -> None:
        """Make the networks.

        Args:
            make_states: Makes the module that makes states; called with torch's generator seeded.
            budget: The linear budget.
            options: Of the agent.
            generator: The only source of randomness.
            known: What is known of the groups, if anything.
        """
        self.options, self.budget, self.generator, self.known = options, budget, generator, known
        self.n_groups = len(budget.keep_ratio)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            first_action = float(budget.keep_ratio.mean().clamp(0.05, 0.95))
            has_table = known is not None and known.table is not None
            self.networks = _Networks(make_states(), options, first_action, has_table)
        self.targets = copy.deepcopy(self.networks).requires_grad_(False)
        owned = {id(p) for part in (self.networks.actor, self.networks.critic) for p in part.parameters()}
        represent = [p for p in self.networks.parameters() if id(p) not in owned]
        if options.frozen_encoder:
            for parameter in represent:
                parameter.requires_grad_(False)
            represent = []
        rates = [
            {"params": [*self.networks.critic.parameters(), *represent], "lr": options.critic_lr},
            {"params": list(self.networks.actor.parameters()), "lr": options.actor_lr},
        ]
        self.optimizer = torch.optim.Adam(rates, fused=True)
        capacity = max(options.buffer_size // self.n_groups, options.min_buffer_episodes)
        self.replay: deque[tuple[Tensor, float]] = deque(maxlen=capacity)
        self.baseline: float | None = None
        self.sigma = options.noise

    def remember(self, actions: Tensor, reward: float) -> None:
        """Store one episode: executed actions (n_groups,) and the reward."""
        self.replay.append((actions, reward))

    @single_thread()
    @torch.no_grad()
    def rollout(self, n: int, sigma: float) -> Tensor:
        """Return actions (n, n_groups) of n episodes of the actor, with noise (eq. 9) unless sigma is 0."""
        walk = self.networks.represent.walk(n)
        action, actions = torch.ones(n, 1), list[Tensor]()
        for t in range(self.n_groups):
            action = self.networks.actor(walk.step(t, action))[:, None]
            if sigma:
                action = truncated_normal(action, sigma, self.generator)
            if self.options.clamp:
                action = self.budget.clamp(actions, action)
            actions.append(action)
        return torch.cat(actions, dim=1)

    @single_thread()
    @torch.no_grad()
    def judge(self, actions: Tensor) -> Tensor:
        """Return the critic's value (n,) of whole episodes (n, n_groups), on the linear budget."""
        actions = self.budget.rescale(actions) if self.options.rescale_in_update else actions
        values: Tensor = self.networks.critic(self.networks.states(actions), actions, self._errors(actions))
        return values.sum(dim=1) if self.options.reward_on == "share" else values.mean(dim=1)

    def _errors(self, actions: Tensor) -> Tensor | None:
        """Return what is known of the errors of actions (..., n_groups)."""
        return None if self.known is None else self.known.error(actions)

    def know(self, table: Tensor) -> None:
        """Take what actions cost from another table (n_groups, n_grid), in units of the normalised reward."""
        assert self.known is not None
        self.known = replace(self.known, table=table)

    def decay_noise(self) -> None:
        """Make the exploration noise smaller, down to its floor."""
        self.sigma = max(self.sigma * self.options.noise_decay, self.options.noise_floor)

    @single_thread()
    def update(self) -> tuple[float, float]:
        """Make one update of critic, actor, encoder and decoder on a batch of whole episodes; return both losses."""
        actions, rewards = self._batch()
        networks, options = self.networks, self.options
        states = networks.states(actions)
        values = networks.critic(states, actions, self._errors(actions))
        if options.reward_on == "share":
            critic_loss = nn.functional.mse_loss(values.sum(dim=1), rewards)
        else:
            critic_loss = nn.functional.mse_loss(values, self._targets(actions, rewards))
        chosen = networks.actor(states)
        if options.rescale_in_update:
            chosen = self.budget.rescale(chosen)
        # The critic sees detached states: the actor's loss may change what the actor sees, not what the critic sees, or
        # the encoder would raise Q without any better action. The critic's own weights get no gradient here.
        networks.critic.requires_grad_(False)
        actor_loss = -networks.critic(states.detach(), chosen, self._errors(chosen)).mean()
        networks.critic.requires_grad_(True)
        self.optimizer.zero_grad(set_to_none=True)
        (critic_loss + actor_loss).backward()
        self.optimizer.step()
        if options.reward_on != "share":
            self._follow()
        return float(critic_loss.detach()), float(actor_loss.detach())

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Return actions (batch, n_groups) and baselined rewards (batch,) of episodes drawn without repetition."""
        n = min(max(-(-self.options.batch_size // self.n_groups), 1), len(self.replay))
        chosen = torch.randperm(len(self.replay), generator=self.generator)[:n]
        if self.options.normalise_reward:
            actions, rewards = self.episodes()
            return actions[chosen], rewards[chosen]
        actions = torch.stack([self.replay[i][0] for i in chosen.tolist()])
        rewards = torch.tensor([self.replay[i][1] for i in chosen.tolist()])
        alpha, mean = self.options.baseline_momentum, float(rewards.mean())
        self.baseline = mean if self.baseline is None else alpha * mean + (1 - alpha) * self.baseline
        return actions, rewards - self.baseline

    def episodes(self) -> tuple[Tensor, Tensor]:
        """Return all episodes kept: actions (n, n_groups), and rewards (n,) less their median, of deviation about 1."""
        actions = torch.stack([actions for actions, _ in self.replay])
        return actions, normalised(torch.tensor([reward for _, reward in self.replay]))

    @torch.no_grad()
    def _targets(self, actions: Tensor, rewards: Tensor) -> Tensor:
        """Return y (batch, n_groups) of eq. 11; `rewards` are baselined already, nothing follows the last group."""
        states = self.targets.states(actions)
        chosen = self.targets.actor(states)
        following = self.targets.critic(states, chosen, self._errors(chosen))
        following = torch.cat([following[:, 1:], torch.zeros(len(actions), 1)], dim=1)
        received = rewards[:, None].expand_as(actions).clone()
        if self.options.reward_on == "final":
            received[:, :-1] = 0.0
        return received + self.options.gamma * following

    @torch.no_grad()
    def follow_at_once(self) -> None:
        """Set the targets to the networks, after these were read from a file."""
        self.targets.load_state_dict(self.networks.state_dict())

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the targets by tau towards the networks."""
        targets: list[Tensor] = list(self.targets.parameters())
        sources: list[Tensor] = list(self.networks.parameters())
        torch._foreach_lerp_(targets, sources, self.options.tau)

"""The DDPG agent over whole episodes (AGMC, sec. 3.4; DDPG: Lillicrap et al. 2016, arXiv:1509.02971).

The replay buffer holds actions and rewards of whole episodes, no states: states are recomputed through the current
encoder and decoder, so that both learn ("our environment is also learnable", AGMC, sec. 3.4.1). All actions here are keep
ratios, 1 - a of the paper.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from agmc_onnx.policies.agmc.networks import Actor, Critic
from agmc_onnx.policies.agmc.options import AgentOptions, DdpgOptions
from agmc_onnx.policies.agmc.states import States
from agmc_onnx.torch_view.threads import torch_threads


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch on one thread inside: these networks are too small to share, several threads are slower by a factor."""
    with torch_threads(1):
        yield


def truncated_normal(mean: Tensor, sigma: Tensor | float, generator: torch.Generator) -> Tensor:
    """Return samples of mu'(s) ~ TN(mu(s), sigma^2, 0, 1) (AGMC, sec. 3.4.2, eq. 9), float32 of mean's shape, by inversion."""
    mean64 = mean.double()
    low, high = torch.special.ndtr(-mean64 / sigma), torch.special.ndtr((1.0 - mean64) / sigma)
    uniform = torch.rand(mean.shape, generator=generator, dtype=torch.float64)
    sample = mean64 + sigma * torch.special.ndtri((low + uniform * (high - low)).clamp(1e-12, 1 - 1e-12))
    return sample.clamp(0.0, 1.0).float()


class Networks(nn.Module):
    """What makes states, actor and critic."""

    def __init__(self, states: States, actor: Actor, critic: Critic) -> None:
        super().__init__()
        self.represent, self.actor, self.critic = states, actor, critic

    def states(self, actions: Tensor) -> Tensor:
        """Return the states (batch, n_groups, d) of whole episodes with these actions (batch, n_groups)."""
        return self.represent.states(actions)


class Agent(ABC):
    """Actor, critic and the replay buffer; what is updated, and how, is its subclasses' (`DdpgAgent`).

    Attributes:
        networks: Of the agent.
        replay: Executed actions (n_groups,) and reward of each episode.
        sigma: Width of the exploration noise of the next episode.
    """

    def __init__(
        self,
        make_networks: Callable[[], Networks],
        n_groups: int,
        options: AgentOptions,
        generator: torch.Generator,
        is_frozen: bool = False,
    ) -> None:
        """Make the networks.

        Args:
            make_networks: Makes them; called with torch's generator seeded.
            n_groups: Actions of an episode.
            options: Of the agent.
            generator: The only source of randomness.
            is_frozen: Whether what makes states stays as initialised.
        """
        self.options, self.generator, self.n_groups = options, generator, n_groups
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            self.networks = make_networks()
        owned = {id(p) for part in (self.networks.actor, self.networks.critic) for p in part.parameters()}
        represent = [p for p in self.networks.parameters() if id(p) not in owned]
        if is_frozen:
            for parameter in represent:
                parameter.requires_grad_(False)
            represent = []
        rates = [
            {"params": [*self.networks.critic.parameters(), *represent], "lr": options.critic_lr},
            {"params": list(self.networks.actor.parameters()), "lr": options.actor_lr},
        ]
        self.optimizer = torch.optim.Adam(rates, fused=True)
        capacity = max(options.buffer_size // n_groups, options.min_buffer_episodes)
        self.replay: deque[tuple[Tensor, float]] = deque(maxlen=capacity)
        self.sigma = options.noise

    def remember(self, actions: Tensor, reward: float) -> None:
        """Store one episode: executed actions (n_groups,) and the reward."""
        self.replay.append((actions, reward))

    @single_thread()
    @torch.no_grad()
    def rollout(self, n: int, sigma: float) -> Tensor:
        """Return actions (n, n_groups) of n episodes of the actor, with noise (AGMC, sec. 3.4.2, eq. 9) unless sigma is 0."""
        walk = self.networks.represent.walk(n)
        action, actions = torch.ones(n, 1), list[Tensor]()
        for t in range(self.n_groups):
            action = self.networks.actor(walk.step(t, action))[:, None]
            if sigma:
                action = truncated_normal(action, sigma, self.generator)
            action = self.constrained(actions, action)
            actions.append(action)
        return torch.cat(actions, dim=1)

    def constrained(self, before: list[Tensor], action: Tensor) -> Tensor:
        """Return the next action (n, 1) as it is; AMC keeps it in bounds (`policies.amc`)."""
        return action

    def decay_noise(self) -> None:
        """Make the exploration noise smaller, down to its floor ("exponentially decayed noise", AGMC, sec. 4)."""
        self.sigma = max(self.sigma * self.options.noise_decay, self.options.noise_floor)

    @abstractmethod
    def update(self) -> tuple[float, float]:
        """Make one update on a batch of whole episodes; return the losses of critic and actor."""

    def drawn(self) -> list[int]:
        """Return places in the replay buffer, without repetition, of as many episodes as make a batch of transitions."""
        n = min(max(-(-self.options.batch_size // self.n_groups), 1), len(self.replay))
        chosen: list[int] = torch.randperm(len(self.replay), generator=self.generator)[:n].tolist()
        return chosen

    def descend(self, critic_loss: Tensor, actor_loss: Tensor) -> tuple[float, float]:
        """Make one step of the optimiser on both losses; return them."""
        self.optimizer.zero_grad(set_to_none=True)
        (critic_loss + actor_loss).backward()
        self.optimizer.step()
        return float(critic_loss.detach()), float(actor_loss.detach())

    @contextmanager
    def fixed_critic(self) -> Iterator[None]:
        """Let no gradient of the actor's loss reach the critic's own weights."""
        self.networks.critic.requires_grad_(False)
        try:
            yield
        finally:
            self.networks.critic.requires_grad_(True)


class DdpgAgent(Agent):
    """DDPG as the paper has it, with target networks.

    Attributes:
        targets: Follow the networks slowly.
        baseline: b of eq. 11, a moving average of batch mean rewards; None before the first update.
    """

    def __init__(
        self,
        make_states: Callable[[], States],
        n_groups: int,
        options: DdpgOptions,
        generator: torch.Generator,
        is_frozen: bool = False,
    ) -> None:
        """Make the networks; `make_states` makes what makes the states, encoder and decoder or AMC's features."""

        def networks() -> Networks:
            states, hidden = make_states(), options.hidden_size
            return Networks(states, Actor(states.size, hidden), Critic(states.size, hidden))

        super().__init__(networks, n_groups, options, generator, is_frozen)
        self.ddpg = options
        self.targets = copy.deepcopy(self.networks).requires_grad_(False)
        self.baseline: float | None = None

    @single_thread()
    def update(self) -> tuple[float, float]:
        """Make one update of critic, actor, encoder and decoder on a batch of whole episodes; return both losses."""
        actions, rewards = self.batch()
        networks = self.networks
        states = networks.states(actions)
        # Loss = 1/N sum_i (y_i - Q(s_i, a_i))^2 (AGMC, sec. 3.4.2, eq. 10)
        critic_loss = nn.functional.mse_loss(networks.critic(states, actions), self.target_values(actions, rewards))
        # The critic sees detached states: the actor's loss may change what the actor sees, not what the critic sees, or
        # the encoder would raise Q without any better action.
        with self.fixed_critic():
            actor_loss = -networks.critic(states.detach(), networks.actor(states)).mean()  # arXiv:1509.02971, alg. 1
        losses = self.descend(critic_loss, actor_loss)
        self.follow()
        return losses

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return actions (batch, n_groups) and rewards less the baseline, r_i - b (batch,), of episodes drawn."""
        chosen = self.drawn()
        actions = torch.stack([self.replay[i][0] for i in chosen])
        rewards = torch.tensor([self.replay[i][1] for i in chosen])
        alpha, mean = self.ddpg.baseline_momentum, float(rewards.mean())
        self.baseline = mean if self.baseline is None else alpha * mean + (1 - alpha) * self.baseline
        return actions, rewards - self.baseline

    @torch.no_grad()
    def target_values(self, actions: Tensor, rewards: Tensor) -> Tensor:
        """Return y_i = r_i - b + gamma Q(s_{i+1}, mu(s_{i+1})), (batch, n_groups) (AGMC, sec. 3.4.2, eq. 11).

        Args:
            actions: (batch, n_groups).
            rewards: (batch,), less the baseline already; nothing follows the last group.
        """
        states = self.targets.states(actions)
        following = self.targets.critic(states, self.targets.actor(states))
        following = torch.cat([following[:, 1:], torch.zeros(len(actions), 1)], dim=1)
        received = rewards[:, None].expand_as(actions).clone()
        if self.ddpg.reward_on == "final":
            received[:, :-1] = 0.0
        return received + self.ddpg.gamma * following

    @torch.no_grad()
    def follow_at_once(self) -> None:
        """Set the targets to the networks, after these were read from a file."""
        self.targets.load_state_dict(self.networks.state_dict())

    @torch.no_grad()
    def follow(self) -> None:
        """Move the targets by tau towards the networks (AGMC, sec. 4; arXiv:1509.02971, alg. 1)."""
        targets: list[Tensor] = list(self.targets.parameters())
        sources: list[Tensor] = list(self.networks.parameters())
        torch._foreach_lerp_(targets, sources, self.ddpg.tau)

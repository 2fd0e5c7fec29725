"""The agent that a guide informs: AGMC's and AMC's, with what is known of budget, groups and errors. Ours.

What differs from `policies.agmc`, so that 40 to 100 evaluations teach it something:

- the decoder sees of each group the mean embedding of its graph nodes, a small learned vector, and static features;
- the critic sees the known error of every action, and its values of an episode add up to the episode's reward;
- the actor's choice is put on the linear budget before the critic judges it: "keep everything" would look best otherwise;
- rewards are normalised; warm-up is noise around the best candidate so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from agmc_onnx.arrays import FloatArray
from agmc_onnx.policies.agmc.ddpg import Agent, Networks, single_thread, truncated_normal
from agmc_onnx.policies.agmc.networks import Actor, Critic
from agmc_onnx.policies.agmc.options import AgentOptions, GraphOptions
from agmc_onnx.policies.agmc.policy import AgmcPolicy, as_ratio
from agmc_onnx.policies.agmc.states import GraphStates, GraphTensors, States, graph_tensors, standardised
from agmc_onnx.policies.amc import amc_states
from agmc_onnx.policies.guide.error_model import normalised
from agmc_onnx.policies.guide.guide import N_GRID, on_grid
from agmc_onnx.policies.guide.linear_budget import LinearBudget, fit_linear_budget
from agmc_onnx.policies.guide.prior import best_curves
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.problem import Outcome, Problem

WARMUP_SIGMA = 0.12  # noise of the warm-up
ELITE_SHARE, N_CANDIDATES = (
    0.75,
    8,
)  # without a budget: episodes around the best one, candidates the critic chooses from


@dataclass(frozen=True)
class InformedOptions(AgentOptions):
    """Of the informed agent: rates and shares for searches of about 100 episodes, where the paper has 400."""

    actor_lr: float = 1e-3
    batch_size: int = 128
    min_buffer_episodes: int = 100
    warmup_share: float = 0.1
    noise: float = 0.2
    noise_decay: float = 0.98
    noise_floor: float = 0.05


@dataclass(frozen=True)
class InformedAgmcOptions(InformedOptions, GraphOptions):
    """Of the informed agent that reads the graph.

    Attributes:
        n_encoder_layers: 2, so that a value sees its neighbours' neighbours.
        identity_size: Width of a learned vector per group; groups that look alike in the graph may still differ.
    """

    n_encoder_layers: int = 2
    identity_size: int = 8


@dataclass(frozen=True)
class Known:
    """What is known of the groups before the first evaluation.

    Attributes:
        features: float32 (n_groups, n_features), static, standardised.
        table: float32 (n_groups, n_grid), error at keep ratios 0, 1 / (n_grid - 1), ..., 1, in units of the spread of an
            episode's sum; zeros where no curves are known, until the error model fills it.
    """

    features: Tensor
    table: Tensor

    def error(self, actions: Tensor) -> Tensor:
        """Return the errors of actions (..., n_groups), linear between the points, differentiable."""
        last = self.table.shape[1] - 1
        at = actions.clamp(0.0, 1.0) * last
        below = at.detach().floor().clamp(max=last - 1).long()
        group = torch.arange(len(self.table)).expand_as(below)
        low, high = self.table[group, below], self.table[group, below + 1]
        return low + (at - below) * (high - low)


class InformedStates(GraphStates):
    """Encoder and decoder, which sees of each group its nodes' mean embedding, a learned vector and static features."""

    def __init__(self, graph: GraphTensors, options: InformedAgmcOptions, features: Tensor) -> None:
        """Make the layers; `features` (n_groups, n_features) reach the decoder as they are."""
        width = options.embedding_size + options.identity_size + features.shape[1]
        super().__init__(graph, options, width)
        self.identity = nn.Embedding(len(features), options.identity_size) if options.identity_size else None
        self.features = features

    def context(self, h: Tensor) -> Tensor:
        """Return what the decoder sees of the groups (1, n_groups, width)."""
        graph, n = self.graph, len(self.features)
        count = torch.zeros(n, 1).index_add(0, graph.member_group, torch.ones(len(graph.member_group), 1))
        total = torch.zeros(n, h.shape[1]).index_add(0, graph.member_group, h[graph.member_node])
        own = [] if self.identity is None else [self.identity.weight]
        return torch.cat([total / count.clamp(min=1), *own, self.features], dim=1)[None]


class InformedCritic(Critic):
    """Q(s, a) that sees the known error of the action too, and starts from taking it off the value, with a learned weight."""

    def __init__(self, size: int, hidden_size: int) -> None:
        super().__init__(size + 1, hidden_size)
        self.known_weight = nn.Parameter(torch.tensor(1.0))

    def judge(self, states: Tensor, actions: Tensor, errors: Tensor) -> Tensor:
        """Return values (...) of actions (...) with these known errors (...) in states (..., d)."""
        seen = torch.cat([states, actions[..., None], errors[..., None]], dim=-1)
        values: Tensor = self.layers(seen)[..., 0]
        return values - self.known_weight * errors


class InformedAgent(Agent):
    """Learns each group's share of an episode's reward, with what is known beforehand.

    Attributes:
        known: What is known; the guide tells it from time to time.
        budget: The linear budget; None where there is no budget to be on.
    """

    def __init__(
        self,
        make_states: Callable[[], States],
        first_action: float,
        budget: LinearBudget | None,
        known: Known,
        options: InformedOptions,
        generator: torch.Generator,
    ) -> None:
        """Make the networks.

        Args:
            make_states: Makes what makes the states; called with torch's generator seeded.
            first_action: Where the untrained actor starts, in (0, 1).
            budget: The linear budget, or None.
            known: What is known of the groups.
            options: Of the agent.
            generator: The only source of randomness.
        """

        def networks() -> Networks:
            states, hidden = make_states(), options.hidden_size
            return Networks(states, Actor(states.size, hidden, first_action), InformedCritic(states.size, hidden))

        is_frozen = isinstance(options, GraphOptions) and options.frozen_encoder
        super().__init__(networks, len(known.features), options, generator, is_frozen)
        self.known, self.budget = known, budget

    def _on_budget(self, actions: Tensor) -> Tensor:
        return actions if self.budget is None else self.budget.rescale(actions)

    def _values(self, states: Tensor, actions: Tensor) -> Tensor:
        """Return what the critic gives each group of episodes (batch, n_groups)."""
        critic = self.networks.critic
        assert isinstance(critic, InformedCritic)
        return critic.judge(states, actions, self.known.error(actions))

    @single_thread()
    @torch.no_grad()
    def judge(self, actions: Tensor) -> Tensor:
        """Return the critic's value (n,) of whole episodes (n, n_groups), on the linear budget."""
        actions = self._on_budget(actions)
        return self._values(self.networks.states(actions), actions).sum(dim=1)

    def know(self, table: Tensor) -> None:
        """Take what actions cost from another table (n_groups, n_grid), in units of the normalised reward."""
        self.known = replace(self.known, table=table)

    @single_thread()
    def update(self) -> tuple[float, float]:
        """Make one update of critic, actor, encoder and decoder on a batch of whole episodes; return both losses."""
        chosen = torch.tensor(self.drawn())
        actions, rewards = (part[chosen] for part in self.episodes())
        states = self.networks.states(actions)
        critic_loss = nn.functional.mse_loss(self._values(states, actions).sum(dim=1), rewards)
        better = self._on_budget(self.networks.actor(states))
        with self.fixed_critic():  # and the critic sees detached states, as in `DdpgAgent.update`
            actor_loss = -self._values(states.detach(), better).mean()
        return self.descend(critic_loss, actor_loss)

    def episodes(self) -> tuple[Tensor, Tensor]:
        """Return all episodes kept: actions (n, n_groups), and rewards (n,) less their median, of deviation about 1."""
        actions = torch.stack([actions for actions, _ in self.replay])
        return actions, normalised(torch.tensor([reward for _, reward in self.replay]))


class InformedAgmc(AgmcPolicy):
    """AGMC with an informed agent; what `Guided` is put round by the name `agmc`.

    Attributes:
        best: Reward and keep ratios float32 (n_groups,) of the best episode, or None.
    """

    default: AgentOptions = InformedAgmcOptions()
    agent: InformedAgent

    def __init__(self, problem: Problem, options: SearchOptions, rng: np.random.Generator) -> None:
        """Make the agent; arguments as of `AgmcPolicy`."""
        self.best: tuple[float, Tensor] | None = None
        super().__init__(problem, options, rng)

    def make_agent(self) -> Agent:
        """Return an informed agent."""
        assert isinstance(self.options, InformedOptions)
        self.budget = fit_linear_budget(self.problem)
        known = self.known = known_of(self.problem, self.budget)
        first = float(self.budget.keep_ratio.mean().clamp(0.05, 0.95))
        budget = self.budget if self.problem.has_budget else None
        return InformedAgent(self.make_states, first, budget, known, self.options, self.generator)

    def make_states(self) -> States:
        """Return what the agent sees: encoder and decoder."""
        assert isinstance(self.options, InformedAgmcOptions)
        return InformedStates(graph_tensors(self.problem), self.options, self.known.features)

    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return float64 (n_groups,) keep ratios: warm-up around the best so far, or the critic's favourite of a few.

        The first of all, if nothing was observed, is the uniform one. Where a guide climbs only the warm-up is asked for.
        """
        uniform, agent = self.budget.keep_ratio, self.agent
        if self.best is None:
            return as_ratio(uniform)
        if self.episode < self.n_warmup:
            return as_ratio(truncated_normal(self.best[1], WARMUP_SIGMA, self.generator))
        is_around_best = float(torch.rand((), generator=self.generator)) < ELITE_SHARE
        centre = self.best[1] if is_around_best else agent.rollout(1, 0.0)[0]
        candidates = truncated_normal(centre.expand(N_CANDIDATES, -1), agent.sigma, self.generator)
        agent.decay_noise()
        return as_ratio(candidates[int(agent.judge(candidates).argmax())])

    def starts(self, n: int) -> Tensor | None:
        """Return what the actor would do in n episodes (n, n_groups); None during the warm-up, or if it may not learn."""
        if self.episode < self.n_warmup or self.best is None:
            return None
        if not self.options.n_updates:
            return torch.zeros(0, self.problem.n_groups)
        return super().starts(n)

    def know(self, table: Tensor) -> None:
        """Take what actions cost from the guide's error model (n_groups, n_grid)."""
        self.agent.know(table)

    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Store the episode, and train once the warm-up is over."""
        if self.best is None or reward > self.best[0]:
            self.best = reward, torch.as_tensor(np.asarray(keep_ratio_executed), dtype=torch.float32)
        super().observe(keep_ratio_executed, reward, outcome)


class InformedAmc(InformedAgmc):
    """AMC's features through the informed agent; what `Guided` is put round by the name `amc`."""

    default: AgentOptions = InformedOptions()

    def make_states(self) -> States:
        """Return AMC's features."""
        return amc_states(self.problem, self.budget.weight)


def known_of(problem: Problem, budget: LinearBudget) -> Known:
    """Return features and error curves; without data the curves say too little to start a critic from."""
    columns = [np.asarray(problem.features, np.float64)]
    table = torch.zeros(problem.n_groups, N_GRID)
    if problem.curves is not None:
        errors = on_grid(best_curves(problem), problem)
        table = torch.as_tensor(errors, dtype=torch.float32)
        columns.append(np.log(errors[:, [N_GRID // 4, N_GRID // 2]] + 1e-4))
        table = table / _spread(Known(table, table), budget)
    if problem.is_joined is not None:
        columns.append(problem.is_joined[:, None].astype(np.float64))
    return Known(torch.as_tensor(standardised(np.concatenate(columns, axis=1)), dtype=torch.float32), table)


def _spread(known: Known, budget: LinearBudget) -> float:
    """Return half the distance between the 16th and the 84th percentile of the error of episodes around the uniform one."""
    draws = truncated_normal(budget.keep_ratio.expand(256, -1), WARMUP_SIGMA, torch.Generator().manual_seed(0))
    errors = known.error(budget.rescale(draws))
    low, high = torch.quantile(errors.sum(dim=1), torch.tensor([0.16, 0.84])).tolist()
    return max((high - low) / 2, 1e-9)

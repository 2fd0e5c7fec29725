"""The AGMC policy: the hierarchical graph, encoder, decoder and DDPG agent behind the `Policy` protocol.

An episode, top to bottom (AGMC, sec. 3.2 and fig. 3): the hierarchical graph (`motifs`, sec. 3.1) is embedded into g
(`networks.GCNEncoder` or `networks.DiffPoolEncoder`, sec. 3.3.1 and 3.3.2), decoded into one state a group (`networks.Decoder`,
sec. 3.3.3), the actor turns states into actions (`ddpg.Agent.rollout`, sec. 3.4.2), the actions are brought to the budget
(`search.budget`, sec. 3.4.4, alg. 1), the candidate is evaluated and rewarded (`search.rewards`, sec. 3.4.3), and the agent
learns of it (`ddpg.DdpgAgent.update`, sec. 3.4.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agmc_onnx.arrays import FloatArray
from agmc_onnx.errors import UsageError
from agmc_onnx.policies.agmc.ddpg import Agent, DdpgAgent
from agmc_onnx.policies.agmc.options import AgentOptions, AgmcOptions, DdpgOptions, GraphOptions
from agmc_onnx.policies.agmc.states import GraphStates, States, graph_tensors
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.policy import SMALLEST
from agmc_onnx.search.problem import Outcome, Problem

CHOICES: Mapping[str, tuple[str, ...]] = {"encoder": ("mean", "diffpool"), "reward_on": ("all", "final")}


class AgmcPolicy:
    """Proposes what the actor does, and trains after every episode.

    Attributes:
        generator: The only source of randomness; seeded by the search's.
        agent: The agent.
        episode: Episodes observed.
    """

    default: AgentOptions = AgmcOptions()

    def __init__(self, problem: Problem, options: SearchOptions, rng: np.random.Generator) -> None:
        """Make the agent.

        Args:
            problem: The network to compress.
            options: Episodes and the options of the agent (`own`).
            rng: Seeds the agent's own generator.

        Raises:
            UsageError: If an option has an unknown value.
        """
        self.problem, self.options = problem, checked(options.own or self.default)
        self.n_episodes = options.n_episodes
        self.n_warmup = self.options.n_warmup(options.n_episodes)
        self.episode = 0
        self.generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        self.agent = self.make_agent()

    def make_agent(self) -> Agent:
        """Return the agent: the paper's here."""
        assert isinstance(self.options, DdpgOptions)
        is_frozen = isinstance(self.options, GraphOptions) and self.options.frozen_encoder
        return DdpgAgent(self.make_states, self.problem.n_groups, self.options, self.generator, is_frozen)

    def make_states(self) -> States:
        """Return what the agent sees: encoder and decoder here."""
        assert isinstance(self.options, GraphOptions)
        return GraphStates(graph_tensors(self.problem), self.options)

    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return float64 (n_groups,) keep ratios: random ones at first ("random action", AGMC, sec. 4), then the actor's."""
        if self.episode < self.n_warmup:
            return as_ratio(torch.rand(self.problem.n_groups, generator=self.generator))
        found = self.agent.rollout(1, self.agent.sigma)[0]
        self.agent.decay_noise()
        return as_ratio(found)

    def starts(self, n: int) -> Tensor | None:
        """Return what the actor would do in n episodes (n, n_groups), for a guide to climb from; None during the warm-up."""
        if self.episode < self.n_warmup:
            return None
        found = self.agent.rollout(n, self.agent.sigma)
        self.agent.decay_noise()
        return found

    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Store the episode, and train once the warm-up is over."""
        self.agent.remember(torch.as_tensor(np.asarray(keep_ratio_executed), dtype=torch.float32), reward)
        self.episode += 1
        if self.episode >= self.n_warmup:
            for _ in range(self.options.n_updates):
                self.agent.update()


def as_ratio(actions: Tensor) -> FloatArray:
    """Return actions as the search wants them."""
    return np.clip(actions.double().numpy(), SMALLEST, 1.0)


def checked(options: Any) -> Any:
    """Return options of an agent; raise if a choice is unknown."""
    for name, choices in CHOICES.items():
        value = getattr(options, name, choices[0])
        if value not in choices:
            raise UsageError(f"agmc: unknown {name}, got {value!r}; expected one of {', '.join(choices)}.")
    return options

"""The GNN-RL policy (Yu et al. 2022, arXiv:2102.03214): multi-stage graph embedding, PPO, all groups at once.

An observation is the vector of keep ratios so far; the graph's state is rebuilt from it for every embedding. Against the
published code: embeddings in batches, edge types learned, a critic without tanh, no dropout, squashed actions that only
prune, and a budget met from both sides by the search.
"""

from __future__ import annotations

import copy
import heapq
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from agmc_onnx.arrays import FloatArray
from agmc_onnx.policies.agmc.ddpg import single_thread
from agmc_onnx.policies.agmc.states import standardised
from agmc_onnx.policies.gnn_rl import ppo
from agmc_onnx.policies.gnn_rl.encoder import MultiStageEncoder, Stages, stages
from agmc_onnx.policies.gnn_rl.options import GnnRlOptions
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.policy import SMALLEST
from agmc_onnx.search.problem import Outcome, Problem

LEAST_FACTOR = 0.2  # a step keeps at least this share of what was left


class GnnRlAgent(nn.Module):
    """Actor and critic, each with an encoder of its own as in the published code.

    The actor's head is shared by all groups: it sees the network's embedding, the group's, its static features, a learned
    vector, and how far the budget is; the published code has one output per layer, which ties it to one network.
    """

    def __init__(self, graph: Stages, features: Tensor, options: GnnRlOptions) -> None:
        """Make the layers; `features` is float32 (n_groups, n_features), standardised."""
        super().__init__()
        self.actor_encoder = MultiStageEncoder(graph, options.edge_size, options.embedding_size)
        self.critic_encoder = copy.deepcopy(self.actor_encoder)
        self.features = features
        self.identity = nn.Embedding(graph.n_groups, options.identity_size)
        d = options.embedding_size
        width = 2 * d + features.shape[1] + options.identity_size + 2
        self.actor = nn.Sequential(nn.Linear(width, options.hidden_size), nn.ReLU(), nn.Linear(options.hidden_size, 1))
        self.critic = nn.Sequential(nn.Linear(d + 1, options.hidden_size), nn.ReLU(), nn.Linear(options.hidden_size, 1))
        last = cast(nn.Linear, self.actor[2])
        nn.init.uniform_(last.weight, -3e-3, 3e-3)
        nn.init.zeros_(last.bias)
        self.offset = torch.zeros(graph.n_groups)

    def means(self, observations: Tensor) -> Tensor:
        """Return the means (batch, n_groups) of the actions; observations are keep ratios and the share of the cost left."""
        keep, left = observations[:, :-1], observations[:, -1:]
        g, groups = self.actor_encoder(keep)  # mu(g): GNN-RL, gnnrl/lib/RL/agent.py, ActorNetwork.forward
        n, n_groups = keep.shape
        parts = [
            g[:, None].expand(-1, n_groups, -1),
            groups,
            self.features.expand(n, -1, -1),
            self.identity.weight.expand(n, -1, -1),
            keep[:, :, None],
            left[:, None].expand(-1, n_groups, -1),
        ]
        head: Tensor = self.actor(torch.cat(parts, dim=2))[:, :, 0]
        return head + self.offset

    def values(self, observations: Tensor) -> Tensor:
        """Return the values (batch,) of observations."""
        g, _ = self.critic_encoder(observations[:, :-1])  # V(g): GNN-RL, gnnrl/lib/RL/agent.py, CriticNetwork.forward
        value: Tensor = self.critic(torch.cat([g, observations[:, -1:]], dim=1))[:, 0]
        return value


class GnnRlPolicy:
    """Prunes all groups at once, step by step until the budget is met or steps run out; the search makes it exact."""

    def __init__(self, problem: Problem, options: SearchOptions, rng: np.random.Generator) -> None:
        """Make the agent; `rng` seeds its own generator."""
        self.problem, self.options = problem, options.own or GnnRlOptions()
        self.n_episodes = options.n_episodes
        self.generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        features = standardised(np.asarray(problem.features, np.float64))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=self.generator)))
            self.agent = GnnRlAgent(stages(problem), torch.as_tensor(features, dtype=torch.float32), self.options)
        self.optimizer = torch.optim.Adam(self.agent.parameters(), lr=self.options.learning_rate)
        self.sigma = self.options.sigma
        self.seen: tuple[float, FloatArray] | None = None
        self.is_centred = False
        self.pending: tuple[Tensor, Tensor, Tensor] | None = None
        self.fresh: list[ppo.Episode] = []
        self.best: list[tuple[float, int, ppo.Episode]] = []
        self.n_own = 0

    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return float64 (n_groups,) keep ratios of one episode of the actor."""
        return self._episode().double().numpy()

    def starts(self, n: int) -> Tensor:
        """Return the keep ratios (n, n_groups) of one episode; a guide that climbs from there is a part of the environment."""
        return self._episode().expand(n, -1)

    @single_thread()
    @torch.no_grad()
    def _episode(self) -> Tensor:
        """Return the keep ratios (n_groups,) of one episode of the actor, at most `max_steps` steps long."""
        if not self.is_centred:
            self._centre()
        keep = torch.ones(self.problem.n_groups)
        seen, done, probabilities = [], [], []
        for _ in range(self.options.max_steps):
            observation = torch.cat([keep, torch.tensor([self._cost(keep) / self.problem.budget - 1.0])])[None]
            means = self.agent.means(observation)
            # a ~ N(mu(g), sigma^2): GNN-RL, gnnrl/lib/RL/agent.py, ActorCritic.act
            action = means + self.sigma * torch.randn(means.shape, generator=self.generator)
            seen.append(observation)
            done.append(action)
            probabilities.append(ppo.log_prob(means, self.sigma, action))
            # keep <- keep (1 - a): GNN-RL, gnnrl/graph_env/graph_environment.py, graph_env.step; a is squashed here
            keep = (keep * (LEAST_FACTOR + (1 - LEAST_FACTOR) * torch.sigmoid(action[0]))).clamp(min=SMALLEST)
            if self._cost(keep) <= self.problem.budget:
                break
        self.pending = torch.cat(seen), torch.cat(done), torch.cat(probabilities)
        return keep

    @single_thread()
    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Store the episode, and update after every `n_rollout` of them; of others' candidates, start from the best."""
        if self.pending is None:
            if self.seen is None or reward > self.seen[0]:
                self.seen = reward, np.array(keep_ratio_executed, np.float64)
            return
        episode = ppo.Episode(*self.pending, reward)
        self.pending = None
        self.fresh.append(episode)
        self.n_own += 1
        heapq.heappush(self.best, (reward, self.n_own, episode))
        if len(self.best) > self.options.n_best:
            heapq.heappop(self.best)
        if len(self.fresh) == self.options.n_rollout:
            ppo.update(self.agent, self.optimizer, self.fresh, [e for _, _, e in self.best], self.sigma, self.options)
            self.fresh = []
            self.sigma = max(self.sigma * self.options.sigma_decay, self.options.sigma_floor)

    def _centre(self) -> None:
        """Let the untrained actor reach the best candidate observed so far, or half of every group, in two steps."""
        ratio = np.full(self.problem.n_groups, 0.5) if self.seen is None else self.seen[1]
        share = (np.sqrt(np.clip(ratio, SMALLEST, 1.0)) - LEAST_FACTOR) / (1 - LEAST_FACTOR)
        self.agent.offset = torch.logit(torch.as_tensor(np.clip(share, 0.03, 0.97), dtype=torch.float32))
        self.is_centred = True

    def _cost(self, keep: Tensor) -> float:
        """Return the cost of keep ratios rounded to units."""
        units = np.asarray(self.problem.n_units)
        counts = np.maximum(np.round(keep.double().numpy() * units), 1).astype(np.int64)
        return float(self.problem.cost(counts))

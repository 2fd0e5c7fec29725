"""The GNN-RL policy (Yu et al. 2022, arXiv:2102.03214): multi-stage graph embedding, PPO, all groups at once.

An observation is the vector of keep ratios so far; the graph's state is rebuilt from it for every embedding. Against the
published code: embeddings in batches, edge types learned, a critic without tanh, no dropout, squashed actions that only
prune, and a budget met from both sides by the search.
"""

from __future__ import annotations

import copy
import heapq
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv

from agmc_onnx.arrays import FloatArray
from agmc_onnx.motifs.encoding import HierarchyArrays
from agmc_onnx.options import GnnRlOptions, SearchOptions
from agmc_onnx.policies.agmc.ddpg import single_thread
from agmc_onnx.policies.agmc.states import standardised
from agmc_onnx.policies.gnn_rl import ppo
from agmc_onnx.policies.guide.guide import SMALLEST, Guide
from agmc_onnx.search.problem import Outcome, Problem

LEAST_FACTOR = 0.2  # a step keeps at least this share of what was left
N_FROM_BEST, N_FROM_ACTOR = 4, 8  # climbs from means of the best episodes, and from what the actor does


@dataclass(frozen=True)
class Stages:
    """Both levels of the graph as tensors. The motif of a level-2 edge is the subgraph of its level-1 edges.

    Attributes:
        x: float32 (n_nodes, n_features), standardised.
        local_node: int64 (n_local,), level-1 node of every node of the motifs' disjoint union.
        local_motif: int64 (n_local,), level-2 edge it belongs to.
        local_edges: int64 (2, n_edges), numbers in the union.
        node2: int64 (n_nodes2,), level-1 number of every level-2 node.
        edge_index2: int64 (2, n_edges2).
        edge_type2: int64 (n_edges2,).
        n_types2: Size of its vocabulary.
        member_group, member_node: int64 (n_members,), groups and their level-1 nodes.
        n_groups: Number of groups.
    """

    x: Tensor
    local_node: Tensor
    local_motif: Tensor
    local_edges: Tensor
    node2: Tensor
    edge_index2: Tensor
    edge_type2: Tensor
    n_types2: int
    member_group: Tensor
    member_node: Tensor
    n_groups: int


def stages(problem: Problem) -> Stages:
    """Return the tensors of a problem; a graph without hierarchy is its own second level, each edge a motif."""
    graph = problem.graph
    n_edges = graph.edge_index.shape[1]
    if isinstance(graph, HierarchyArrays):
        edge2, node2, index2 = graph.edge2_of_edge, graph.node_of_node2, graph.edge_index2
        type2, n_types2 = graph.edge_type2, graph.n_edge_types2
    else:
        edge2, node2, index2 = np.arange(n_edges), np.arange(len(graph.x)), graph.edge_index
        type2, n_types2 = graph.edge_type, graph.n_edge_types
    ends = np.concatenate([np.stack([edge2, graph.edge_index[side]], axis=1) for side in (0, 1)])
    local, place = np.unique(ends, axis=0, return_inverse=True)
    x = standardised(np.asarray(graph.x, np.float64))
    counts = [len(nodes) for nodes in problem.group_nodes]
    nodes = np.concatenate([np.zeros(0, np.int64), *map(np.asarray, problem.group_nodes)]).astype(np.int64)

    def to_index(array: npt.ArrayLike) -> Tensor:
        return torch.as_tensor(np.asarray(array), dtype=torch.long)

    return Stages(
        torch.as_tensor(x, dtype=torch.float32),
        to_index(local[:, 1]),
        to_index(local[:, 0]),
        to_index(place.reshape(2, n_edges)),
        to_index(node2),
        to_index(index2),
        to_index(type2),
        max(n_types2, 1),
        to_index(np.repeat(np.arange(len(counts)), counts)),
        to_index(nodes),
        problem.n_groups,
    )


def _mean_by(values: Tensor, index: Tensor, n: int, empty: float = 0.0) -> Tensor:
    """Return means of values (batch, m, d) by index (m,), (batch, n, d)."""
    count = torch.bincount(index, minlength=n).to(values.dtype)[None, :, None]
    total = torch.zeros(values.shape[0], n, values.shape[2]).index_add(1, index, values)
    return torch.where(count > 0, total / count.clamp(min=1), torch.full((), empty))


class MultiStageEncoder(nn.Module):
    """m-GNN: the embedding of every motif becomes the feature of its edge in the level above.

    Stage 1: GCNConv, tanh, mean over the motif, linear, tanh. Stage 2: messages norm * W (x_j * e_ij) with self-loops of
    feature 1 and symmetric degrees, tanh, mean over the nodes, linear, tanh; widths 20 and 50 as in the published code.
    Ours: the type of a level-2 edge adds a learned embedding, and a node sees the keep ratio of its groups.
    """

    def __init__(self, graph: Stages, edge_size: int = 20, size: int = 50) -> None:
        """Make the layers; `edge_size` is the width of edge features, `size` that of embeddings."""
        super().__init__()
        self.graph, self.size = graph, size
        n_features = graph.x.shape[1] + 2
        self.conv = GCNConv(n_features, size)
        self.edge = nn.Linear(size, edge_size)
        self.types = nn.Embedding(graph.n_types2, edge_size)
        self.node = nn.Linear(n_features, edge_size)
        self.message = nn.Linear(edge_size, size)
        self.out = nn.Linear(size, size)
        n = len(graph.node2)
        ends = torch.cat([graph.edge_index2, graph.edge_index2.flip(0)], dim=1)
        degree = torch.bincount(ends[1], minlength=n).float() + 1.0
        self.ends, self.norm = ends, (degree[ends[0]] * degree[ends[1]]).rsqrt()[:, None]
        self.loop_norm = (1.0 / degree)[:, None]

    def forward(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings of the network and of its groups.

        Args:
            keep: float32 (batch, n_groups), kept ratios; the graph is that of the network pruned so far.

        Returns:
            (batch, size) and (batch, n_groups, size): of a group, the mean over its level-1 nodes in all motifs.
        """
        graph = self.graph
        x = self._pruned(keep)
        inner = torch.tanh(self.conv(x[:, graph.local_node], graph.local_edges))  # (batch, n_local, size)
        motif = _mean_by(inner, graph.local_motif, len(graph.edge_type2))
        edge = torch.tanh(self.edge(motif) + self.types(graph.edge_type2))
        node = self.node(x[:, graph.node2])
        both = torch.cat([edge, edge], dim=1)
        sent = self.message(node[:, self.ends[0]] * both) * self.norm
        h = (self.message(node) * self.loop_norm).index_add(1, self.ends[1], sent)
        g = torch.tanh(self.out(torch.tanh(h).mean(dim=1)))
        place = _mean_by(inner, graph.local_node, len(graph.x))
        return g, _mean_by(place[:, graph.member_node], graph.member_group, graph.n_groups)

    def _pruned(self, keep: Tensor) -> Tensor:
        """Return node features (batch, n_nodes, n_features + 2) with the keep ratio of a node's groups and its logarithm."""
        graph = self.graph
        of_node = _mean_by(keep[:, graph.member_group, None], graph.member_node, len(graph.x), empty=1.0)
        x = graph.x.expand(len(keep), -1, -1)
        return torch.cat([x, of_node, of_node.clamp(min=SMALLEST).log2()], dim=2)


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
        g, groups = self.actor_encoder(keep)
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
        g, _ = self.critic_encoder(observations[:, :-1])
        value: Tensor = self.critic(torch.cat([g, observations[:, -1:]], dim=1))[:, 0]
        return value


class GnnRlPolicy:
    """Prunes all groups at once, step by step until the budget is met or steps run out; the search makes it exact."""

    def __init__(self, problem: Problem, options: SearchOptions, rng: np.random.Generator) -> None:
        """Make the agent; `rng` seeds its own generator."""
        self.problem, self.options = problem, options.gnn_rl
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
        self.guide = Guide(problem, options.n_episodes, self.generator) if self.options.fitted else None

    @single_thread()
    @torch.no_grad()
    def propose(self, rng: np.random.Generator) -> FloatArray:
        """Return float64 (n_groups,) keep ratios of one episode of the actor."""
        if not self.is_centred:
            self._centre()
        keep = torch.ones(self.problem.n_groups)
        seen, done, probabilities = [], [], []
        for _ in range(self.options.max_steps):
            observation = torch.cat([keep, torch.tensor([self._cost(keep) / self.problem.budget - 1.0])])[None]
            means = self.agent.means(observation)
            action = means + self.sigma * torch.randn(means.shape, generator=self.generator)
            seen.append(observation)
            done.append(action)
            probabilities.append(ppo.log_prob(means, self.sigma, action))
            keep = (keep * (LEAST_FACTOR + (1 - LEAST_FACTOR) * torch.sigmoid(action[0]))).clamp(min=SMALLEST)
            if self._cost(keep) <= self.problem.budget:
                break
        self.pending = torch.cat(seen), torch.cat(done), torch.cat(probabilities)
        if self.guide is None or self.guide.best is None:
            return keep.double().numpy()
        # On the way to the budget, which is met for the agent by its environment, the guide improves what it did.
        return self.guide.favourite(torch.cat([self.guide.centres(N_FROM_BEST), keep.expand(N_FROM_ACTOR, -1)]))

    @single_thread()
    def observe(self, keep_ratio_executed: FloatArray, reward: float, outcome: Outcome) -> None:
        """Store the episode, and update after every `n_rollout` of them; of others' candidates, start from the best."""
        if self.guide is not None:
            self.guide.observe(torch.as_tensor(np.asarray(keep_ratio_executed), dtype=torch.float32), reward)
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

    def preferred(self, candidates: list[FloatArray], n: int | None = None) -> list[FloatArray]:
        """Return what the generalist likes best of these keep ratios, as `AgmcPolicy.preferred`."""
        return candidates if self.guide is None else self.guide.preferred(candidates, self.options.n_preferred, n)

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

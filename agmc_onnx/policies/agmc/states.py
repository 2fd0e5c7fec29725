"""What an agent sees before each decision: states made by the graph encoder and decoder, or AMC's features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from agmc_onnx.arrays import FloatArray
from agmc_onnx.options import AgmcOptions
from agmc_onnx.policies.agmc.networks import Decoder, DiffPoolEncoder, GCNEncoder, LstmState
from agmc_onnx.search.problem import Problem


@dataclass(frozen=True)
class GraphTensors:
    """The one graph the agent works on.

    Attributes:
        x: float32 (n_nodes, n_features), standardised.
        edge_index: int64 (2, n_edges).
        edge_type: int64 (n_edges,).
        n_edge_types: Size of the vocabulary.
        member_group: int64 (n_members,), group of each entry of `member_node`.
        member_node: int64 (n_members,), the nodes of all groups, one after the other.
    """

    x: Tensor
    edge_index: Tensor
    edge_type: Tensor
    n_edge_types: int
    member_group: Tensor
    member_node: Tensor


class Walk(Protocol):
    """Episodes in progress, side by side."""

    def step(self, t: int, action: Tensor) -> Tensor:
        """Return s_t (n, size) after a_{t-1} (n, 1); t counts up from 0, and the first action is 1."""
        ...


class States(Protocol):
    """What makes states; a torch module.

    Attributes:
        size: Width of a state.
    """

    size: int

    def states(self, actions: Tensor) -> Tensor:
        """Return the states (batch, n_groups, size) of whole episodes with these actions (batch, n_groups)."""
        ...

    def walk(self, n: int) -> Walk:
        """Begin n episodes."""
        ...


class GraphStates(nn.Module):
    """Encoder and decoder (AGMC paper, sections 3.2 and 3.3)."""

    def __init__(
        self, graph: GraphTensors, n_groups: int, options: AgmcOptions, features: Tensor | None = None
    ) -> None:
        """Make the layers; `features` (n_groups, n_features) are static and reach the decoder as they are."""
        super().__init__()
        d = self.size = options.embedding_size
        self.encoder: nn.Module
        if options.encoder == "diffpool":
            self.encoder = DiffPoolEncoder(
                graph.x.shape[1],
                graph.n_edge_types,
                d,
                options.diffpool_clusters,
                edge_embedding_size=options.edge_embedding_size,
                max_nodes=options.diffpool_max_nodes,
            )
        else:
            self.encoder = GCNEncoder(
                graph.x.shape[1],
                graph.n_edge_types,
                d,
                options.n_encoder_layers,
                edge_embedding_size=options.edge_embedding_size,
            )
        width = (d if options.group_embedding else 0) + options.identity_size
        width += 0 if features is None else features.shape[1]
        self.decoder = Decoder(d, width, options.carry_state)
        self.identity = nn.Embedding(n_groups, options.identity_size) if options.identity_size else None
        self.graph, self.features, self.n_groups = graph, features, n_groups
        self.group_embedding = options.group_embedding

    def embed(self) -> tuple[Tensor, Tensor | None]:
        """Return g (1, d) and what the decoder sees of the groups (1, n_groups, width), or None."""
        graph = self.graph
        g, h = self.encoder(graph.x, graph.edge_index, graph.edge_type)
        parts: list[Tensor] = []
        if self.group_embedding:
            members = torch.ones(len(graph.member_group), 1)
            count = torch.zeros(self.n_groups, 1).index_add(0, graph.member_group, members)
            total = torch.zeros(self.n_groups, h.shape[1]).index_add(0, graph.member_group, h[graph.member_node])
            parts.append(total / count.clamp(min=1))
        if self.identity is not None:
            parts.append(self.identity.weight)
        if self.features is not None:
            parts.append(self.features)
        return g, torch.cat(parts, dim=1)[None] if parts else None

    def states(self, actions: Tensor) -> Tensor:
        """Return the states (batch, n_groups, d) of whole episodes with these actions (batch, n_groups)."""
        g, context = self.embed()
        expanded = None if context is None else context.expand(len(actions), -1, -1)
        return self.decoder(g.expand(len(actions), -1), actions, expanded)  # type: ignore[no-any-return]

    def walk(self, n: int) -> Walk:
        """Begin n episodes."""
        return _GraphWalk(self, n)


class _GraphWalk:
    """Episodes in progress, with the decoder's state."""

    def __init__(self, states: GraphStates, n: int) -> None:
        g, self.context = states.embed()
        self.decoder, self.n = states.decoder, n
        self.state: LstmState = self.decoder.initial(g.expand(n, -1))

    def step(self, t: int, action: Tensor) -> Tensor:
        """Return s_t."""
        context = None if self.context is None else self.context[:, t].expand(self.n, -1)
        s, self.state = self.decoder.step(self.state, action, context)
        return s


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


def standardised(x: FloatArray) -> FloatArray:
    """Return columns of mean 0 and deviation 1; a constant column becomes zero."""
    deviation = x.std(axis=0)
    return np.asarray((x - x.mean(axis=0)) / np.where(deviation > 1e-12, deviation, 1.0))


def graph_tensors(problem: Problem) -> GraphTensors:
    """Return the graph with standardised node features (a constant column becomes zero)."""
    x = standardised(np.asarray(problem.graph.x, dtype=np.float64))
    counts = [len(nodes) for nodes in problem.group_nodes]
    nodes = np.concatenate([np.zeros(0, dtype=np.int64), *map(np.asarray, problem.group_nodes)]).astype(np.int64)
    return GraphTensors(
        torch.as_tensor(x, dtype=torch.float32),
        torch.as_tensor(np.asarray(problem.graph.edge_index), dtype=torch.long),
        torch.as_tensor(np.asarray(problem.graph.edge_type), dtype=torch.long),
        problem.graph.n_edge_types,
        torch.as_tensor(np.repeat(np.arange(len(counts)), counts), dtype=torch.long),
        torch.as_tensor(nodes, dtype=torch.long),
    )

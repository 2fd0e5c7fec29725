"""What the agent sees before each decision: the graph as tensors, and states made of it by encoder and decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from agmc_onnx.arrays import FloatArray
from agmc_onnx.policies.agmc.networks import Decoder, DiffPoolEncoder, GCNEncoder, LstmState
from agmc_onnx.policies.agmc.options import GraphOptions
from agmc_onnx.search.problem import Problem


@dataclass(frozen=True)
class GraphTensors:
    """The one graph the agent works on: the hierarchical graph, flattened (AGMC, sec. 3.1, eq. 1 is one of its edges).

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
    """Encoder and decoder: the hierarchical graph in, one state for every group out (AGMC, sec. 3.2 and 3.3)."""

    def __init__(self, graph: GraphTensors, options: GraphOptions, context_size: int = 0) -> None:
        """Make the layers; `context_size` is the width of what the decoder sees of each group beside [s_{t-1}, a_{t-1}]."""
        super().__init__()
        d = self.size = options.embedding_size
        n_features, n_types, edge_size = graph.x.shape[1], graph.n_edge_types, options.edge_embedding_size
        self.encoder: nn.Module
        if options.encoder == "diffpool":
            self.encoder = DiffPoolEncoder(
                n_features,
                n_types,
                d,
                options.diffpool_clusters,
                edge_embedding_size=edge_size,
                max_nodes=options.diffpool_max_nodes,
            )
        else:
            self.encoder = GCNEncoder(n_features, n_types, d, options.n_encoder_layers, edge_embedding_size=edge_size)
        self.decoder = Decoder(d, context_size, options.carry_state)
        self.graph = graph

    def embed(self) -> tuple[Tensor, Tensor | None]:
        """Return g (1, d) and what the decoder sees of the groups (1, n_groups, context_size), or None."""
        g, h = self.encoder(self.graph.x, self.graph.edge_index, self.graph.edge_type)
        return g, self.context(h)

    def context(self, h: Tensor) -> Tensor | None:
        """Return what the decoder sees of the groups, given the node embeddings (n_nodes, d); nothing in the paper."""
        return None

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
        g, self.seen = states.embed()
        self.decoder, self.n = states.decoder, n
        self.state: LstmState = self.decoder.initial(g.expand(n, -1))

    def step(self, t: int, action: Tensor) -> Tensor:
        """Return s_t."""
        context = None if self.seen is None else self.seen[:, t].expand(self.n, -1)
        s, self.state = self.decoder.step(self.state, action, context)
        return s


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

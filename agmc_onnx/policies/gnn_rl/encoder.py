"""m-GNN: both levels of the hierarchical graph as tensors, and the multi-stage encoder over them.

GNN-RL is Yu, Mazaheri and Jannesari 2022, arXiv:2102.03214. Its equations are cited by the code published with it, which is
what they are implemented from (`yusx-swapp/GNN-RL-Model-Compression`: `models/` at 08cc346, `gnnrl/` at bb2c341).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv

from agmc_onnx.motifs.encoding import HierarchyArrays
from agmc_onnx.policies.agmc.states import standardised
from agmc_onnx.search.policy import SMALLEST
from agmc_onnx.search.problem import Problem


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
    feature 1 and symmetric degrees, tanh, mean over the nodes, linear, tanh; widths 20 and 50 as in the published code (where,
    at 08cc346, what is called tanh is a relu). Ours: the type of a level-2 edge adds a learned embedding, and a node sees the
    keep ratio of its groups.
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
        # Stage 1, (batch, n_local, size): h = tanh(GCN(x)); Kipf and Welling 2017, arXiv:1609.02907, eq. 2
        inner = torch.tanh(self.conv(x[:, graph.local_node], graph.local_edges))
        # g_motif = mean of its nodes; e = tanh(W g_motif): GNN-RL, models/graph_encoder.py, stage1_gcn_encoder.forward
        motif = _mean_by(inner, graph.local_motif, len(graph.edge_type2))
        edge = torch.tanh(self.edge(motif) + self.types(graph.edge_type2))
        node = self.node(x[:, graph.node2])
        both = torch.cat([edge, edge], dim=1)
        # m_ij = W (x_j * e_ij) / sqrt(d_i d_j), with self-loops: GNN-RL, models/multi_stage_gcn.py, multi_stage_conv.message
        sent = self.message(node[:, self.ends[0]] * both) * self.norm
        h = (self.message(node) * self.loop_norm).index_add(1, self.ends[1], sent)
        # g = tanh(W mean_i tanh(h_i)): GNN-RL, models/graph_encoder.py, stage2_gcn_encoder.forward
        g = torch.tanh(self.out(torch.tanh(h).mean(dim=1)))
        place = _mean_by(inner, graph.local_node, len(graph.x))
        return g, _mean_by(place[:, graph.member_node], graph.member_group, graph.n_groups)

    def _pruned(self, keep: Tensor) -> Tensor:
        """Return node features (batch, n_nodes, n_features + 2) with the keep ratio of a node's groups and its logarithm."""
        graph = self.graph
        of_node = _mean_by(keep[:, graph.member_group, None], graph.member_node, len(graph.x), empty=1.0)
        x = graph.x.expand(len(keep), -1, -1)
        return torch.cat([x, of_node, of_node.clamp(min=SMALLEST).log2()], dim=2)

"""Networks of the AGMC agent: graph encoder, decoder, actor and critic (AGMC, arXiv:2011.12641v1, sec. 3.3 and 4)."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, dense_diff_pool, global_mean_pool
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.nn.dense import DenseGCNConv

from agmc_onnx.errors import UsageError


class _TypedNodes(nn.Module):
    """Adds to every node's features the mean embedding of the types of its edges, incoming and outgoing.

    GCNConv weighs edges by a number only; the operation an edge stands for would be lost otherwise. Edges are then
    used in both directions, so that a value sees its producers and its consumers. Our reading: the paper types the
    edges (AGMC, sec. 3.1), but gives no rule for them.
    """

    def __init__(self, n_edge_types: int, size: int) -> None:
        super().__init__()
        self.incoming = nn.Embedding(max(n_edge_types, 1), size)
        self.outgoing = nn.Embedding(max(n_edge_types, 1), size)

    def forward(self, x: Tensor, edge_index: Tensor, edge_type: Tensor) -> tuple[Tensor, Tensor]:
        """Return typed features (n_nodes, n_features + 2 * size) and symmetric edges (2, 2 * n_edges)."""
        n_nodes, (source, target) = x.shape[0], edge_index
        parts = [x]
        for embedding, nodes in ((self.incoming, target), (self.outgoing, source)):
            n_types = embedding.num_embeddings
            counts = torch.bincount(nodes * n_types + edge_type, minlength=n_nodes * n_types).reshape(n_nodes, n_types)
            parts.append((counts / counts.sum(dim=1, keepdim=True).clamp(min=1)) @ embedding.weight)
        return torch.cat(parts, dim=1), torch.cat([edge_index, edge_index.flip(0)], dim=1)


class GCNEncoder(nn.Module):
    """Mean pool: graph convolutions, then the mean over the nodes; after it a linear layer with ReLU, as in the published code.

    X^(l) = GCN_l(X^(l-1)) (AGMC, sec. 3.3.1, eq. 2; GCN: Kipf and Welling 2017, arXiv:1609.02907, eq. 2) and
    g = 1/N sum_n x_n (AGMC, sec. 3.3.1, eq. 3).
    """

    def __init__(
        self, n_features: int, n_edge_types: int, size: int = 30, n_layers: int = 2, *, edge_embedding_size: int = 8
    ) -> None:
        """Make the layers; `size` is d."""
        super().__init__()
        self.types = _TypedNodes(n_edge_types, edge_embedding_size)
        widths = [n_features + 2 * edge_embedding_size] + [size] * n_layers
        self.convs = nn.ModuleList([GCNConv(*pair, normalize=False) for pair in pairwise(widths)])
        self.out = nn.Linear(size, size)

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_type: Tensor, batch: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return g and the node embeddings.

        Args:
            x: float32 (n_nodes, n_features).
            edge_index: int64 (2, n_edges).
            edge_type: int64 (n_edges,).
            batch: int64 (n_nodes,), graph of every node; None for one graph.

        Returns:
            g (n_graphs, d), not negative, and node embeddings (n_nodes, d).
        """
        h, edges = self.types(x, edge_index, edge_type)
        edges, weight = gcn_norm(edges, num_nodes=x.shape[0], dtype=x.dtype)  # once for all layers
        for conv in self.convs:
            h = conv(h, edges, weight).relu()  # AGMC, sec. 3.3.1, eq. 2
        if batch is None:
            batch = torch.zeros(x.shape[0], dtype=torch.long)
        return self.out(global_mean_pool(h, batch)).relu(), h  # AGMC, sec. 3.3.1, eq. 3


class DiffPoolEncoder(nn.Module):
    """Differentiable pooling down to exactly one cluster (AGMC, sec. 3.3.2; the published code stops at ten).

    Two poolings: to `n_clusters`, then to one, whose embedding is g. The adjacency is dense, hence the node limit.
    After a call, `auxiliary_loss` holds the sum of the link prediction and entropy losses of Ying et al. 2018
    (arXiv:1806.08804, section 3.3), a scalar, for whoever wants to add it.
    """

    def __init__(
        self,
        n_features: int,
        n_edge_types: int,
        size: int = 30,
        n_clusters: int = 10,
        *,
        edge_embedding_size: int = 8,
        max_nodes: int = 5000,
    ) -> None:
        """Make the layers; `size` is d."""
        super().__init__()
        self.size, self.max_nodes = size, max_nodes
        self.types = _TypedNodes(n_edge_types, edge_embedding_size)
        typed = n_features + 2 * edge_embedding_size
        self.embed = nn.ModuleList([DenseGCNConv(typed, size), DenseGCNConv(size, size)])
        self.pool = nn.ModuleList([DenseGCNConv(typed, n_clusters), DenseGCNConv(size, 1)])
        self.auxiliary_loss = torch.zeros(())

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_type: Tensor, batch: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return g (n_graphs, d) and node embeddings (n_nodes, d); arguments as `GCNEncoder.forward`.

        Raises:
            UsageError: If a graph has more nodes than the limit.
        """
        typed, edges = self.types(x, edge_index, edge_type)
        if batch is None:
            batch = torch.zeros(x.shape[0], dtype=torch.long)
        counts = torch.bincount(batch)
        if int(counts.max()) > self.max_nodes:
            raise UsageError(
                f"encoder: the graph is too large for DiffPool, got {int(counts.max())} nodes; expected at most"
                f" {self.max_nodes}. Use the mean pool encoder (encoder='mean')."
            )
        graphs, nodes, losses = [], torch.zeros(x.shape[0], self.size, dtype=x.dtype), []
        for graph in range(len(counts)):
            members = (batch == graph).nonzero()[:, 0]
            inside = edges[:, batch[edges[0]] == graph] - members[0]  # nodes of a graph are consecutive, as in PyG
            adjacency = torch.zeros(1, len(members), len(members), dtype=x.dtype)
            adjacency[0, inside[0], inside[1]] = 1.0
            h, auxiliary = typed[members][None], x.new_zeros(())
            for level, (embed, pool) in enumerate(zip(self.embed, self.pool, strict=True)):
                z = embed(h, adjacency).relu()  # AGMC, sec. 3.3.2, eq. 4
                if level == 0:
                    nodes = nodes.index_add(0, members, z[0])
                # The softmax over clusters of AGMC, sec. 3.3.2, eq. 5 is taken inside; what comes back are
                # X^(l+1) = M^T Z (AGMC, sec. 3.3.2, eq. 6) and A^(l+1) = M^T A M (AGMC, sec. 3.3.2, eq. 7).
                h, adjacency, link, entropy = dense_diff_pool(z, adjacency, pool(h, adjacency))
                auxiliary = auxiliary + link + entropy
            graphs.append(h[0, 0])
            losses.append(auxiliary)
        self.auxiliary_loss = torch.stack(losses).mean()
        return torch.stack(graphs), nodes


LstmState = tuple[Tensor, Tensor]


class Decoder(nn.Module):
    """LSTM that turns g into one state vector per group: s_t = LSTM(s_{t-1}, a_{t-1}) (AGMC, sec. 3.3.3, eq. 8).

    s_t is the LSTM's output, so that the input s_{t-1} of eq. 8 is the recurrent input an LSTM has anyway and one
    matrix serves both. g gives the initial state, and a_{-1} = 1 (nothing removed). The paper's decoder sees nothing else, so
    groups differ for it in their order only; with `context_size` it also sees something of group t (`policies.guide.informed`).
    """

    def __init__(self, size: int = 30, context_size: int = 0, carry_state: bool = True) -> None:
        """Make the layers.

        Args:
            size: d, of g and of the states.
            context_size: Width of what is seen of each group; 0 for the paper's decoder.
            carry_state: False resets the LSTM's cell at every step, as the published code does.
        """
        super().__init__()
        self.size, self.carry_state = size, carry_state
        self.hidden0, self.cell0 = nn.Linear(size, size), nn.Linear(size, size)
        self.lstm = nn.LSTM(1 + context_size, size, batch_first=True)

    def initial(self, g: Tensor) -> LstmState:
        """Return the LSTM state before the first step; g is (batch, d), both parts are (1, batch, d)."""
        return torch.tanh(self.hidden0(g))[None], torch.tanh(self.cell0(g))[None]

    def step(self, state: LstmState, action: Tensor, context: Tensor | None = None) -> tuple[Tensor, LstmState]:
        """Return s_t (batch, d) and the next LSTM state.

        The same as one step of `forward`, without the set-up `nn.LSTM` pays for at every call.

        Args:
            state: As `initial` returns it.
            action: (batch, 1), a_{t-1}.
            context: (batch, context_size) or None.
        """
        inputs, before = self._input(action, context), (state[0][0], state[1][0])
        weights = cast(tuple[Tensor, Tensor, Tensor, Tensor], self.lstm.all_weights[0])
        hidden, cell = torch.lstm_cell(inputs, before, *weights)
        return hidden, (hidden[None], (cell if self.carry_state else torch.zeros_like(cell))[None])

    def forward(self, g: Tensor, actions: Tensor, context: Tensor | None = None) -> Tensor:
        """Return all states of whole episodes whose actions are known.

        Args:
            g: (batch, d).
            actions: (batch, n_groups) executed keep ratios; the last one is not looked at.
            context: (batch, n_groups, context_size) or None.

        Returns:
            (batch, n_groups, d).
        """
        before = torch.cat([torch.ones_like(actions[:, :1]), actions[:, :-1]], dim=1)[..., None]
        if self.carry_state:
            return cast(Tensor, self.lstm(self._input(before, context), self.initial(g))[0])
        state, states = self.initial(g), []
        for t in range(actions.shape[1]):
            s, state = self.step(state, before[:, t], None if context is None else context[:, t])
            states.append(s)
        return torch.stack(states, dim=1)

    def _input(self, action: Tensor, context: Tensor | None) -> Tensor:
        """Return the LSTM's input."""
        return action if context is None else torch.cat([action, context], dim=-1)


class Actor(nn.Module):
    """mu(s): two hidden layers and a sigmoid (AGMC, sec. 4); the action is the keep ratio, 1 - a of the paper."""

    def __init__(self, size: int = 30, hidden_size: int = 300, first_action: float = 0.5) -> None:
        """Make the layers; `first_action` is where the untrained actor starts, in (0, 1)."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, 1),
        )
        last = cast(nn.Linear, self.layers[-1])
        nn.init.uniform_(last.weight, -3e-3, 3e-3)  # Lillicrap et al. 2016, arXiv:1509.02971, section 7
        nn.init.constant_(last.bias, float(torch.logit(torch.tensor(first_action))))

    def forward(self, states: Tensor) -> Tensor:
        """Return actions (...) in (0, 1) for states (..., d)."""
        return torch.sigmoid(self.layers(states)[..., 0])


class Critic(nn.Module):
    """Q(s, a): two hidden layers (AGMC, sec. 4); state and action enter together."""

    def __init__(self, size: int = 30, hidden_size: int = 300) -> None:
        """Make the layers; `size` is the width of what enters beside the action."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(size + 1, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, 1),
        )
        last = cast(nn.Linear, self.layers[-1])
        nn.init.uniform_(last.weight, -3e-3, 3e-3)
        nn.init.zeros_(last.bias)

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        """Return values (...) of actions (...) in states (..., d)."""
        return cast(Tensor, self.layers(torch.cat([states, actions[..., None]], dim=-1))[..., 0])

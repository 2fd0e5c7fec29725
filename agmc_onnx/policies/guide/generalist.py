"""The generalist: an encoder and a critic trained over many networks, which say what errors cost before any evaluation.

An error curve says how much of a group's consumers is lost at every width, not what that does to the answers: it depends on
where in the network the group stands, and on what follows. The encoder reads that from the graph (AGMC paper, section 3.2), and
the critic gives every group a weight for each kind of error; a candidate is worth minus the weighted sum of its errors. Those
weights are what the error model of a search may start from, where its first episodes agree, and what `--episodes 0` decides by.

The file holds numbers only (safetensors). `tools/experiments/generalist.py` makes it, from networks that come with the project or
that it trains itself; docs/decisions/generalist.md has what it says of networks that it never saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agmc_onnx.policies.agmc.networks import GCNEncoder
from agmc_onnx.policies.agmc.states import GraphTensors, graph_tensors, standardised
from agmc_onnx.search.problem import Problem

FILE = Path(__file__).with_name("generalist.safetensors")
N_KINDS = 2  # refit errors, divergence of the outputs
SIZE, HIDDEN, N_LAYERS, EDGE_SIZE = 16, 32, 2, 8  # of embeddings, of the critic, of the encoder, of edge types
# Towards the sum of the refit errors as they are: chosen by networks that an ensemble had not seen (docs/decisions/generalist.md)
SHRUNK = 0.3
LARGEST_LOG = 3.0  # of a weight: nothing costs more than e^3 times the middle one, or less than a e^3-th
_PLACES = (8, 16, 24)  # of 32, keep ratios at which the critic sees the curves


@dataclass(frozen=True)
class Sight:
    """What the generalist sees of a network and a budget.

    Attributes:
        graph: The graph.
        features: float32 (n_groups, n_features).
    """

    graph: GraphTensors
    features: Tensor


def sight(problem: Problem, errors: Tensor, weight: Tensor, keep_ratio: Tensor) -> Sight:
    """Return what is seen of a problem.

    Args:
        problem: The network; `is_joined` must be known.
        errors: float64 (N_KINDS, n_groups, 33), as of `guide.error_tables` but for any factor of a kind.
        weight: float32 (n_groups,), marginal cost per unit of keep ratio.
        keep_ratio: float32 (n_groups,), the uniform solution.
    """
    assert problem.is_joined is not None
    depth = (np.arange(problem.n_groups) + 0.5) / problem.n_groups
    errors = errors / errors.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    curves = np.log(errors.numpy()[:, :, _PLACES] + 1e-4).transpose(1, 0, 2).reshape(problem.n_groups, -1)
    columns = [
        np.stack(
            [2 * depth - 1, np.log(depth), problem.is_joined.astype(np.float64), keep_ratio.double().numpy()], axis=1
        ),
        standardised(np.asarray(problem.features, np.float64)),
        standardised(curves),
        standardised(np.log(weight.double().numpy())[:, None]),
    ]
    return Sight(graph_tensors(problem), torch.as_tensor(np.concatenate(columns, axis=1), dtype=torch.float32))


class Generalist(nn.Module):
    """Graph encoder and critic."""

    def __init__(self, n_node_features: int, n_edge_types: int, n_features: int) -> None:
        """Make the layers; untrained, all weights are 1."""
        super().__init__()
        self.encoder = GCNEncoder(n_node_features, n_edge_types, SIZE, N_LAYERS, edge_embedding_size=EDGE_SIZE)
        last = nn.Linear(HIDDEN, N_KINDS)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.critic = nn.Sequential(nn.Linear(n_features + 2 * SIZE, HIDDEN), nn.Tanh(), last)

    def forward(self, sights: list[Sight]) -> list[Tensor]:
        """Return for every network the weights (N_KINDS, n_groups), positive, of mean 1."""
        graphs = [one.graph for one in sights]
        sizes = torch.tensor([len(graph.x) for graph in graphs])
        first = sizes.cumsum(0) - sizes
        g, h = self.encoder(
            torch.cat([graph.x for graph in graphs]),
            torch.cat([graph.edge_index + at for graph, at in zip(graphs, first, strict=True)], dim=1),
            torch.cat([graph.edge_type for graph in graphs]),
            torch.arange(len(graphs)).repeat_interleave(sizes),
        )
        found = []
        for number, (one, at) in enumerate(zip(sights, first.tolist(), strict=True)):
            n, graph = len(one.features), one.graph
            count = torch.zeros(n, 1).index_add(0, graph.member_group, torch.ones(len(graph.member_group), 1))
            own = torch.zeros(n, SIZE).index_add(0, graph.member_group, h[graph.member_node + at]) / count.clamp(min=1)
            logs = self.critic(torch.cat([one.features, own, g[number].expand(n, -1)], dim=1))
            weights = logs.clamp(-LARGEST_LOG, LARGEST_LOG).exp().T
            found.append(weights / weights.mean())
        return found


def save(members: list[Generalist], path: Path = FILE) -> None:
    """Write an ensemble."""
    tensors = {f"{i}.{name}": t.contiguous() for i, one in enumerate(members) for name, t in one.state_dict().items()}
    save_file(tensors, path)


@cache
def load(path: Path = FILE) -> tuple[Generalist, ...]:
    """Return the ensemble of a file; empty if there is none."""
    if not path.exists():
        return ()
    tensors = load_file(path)
    members = []
    for number in sorted({int(name.split(".")[0]) for name in tensors}):
        own = {name.split(".", 1)[1]: t for name, t in tensors.items() if name.startswith(f"{number}.")}
        n_types, edge_size = own["encoder.types.incoming.weight"].shape
        n_nodes = own["encoder.convs.0.lin.weight"].shape[1] - 2 * edge_size
        one = Generalist(n_nodes, n_types, own["critic.0.weight"].shape[1] - 2 * SIZE)
        one.load_state_dict(own)
        members.append(one.eval())
    return tuple(members)


@torch.no_grad()
def consensus(members: Sequence[Generalist], seen: Sight) -> Tensor:
    """Return what an ensemble says, float64 (N_KINDS, n_groups) of mean 1.

    That is the mean of its members, shrunk towards what holds without any of them: refit errors count alike, nothing else counts.
    Few networks taught them, and of one that is like none of these they may be wrong.
    """
    weights = torch.stack([one([seen])[0] for one in members]).double().mean(0)
    plain = torch.zeros_like(weights)
    plain[0] = N_KINDS
    return (1 - SHRUNK) * weights + SHRUNK * plain


def weights_of(seen: Sight, path: Path | None = None) -> Tensor | None:
    """Return the weights of the ensemble in a file (see `consensus`); None if there is none for such features."""
    members = load(FILE if path is None else path)
    if not members:
        return None
    first = members[0]
    if first.encoder.types.incoming.num_embeddings != seen.graph.n_edge_types:
        return None
    if first.critic[0].in_features != seen.features.shape[1] + 2 * SIZE:
        return None
    return consensus(members, seen)

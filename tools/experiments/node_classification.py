"""Node classification on the channel view of a network (AGMC paper, section 4.5): which layer is a filter of?

    python -m tools.experiments.node_classification --network resnet_3466 --seeds 0 1 2

The graph is the paper's: one node a filter, one where filters are concatenated (31,997 nodes, 63,893 edges). A share of
the nodes, 20 % in the paper, is labelled with its layer; the others are to be told. The encoder is that of the agent:
graph convolutions (`--layers`) with a linear layer on top. Beside it, a network of the same widths that sees no edges, on the
same features, so that it shows what structure is worth. Two kinds of features:

- names: what joins the filters of a layer has a random vector of its own, as in the published code; filters have none.
- shape: fan-in, fan-out and whether a node is a filter, smoothed by nothing; equal for filters of equal layers.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from agmc_onnx.graph.view import graph_of
from agmc_onnx.motifs.encoding import ChannelView, channel_view
from models.export import to_onnx
from models.zoo import BUILDERS, build


class Classifier(nn.Module):
    """Graph convolutions, or plain linear layers of the same widths, then a linear layer over the classes."""

    def __init__(self, n_features: int, n_classes: int, size: int, n_layers: int, sees_edges: bool) -> None:
        super().__init__()
        widths = [n_features] + [size] * n_layers
        pairs = pairwise(widths)
        self.sees_edges = sees_edges
        self.layers = nn.ModuleList(GCNConv(a, b, normalize=False) if sees_edges else nn.Linear(a, b) for a, b in pairs)
        self.out = nn.Linear(size, n_classes)

    def forward(self, x: Tensor, edges: Tensor, weight: Tensor) -> Tensor:
        """Return scores (n_nodes, n_classes)."""
        for layer in self.layers:
            x = (layer(x, edges, weight) if self.sees_edges else layer(x)).relu()
        return self.out(x)


def features(found: ChannelView, kind: str, size: int, generator: torch.Generator) -> Tensor:
    """Return float32 (n_nodes, n_features)."""
    is_filter = torch.from_numpy(found.is_filter)
    if kind == "names":
        names = torch.randn(found.n_nodes, size, generator=generator)
        return torch.cat([is_filter[:, None].float(), names * ~is_filter[:, None]], dim=1)
    degrees = [torch.bincount(torch.from_numpy(ends), minlength=found.n_nodes).float() for ends in found.edge_index]
    return torch.stack([is_filter.float(), *((1 + d).log() for d in degrees)], dim=1)


def accuracy(found: ChannelView, args: argparse.Namespace, kind: str, sees_edges: bool, seed: int) -> float:
    """Return the accuracy on the nodes without labels, percent."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    x = features(found, kind, args.size, generator)
    layers, target = np.unique(found.layer, return_inverse=True)
    labels = torch.from_numpy(target)
    is_known = torch.rand(found.n_nodes, generator=generator) < args.labelled
    index = torch.from_numpy(found.edge_index)
    edges, weight = gcn_norm(torch.cat([index, index.flip(0)], dim=1), num_nodes=found.n_nodes, dtype=x.dtype)
    model = Classifier(x.shape[1], len(layers), args.size, args.layers, sees_edges)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(args.epochs):
        optimizer.zero_grad()
        scores = model(x, edges, weight)
        nn.functional.cross_entropy(scores[is_known], labels[is_known]).backward()
        optimizer.step()
    with torch.no_grad():
        told = model(x, edges, weight).argmax(dim=1)
    return 100 * float((told == labels)[~is_known].float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--network", choices=list(BUILDERS), default="resnet_3466")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--labelled", type=float, default=0.2, help="share of the nodes")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = channel_view(graph_of(to_onnx(build(args.network), BUILDERS[args.network].input_shape)))
    sys.stdout.write(f"{args.network}: {found.n_nodes} nodes, {found.edge_index.shape[1]} edges\n")
    for kind in ("names", "shape"):
        for sees_edges in (True, False):
            values = [accuracy(found, args, kind, sees_edges, seed) for seed in args.seeds]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            what = "encoder" if sees_edges else "no edges"
            sys.stdout.write(f"{kind:6} {what:9} {statistics.mean(values):6.2f} +- {spread:.2f} %\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()

"""The refit where layers are gone: what is left takes over what they gave."""

from __future__ import annotations

import numpy as np

from agmc_onnx.graph.view import graph_of
from agmc_onnx.ops import analyse
from agmc_onnx.ops.vanish import closer_of
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.refit.compensation import Compensator, compensate
from agmc_onnx.refit.divergence import losses
from tests.nets import model as net
from tests.refit.test_compensate import OPTIONS, draw, error

MODEL = net(
    """
    f (float[n, 6, 6, 6] x) => (float[n, 4] y) {
        c = Conv<pads=[1, 1, 1, 1]> (x, ws, bs)
        a = Conv (c, w1)
        b = Relu (a)
        d = Conv (b, w2, b2)
        s = Add (c, d)
        e = Conv (s, w3)
        g = Relu (e)
        h = Conv (g, w4)
        z = Add (s, h)
        p = GlobalAveragePool (z)
        q = Flatten (p)
        y = Gemm (q, wo)
    }
    """,
    {
        **{"ws": (8, 6, 3, 3), "bs": (8,), "w1": (5, 8, 1, 1), "w2": (8, 5, 1, 1), "b2": np.full(8, 2.0, np.float32)},
        **{"w3": (5, 8, 1, 1), "w4": (8, 5, 1, 1), "wo": (8, 4)},
    },
)


def test_what_is_left_takes_over_what_a_branch_gave() -> None:
    channels = analyse(graph_of(MODEL))
    closer = closer_of(channels)
    kept = [np.arange(0 if i in closer.of([0]).groups else g.n_units) for i, g in enumerate(channels.groups)]
    cut = Surgeon(channels).cut(kept)
    found = compensate(channels, kept, cut, draw(MODEL), OPTIONS)
    assert [node.output[0] for node in found.graph.node] == ["c", "e", "g", "h", "z", "p", "q", "y"]
    bias = next(t for t in found.graph.initializer if t.name == "bs")
    was = next(t for t in MODEL.graph.initializer if t.name == "bs")
    assert np.abs(np.frombuffer(bias.raw_data, np.float32) - np.frombuffer(was.raw_data, np.float32)).mean() > 1
    assert error(MODEL, found) < 0.3 * error(MODEL, cut)


def test_a_loss_is_of_the_refitted_network() -> None:
    channels = analyse(graph_of(MODEL))
    loss = losses(
        channels, draw(MODEL, 200), lambda samples: Compensator(channels, samples, OPTIONS), 1, channels.graph
    )
    whole = [np.arange(g.n_units) for g in channels.groups]
    found = []
    for branch in closer_of(channels).branches:
        kept = [np.arange(0) if i in branch.groups else k for i, k in enumerate(whole)]
        found.append(loss(kept))
    assert loss(whole) < 1e-6 and all(0 < one < 0.5 for one in found)

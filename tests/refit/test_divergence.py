from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from agmc_onnx.data.samples import synthetic
from agmc_onnx.graph.view import graph_of
from agmc_onnx.measuring.session import model_inputs
from agmc_onnx.ops import analyse
from agmc_onnx.pruning.importance import l2_norm
from agmc_onnx.refit.divergence import divergence_curves
from agmc_onnx.refit.options import RecoverOptions
from tests import nets

torch.set_num_threads(1)
NET = """
f (float[n, 3, 8, 8] x) => (float[n, 5] y) {
    a = Conv (x, w1)
    r = Relu (a)
    b = Conv (r, w2)
    s = Relu (b)
    p = GlobalAveragePool (s)
    q = Flatten (p)
    z = Gemm (q, wf)
    y = Softmax (z)
}
"""


def net(scale: float, text: str = NET) -> onnx.ModelProto:
    """Return a net whose second layer hears the first four channels of the first, and the others times `scale`."""
    rng = np.random.default_rng(0)
    w2 = rng.standard_normal((8, 16, 1, 1)).astype(np.float32) / 3
    w2[:, 4:] *= scale
    return nets.model(text, {"w1": (16, 3, 1, 1), "w2": w2, "wf": (8, 5)})


def curves(proto: onnx.ModelProto):
    channels = analyse(graph_of(proto))
    scores = l2_norm(channels)
    options = RecoverOptions(batch_size=16)
    return divergence_curves(channels, scores, [4, 4], synthetic(model_inputs(proto), 64, 0), options)


@pytest.mark.parametrize(
    "text", [NET, NET.replace("z = Gemm (q, wf)\n    y = Softmax (z)", "y = Gemm (q, wf)")], ids=["softmax", "scores"]
)
def test_what_nobody_hears_costs_nothing(text: str) -> None:
    found = curves(net(0.0, text))
    assert [c.tolist() for c in found.counts] == [[4, 8, 12, 16], [4, 8]]
    assert all((np.diff(e) <= 0).all() and e[-1] == 0 for e in found.errors)
    assert found.errors[0][1] < 0.1 * curves(net(1.0, text)).errors[0][1]


def test_scores_and_their_softmax_cost_the_same() -> None:
    plain = curves(net(1.0, NET.replace("z = Gemm (q, wf)\n    y = Softmax (z)", "y = Gemm (q, wf)")))
    np.testing.assert_allclose(plain.errors[0], curves(net(1.0)).errors[0], rtol=1e-3, atol=1e-7)


def test_outputs_that_are_no_classes_are_compared_by_their_squared_error() -> None:
    text = (
        NET.replace("float[n, 5] y", "float[n, 8, 8, 8] y").split("s = Relu")[0].replace("b = Conv", "y = Conv") + "}"
    )
    found = curves(net(1.0, text))
    assert 0 < found.errors[0][0] < 1

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from agmc_onnx.data.samples import synthetic
from agmc_onnx.graph.view import graph_of
from agmc_onnx.measuring.session import make_session, model_inputs, run_model
from agmc_onnx.refit.options import RecoverOptions
from agmc_onnx.refit.synthesis import can_imagine, imagine, natural
from agmc_onnx.verbs.compress import compress
from tests import nets

torch.set_num_threads(1)
NET = """
f (float[n, 3, 16, 16] x) => (float[n, 5] y) {
    a = Conv<pads=[1, 1, 1, 1]> (x, w1)
    an = BatchNormalization (a, g1, b1, m1, v1)
    r = Relu (an)
    c = Conv<pads=[1, 1, 1, 1], strides=[2, 2]> (r, w2)
    cn = BatchNormalization (c, g2, b2, m2, v2)
    d = Relu (cn)
    p = GlobalAveragePool (d)
    q = Flatten (p)
    y = Gemm (q, wf, bf)
}
"""


def net() -> onnx.ModelProto:
    """Return a net whose normalisation has stored the statistics of smooth images of another brightness and contrast."""
    rng = np.random.default_rng(0)
    ones = {
        f"{k}{i}": np.full(n, v, np.float32)
        for i, n in ((1, 12), (2, 8))
        for k, v in zip("gbmv", (1, 0.2, 0, 1), strict=True)
    }
    low = (rng.standard_normal((8, 5)) @ rng.standard_normal((5, 12))).astype(np.float32) / 5
    w2 = low[:, :, None, None] * rng.uniform(0.5, 1, (1, 1, 3, 3)).astype(np.float32)
    proto = nets.model(NET, {"w1": (12, 3, 3, 3), "w2": w2, **ones, "wf": (8, 5), "bf": (5,)})
    x = natural((64, 3, 16, 16), rng) * 0.5 + 0.7
    for value, mean, var in (("a", "m1", "v1"), ("c", "m2", "v2")):
        probe = onnx.ModelProto()
        probe.CopyFrom(proto)
        del probe.graph.output[:]
        probe.graph.output.append(onnx.ValueInfoProto(name=value))
        found = run_model(make_session(probe, optimise=False), {"x": x.astype(np.float32)})[0]
        for tensor in proto.graph.initializer:
            if tensor.name in (mean, var):
                array = found.mean((0, 2, 3)) if tensor.name == mean else found.var((0, 2, 3))
                tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), tensor.name))
    return proto


@pytest.mark.parametrize("shape", [(4, 3, 32, 24), (4, 32, 24, 3), (2, 1, 16, 16)])
def test_natural_images_are_smooth_and_of_variance_one(shape: tuple[int, ...]) -> None:
    images = natural(shape, np.random.default_rng(0))
    assert images.shape == shape and images.dtype == np.float32
    assert images.std() == pytest.approx(1, abs=0.05)
    dim = 1 if shape[3] == 3 else 2
    assert np.diff(images, axis=dim).std() < 1  # 1.41 for white noise


def test_images_come_near_the_statistics_that_are_stored() -> None:
    graph = graph_of(net())
    start = synthetic(model_inputs(graph.model), 32, 0)
    still = imagine(graph, start, RecoverOptions(n_dream_steps=0)).feeds(32)[0]["x"]
    moved = imagine(graph, start, RecoverOptions(n_dream_steps=60)).feeds(32)[0]["x"]
    assert moved.shape == still.shape
    assert abs(moved.mean() - 0.7) < 0.3 < abs(still.mean() - 0.7)
    assert abs(moved.std() - 0.5) < abs(still.std() - 0.5)


def test_the_same_seed_gives_the_same_images() -> None:
    graph = graph_of(net())
    first, again = (
        imagine(graph, synthetic(model_inputs(graph.model), 8, 0), RecoverOptions(n_dream_steps=2)) for _ in range(2)
    )
    np.testing.assert_array_equal(first.feeds(8)[0]["x"], again.feeds(8)[0]["x"])


def test_what_is_no_image_stays_as_it_is() -> None:
    proto = nets.model("f (float[n, 4] x) => (float[n, 3] y) { y = MatMul (x, w) }", {"w": (4, 3)})
    samples = synthetic(model_inputs(proto), 4, 0)
    assert imagine(graph_of(proto), samples) is samples
    assert not can_imagine(graph_of(proto)) and can_imagine(graph_of(net()))


def test_a_network_with_statistics_is_refitted_without_data(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "net.onnx")
    found = compress(tmp_path / "net.onnx", flops=0.6, policy="uniform", latency_seconds=0.1, round_to=1)
    assert found.report["settings"]["recover"] == "compensate" and not found.report["accuracy_measured"]
    assert found.verification.masked_equivalence

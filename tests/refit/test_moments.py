"""Moments of patches, and the network that runs beside them, in the fast ways they are computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agmc_onnx.graph.view import graph_of
from agmc_onnx.refit.moments import Waiting, gram
from agmc_onnx.refit.stream import Stream
from agmc_onnx.torch_view.module import TorchGraph
from tests import nets

SCALED = """f (float[2, 3, 6, 6] x) => (float[2, 4, 6, 6] y) {
  a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
  b = BatchNormalization (a, gamma, beta, mean, variance)
  c = Relu (b)
  d = Conv (c, w2, bias)
  e = Clip (d, low, high)
  y = Add (e, c)
}"""
WEIGHTS = {
    "w1": (4, 3, 3, 3), "gamma": (4,), "beta": (4,), "mean": (4,), "variance": np.linspace(0.5, 2, 4, dtype=np.float32),
    "w2": (4, 4, 1, 1), "bias": (4,), "low": np.array(-0.2, np.float32), "high": np.array(0.3, np.float32),
}  # fmt: skip


@pytest.mark.parametrize("groups, width", [(1, 7), (1, 145), (1, 400), (3, 9)])
def test_a_gram_matrix_in_blocks_is_the_whole_product(groups: int, width: int) -> None:
    u = torch.randn(groups, 50, width, generator=torch.Generator().manual_seed(0))
    whole = torch.matmul(u.transpose(1, 2), u)
    assert torch.allclose(gram(u), whole, rtol=1e-5, atol=1e-4)
    assert torch.equal(gram(u), gram(u).transpose(1, 2)) or width <= 144


@pytest.mark.parametrize("groups", [1, 5])
def test_what_waits_comes_back_in_one_piece_and_in_order(groups: int) -> None:
    waiting = Waiting()
    parts = [torch.randn(groups, n, 4) for n in (3, 1, 6)]
    rows = [torch.randn(part.shape[1], 2) for part in parts]
    enough = [waiting.add(part, row) for part, row in zip(parts, rows, strict=True)]
    assert not any(enough)
    found = waiting.take()
    assert found is not None
    assert torch.equal(found[0], torch.cat(parts, 1))
    assert torch.equal(found[1], torch.cat(rows))
    assert waiting.take() is None
    assert waiting.add(torch.zeros(groups, 2000, 4))


@pytest.mark.parametrize("stops", [[6], [1, 6], [2, 3, 6], [1, 2, 3, 4, 5, 6]])
def test_a_stream_folds_and_overwrites_without_a_change_of_values(stops: list[int]) -> None:
    proto = nets.model(SCALED, WEIGHTS)
    graph = graph_of(proto)
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    wanted = TorchGraph(proto).eval().run({"x": x})["y"]
    stream = Stream(graph, [{"x": x}], 1 << 30)
    stream.pinned = {"y"}
    for stop in stops:
        stream.advance(stop)
    assert torch.allclose(stream.peek(0, ["y"])["y"], wanted, atol=1e-5)

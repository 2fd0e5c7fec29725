"""MaxUnpool takes the places that a MaxPool of the same channels found; other readers of places keep the channels whole."""

from __future__ import annotations

import numpy as np
import pytest

from agmc_onnx.measuring.sizes import graph_at
from agmc_onnx.ops import analyse
from agmc_onnx.pruning.importance import choose, l2_norm
from agmc_onnx.pruning.plan import make_plan
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.pruning.verification import verify
from tests.nets import model as net


@pytest.mark.parametrize("size", ["", ", shape", ", computed"])
def test_a_segmenter_with_unpooling_is_cut(size: str) -> None:
    n = "1" if size == ", shape" else "N"
    text = f"""g (float[{n}, 3, 8, 8] x) => (float[{n}, 2, 8, 8] y) {{
        a = Conv(x, wa) computed = Shape(a) p, i = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(a)
        u = MaxUnpool<kernel_shape = [2, 2], strides = [2, 2]>(p, i{size}) y = Conv(u, wu) }}"""
    model = net(text, {"wa": (8, 3, 1, 1), "wu": (2, 8, 1, 1), "shape": np.array([1, 8, 8, 8])})
    channels = analyse(graph_at(model, {"x": (1, 3, 8, 8)}))  # a run tells the shape, inference does not
    assert [group.name for group in channels.groups] == ["wa"]
    kept = choose(channels, l2_norm(channels), [5])
    feeds = [{"x": np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)}]
    assert verify(model, Surgeon(channels).cut(kept), make_plan(channels, kept, "0" * 64), feeds).masked_equivalence

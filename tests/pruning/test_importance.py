"""Which units something reads: the others go first."""

from __future__ import annotations

import numpy as np
import pytest

from agmc_onnx import compress
from agmc_onnx.graph.view import graph_of
from agmc_onnx.ops import analyse
from agmc_onnx.pruning.importance import is_read
from tests import nets

WEIGHTS = {"w": (12, 3, 3, 3), "v": (5, 8, 3, 3), "starts": np.array([0]), "ends": np.array([8]), "axes": np.array([1]),
           "index": np.arange(8), "parts": np.array([8, 4])}  # fmt: skip


@pytest.mark.parametrize(
    "picked",
    [
        "s = Slice(r, starts, ends, axes)",
        "s = Gather<axis = 1>(r, index)",
        "s, dropped = Split<axis = 1>(r, parts)",
        "s, dropped = Split<axis = 1>(r, parts) sizes = Shape(dropped)",
    ],
)
def test_what_is_sliced_away_is_not_read_and_goes_first(picked: str) -> None:
    text = f"g (float[1, 3, 9, 9] x) => (float[1, 5, 5, 5] y) {{ c = Conv(x, w) r = Relu(c) {picked} y = Conv(s, v) }}"
    model = nets.model(text, WEIGHTS)
    channels = analyse(graph_of(model))
    reads = is_read(channels)
    assert [(group.n_units, bool(reads[group.units].all())) for group in channels.groups] == [(8, True), (4, False)]
    result = compress(model, flops=0.9, policy="uniform", recover="none", round_to=1, latency_seconds=0.0)
    kept = [len(group["keep"]) for group in result.plan.groups if group["why_frozen"] is None]
    assert kept == [8, 1] and result.report["target"]["reached"] <= 0.9


def test_statistics_read_what_is_sliced_away_after_them() -> None:
    text = """g (float[1, 3, 6] x) => (float[1, 3, 5] y) {
        c = MatMul(x, w) n = LayerNormalization<axis = -1>(c, s) r = Slice(n, starts, ends, axes) y = MatMul(r, v) }"""
    weights = {
        "w": (6, 12),
        "s": (12,),
        "v": (8, 5),
        **{k: WEIGHTS[k] for k in ("starts", "ends")},
        "axes": np.array([2]),
    }
    channels = analyse(graph_of(nets.model(text, weights)))
    assert channels.groups and all(is_read(channels)[group.units].all() for group in channels.groups)

"""What `inspect` says stays whole."""

from __future__ import annotations

import numpy as np

from agmc_onnx import inspect
from tests import nets

QUANTISED = """g (float[N, 3, 6, 6] x) => (float[N, 4, 4, 4] y) {
    w = DequantizeLinear<axis = 0>(wq, ws, wz) c = Conv(x, w) q = QuantizeLinear(c, s, z) d = DequantizeLinear(q, s, z)
    y = Conv(d, v) }"""
WEIGHTS = {
    "wq": np.arange(216, dtype=np.int8).reshape(8, 3, 3, 3),
    "ws": np.full(8, 0.1, np.float32),
    "wz": np.zeros(8, np.int8),
    "s": np.array(0.1, np.float32),
    "z": np.array(3, np.uint8),
    "v": (4, 8, 1, 1),
}


def test_dims_of_kernels_are_no_groups_that_stay_whole() -> None:
    found = inspect(nets.model(QUANTISED, WEIGHTS))
    assert [(group["name"], group["units"]) for group in found["groups"]] == [("wq#1", 8)]
    assert [(group["units"], group["why"]) for group in found["frozen"]] == [(4, "graph output y")]


def test_weights_that_stay_for_want_of_scales_are_listed() -> None:
    model = nets.model(
        QUANTISED.replace("<axis = 0>", ""), {**WEIGHTS, "ws": np.array(0.1, np.float32), "wz": np.array(0, np.int8)}
    )
    why = "DequantizeLinear w: quantised without a scale for every channel; compress the float model, then quantise the result"
    assert [(group["units"], group["why"]) for group in inspect(model)["frozen"]] == [(8, why), (4, "graph output y")]

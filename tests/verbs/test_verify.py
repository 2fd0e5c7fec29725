"""What `verify` says of weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from agmc_onnx import compress, verify
from tests import nets

# scores divided by the root of a size that the cut changes, as exporters compute it when the model runs
SCALED = """g (float[1, 6, 8] x) => (float[1, 6, 5] y) {
    h = MatMul(x, w) s = Shape(h) n = Gather<axis = 0>(s, last) f = Cast<to = 1>(n)
    r = Sqrt(f) q = Div(h, r) y = MatMul(q, v) }"""
WEIGHTS = {"w": (8, 12), "v": (12, 5), "last": np.array(2)}


@pytest.mark.parametrize("changed", [False, True])
def test_refitted_is_said_only_where_a_weight_changed(tmp_path: Path, changed: bool) -> None:
    onnx.save(nets.model(SCALED, WEIGHTS), tmp_path / "m.onnx")
    options = {"flops": 0.7, "policy": "uniform", "recover": "none", "latency_seconds": 0.0}
    model = compress(tmp_path / "m.onnx", output=tmp_path / "c.onnx", **options).model
    assert "Shape" not in {node.op_type for node in model.graph.node}, "the number is fixed"
    if changed:
        (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "v")
        weight.CopyFrom(onnx.numpy_helper.from_array(1.01 * onnx.numpy_helper.to_array(weight), "v"))
        onnx.save(model, tmp_path / "c.onnx")
    found = verify(tmp_path / "m.onnx", tmp_path / "c.onnx")
    assert found.masked_equivalence and ("refitted" in found.note) == changed

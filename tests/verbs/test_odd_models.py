"""Inputs and outputs of kinds that are rare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from agmc_onnx import compress, verify
from agmc_onnx.errors import DataError
from tests import nets

QUICK = {"flops": 0.6, "policy": "uniform", "recover": "none", "latency_seconds": 0.0}
ODD = {
    "a single number": "g (float[1, 3, 8, 8] x) => (float y) { c = Conv(x, w) r = Relu(c) d = Conv(r, v)"
    " y = ReduceMean<keepdims = 0>(d) }",
    "two rows for one image": "g (float[1, 3, 8, 8] x) => (float[2, 5, 1, 1] y) { c = Conv(x, w) r = Relu(c) d = Conv(r, v)"
    " a = GlobalAveragePool(d) y = Concat<axis = 0>(a, a) }",
    "nan where the original has it": "g (float[1, 3, 8, 8] x) => (float[1, 5, 4, 4] y)"
    " { c = Conv(x, w) r = Relu(c) d = Conv(r, v) y = Log(d) }",
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("has_data", [False, True])
def test_a_rare_output_is_compressed_and_verified(tmp_path: Path, kind: str, has_data: bool) -> None:
    onnx.save(nets.model(ODD[kind], {"w": (8, 3, 3, 3), "v": (5, 8, 3, 3)}), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).standard_normal((12, 3, 8, 8)).astype(np.float32))
    data = tmp_path / "d.npz" if has_data else None
    compress(tmp_path / "m.onnx", data=data, output=tmp_path / "c.onnx", **QUICK)
    assert verify(tmp_path / "m.onnx", tmp_path / "c.onnx", data=data).masked_equivalence


def test_strings_ask_for_data(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (string[1, 1] s, float[1, 8] x) => (float[1, 5] y, string[1, 1] t) {
        h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) t = Identity(s) }"""
    with pytest.raises(
        DataError, match=r"^input 's': no synthetic samples, got object; expected numbers or bool\. Give real data"
    ):
        compress(nets.model(text, {"w": (8, 12), "v": (12, 5)}), **QUICK)

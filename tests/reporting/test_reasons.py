"""Why groups stay whole: once for those that are alike, with what they would give and what to do."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import onnx

from agmc_onnx.graph.view import graph_of
from agmc_onnx.ops import analyse
from agmc_onnx.reporting.reasons import find_reasons
from agmc_onnx.reporting.tables import inspection
from agmc_onnx.verbs.inspect import inspect
from tests.nets import model

# two layers whose results meet a cache each, and one that nothing holds back
NET = """g (float[N, T, 6] x, float[N, P, 8] past_0, float[N, P, 8] past_1) => (float[N, L, 3] y, float[N, M, 3] z) {
   k0 = MatMul(x, layer0_weight) c0 = Concat<axis = 1>(past_0, k0) y = MatMul(c0, wy)
   k1 = MatMul(x, layer1_weight) c1 = Concat<axis = 1>(past_1, k1) h = MatMul(c1, wh) r = Relu(h) z = MatMul(r, wz) }"""
WEIGHTS = {"layer0_weight": (6, 8), "layer1_weight": (6, 8), "wy": (8, 3), "wh": (8, 20), "wz": (20, 3)}


def test_alike_reasons_are_said_once() -> None:
    found = find_reasons(analyse(graph_of(model(NET, WEIGHTS))))
    caches = next(reason for reason in found if "past_0" in reason.why)
    assert caches.why == "Concat c0: it meets the input past_0, which keeps dimension 2 whole"
    assert [units for _, units in caches.layers] == [8, 8]
    assert "exported without them" in caches.do and 0 < caches.gain < 1
    assert all(reason.gain <= before.gain for before, reason in pairwise(found))


def test_prunable_is_what_can_go_at_most(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(NET, WEIGHTS), path)
    found = inspect(path)
    assert found["prunable"]["macs"] == 1 - found["smallest"]["1"]["macs"] < 0.8
    text = "\n".join(inspection(found))
    assert f"at most {100 * found['prunable']['macs']:.1f} % of the MACs" in text
    assert text.count("it meets the input") == 1 and "of the MACs could go else" in text
    assert "graph output y, " not in text

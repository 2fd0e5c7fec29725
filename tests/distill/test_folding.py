from __future__ import annotations

import numpy as np
import onnx
import pytest

from agmc_onnx.distill.folding import Folded
from agmc_onnx.graph.edit import with_arrays
from agmc_onnx.graph.view import graph_of
from agmc_onnx.measuring.session import make_session, run_model
from tests import nets

NET = """
f (float[n, 3, 6, 6] x) => (float[n, 4, 6, 6] y) {
    a = Conv<pads=[1, 1, 1, 1]> (x, w1)
    b = BatchNormalization (a, g1, b1, m1, v1)
    r = Relu (b)
    c = Conv (r, w2, b2)
    y = BatchNormalization<epsilon=0.01> (c, g2, bb2, m2, v2)
}
"""
VARIANCE = np.linspace(0.5, 2, 8, dtype=np.float32)
WEIGHTS = {
    "w1": (8, 3, 3, 3), "g1": (8,), "b1": (8,), "m1": (8,), "v1": VARIANCE, "w2": (4, 8, 1, 1), "b2": (4,),
    "g2": (4,), "bb2": (4,), "m2": (4,), "v2": VARIANCE[:4],
}  # fmt: skip


def answer(proto: onnx.ModelProto) -> np.ndarray:
    x = np.random.default_rng(3).standard_normal((2, 3, 6, 6)).astype(np.float32)
    return run_model(make_session(proto, optimise=False), {"x": x})[0]


def test_a_folded_model_computes_the_same_without_normalisation() -> None:
    proto = nets.model(NET, WEIGHTS)
    folded = Folded(proto).model
    assert [node.op_type for node in folded.graph.node] == ["Conv", "Relu", "Conv"]
    assert [node.op_type for node in proto.graph.node].count("BatchNormalization") == 2
    np.testing.assert_allclose(answer(folded), answer(proto), rtol=0, atol=1e-5 * np.abs(answer(proto)).max())


@pytest.mark.parametrize("dead", [False, True], ids=["", "a scale of zero"])
def test_changed_numbers_go_back_into_the_model_as_it_was(dead: bool) -> None:
    gamma = np.ones(8, np.float32)
    gamma[2] = 0 if dead else 0.5
    proto = nets.model(NET, {**WEIGHTS, "g1": gamma})
    pair = Folded(proto)
    rng = np.random.default_rng(5)
    new = {t.name: rng.standard_normal(tuple(t.dims)).astype(np.float32) for t in pair.model.graph.initializer}
    changed = with_arrays(pair.model, new)
    back = pair.unfold(changed)
    assert [node.op_type for node in back.graph.node] == [node.op_type for node in proto.graph.node]
    assert sorted(graph_of(back).tensors) == sorted(graph_of(proto).tensors)
    np.testing.assert_allclose(answer(back), answer(changed), rtol=0, atol=1e-5 * np.abs(answer(changed)).max())


def test_what_others_use_too_is_not_folded() -> None:
    text = NET.replace("r = Relu (b)", "s = Add (a, b)  r = Relu (s)")
    proto = nets.model(text, WEIGHTS)
    assert [node.op_type for node in Folded(proto).model.graph.node].count("BatchNormalization") == 1

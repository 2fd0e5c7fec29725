"""The counter that runs a model: right where the answer is known by hand."""

from __future__ import annotations

import numpy as np

from tests.independent_counter import count
from tests.nets import model as net


def feed(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.ones(shape, np.float32)}


def test_plain_nodes() -> None:
    text = "g (float[N, 3, H, W] x) => (y) { a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w)"
    text += " b = ConvTranspose(a, u) y = MatMul(b, v) }"
    model = net(text, {"w": [8, 3, 3, 3], "u": [8, 2, 3, 3], "v": [6, 5]})
    assert count(model, feed(1, 3, 8, 8)) == {"a": 8 * 16 * 27, "b": 8 * 16 * 18, "y": 2 * 6 * 6 * 5}


def test_a_loop_counts_as_often_as_it_runs_and_an_if_by_its_branch() -> None:
    text = """g (float[N, 4] x, int64 n, bool c) => (y, z) {
        t = Constant<value = bool {1}>()
        y = Loop(n, t, x) <body = body (int64 i, bool k, float[N, 4] s) => (bool k2, float[N, 4] s2) {
            k2 = Identity(k) s2 = MatMul(s, w) }>
        z = If(c) <then_branch = a () => (float[N, 4] p) { p = MatMul(x, w) },
            else_branch = b () => (float[N, 4] q) { q = Relu(x) }>
    }"""
    model = net(text, {"w": [4, 4]})
    given = feed(2, 4) | {"n": np.array(3)}
    assert count(model, given | {"c": np.array(True)}) == {"y": 3 * 32, "z": 32}
    assert count(model, given | {"c": np.array(False)}) == {"y": 3 * 32}


def test_functions_are_inlined_and_order_does_not_matter() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N, 4] x) => (y) { y = local.twice(z, w) z = Relu(x) }
        <domain: "local", opset_import: ["" : 17]> twice (a, b) => (d) { c = MatMul(a, b) d = MatMul(c, b) }"""
    assert sum(count(net(text, {"w": [4, 4]}), feed(2, 4)).values()) == 64


def test_gates_and_letters() -> None:
    text = (
        'g (float[S, B, 4] x) => (h, y) { h = LSTM<hidden_size=3>(x, w, r) y = Einsum<equation="sbi,ij->sbj">(x, u) }'
    )
    model = net(text, {"w": [1, 12, 4], "r": [1, 12, 3], "u": [4, 5]})
    assert count(model, feed(6, 2, 4)) == {"h": 12 * 12 * 7, "y": 12 * 20}

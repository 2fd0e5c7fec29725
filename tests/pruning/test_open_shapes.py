"""Open sizes: what a graph computes from them stays computed, what is cut is named anew, and all of it is as with numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.nets import model
from tests.oracle import hold

CASES = Path(__file__).parents[3] / "shared" / "cases" / "graphs"


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


_HEADS = """h = Shape(x) b = Slice(h, i0, i1) t = Slice(h, i1, i2) to = Concat<axis = 0>(b, t, i4, i8)
   q0 = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wv) q1 = Reshape(q0, to) k1 = Reshape(k0, to) v1 = Reshape(v0, to)
   q = Transpose<perm = [0, 2, 1, 3]>(q1) k = Transpose<perm = [0, 2, 3, 1]>(k1) v = Transpose<perm = [0, 2, 1, 3]>(v1)
   s = MatMul(q, k) p = Softmax<axis = -1>(s) o = MatMul(p, v) ot = Transpose<perm = [0, 2, 1, 3]>(o)
   back = Concat<axis = 0>(b, t, i32) of = Reshape(ot, back) out = MatMul(of, wo)"""
_INTS = {f"i{n}": i64(n) for n in (0, 1, 2, 3, 4, 8, 12, 16, 32)}
NETS: dict[str, tuple[str, dict[str, Any], int]] = {
    # name: (model, weights, groups)
    "heads, batch and tokens open": (
        f"g (float[N, T, 6] x) => (float[N, T, 3] out) {{ {_HEADS} }}",
        {**dict.fromkeys(("wq", "wk", "wv"), (6, 32)), "wo": (32, 3)},
        2,
    ),
    "a product over batch and tokens at once": (
        """g (float[N, T, 6] x) => (float[N, T, 3] out) {
           h = Shape(x) b = Slice(h, i0, i1) t = Slice(h, i1, i2) m = Mul(b, t) flat = Concat<axis = 0>(m, i6)
           f = Reshape(x, flat) a = MatMul(f, wa) r = Relu(a) c = MatMul(r, wc) s = Shape(a) w = Slice(s, i1, i2)
           back = Concat<axis = 0>(b, t, w) e = Reshape(a, back) u = Concat<axis = 0>(b, t, i3) v = Reshape(c, u)
           z = MatMul(e, wz) out = Add(v, z) }""",
        {"wa": (6, 8), "wc": (8, 3), "wz": (8, 3), "i6": i64(6)},
        1,
    ),
    "a size read of a sum whose branch goes": (
        """g (float[N, T, 6] x) => (float[N, T, 3] out) {
           s = MatMul(x, ws) a = MatMul(s, wa) r = Relu(a) d = MatMul(r, wd) t = Add(s, d) q = MatMul(t, wq)
           h = Reshape(q, heads) p = Transpose<perm = [0, 2, 1, 3]>(h) e = Relu(p) b = Transpose<perm = [0, 2, 1, 3]>(e)
           to = Shape(t) f = Reshape(b, to) o = MatMul(f, wo) u = Add(t, o) out = MatMul(u, wz) }""",
        {"ws": (6, 8), "wa": (8, 5), "wd": (5, 8), "wq": (8, 8), "wo": (8, 8), "wz": (8, 3), "heads": i64(0, 0, 2, 4)},
        3,
    ),
    "patches, then a map again": (
        """g (float[N, 3, H, W] x) => (float[N, 2, H2, W2] out) {
           a = Conv<strides = [2, 2]>(x, wa) s = Shape(a) f = Slice(s, i0, i2) to = Concat<axis = 0>(f, m1) b = Reshape(a, to)
           t = Transpose<perm = [0, 2, 1]>(b) l = LayerNormalization(t, g1, b1) d = MatMul(l, wd) r = Relu(d) e = MatMul(r, we)
           u = Add(t, e) v = Transpose<perm = [0, 2, 1]>(u) w = Reshape(v, s) out = Conv(w, wo) }""",
        {"wa": (8, 3, 2, 2), "g1": (8,), "b1": (8,), "wd": (8, 12), "we": (12, 8), "wo": (2, 8, 1, 1), "m1": i64(-1)},
        2,
    ),
    "patches unfolded and folded, every size computed": (
        """g (float[N, 3, H, W] x) => (float[N, 2, H2, W2] out) {
           a = Conv(x, wa) s = Shape(x) n = Slice(s, i0, i1) h = Slice(s, i2, i3) w = Slice(s, i3, i4) h2 = Div(h, i2)
           w2 = Div(w, i2) nc = Mul(n, i8) nch = Mul(nc, h2) p = Mul(h2, w2) t1 = Concat<axis = 0>(nch, i2, w2, i2)
           b = Reshape(a, t1) c = Transpose<perm = [0, 2, 1, 3]>(b) t2 = Concat<axis = 0>(n, i8, p, i4) d = Reshape(c, t2)
           e = Transpose<perm = [0, 3, 2, 1]>(d) f = MatMul(e, wb) g1 = Relu(f) k = MatMul(g1, wc) l = Add(e, k)
           m = Transpose<perm = [0, 3, 2, 1]>(l) t3 = Concat<axis = 0>(nch, w2, i2, i2) o = Reshape(m, t3)
           q = Transpose<perm = [0, 2, 1, 3]>(o) t4 = Concat<axis = 0>(n, i8, h, w) r = Reshape(q, t4) u = Add(r, a)
           out = Conv(u, wo) }""",
        {"wa": (8, 3, 1, 1), "wb": (8, 6), "wc": (6, 8), "wo": (2, 8, 1, 1)},
        2,
    ),
    "cropped, padded and resized to the size of another map": (
        """g (float[N, 3, H, W] x) => (float[N, 2, H2, W2] out) {
           a = Conv<pads = [1, 1, 1, 1]>(x, wa) b = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(a, wb) s = Shape(a)
           hw = Slice(s, i2, i4) c = Shape(b)
           nc = Slice(c, i0, i2) z = Concat<axis = 0>(nc, hw) u = Resize<mode = "nearest">(b, , , z)
           h = Slice(s, i2, i3) k = Slice(u, i0, h, i2) d = Sub(h, i2) l = Slice(k, i0, d, i2)
           pads = Concat<axis = 0>(i0, i0, i0, i0, i0, i0, i2, i0) m = Pad(l, pads) q = Concat<axis = 1>(a, m)
           out = Conv(q, wo) }""",
        {"wa": (8, 3, 3, 3), "wb": (6, 8, 3, 3), "wo": (2, 14, 1, 1)},
        2,
    ),
    "padded by an amount that depends on the size": (
        """g (float[N, 3, H, W] x) => (float[N, 2, H2, W2] out) {
           a = Conv(x, wa) b = Conv<kernel_shape = [3, 3]>(a, wb) s = Shape(a) t = Shape(b) d = Sub(s, t)
           hw = Slice(d, i2, i4)
           pads = Concat<axis = 0>(i0, i0, i0, i0, i0, i0, hw) p = Pad(b, pads) r = Add(a, p) out = Conv(r, wo) }""",
        {"wa": (8, 3, 1, 1), "wb": (8, 8, 3, 3), "wo": (2, 8, 1, 1)},
        1,
    ),
    "group norm, height and width open": (
        """g (float[N, 3, H, W] x) => (float[N, 2, H, W] out) {
           a = Conv(x, wa) r = Reshape(a, groups) i = InstanceNormalization(r, one, nil) s = Shape(a) b = Reshape(i, s)
           c = Mul(b, scale) d = Add(c, bias) e = Relu(d) out = Conv(e, wo) }""",
        {
            "wa": (12, 3, 1, 1), "wo": (2, 12, 1, 1), "groups": i64(0, 3, -1), "one": np.ones(3, np.float32),
            "nil": np.zeros(3, np.float32), "scale": (12, 1, 1), "bias": (12, 1, 1),
        },
        1,
    ),
    "group norm in pieces, height and width open": (
        """g (float[N, 3, H, W] x) => (float[N, 2, H, W] out) {
           a = Conv(x, wa) r = Reshape(a, groups) m = ReduceMean<axes = [2]>(r) z = Sub(r, m) q = Mul(z, z)
           v = ReduceMean<axes = [-1]>(q) w = Add(v, tiny) k = Sqrt(w) i = Div(z, k) s = Shape(a) b = Reshape(i, s)
           c = Mul(b, scale) d = Add(c, bias) e = Relu(d) out = Conv(e, wo) }""",
        {
            "wa": (12, 3, 1, 1), "wo": (2, 12, 1, 1), "groups": i64(0, 3, -1), "tiny": np.array(1e-5, np.float32),
            "scale": (12, 1, 1), "bias": (12, 1, 1),
        },
        1,
    ),
    "means of a layer norm by global pools": (
        """g (float[N, T, 6] x) => (float[N, T, 3] out) {
           a = MatMul(x, wa) m = GlobalAveragePool(a) z = Sub(a, m) q = Mul(z, z) v = GlobalAveragePool(q) w = Add(v, tiny)
           k = Sqrt(w) i = Div(z, k) c = Mul(i, scale) d = Add(c, bias) out = MatMul(d, wo) }""",
        {"wa": (6, 8), "wo": (8, 3), "tiny": np.array(1e-5, np.float32), "scale": (8,), "bias": (8,)},
        1,
    ),
    "keys shared by heads of queries, turned by their places": (
        """g (float[N, T, 6] x) => (float[N, T, 3] out) {
           h = Shape(x) b = Slice(h, i0, i1) t = Slice(h, i1, i2) count = Squeeze(t) places = Range(zero, count, one)
           pf = Cast<to = 1>(places) pu = Unsqueeze(pf, i1) angles = Mul(pu, frequencies) both = Concat<axis = -1>(angles, angles)
           cos = Cos(both) sin = Sin(both)
           q0 = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wv)
           toq = Concat<axis = 0>(b, t, i4, i8) tok = Concat<axis = 0>(b, t, i2, i8)
           q1 = Reshape(q0, toq) k1 = Reshape(k0, tok) v1 = Reshape(v0, tok)
           q = Transpose<perm = [0, 2, 1, 3]>(q1) k = Transpose<perm = [0, 2, 1, 3]>(k1) v = Transpose<perm = [0, 2, 1, 3]>(v1)
           qa = Slice(q, i0, i4, i3) qb = Slice(q, i4, i8, i3) qn = Neg(qb) qr = Concat<axis = -1>(qn, qa)
           qc = Mul(q, cos) qs = Mul(qr, sin) qt = Add(qc, qs)
           ka = Slice(k, i0, i4, i3) kb = Slice(k, i4, i8, i3) kn = Neg(kb) kr = Concat<axis = -1>(kn, ka)
           kc = Mul(k, cos) ks = Mul(kr, sin) kt = Add(kc, ks)
           ku = Unsqueeze(kt, i2) vu = Unsqueeze(v, i2)
           wide = Concat<axis = 0>(b, i2, i2, t, i8) ke = Expand(ku, wide) ve = Expand(vu, wide)
           heads = Concat<axis = 0>(b, i4, t, i8) kh = Reshape(ke, heads) vh = Reshape(ve, heads)
           kx = Transpose<perm = [0, 1, 3, 2]>(kh) s = MatMul(qt, kx) p = Softmax<axis = -1>(s) o = MatMul(p, vh)
           ot = Transpose<perm = [0, 2, 1, 3]>(o) back = Concat<axis = 0>(b, t, i32) of = Reshape(ot, back)
           out = MatMul(of, wo) }""",
        {
            "wq": (6, 32), "wk": (6, 16), "wv": (6, 16), "wo": (32, 3), "zero": np.array(0, np.int64),
            "one": np.array(1, np.int64),
            "frequencies": np.array([1, 0.1, 0.01, 0.001], np.float32),
        },
        2,
    ),
    "entries gathered, scattered and turned round": (
        """g (float[N, T, 6] x) => (float[N, T, 3] out) {
           a = MatMul(x, wa) s = ReduceMean<axes = [2]>(x) best = ArgMax<axis = 1>(s) h = Shape(a) b = Slice(h, i0, i1)
           to = Concat<axis = 0>(b, i1, i8) i = Expand(best, to) e = GatherElements<axis = 1>(a, i) f = Add(a, e)
           u = Mul(e, e) j = ScatterElements<axis = 1>(f, i, u) k = CastLike(j, x) out = MatMul(k, wo) }""",
        {"wa": (6, 8), "wo": (8, 3)},
        1,
    ),
    "a flat layer that becomes a map": (
        """g (float[N, T, 6] x) => (float[N, 2, 6, 6] out) {
           m = ReduceMean<axes = [1], keepdims = 0>(x) a = MatMul(m, wa) r = Relu(a) h = Shape(m) b = Slice(h, i0, i1)
           to = Concat<axis = 0>(b, i8, i4, i4) e = Reshape(r, to) out = ConvTranspose(e, wo) }""",
        {"wa": (6, 128), "wo": (8, 2, 3, 3)},
        1,
    ),
    "columns that become a map": (
        """g (float[N, 3, H, W] x) => (float[N, 2, 5, 5] out) {
           a = Conv(x, wa) p = AveragePool<kernel_shape = [3, 3], strides = [3, 3]>(a) c = Slice(p, i0, i4, i2)
           d = Slice(c, i0, i4, i3)
           to = Concat<axis = 0>(i0, i12, i16) r = Reshape(d, to) m = Col2Im(r, five, two) out = Conv(m, wo) }""",
        {"wa": (12, 3, 1, 1), "wo": (2, 3, 1, 1), "five": i64(5, 5), "two": i64(2, 2)},
        1,
    ),
    "the first token is only measured": (
        """g (float[N, T, 6] x) => (float[N, T, 3] out) {
           a = MatMul(x, wa) p = Gather<axis = 2>(a, last) h = Shape(p) to = Concat<axis = 0>(h, m1) b = Reshape(a, to)
           out = MatMul(b, wo) }""",
        {"wa": (6, 8), "wo": (8, 3), "last": np.array(7, np.int64), "m1": i64(-1)},
        1,
    ),
    "its width is data elsewhere": (
        """g (float[N, T, 6] x) => (float[N, T, 3] out) {
           a = MatMul(x, wa) h = Shape(a) f = Cast<to = 1>(h) n = ReduceSum<keepdims = 0>(f) d = Div(a, n)
           out = MatMul(d, wo) }""",
        {"wa": (6, 8), "wo": (8, 3)},
        1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_open_sizes(name: str) -> None:
    text, weights, n_groups = NETS[name]
    text = f'<ir_version: 8, opset_import: ["" : {18 if "Col2Im" in text else 17}]>\n{text}'
    held = hold(model(text, {**_INTS, **weights}), seed=1, input_shape=("x=1,3,12,14",) if "H, W" in text else ())
    assert held.n_settings == 2
    assert len(held.channels.groups) == n_groups
    assert all("graph output" in str(group.why_frozen) for group in held.channels.frozen)


@pytest.mark.parametrize(
    "case",
    ["32-distilbert/dy", "91-resize-shape/m", "92-heads-tokens-open/m", "93-conv1d-tokens-open/m", "94-patch-size-open/m",
     "96-shape-of-entry/m", "98-linear-view-conv/m", "99d-reshape-to-size/m", "99e-heads-batch-tokens-open/m"],
)  # fmt: skip
def test_cases(case: str) -> None:
    path = CASES / f"{case}.onnx"
    if not path.exists():
        pytest.skip("no cases beside the project")
    held = hold(onnx.load(path))
    assert held.n_settings == 2
    assert [g.why_frozen for g in held.channels.frozen if "graph output" not in str(g.why_frozen)] == []


def test_columns_of_weights_packed_in_blocks() -> None:
    path = CASES / "45b-nbits" / "m.onnx"
    if not path.exists():
        pytest.skip("no cases beside the project")
    held = hold(onnx.load(path))
    assert len(held.channels.groups) == 1 and held.share < 1
    assert any("packed in blocks" in str(group.why_frozen) for group in held.channels.frozen)


def test_zero_biases_stored_once_tie_no_layers() -> None:
    """The dynamo exporter of PyTorch stores equal initializers once: the biases of all layers of a width that was not trained."""
    text = """g (float[N, T, 6] x) => (float[N, T, 3] out) {
      a = MatMul(x, wa) b = Add(a, zeros) c = Relu(b) d = MatMul(c, wb) e = Add(d, zeros) f = Relu(e) out = MatMul(f, wo) }"""
    weights = {"wa": (6, 8), "wb": (8, 8), "wo": (8, 3), "zeros": np.zeros(8, np.float32)}
    assert len(hold(model(text, weights)).channels.groups) == 2

"""Small networks that are mutated: one a family of ops."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

NETS = {
    "conv": (
        """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
        c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1], group = 1>(x, w, b)
        n = BatchNormalization<epsilon = 0.001>(c, s, b, b, q) r = Relu(n)
        d = Conv<group = 8, pads = [1, 1, 1, 1]>(r, k) a = Add(d, r) p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(a)
        m = GlobalAveragePool(p) f = Flatten<axis = 1>(m) y = Gemm<transB = 1>(f, v, t) }""",
        {"w": (8, 3, 3, 3), "b": (8,), "s": (8,), "q": np.ones(8, np.float32), "k": (8, 1, 3, 3), "v": (5, 8), "t": (5,)},
    ),
    "mixed": (
        """g (float[N, 3, 8, 8] x) => (float[N, C, H, W] y) {
        c = Conv(x, w) l, e = Split<axis = 1>(c, parts) j = Concat<axis = 1>(e, l) o = Pad(j, pads)
        z = Slice(o, starts, ends, axes) u = Resize<mode = "nearest">(z, "", scales) h = Sigmoid(u)
        i = Mul(h, u) y = ConvTranspose<strides = [2, 2]>(i, v) }""",
        {"w": (8, 3, 1, 1), "v": (8, 4, 2, 2), "parts": np.array([4, 4]), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
         "starts": np.array([1]), "ends": np.array([9]), "axes": np.array([2]), "scales": np.array([1, 1, 2, 2], np.float32)},
    ),
    "heads": (
        """g (float[N, T, 16] x) => (float[N, T, 16] y) {
        n = LayerNormalization<axis = -1>(x, g1, b1) q0 = MatMul(n, wq) k0 = MatMul(n, wk) v0 = MatMul(n, wv)
        q1 = Reshape(q0, sh) k1 = Reshape(k0, sh) v1 = Reshape(v0, sh) q = Transpose<perm = [0, 2, 1, 3]>(q1)
        k = Transpose<perm = [0, 2, 3, 1]>(k1) v = Transpose<perm = [0, 2, 1, 3]>(v1) s0 = MatMul(q, k) s1 = Div(s0, two)
        s = Softmax<axis = -1>(s1) o0 = MatMul(s, v) o1 = Transpose<perm = [0, 2, 1, 3]>(o0) o = Reshape(o1, back)
        p = MatMul(o, wo) r = Add(p, x) h0 = MatMul(r, f1) h = Gelu(h0) h1 = MatMul(h, f2) y = Add(h1, r) }""",
        {**dict.fromkeys(("wq", "wk", "wv", "wo"), (16, 16)), "f1": (16, 32), "f2": (32, 16), "g1": (16,), "b1": (16,),
         "sh": np.array([0, 0, 4, 4]), "back": np.array([0, 0, 16]), "two": np.array(2, np.float32)},
    ),
    "shapes": (
        """g (float[N, 3, H, W] x) => (float[N, 6] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(c) s = Shape(r) one = Constant<value_int = 0>() b = Gather<axis = 0>(s, one)
        zero = Constant<value = int64[1] {0}>() u = Unsqueeze(b, zero) minus = Constant<value = int64[1] {-1}>()
        a = ReduceMean<axes = [2, 3], keepdims = 1>(r) t = Concat<axis = 0>(u, minus) f = Reshape(a, t)
        e = ConstantOfShape<value = float[1] {1}>(t2) m = MatMul(f, v) y = Mul(m, e) }""",
        {"w": (8, 3, 3, 3), "v": (8, 6), "t2": np.array([6])},
    ),
    "branches": (
        """<ir_version: 8, opset_import: ["" : 17, "f" : 1]> g (float[N, 8] x, bool p) => (float[N, 4] y) {
        a = f.Twice(x) h = MatMul(a, w)
        r = If (p) <then_branch = t () => (o1) { o1 = Relu(h) }, else_branch = e () => (o2) { o2 = Neg(h) }> y = MatMul(r, v) }
        <domain: "f", opset_import: ["" : 17]> Twice (i) => (o) { k = Relu(i) o = Add(k, k) }""",
        {"w": (8, 12), "v": (12, 4)},
    ),
    "recurrent": (
        """g (float[T, N, 4] x) => (float[T, 1, N, 6] y) {
        z, h1, c1 = LSTM<hidden_size = 6>(x, w, r, b) y = Relu(z) }""",
        {"w": (1, 24, 4), "r": (1, 24, 6), "b": (1, 48)},
    ),
    "quantised": (
        """g (float[N, 3, 4, 4] x) => (float[N, 4, 4, 4] y) {
        w = DequantizeLinear<axis = 0>(wq, ws, wz) c = Conv(x, w) q = QuantizeLinear(c, s, z) d = DequantizeLinear(q, s, z)
        y = Conv(d, v) }""",
        {"wq": np.arange(24, dtype=np.int8).reshape(8, 3, 1, 1), "ws": np.full(8, 0.1, np.float32), "wz": np.zeros(8, np.int8),
         "s": np.array(0.1, np.float32), "z": np.array(3, np.uint8), "v": (4, 8, 1, 1)},
    ),
}  # fmt: skip


def net(name: str) -> onnx.ModelProto:
    """Return one of `NETS` with seeded weights."""
    text, weights = NETS[name]
    header = "" if text.lstrip().startswith("<") else '<ir_version: 8, opset_import: ["" : 17]>\n'
    model = onnx.parser.parse_model(header + text)
    generator = np.random.default_rng(0)
    for tensor, value in weights.items():
        array = value if isinstance(value, np.ndarray) else generator.standard_normal(value).astype(np.float32) / 4
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), tensor))
    if name == "heads":
        model.opset_import[0].version = 20
    return model

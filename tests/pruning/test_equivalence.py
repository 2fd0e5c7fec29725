"""The oracle over every architecture family: cut at random, equal to the masked original, cost as predicted."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest

from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.view import graph_of
from agmc_onnx.ops import analyse
from agmc_onnx.pruning.cost import count_macs, count_params, macs_cost, params_cost
from agmc_onnx.pruning.importance import choose, l2_norm
from agmc_onnx.pruning.masked_norms import norms_of
from agmc_onnx.pruning.plan import make_plan
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.pruning.verification import verify
from agmc_onnx.search.budget import meet_target
from agmc_onnx.ties.groups import Channels
from models.export import to_onnx
from models.zoo import build
from tests.nets import model as net

SIDE = 32
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    # row: (builder, options, image side)
    "resnet, strided slice and pad": ("resnet20", {"depth": 14}, SIDE),
    "resnet, 1x1 shortcuts": ("resnet20", {"depth": 14, "shortcut": "B"}, SIDE),
    "bottleneck resnet": ("resnet50", {"blocks": (1, 2, 1, 1), "width": 0.25}, SIDE),
    "vgg, flatten to gemm": ("vgg16", {"width": 0.125, "size": SIDE, "n_classes": 10}, SIDE),
    "vgg, batch norm": ("vgg16_bn_cifar", {"width": 0.125}, SIDE),
    "mobilenet v1": ("mobilenet_v1", {"width": 0.25, "n_classes": 10}, SIDE),
    "mobilenet v2": ("mobilenet_v2", {"width": 0.25, "n_classes": 10}, SIDE),
    "shufflenet v1, 2 groups": ("shufflenet_v1", {"groups": 2, "width": 0.5, "n_classes": 10}, SIDE),
    "shufflenet v1, 3 groups": ("shufflenet_v1", {"groups": 3, "width": 0.5, "n_classes": 10}, SIDE),
    "shufflenet v2": ("shufflenet_v2", {"width": 0.5, "n_classes": 10}, SIDE),
}
EXPORTS: dict[str, dict[str, Any]] = {
    "folded": {"exporter": "torchscript"},
    "batch norm kept": {"exporter": "torchscript", "keep_batchnorm": True},
    "dynamo": {"exporter": "dynamo", "opset": 18},
}
QUICK_DYNAMO = ("resnet, strided slice and pad", "shufflenet v2")  # the others take 10 s each to export


def rows() -> list[Any]:
    return [
        pytest.param(
            family, export, marks=[pytest.mark.slow] if export == "dynamo" and family not in QUICK_DYNAMO else []
        )
        for family in FAMILIES
        for export in EXPORTS
    ]


@cache
def network(family: str, export: str) -> tuple[onnx.ModelProto, Channels]:
    name, options, side = FAMILIES[family]
    model = normalize(to_onnx(build(name, seed=1, **options), (1, 3, side, side), **EXPORTS[export]))
    return model, analyse(graph_of(model))


def draw(channels: Channels, rng: np.random.Generator) -> list[int]:
    """Return random kept counts, each a multiple of its group's step."""
    return [int(rng.integers(1, g.n_units // g.step + 1)) * g.step for g in channels.groups]


@pytest.mark.parametrize(("family", "export"), rows())
def test_random_plans(family: str, export: str) -> None:
    model, channels = network(family, export)
    macs, params, surgeon = macs_cost(channels), params_cost(channels), Surgeon(channels)
    full = [g.n_units for g in channels.groups]
    assert macs(full) == sum(count_macs(channels.graph).values())
    rng = np.random.default_rng(7)
    for _ in range(2):
        counts = draw(channels, rng)
        kept = choose(channels, rng.random(channels.n_units), counts)
        pruned = surgeon.cut(kept)
        graph = graph_of(pruned)
        assert sum(count_macs(graph).values()) == macs(counts)
        assert count_params(graph) == params(counts)
        checked = verify(model, pruned, make_plan(channels, kept, "0" * 64))
        assert checked.masked_equivalence and checked.checker and not checked.note
        assert checked.max_abs_output > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_half_the_macs(family: str) -> None:
    model, channels = network(family, "folded")
    cost = macs_cost(channels)
    full = np.array([g.n_units for g in channels.groups])
    step = np.array([g.step for g in channels.groups])
    budget = cost(full) // 2
    met = meet_target(np.full(full.size, 0.7), cost, full, step, step, budget)
    assert met.feasible
    assert 0.48 * cost(full) < met.reached <= budget
    kept = choose(channels, l2_norm(channels), met.kept)
    assert verify(model, Surgeon(channels).cut(kept), make_plan(channels, kept, "0" * 64)).masked_equivalence


def test_nothing_is_cut_when_all_stay() -> None:
    model, channels = network("shufflenet v2", "folded")
    pruned = Surgeon(channels).cut([np.arange(g.n_units) for g in channels.groups])
    assert pruned.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


LENGTHS = {
    "n": np.array([4], np.int32),
    "t": np.array(5, np.int32),
}  # of five positions, as GroupQueryAttention wants them
FUSED = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
SMALL_NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "attention with one product for queries, keys and values": (
        """g (float[N, 5, 6] x) => (float[N, 5, 3] out) {
           p = MatMul(x, w) pb = Add(p, b) r = Reshape(pb, to) t = Transpose<perm = [2, 0, 3, 1, 4]>(r)
           q = Gather<axis = 0>(t, c0) k = Gather<axis = 0>(t, c1) v = Gather<axis = 0>(t, c2)
           kt = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, kt) e = Softmax<axis = -1>(s) o = MatMul(e, v)
           ot = Transpose<perm = [0, 2, 1, 3]>(o) of = Reshape(ot, back) y = MatMul(of, wo) z = Relu(y) out = MatMul(z, wz) }""",
        {
            "w": (6, 48), "b": (48,), "wo": (16, 8), "wz": (8, 3), "to": i64(0, 5, 3, 4, 4), "back": i64(0, 5, 16),
            **{f"c{i}": np.array(i, np.int64) for i in range(3)},
        },
    ),
    "attention with heads beside an open batch": (
        """g (float[5, N, 6] x) => (float[5, N, 3] out) {
           h = Shape(x) n = Slice(h, i1, i2) m = Mul(n, i4) ml = Concat<axis = 0>(i5, m, i4) mb = Concat<axis = 0>(i5, n, i16)
           q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
           qr = Reshape(q, ml) kr = Reshape(k, ml) vr = Reshape(v, ml)
           qt = Transpose<perm = [1, 0, 2]>(qr) kt = Transpose<perm = [1, 2, 0]>(kr) vt = Transpose<perm = [1, 0, 2]>(vr)
           s = MatMul(qt, kt) e = Softmax<axis = -1>(s) o = MatMul(e, vt)
           ot = Transpose<perm = [1, 0, 2]>(o) of = Reshape(ot, mb) y = MatMul(of, wo) z = Relu(y) out = MatMul(z, wz) }""",
        {
            **dict.fromkeys(("wq", "wk", "wv"), (6, 16)), "wo": (16, 8), "wz": (8, 3),
            **{f"i{n}": i64(n) for n in (1, 2, 4, 5, 16)},
        },
    ),
    "scale computed from the head size": (
        """g (float[N, 6] x) => (float[N, 3] out) {
           a = MatMul(x, wa) h = Shape(a) n = Gather(h, one) f = Cast<to = 1>(n) r = Sqrt(f) d = Div(a, r)
           out = MatMul(d, wb) }""",
        {"wa": (6, 8), "wb": (8, 3), "one": np.array(1, np.int64)},
    ),
    "reshape by the shape of another value": (
        """g (float[N, 6] x) => (float[N, 3] out) {
           a = MatMul(x, wa) b = MatMul(x, wb) h = Shape(a) t = Concat<axis = 0>(h, one) s = Reshape(b, t)
           u = Squeeze(s, two) c = MatMul(a, wc) y = Add(u, c) out = MatMul(y, wd) }""",
        {"wa": (6, 8), "wb": (6, 8), "wc": (8, 8), "wd": (8, 3), "one": i64(1), "two": i64(2)},
    ),
    "strided slice, padded channels, split and gather": (
        """g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] out) {
           a = Conv(x, wa) b = Slice(a, i0, i8, i1, i2) p = Pad(b, pads) c = Conv(x, wc) d = Add(p, c)
           q, r = Split<axis = 1>(d, sizes)
           e = Gather<axis = 1>(r, order) f = Concat<axis = 1>(q, e, a) out = Conv(f, wf) }""",
        {
            "wa": (8, 3, 1, 1), "wc": (10, 3, 1, 1), "wf": (2, 17, 1, 1), "i0": i64(0), "i8": i64(8), "i1": i64(1), "i2": i64(2),
            "pads": i64(0, 2, 0, 0, 0, 4, 0, 0), "sizes": i64(5, 5), "order": i64(3, 1, 1, 0),
        },
    ),
    "grouped after concat, depthwise with a multiplier": (
        """g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] out) {
           a = Conv(x, wa) b = Conv<group = 4>(a, wb) c = Conv<group = 2>(b, wc) d = Sigmoid(c) out = ConvTranspose(d, wd) }""",
        {"wa": (4, 3, 1, 1), "wb": (8, 1, 1, 1), "wc": (6, 4, 1, 1), "wd": (6, 2, 1, 1)},
    ),
    "patches unfolded through an open dim": (
        """g (float[N, 3, 4, 4] x) => (float[N, 16, 2] out) {
           a = Conv(x, wa) h = Shape(a) n = Slice(h, i0, i1) m = Mul(n, i16) t1 = Concat<axis = 0>(m, i2, i2, i2)
           r = Reshape(a, t1) s = Transpose<perm = [0, 2, 1, 3]>(r) t2 = Concat<axis = 0>(n, i8, i4, i4) u = Reshape(s, t2)
           v = Transpose<perm = [0, 3, 2, 1]>(u) t3 = Concat<axis = 0>(n, i16, i8) z = Reshape(v, t3) b = MatMul(z, wb)
           y = Relu(b) c = MatMul(y, wc) d = Add(c, z) out = MatMul(d, wd) }""",
        {
            "wa": (8, 3, 1, 1), "wb": (8, 6), "wc": (6, 8), "wd": (8, 2),
            **{f"i{n}": i64(n) for n in (0, 1, 2, 4, 8, 16)},
        },
    ),
    "class token expanded to an open batch": (
        """g (float[N, 5, 6] x) => (float[N, 6, 3] out) {
           a = MatMul(x, wa) h = Shape(x) n = Slice(h, i0, i1) t = Concat<axis = 0>(n, m1, m1) k = Equal(t, m3)
           to = Where(k, ones, t) e = Expand(token, to) c = Concat<axis = 1>(e, a) out = MatMul(c, wz) }""",
        {
            "wa": (6, 8), "wz": (8, 3), "token": (1, 1, 8), "i0": i64(0), "i1": i64(1), "m1": i64(-1),
            "m3": i64(-1, -1, -1), "ones": i64(1, 1, 1),
        },
    ),
    "positions tiled to an open batch": (
        """g (float[N, 5, 6] x) => (float[N, 5, 3] out) {
           a = MatMul(x, wa) h = Shape(x) n = Slice(h, i0, i1) t = Concat<axis = 0>(n, i1, i1) e = Tile(p, t)
           s = Add(a, e) out = MatMul(s, wz) }""",
        {"wa": (6, 8), "wz": (8, 3), "p": (1, 5, 8), "i0": i64(0), "i1": i64(1)},
    ),
    "linear attention with heads of two scales and padded values": (
        """g (float[N, 3, 2, 2] x) => (float[N, 4, 2, 2] out) {
           a = Conv(x, wa) b = Conv<group = 6>(a, wb) c = Concat<axis = 1>(a, b) r = Reshape(c, to)
           q = Slice(r, i0, i4, i2) k = Slice(r, i4, i8, i2) v = Slice(r, i8, i12, i2) vp = Pad(v, pads, one)
           qr = Relu(q) qt = Transpose<perm = [0, 1, 3, 2]>(qr) kt = Relu(k) vt = Transpose<perm = [0, 1, 3, 2]>(vp)
           kv = MatMul(kt, vt) o = MatMul(qt, kv) num = Slice(o, i0, i4, i3) den = Slice(o, i4, i5, i3) d1 = Add(den, one)
           d = Div(num, d1) dt = Transpose<perm = [0, 1, 3, 2]>(d) f = Reshape(dt, back) out = Conv(f, wo) }""",
        {
            "wa": (24, 3, 1, 1), "wb": (24, 4, 1, 1), "wo": (4, 16, 1, 1), "to": i64(0, 4, 12, 4), "back": i64(0, 16, 2, 2),
            "pads": i64(0, 0, 0, 0, 0, 0, 1, 0), "one": np.array(1, np.float32),
            **{f"i{n}": i64(n) for n in (0, 2, 3, 4, 5, 8, 12)},
        },
    ),
    "lstm and gru of two directions": (
        """g (float[5, N, 6] x) => (float[5, N, 3] out) {
           t = MatMul(x, wt) y, h, c = LSTM<hidden_size = 4>(t, w, r, b) s = Squeeze(y, i1)
           z = GRU<hidden_size = 3, direction = "bidirectional", linear_before_reset = 1>(s, w2, r2, b2)
           p = Transpose<perm = [0, 2, 1, 3]>(z) f = Reshape(p, to) out = MatMul(f, wo) }""",
        {
            "wt": (6, 5), "w": (1, 16, 5), "r": (1, 16, 4), "b": (1, 32), "w2": (2, 9, 4), "r2": (2, 9, 3), "b2": (2, 18),
            "wo": (6, 3), "i1": i64(1), "to": i64(0, 0, -1),
        },
    ),
    "attention by einsum": (
        """g (float[N, 5, 6] x) => (float[N, 5, 3] out) {
           q = Einsum<equation = "bnc,chd->bnhd">(x, wq) k = Einsum<equation = "bnc,chd->bnhd">(x, wk)
           v = Einsum<equation = "bnc,chd->bnhd">(x, wv) s = Einsum<equation = "bnhd,bmhd->bhnm">(q, k)
           e = Softmax<axis = -1>(s) o = Einsum<equation = "bhnm,bmhd->bnhd">(e, v)
           y = Einsum<equation = "bnhd,hdc->bnc">(o, wo) out = MatMul(y, wz) }""",
        {**dict.fromkeys(("wq", "wk", "wv"), (6, 2, 4)), "wo": (2, 4, 6), "wz": (6, 3)},
    ),
    "grouped over a concat of unlike parts": (
        """g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] out) {
           a = Conv(x, wa) b = Conv(x, wb) c = Concat<axis = 1>(a, b) d = Conv<group = 2>(c, wc) e = Relu(d)
           out = Conv(e, wd) }""",
        {"wa": (8, 3, 1, 1), "wb": (16, 3, 1, 1), "wc": (8, 12, 1, 1), "wd": (2, 8, 1, 1)},
    ),
    "quantised with a scale for every channel": (
        """g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] out) {
           t = DequantizeLinear<axis = 0>(wa, sa, za) u = DequantizeLinear<axis = 0>(wb, sb)
           c = DequantizeLinear<axis = 0>(cb, scb)
           a = Conv(x, t) q = QuantizeLinear(a, s, z) b = DequantizeLinear(q, s, z) e = Sigmoid(b) d = Conv(e, u, c)
           r = Relu(d) out = Conv(r, wo) }""",
        {
            "wa": np.random.default_rng(0).integers(0, 255, (8, 3, 1, 1), np.uint8), "sa": np.full(8, 0.01, np.float32),
            "za": np.full(8, 128, np.uint8), "wb": np.random.default_rng(1).integers(-99, 99, (6, 8, 1, 1), np.int8),
            "sb": np.full(6, 0.01, np.float32), "cb": np.arange(6, dtype=np.int32), "scb": np.full(6, 0.1, np.float32),
            "s": np.array(0.02, np.float32), "z": np.array(100, np.uint8), "wo": (2, 6, 1, 1),
        },
    ),
    "onnxruntime's fused convolutions": (
        FUSED + """g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] out) {
           a = Conv(x, wa) b = com.microsoft.FusedConv<activation = "Relu">(a, wb, cb)
           c = com.microsoft.FusedConv<group = 8, activation = "Relu">(b, wc)
           d = com.microsoft.FusedConv<activation = "Relu">(c, wd, cd, a) out = Conv(d, wo) }""",
        {
            "wa": (6, 3, 1, 1), "wb": (8, 6, 1, 1), "cb": (8,), "wc": (8, 1, 1, 1), "wd": (6, 8, 1, 1), "cd": (6,),
            "wo": (2, 6, 1, 1),
        },
    ),
    "onnxruntime's fused attention": (
        FUSED + """g (float[N, 5, 6] x) => (float[N, 5, 3] out) {
           h = MatMul(x, wh) a = com.microsoft.Attention<num_heads = 2>(h, w, c) y = com.microsoft.BiasGelu(a, k)
           s, m, v, t = com.microsoft.SkipLayerNormalization(y, h, g, b, k2)
           u = com.microsoft.FusedMatMul<transB = 1, alpha = 0.5>(s, wu)
           f = com.microsoft.FastGelu(u, k3) z = MatMul(f, wz) e = Add(z, t) out = MatMul(e, wo) }""",
        {
            "wh": (6, 8), "w": (8, 24), "c": (24,), "k": (8,), "g": (8,), "b": (8,), "k2": (8,), "wu": (12, 8), "k3": (12,),
            "wz": (12, 8), "wo": (8, 3),
        },
    ),
    "onnxruntime's attention of three operands": (
        FUSED + """g (float[N, 5, 6] x) => (float[N, 5, 3] out) {
           q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
           a = com.microsoft.MultiHeadAttention<num_heads = 2>(q, k, v, c) out = MatMul(a, wo) }""",
        {"wq": (6, 8), "wk": (6, 8), "wv": (6, 12), "c": (28,), "wo": (12, 3)},
    ),
    "attention of opset 23, heads in a dim": (
        """<ir_version: 11, opset_import: ["" : 23]> g (float[N, 5, 6] x) => (float[N, 5, 3] out) {
           q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) q4 = Reshape(q, to) k4 = Reshape(k, to) v4 = Reshape(v, to)
           qt = Transpose<perm = [0, 2, 1, 3]>(q4) kt = Transpose<perm = [0, 2, 1, 3]>(k4)
           vt = Transpose<perm = [0, 2, 1, 3]>(v4) a = Attention(qt, kt, vt)
           at = Transpose<perm = [0, 2, 1, 3]>(a) f = Reshape(at, back) n = RMSNormalization(f, g) out = MatMul(n, wo) }""",
        {
            **dict.fromkeys(("wq", "wk", "wv"), (6, 8)), "wo": (8, 3), "g": (8,), "to": i64(0, 5, 2, 4), "back": i64(0, 5, -1),
        },
    ),
    "attention of opset 23, shared keys": (
        """<ir_version: 11, opset_import: ["" : 23]> g (float[N, 5, 6] x) => (float[N, 5, 3] out) {
           q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
           a = Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, v) out = MatMul(a, wo) }""",
        {"wq": (6, 16), "wk": (6, 8), "wv": (6, 6), "wo": (12, 3)},
    ),
    "grouped-query attention, heads go with their keys": (
        FUSED + """g (float[1, 5, 6] x) => (float[1, 5, 3] out) {
           h = MatMul(x, wh) q0 = MatMul(h, wq) q = Add(q0, bq) k = MatMul(h, wk) v = MatMul(h, wv)
           r = com.microsoft.RotaryEmbedding<num_heads = 6>(q, places, cos, sin)
           s = com.microsoft.RotaryEmbedding(k, places, cos, sin)
           a, pk, pv = com.microsoft.GroupQueryAttention<num_heads = 6, kv_num_heads = 3>(r, s, v, , , n, t, , , , , sink)
           m = MatMul(a, wo) y, e1, e2, e3 = com.microsoft.SkipSimplifiedLayerNormalization(h, m, g) out = MatMul(y, wz) }""",
        {
            "wh": (6, 8), "wq": (8, 96), "bq": (96,), "wk": (8, 48), "wv": (8, 48), "sink": (6,), "wo": (96, 8), "g": (8,),
            "wz": (8, 3), "cos": (8, 8), "sin": (8, 8), "places": i64(0, 1, 2, 3, 4).reshape(1, 5), **LENGTHS,
        },
    ),
    "grouped-query attention, one product for all three": (
        FUSED + """g (float[1, 5, 6] x) => (float[1, 5, 3] out) {
           q = MatMul(x, wq) b = Add(q, bq)
           a = com.microsoft.GroupQueryAttention<num_heads = 6, kv_num_heads = 3, do_rotary = 1>(b, , , , , n, t, cos, sin)
           out = MatMul(a, wo) }""",
        {"wq": (6, 192), "bq": (192,), "wo": (96, 3), "cos": (8, 8), "sin": (8, 8), **LENGTHS},
    ),
    "grouped-query attention with a cache, queries go": (
        FUSED + """g (float[1, 5, 6] x, float[1, 2, 3, 8] past_k, float[1, 2, 3, 8] past_v)
              => (float[1, 5, 3] out, float[1, 2, 8, 8] new_k, float[1, 2, 8, 8] new_v) {
           q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
           a, new_k, new_v = com.microsoft.GroupQueryAttention<num_heads = 6, kv_num_heads = 2>
                             (q, k, v, past_k, past_v, n, t, , , , bias) out = MatMul(a, wo) }""",
        {
            "wq": (6, 48), "wk": (6, 16), "wv": (6, 16), "wo": (48, 3), "bias": (1, 6, 5, 8), "n": np.array([7], np.int32),
            "t": np.array(8, np.int32),
        },
    ),
    "grouped-query attention of normalised heads": (
        FUSED + """g (float[1, L, 6] x) => (float[1, L, 3] out) {
           q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) h = Shape(x) l = Gather(h, one) t = Cast<to = 6>(l)
           s = Sub(l, one) sl = Unsqueeze(s, zero) n = Cast<to = 6>(sl)
           q1 = Reshape(q, apart) q2 = SimplifiedLayerNormalization(q1, gq) q3 = Reshape(q2, q_flat)
           k1 = Reshape(k, apart) k2 = SimplifiedLayerNormalization(k1, gk) k3 = Reshape(k2, k_flat)
           qr = com.microsoft.RotaryEmbedding(q3, places, cos, sin)
           a = com.microsoft.GroupQueryAttention<num_heads = 6, kv_num_heads = 3>(qr, k3, v, , , n, t)
           out = MatMul(a, wo) }""",
        {
            "wq": (6, 96), "wk": (6, 48), "wv": (6, 48), "wo": (96, 3), "gq": (16,), "gk": (16,), "cos": (64, 8), "sin": (64, 8),
            "places": i64(0), "one": np.array(1, np.int64), "zero": i64(0), "apart": i64(0, -1, 16), "q_flat": i64(0, -1, 96),
            "k_flat": i64(0, -1, 48),
        },
    ),
    "grouped-query attention with one head of keys": (
        FUSED + """g (float[1, 5, 6] x) => (float[1, 5, 3] out) {
           q = MatMul(x, wq) a = com.microsoft.GroupQueryAttention<num_heads = 5, kv_num_heads = 1>(q, , , , , n, t)
           out = MatMul(a, wo) }""",
        {"wq": (6, 56), "wo": (40, 3), **LENGTHS},
    ),
    "attention of opset 23 with a cache, queries go": (
        """<ir_version: 11, opset_import: ["" : 23]>
           g (float[1, 5, 6] x, float[1, 2, 3, 4] past_k, float[1, 2, 3, 3] past_v)
              => (float[1, 5, 3] out, float[1, 2, 8, 4] new_k, float[1, 2, 8, 3] new_v) {
           q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
           a, new_k, new_v = Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, v, mask, past_k, past_v) out = MatMul(a, wo) }""",
        {"wq": (6, 16), "wk": (6, 8), "wv": (6, 6), "wo": (12, 3), "mask": (1, 4, 5, 8)},
    ),
    "every second entry of every head": (
        """g (float[N, 5, 6] x) => (float[N, 5, 3] out) {
           q = MatMul(x, wq) r = Reshape(q, to) a = Slice(r, c0, end, last, c2) b = Slice(r, c1, end, last, c2) n = Neg(a)
           f = Reshape(n, back) e = Reshape(b, back) s = MatMul(f, wf) t = MatMul(e, we) out = Add(s, t) }""",
        {
            "wq": (6, 24), "wf": (12, 3), "we": (12, 3), "to": i64(0, 5, 2, 12), "back": i64(0, 5, -1),
            "c0": i64(0), "c1": i64(1), "c2": i64(2), "end": i64(1 << 31), "last": i64(-1),
        },
    ),
    "some entries of every head": (
        """g (float[N, 5, 6] x) => (float[N, 5, 3] out) {
           q = MatMul(x, wq) r = Reshape(q, to) a = Gather<axis = 3>(r, some) n = Neg(a)
           f = Reshape(n, back) out = MatMul(f, wo) }""",
        {"wq": (6, 24), "wo": (6, 3), "to": i64(0, 5, 2, 12), "back": i64(0, 5, 6), "some": i64(7, 1, 4)},
    ),
    "sizes picked out of a permuted shape": (
        """g (float[N, 6] x) => (float[N, 3] out) {
           a = MatMul(x, wa) h = Shape(a) p = Gather<axis = 0>(h, turned) n = Gather<axis = 0>(p, one)
           t = Concat<axis = 0>(n, n1) e = Reshape(a, t) out = MatMul(e, wo) }""",
        {"wa": (6, 8), "wo": (8, 3), "turned": i64(1, 0), "one": i64(1), "n1": i64(-1)},
    ),
    "weight standardised by a batch norm that trains": (
        """g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] out) {
           a = Conv(x, wa) m = ReduceMean<axes = [0, 1], keepdims = 0>(copy) s = Sub(copy, c) q = Mul(s, s)
           v = ReduceMean<axes = [0, 1], keepdims = 0>(q)
           k, rm, rv = BatchNormalization<training_mode = 1, momentum = 1.0>(w, g, z, m, v) kernel = Reshape(k, to)
           b = Conv<pads = [1, 1, 1, 1]>(a, kernel) r = Relu(b) out = Conv(r, wo) }""",
        {
            "wa": (6, 3, 1, 1), "w": (1, 8, 54), "copy": (1, 54, 8), "c": (1, 1, 8), "g": (8,), "z": np.zeros(8, np.float32),
            "to": i64(8, 6, 3, 3), "wo": (2, 8, 1, 1),
        },
    ),
    "attention over channels": (
        """g (float[N, 5, 6] x) => (float[N, 5, 3] out) {
           p = MatMul(x, w) r = Reshape(p, to) t = Transpose<perm = [2, 0, 3, 4, 1]>(r)
           q = Gather<axis = 0>(t, c0) k = Gather<axis = 0>(t, c1) v = Gather<axis = 0>(t, c2)
           kt = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(q, kt) e = Softmax<axis = -1>(s) o = MatMul(e, v)
           ot = Transpose<perm = [0, 3, 1, 2]>(o) of = Reshape(ot, back) out = MatMul(of, wo) }""",
        {
            "w": (6, 24), "wo": (8, 3), "to": i64(0, 5, 3, 2, 4), "back": i64(0, 5, 8),
            **{f"c{i}": np.array(i, np.int64) for i in range(3)},
        },
    ),
    "lstm from a state of zeros": (
        """g (float[5, N, 6] x) => (float[5, N, 3] out) {
           h = Shape(x) n = Slice(h, i1, i2) t = Concat<axis = 0>(i1, n, i4) s = ConstantOfShape(t)
           y, yh = LSTM<hidden_size = 4>(x, w, r, b, , s, s) z = Squeeze(y, i1) out = MatMul(z, wo) }""",
        {"w": (1, 16, 6), "r": (1, 16, 4), "b": (1, 32), "wo": (4, 3), **{f"i{n}": i64(n) for n in (1, 2, 4)}},
    ),
    "group norm written out, two groups": (
        """g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] out) {
           a = Conv(x, wa) r = Reshape(a, to) i = InstanceNormalization(r, one, nil) b = Reshape(i, back) c = Mul(b, s)
           d = Add(c, t) e = Relu(d) out = Conv(e, wo) }""",
        {
            "wa": (8, 3, 1, 1), "wo": (2, 8, 1, 1), "to": i64(0, 2, -1), "back": i64(0, 8, 4, 4), "one": np.ones(2, np.float32),
            "nil": np.zeros(2, np.float32), "s": (8, 1, 1), "t": (8, 1, 1),
        },
    ),
    "group norm of opset 18": (
        """<ir_version: 9, opset_import: ["" : 18]> g (float[N, 3, H, W] x) => (float[N, 2, H, W] out) {
           a = Conv(x, wa) b = GroupNormalization<num_groups = 2>(a, s, t) e = Relu(b) out = Conv(e, wo) }""",
        {"wa": (8, 3, 1, 1), "wo": (2, 8, 1, 1), "s": (2,), "t": (2,)},
    ),
    "group norm of opset 21": (
        """<ir_version: 10, opset_import: ["" : 21]> g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] out) {
           a = Conv(x, wa) b = GroupNormalization<num_groups = 2>(a, s, t) e = Relu(b) out = Conv(e, wo) }""",
        {"wa": (8, 3, 1, 1), "wo": (2, 8, 1, 1), "s": (8,), "t": (8,)},
    ),
    "queries and keys normalised by Expand": (
        """g (float[N, 5, 6] x) => (float[N, 5, 5] out) {
           q = MatMul(x, wq) k = MatMul(x, wk) n = ReduceL2<axes = [-1]>(q) m = ReduceL2<axes = [-1]>(k) h = Shape(q)
           ne = Expand(n, h) me = Expand(m, h) qn = Div(q, ne) kn = Div(k, me) kt = Transpose<perm = [0, 2, 1]>(kn)
           out = MatMul(qn, kt) }""",
        {"wq": (6, 8), "wk": (6, 8)},
    ),
    "heads that keep other entries, normalised": (
        """g (float[N, 5, 6] x) => (float[N, 2, 5, 5] out) {
           q = MatMul(x, wq) k = MatMul(x, wk) q4 = Reshape(q, to) k4 = Reshape(k, to) n = ReduceL2<axes = [-1]>(q4)
           m = ReduceMean<axes = [-1]>(k4) qn = Div(q4, n) kn = Sub(k4, m) qt = Transpose<perm = [0, 2, 1, 3]>(qn)
           kt = Transpose<perm = [0, 2, 3, 1]>(kn) out = MatMul(qt, kt) }""",
        {"wq": (6, 8), "wk": (6, 8), "to": i64(0, 5, 2, 4)},
    ),
    "a convolution along the channels gates them": (
        """g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] out) {
           a = Conv(x, wa, ba) r = Relu(a) p = ReduceMean<axes = [2, 3], keepdims = 0>(r) q = Reshape(p, row)
           e = Conv<pads = [2, 2]>(q, we, be) s = Sigmoid(e) c = Reshape(s, back) m = Mul(a, c) out = Conv(m, wo) }""",
        {
            "wa": (12, 3, 1, 1), "ba": (12,), "we": (1, 1, 5), "be": (1,), "wo": (2, 12, 1, 1), "row": i64(0, 1, 12),
            "back": i64(0, 12, 1, 1),
        },
    ),
    "a convolution takes one place of the channels at a time": (
        """g (float[N, 3, 6] x) => (float[N, 2] out) {
           a = MatMul(x, wa) r = Relu(a) b = Conv(r, wb, bb) s = Sigmoid(b) q = Squeeze(s, one) out = MatMul(q, wo) }""",
        {"wa": (6, 8), "wb": (1, 3, 1), "bb": (1,), "wo": (8, 2), "one": i64(1)},
    ),
    "a strided view, as PyTorch's exporter writes it": (
        """g (float[N, 3, 4, 4] x) => (float[N, 2, 1, 1] out) {
           a = Conv(x, wa) p = GlobalAveragePool(a) f = Reshape(p, all) h = Shape(x) n = Gather(h, c0) r = Range(c0, n, c1)
           m = Mul(r, c8) u = Unsqueeze(m, axes) i = Add(u, order) g = Gather<axis = 0>(f, i) y = Relu(g) out = Conv(y, wo) }""",
        {
            "wa": (8, 3, 1, 1), "wo": (2, 8, 1, 1), "all": i64(-1), "axes": i64(1, 2, 3),
            "order": np.arange(8, dtype=np.int64).reshape(1, 8, 1, 1), **{f"c{n}": np.array(n, np.int64) for n in (0, 1, 8)},
        },
    ),
    "queries and keys turned by their places": (
        """<ir_version: 10, opset_import: ["" : 23]> g (float[N, 5, 6] x) => (float[N, 5, 3] out) {
           q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
           qr = RotaryEmbedding<num_heads = 2>(q, cos, sin, places)
           kr = RotaryEmbedding<num_heads = 2, interleaved = 0, rotary_embedding_dim = 8>(k, cos, sin, places)
           qf = Reshape(qr, to) kf = Reshape(kr, to) vf = Reshape(v, to) qt = Transpose<perm = [0, 2, 1, 3]>(qf)
           kt = Transpose<perm = [0, 2, 3, 1]>(kf) vt = Transpose<perm = [0, 2, 1, 3]>(vf) s = MatMul(qt, kt)
           e = Softmax(s) o = MatMul(e, vt) ot = Transpose<perm = [0, 2, 1, 3]>(o) y = Reshape(ot, back)
           out = MatMul(y, wo) }""",
        {
            **dict.fromkeys(("wq", "wk", "wv"), (6, 16)), "wo": (16, 3), "cos": (5, 4), "sin": (5, 4), "to": i64(0, 5, 2, 8),
            "back": i64(0, 5, 16), "places": np.arange(5, dtype=np.int64)[None],
        },
    ),
    "regions of interest, shifted convolution, samples of a grid": (
        """<ir_version: 10, opset_import: ["" : 19]> g (float[N, 3, 6, 6] x, float[N, 4, 4, 2] grid)
           => (float[2, 2, 2, 2] out, float[N, 2, 4, 4] more) {
           a = Conv(x, wa, ba) r = Relu(a) p = RoiAlign<output_height = 2, output_width = 2>(r, rois, places) q = Conv(p, wb)
           out = Conv(q, wo) s = GridSample(r, grid) t = Conv(s, wt) u = LpNormalization<axis = 3>(t)
           c = CumSum(u, three) d = Relu(c) more = Conv(d, wo) }""",
        {
            "wa": (8, 3, 1, 1), "ba": (8,), "wb": (6, 8, 1, 1), "wt": (6, 8, 1, 1), "wo": (2, 6, 1, 1),
            "rois": np.array([[0, 0, 3, 3], [1, 1, 5, 4]], np.float32), "places": i64(0, 0), "three": np.array(3, np.int64),
        },
    ),
    "layers that make biases of coordinates": (
        """g (float[N, 4, 6] x) => (float[N, 4, 2] out) {
           c = MatMul(places, w1) d = Add(c, b1) r = Relu(d) e = MatMul(r, w2) a = MatMul(x, wa) y = Add(a, e)
           out = MatMul(y, wo) }""",
        {"places": (4, 2), "w1": (2, 16), "b1": (16,), "w2": (16, 8), "wa": (6, 8), "wo": (8, 2)},
    ),
    "grouped over a concat with the input": (
        """g (float[N, 4, 4, 4] x) => (float[N, 2, 4, 4] out) {
           a = Conv(x, wa) b = Conv(x, wb) c = Concat<axis = 1>(a, b, x) d = Conv<group = 2>(c, wc) e = Relu(d)
           out = Conv(e, wd) }""",
        {"wa": (12, 4, 1, 1), "wb": (8, 4, 1, 1), "wc": (8, 12, 1, 1), "wd": (2, 8, 1, 1)},
    ),
    "positions by GatherND": (
        """g (int64[N, 6] ids) => (float[N, 6, 5] out) {
           t = Gather(tokens, ids) p = GatherND(table, places) s = Add(t, p) h = MatMul(s, w) r = Relu(h)
           out = MatMul(r, wo) }""",
        {"tokens": (9, 8), "table": (6, 8), "places": np.arange(6).reshape(1, 6, 1), "w": (8, 16), "wo": (16, 5)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL_NETS)
def test_small_nets(name: str) -> None:
    text, weights = SMALL_NETS[name]
    model = normalize(net(text, weights))
    channels = analyse(graph_of(model))
    assert channels.groups, [g.why_frozen for g in channels.frozen]
    macs, surgeon, rng = macs_cost(channels), Surgeon(channels), np.random.default_rng(3)
    for _ in range(6):
        counts = draw(channels, rng)
        kept = choose(channels, rng.random(channels.n_units), counts)
        pruned = surgeon.cut(kept)
        assert sum(count_macs(graph_of(pruned)).values()) == macs(counts)
        found = verify(model, pruned, make_plan(channels, kept, "0" * 64), norms=norms_of(channels, kept))
        assert found.masked_equivalence

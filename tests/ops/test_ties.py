"""Every op rule by its ties, printed on one line and reviewed by eye.

A line reads: value[dim]=ids, rows apart by `|` with the dim they run along, then ties a~b, then `balance` and `frozen`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agmc_onnx.graph.view import graph_of
from agmc_onnx.ops.table import TABLE, rule_of
from agmc_onnx.ties.ledger import Ledger, describe, walk
from tests.nets import model

# Two convolutions (a 1x1 from x makes `a` with 4 channels, 6 from `b`) stand before most rules, so that there are ids.
IN = "float[N, 3, 4, 4] x"
A = "a = Conv(x, wa)"
WA: dict[str, object] = {"wa": (4, 3, 1, 1)}
WB: dict[str, object] = {**WA, "wb": (4, 3, 1, 1)}


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


LENGTHS: dict[str, object] = {"n": np.zeros(1, np.int32), "t": np.array(5, np.int32)}


CASES: dict[str, tuple[str, dict[str, object], str]] = {
    # name: (nodes, weights, values to print); the lines are in golden_ties.txt
    "conv": ("y = Conv(a, w, c)", {"w": (2, 4, 1, 1), "c": (2,)}, "a w c y"),
    "conv depthwise": ("y = Conv<group = 4>(a, w)", {"w": (8, 1, 1, 1)}, "a w y"),
    "conv grouped": ("y = Conv<group = 2>(a, w)", {"w": (6, 2, 1, 1)}, "a w y"),
    "conv to one channel": ("y = Conv(a, w, c)", {"w": (1, 4, 1, 1), "c": (1,)}, "a w c y"),
    "conv along channels": (
        "g = GlobalAveragePool(a) q = Reshape(g, row) y = Conv<pads = [1, 1]>(q, w)",
        {"w": (1, 1, 3), "row": ints(0, 1, 4)},
        "a q y",
    ),
    "conv along channels that are not zero where they go": (
        "g = GlobalAveragePool(a) s = Sigmoid(g) q = Reshape(s, row) y = Conv<pads = [1, 1]>(q, w)",
        {"w": (1, 1, 3), "row": ints(0, 1, 4)},
        "a q y",
    ),
    "conv along channels whose other dims were mixed": (
        """s = Sigmoid(a) t = Reshape(s, rows) m = MatMul(t, k) d = Add(m, c) u = Transpose<perm = [0, 2, 1]>(d)
           y = Conv<pads = [1, 1]>(u, w)""",
        {"rows": ints(0, 4, 16), "k": (16, 3), "c": (3,), "w": (2, 3, 3)},
        "a u y",
    ),
    "conv by a computed weight": (
        "s = ReduceMean<keepdims = 0>(x4) t = Add(k, s) y = Conv(a, t)",
        {"k": (4, 4, 1, 1)},
        "a y",
    ),
    "conv transpose": ("y = ConvTranspose(a, w, c)", {"w": (4, 2, 1, 1), "c": (2,)}, "a w c y"),
    "conv transpose grouped": ("y = ConvTranspose<group = 2>(a, w)", {"w": (4, 3, 1, 1)}, "a w y"),
    "batch norm": (
        "y = BatchNormalization(a, s, t, m, v)",
        {"s": (4,), "t": (4,), "m": (4,), "v": np.ones(4, np.float32)},
        "a s t m v y",
    ),
    "instance norm": ("y = InstanceNormalization(a, s, t)", {"s": (4,), "t": (4,)}, "a s t y"),
    "dropout with a mask nobody uses": ("y, mask = Dropout(a)", {}, "a y"),
    "local response norm": ("y = LRN<size = 3>(a)", {}, "a y"),
    "relu": ("y = Relu(a)", {}, "a y"),
    "add of two": ("b = Conv(x, wb) y = Add(a, b)", WB, "a b y"),
    "add of a constant per channel": ("y = Add(a, k)", {"k": (4, 1, 1)}, "a k y"),
    "add of the input": ("y = Add(a, x4)", {}, "a y"),
    "gate": ("g = GlobalAveragePool(a) h = Conv(g, wh) s = Sigmoid(h) y = Mul(a, s)", {"wh": (4, 4, 1, 1)}, "a wh y"),
    "concat": ("b = Conv(x, wb) y = Concat<axis = 1>(a, b, a)", WB, "a b y"),
    "concat with the input": ("y = Concat<axis = 1>(a, x)", {}, "a y"),
    "split": ("y, z = Split<axis = 1>(a, sizes)", {"sizes": ints(1, 3)}, "a y z"),
    "slice": ("y = Slice(a, i1, i3, i1)", {"i1": ints(1), "i3": ints(3)}, "a y"),
    "slice of space": ("y = Slice(a, i0, i9, i2, i2)", {"i0": ints(0), "i9": ints(9), "i2": ints(2)}, "a y"),
    "gather": ("y = Gather<axis = 1>(a, order)", {"order": ints(3, 0, 0)}, "a y"),
    "pad": ("y = Pad(a, amounts)", {"amounts": ints(0, 1, 0, 0, 0, 2, 0, 0)}, "a y"),
    "pad by reflection": ('y = Pad<mode = "reflect">(a, amounts)', {"amounts": ints(0, 1, 0, 0, 0, 2, 0, 0)}, "a y"),
    "flatten and gemm": (
        "f = Flatten(a) y = Gemm<transB = 1>(f, w, c)",
        {"w": (5, 64), "c": (5,)},
        "a w c y",
    ),
    "matmul": ("g = ReduceMean<axes = [2, 3], keepdims = 0>(a) y = MatMul(g, w)", {"w": (4, 5)}, "a w y"),
    "reduce channels": ("y = ReduceMean<axes = [1]>(a)", {}, "a"),
    "softmax over channels": ("y = Softmax<axis = 1>(a)", {}, "a"),
    "softmax over space": ("y = Softmax<axis = 3>(a)", {}, "a y"),
    "transpose": ("t = Transpose<perm = [0, 2, 3, 1]>(a) y = Add(t, k)", {"k": (4,)}, "a t k y"),
    "reshape that merges space": ("y = Reshape(a, to)", {"to": ints(0, 4, -1)}, "a y"),
    "reshape into rows": ("y = Reshape(a, to)", {"to": ints(0, 2, 2, 16)}, "a y"),
    "reshape into an open dim and back": (
        """h = Shape(x) n = Slice(h, i0, i1) m = Mul(n, i8) t = Concat<axis = 0>(m, i2, i2, i2) r = Reshape(a, t)
           s = Transpose<perm = [0, 2, 1, 3]>(r) u = Concat<axis = 0>(n, i4, i4, i4) y = Reshape(s, u)""",
        {f"i{n}": ints(n) for n in (0, 1, 2, 4, 8)},
        "a r y",
    ),
    "pad of rows": (
        "r = Reshape(a, to) y = Pad(r, amounts)",
        {"to": ints(0, 2, 2, 16), "amounts": ints(0, 0, 0, 0, 0, 0, 1, 0)},
        "r y",
    ),
    "channel shuffle": (
        "r = Reshape(a, to) t = Transpose<perm = [0, 2, 1, 3, 4]>(r) y = Reshape(t, back)",
        {"to": ints(0, 2, 2, 4, 4), "back": ints(0, 4, 4, 4)},
        "a y",
    ),
    "squeeze and unsqueeze": (
        "g = GlobalAveragePool(a) s = Squeeze(g, i23) y = Unsqueeze(s, i1)",
        {"i23": ints(2, 3), "i1": ints(1)},
        "a s y",
    ),
    "expand": ("g = GlobalAveragePool(a) y = Expand(g, to)", {"to": ints(1, 4, 4, 4)}, "a y"),
    "expand to an open batch": (
        "h = Shape(x) n = Slice(h, i0, i1) t = Concat<axis = 0>(n, i1, i1) y = Expand(k, t)",
        {"k": (1, 1, 4), "i0": ints(0), "i1": ints(1)},
        "k y",
    ),
    "tile to an open batch": (
        "h = Shape(x) n = Slice(h, i0, i1) t = Concat<axis = 0>(n, i1, i1) y = Tile(k, t)",
        {"k": (1, 1, 4), "i0": ints(0), "i1": ints(1)},
        "k y",
    ),
    "entries of a constant fill": (
        "h = Shape(x) n = Slice(h, i0, i1) t = Concat<axis = 0>(n, i4) e = ConstantOfShape(t) y = MatMul(e, w)",
        {"w": (4, 3), **{f"i{n}": ints(n) for n in (0, 1, 4)}},
        "e w y",
    ),
    "tile": ("y = Tile(a, times)", {"times": ints(1, 2, 1, 1)}, "a y"),
    "depth to space": ("y = DepthToSpace<blocksize = 2>(a)", {}, "a"),
    "depth to space of six": ('y = DepthToSpace<blocksize = 2, mode = "CRD">(a8)', {}, "a8 y"),
    "space to depth": ("y = SpaceToDepth<blocksize = 2>(a)", {}, "a y"),
    "resize": ("y = Resize(a, , scales)", {"scales": np.array([1, 1, 2, 2], np.float32)}, "a y"),
    "max unpool": (
        "p, i = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(a) y = MaxUnpool<kernel_shape = [2, 2], strides = [2, 2]>(p, i)",
        {},
        "a i y",
    ),
    "places of a max pool that all can read": ("p, i = MaxPool<kernel_shape = [2, 2]>(a) y = Neg(i)", {}, "a p i y"),
    "average pool": ("y = AveragePool<kernel_shape = [2, 2]>(a)", {}, "a y"),
    "max pool": ("y = MaxPool<kernel_shape = [2, 2]>(a)", {}, "a y"),
    "layer norm": (
        "t = Transpose<perm = [0, 2, 3, 1]>(a) y = LayerNormalization(t, s, c)",
        {"s": (4,), "c": (4,)},
        "a s c y",
    ),
    "where": ("p = Greater(a, zero) y = Where(p, a, zero)", {"zero": np.array(0, np.float32)}, "a p y"),
    "strided view": (
        """p = GlobalAveragePool(a) f = Reshape(p, all) h = Shape(x) n = Gather(h, c0) r = Range(c0, n, c1) m = Mul(r, c4)
           u = Unsqueeze(m, axes) i = Add(u, order) y = Gather<axis = 0>(f, i)""",
        {
            "all": ints(-1),
            "axes": ints(1, 2, 3),
            "order": np.arange(4).reshape(1, 4, 1, 1),
            **{f"c{n}": np.array(n, np.int64) for n in (0, 1, 4)},
        },
        "a y",
    ),
    "size read as data": ("h = Shape(a) f = Cast<to = 1>(h) q = ReduceSum<keepdims = 0>(f) y = Div(a, q)", {}, "a"),
    "top of a dim": ("y, i = TopK<axis = 2>(a, i3)", {"i3": ints(3)}, "a y i"),
    "running sum": ("y = CumSum(a, i1)", {"i1": ints(1)}, "a y"),
    "triangle": ("y = Trilu(a)", {}, "a y"),
    "gather of elements": (
        "b = Conv(x, wb) i = ArgMax<axis = 3>(b) y = GatherElements<axis = 3>(a, i)",
        WB,
        "a b i y",
    ),
    "gather of elements by given indices": (
        "y = GatherElements<axis = 3>(a, i)",
        {"i": np.zeros((1, 4, 4, 1), np.int64)},
        "a y",
    ),
    "scatter of elements": (
        "b = Conv(x, wb) i = ArgMax<axis = 3>(b) c = ReduceMax<axes = [3]>(b) y = ScatterElements<axis = 3>(a, i, c)",
        WB,
        "a b i c y",
    ),
    "scatter of entries": (
        "t = Transpose<perm = [0, 2, 3, 1]>(a) y = ScatterND(t, i, u)",
        {"i": ints(0, 1, 2).reshape(1, 3), "u": (1, 4)},
        "t u y",
    ),
    "a sequence turned round": (
        "y = ReverseSequence<batch_axis = 2, time_axis = 3>(a, lengths)",
        {"lengths": ints(4, 4, 4, 4)},
        "a y",
    ),
    "columns to a map": (
        "r = Reshape(a, flat) y = Col2Im(r, size, block)",
        {"flat": ints(0, 4, 16), "size": ints(5, 5), "block": ints(2, 2)},
        "a y",
    ),
    "cast to the type of another": ("b = Conv(x, wb) y = CastLike(a, b)", WB, "a b y"),
    "sum with a bias": (
        "t = Reshape(a, flat) s = Transpose<perm = [0, 2, 1]>(t) y = com.microsoft.BiasAdd(s, k, s)",
        {"flat": ints(0, 4, 16), "k": (4,)},
        "s k y",
    ),
    "weights packed in blocks": (
        """t = Transpose<perm = [0, 2, 3, 1]>(a)
           y = com.microsoft.MatMulNBits<K = 4, N = 3, bits = 4, block_size = 16>(t, packed, scales, zeros)""",
        {"packed": np.zeros((3, 1, 8), np.uint8), "scales": (6,), "zeros": np.zeros(3, np.uint8)},
        "t packed scales zeros y",
    ),
    "unknown op": ("y = Unique(a)", {}, "a"),
    "einsum": ('y = Einsum<equation = "bchw,co->bohw">(a, w)', {"w": (4, 2)}, "a w y"),
    "einsum over rows": (
        'r = Reshape(a, to) y = Einsum<equation = "bgchw,gco->bgohw">(r, w)',
        {"to": ints(0, 2, 2, 4, 4), "w": (2, 2, 3)},
        "r w y",
    ),
    "quantised": ("q, s, z = DynamicQuantizeLinear(a)", {}, "a"),
    "quantised and back": (
        "q = QuantizeLinear(a, s, z) y = DequantizeLinear(q, s, z)",
        {"s": np.array(0.1, np.float32), "z": np.array(0, np.uint8)},
        "a q y",
    ),
    "weight with a scale for every channel": (
        "t = DequantizeLinear<axis = 0>(w, s, z) y = Conv(a, t)",
        {"w": np.ones((2, 4, 1, 1), np.int8), "s": (2,), "z": np.zeros(2, np.int8)},
        "a w s z y",
    ),
    "weight with one scale": (
        "t = DequantizeLinear(w, s) y = Conv(a, t)",
        {"w": np.ones((2, 4, 1, 1), np.int8), "s": np.array(0.1, np.float32)},
        "a w y",
    ),
    "lstm": (
        "t = MatMul(seq, wt) y, h = LSTM<hidden_size = 2>(t, w, r, c)",
        {"wt": (6, 3), "w": (1, 8, 3), "r": (1, 8, 2), "c": (1, 16)},
        "t w r c y h",
    ),
    "lstm of gates that a node orders": (
        """t = MatMul(seq, wt) i, o, c, f = Split<axis = 0>(w, fours) w2 = Concat<axis = 0>(i, f, c, o) w3 = Unsqueeze(w2, zero)
           y, h = LSTM<hidden_size = 2>(t, w3, r)""",
        {"wt": (6, 3), "w": (8, 3), "fours": np.array([2, 2, 2, 2]), "zero": np.array([0]), "r": (1, 8, 2)},
        "t w w3 r y h",
    ),
    "gru of two directions": (
        'y = GRU<hidden_size = 2, direction = "bidirectional">(seq, w, r, , , s)',
        {"w": (2, 6, 6), "r": (2, 6, 2), "s": (2, 5, 2)},
        "w r s y",
    ),
    "weight computed by a node": ("t = Transpose<perm = [1, 0, 2, 3]>(w) y = Conv(a, t)", {"w": (4, 2, 1, 1)}, "a w y"),
    "attention": (
        """q = MatMul(seq, wq) k = MatMul(seq, wk) v = MatMul(seq, wv)
           q4 = Reshape(q, to) k4 = Reshape(k, to) v4 = Reshape(v, to)
           qt = Transpose<perm = [0, 2, 1, 3]>(q4) kt = Transpose<perm = [0, 2, 3, 1]>(k4) vt = Transpose<perm = [0, 2, 1, 3]>(v4)
           p = MatMul(qt, kt) e = Softmax<axis = -1>(p) o = MatMul(e, vt)
           ot = Transpose<perm = [0, 2, 1, 3]>(o) of = Reshape(ot, back) y = MatMul(of, wo)""",
        {"wq": (6, 4), "wk": (6, 4), "wv": (6, 4), "wo": (4, 6), "to": ints(0, 5, 2, 2), "back": ints(0, 5, 4)},
        "wq wk wv wo",
    ),
    "attention, one product for all three": (
        """p = MatMul(seq, w) r = Reshape(p, to) t = Transpose<perm = [2, 0, 3, 1, 4]>(r)
           q = Gather<axis = 0>(t, c0) k = Gather<axis = 0>(t, c1) v = Gather<axis = 0>(t, c2)
           kt = Transpose<perm = [0, 1, 3, 2]>(k) e = MatMul(q, kt) o = MatMul(e, v)
           ot = Transpose<perm = [0, 2, 1, 3]>(o) of = Reshape(ot, back) y = MatMul(of, wo)""",
        {
            **{"w": (6, 12), "wo": (4, 6), "to": ints(0, 5, 3, 2, 2), "back": ints(0, 5, 4)},
            **{f"c{i}": np.array(i, np.int64) for i in range(3)},
        },
        "w r v wo",
    ),
    "scale read from a shape": (
        """h = Shape(a) n = Gather(h, one) f = Cast<to = 1>(n) r = Sqrt(f) y = Div(a, r)""",
        {"one": np.array(1, np.int64)},
        "a y",
    ),
    "target read from a shape": (
        """h = Shape(a) n = Gather(h, zero) u = Unsqueeze(n, axis0) to = Concat<axis = 0>(u, c4, c16) y = Reshape(a, to)""",
        {"zero": np.array(0, np.int64), "axis0": ints(0), "c4": ints(4), "c16": ints(16)},
        "a y",
    ),
    "fused conv with a sum": (
        'y = com.microsoft.FusedConv<activation = "Relu">(a, w, c, a)',
        {"w": (4, 4, 1, 1), "c": (4,)},
        "a w c y",
    ),
    "fused matmul, second operand turned": (
        "t = MatMul(seq, wt) y = com.microsoft.FusedMatMul<transB = 1>(t, w)",
        {"wt": (6, 3), "w": (2, 3)},
        "t w y",
    ),
    "fused attention": (
        "t = MatMul(seq, wt) y = com.microsoft.Attention<num_heads = 2>(t, w, c)",
        {"wt": (6, 3), "w": (3, 12), "c": (12,)},
        "t w c y",
    ),
    "fused attention of three operands": (
        """q = MatMul(seq, wq) k = MatMul(seq, wk) v = MatMul(seq, wv)
           y = com.microsoft.MultiHeadAttention<num_heads = 2>(q, k, v)""",
        {"wq": (6, 4), "wk": (6, 4), "wv": (6, 6)},
        "q k v y",
    ),
    "rotary embedding": (
        """q = MatMul(seq, wq) y = RotaryEmbedding<num_heads = 2>(q, cos, sin)
           z = com.microsoft.RotaryEmbedding<interleaved = 1>(q, places, cosines, sines)""",
        {
            "wq": (6, 8),
            "cos": (1, 5, 2),
            "sin": (1, 5, 2),
            "cosines": (5, 2),
            "sines": (5, 2),
            "places": ints(*range(5)),
        },
        "q cos sin y cosines z",
    ),
    "grouped-query attention": (
        """q = MatMul(seq, wq) k = MatMul(seq, wk) v = MatMul(seq, wk2)
           y = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>(q, k, v, , , n, t)""",
        {"wq": (6, 8), "wk": (6, 4), "wk2": (6, 4), **LENGTHS},
        "q k v y",
    ),
    "grouped-query attention, one product for all three": (
        """q = MatMul(seq, wq) y = com.microsoft.GroupQueryAttention<num_heads = 2, kv_num_heads = 2>(q, , , , , n, t)""",
        {"wq": (6, 12), **LENGTHS},
        "q y",
    ),
    "grouped-query attention with a cache": (
        """q = MatMul(seq, wq) k = MatMul(seq, wk) v = MatMul(seq, wk2)
           y = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>(q, k, v, past, past, n, t, , , , bias)""",
        {"wq": (6, 8), "wk": (6, 4), "wk2": (6, 4), "past": (1, 2, 1, 2), "bias": (1, 4, 5, 6), **LENGTHS},
        "q k v y",
    ),
    "attention with a cache": (
        """q = MatMul(seq, wq) y = com.microsoft.MultiHeadAttention<num_heads = 2>(q, q, q, , , , past, past)""",
        {"wq": (6, 8), "past": (1, 2, 1, 4)},
        "q",
    ),
    "turned before grouped-query attention": (
        """q = MatMul(seq, wq) k = MatMul(seq, wk) r = com.microsoft.RotaryEmbedding<num_heads = 4>(q, places, cos, sin)
           y = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>(r, k, k, , , n, t)""",
        {"wq": (6, 8), "wk": (6, 4), "places": ints(*range(5)), "cos": (5, 1), "sin": (5, 1), **LENGTHS},
        "q r k y",
    ),
    "skip layer norm": (
        "q = MatMul(seq, wq) r = MatMul(seq, wr) y, m, n, s = com.microsoft.SkipLayerNormalization(q, r, g, b, k)",
        {"wq": (6, 6), "wr": (6, 6), "g": (6,), "b": (6,), "k": (6,)},
        "q r g b k y s",
    ),
    "gated gelu": (
        "q = MatMul(seq, wq) y = com.microsoft.BiasSplitGelu(q, b)",
        {"wq": (6, 8), "b": (8,)},
        "q b y",
    ),
    "group norm written out": (
        """r = Reshape(a, to) i = InstanceNormalization(r, one, nil) y = Reshape(i, back)""",
        {"to": ints(0, 2, -1), "back": ints(0, 4, 4, 4), "one": (2,), "nil": (2,)},
        "a y",
    ),
    "attention of opset 23": (
        """q = MatMul(seq, wq) k = MatMul(seq, wk) v = MatMul(seq, wv)
           y = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v)""",
        {"wq": (6, 4), "wk": (6, 4), "wv": (6, 6)},
        "q k v y",
    ),
    "group norm": ("y = GroupNormalization<num_groups = 2>(a, s, t)", {"s": (4,), "t": (4,)}, "a s t y"),
    "norm of a dim": ("y = LpNormalization<axis = 1>(a)", {}, "a y"),
    "embeddings": (
        "y, m = com.microsoft.EmbedLayerNormalization(ids, ids, wt, wp, ws, g, b)",
        {"ids": np.zeros((1, 5), np.int32), "wt": (9, 4), "wp": (5, 4), "ws": (2, 4), "g": (4,), "b": (4,)},
        "wt wp ws g b y",
    ),
    "deformable conv": (
        "y = DeformConv(a, w, shifts, c)",
        {"w": (2, 4, 1, 1), "shifts": np.zeros((1, 2, 4, 4), np.float32), "c": (2,)},
        "a w c y",
    ),
    "place of the largest": ("y = ArgMax<axis = 2, keepdims = 0>(a)", {}, "a y"),
    "regions": (
        "y = MaxRoiPool<pooled_shape = [2, 2]>(a, r)",
        {"r": np.array([[0, 0, 0, 2, 2]], np.float32)},
        "a y",
    ),
    "rows of a table": (
        "r = GatherND(t, places) q = MatMul(seq, wq) y = Add(q, r)",
        {"t": (7, 4), "places": ints(*range(5)).reshape(1, 5, 1), "wq": (6, 4)},
        "t r q y",
    ),
    "places of a batch": (
        "y = GatherND<batch_dims = 1>(a, places)",
        {"places": np.zeros((1, 2, 1), np.int64)},
        "a y",
    ),
}
OPSETS = {"columns to a map": 18, "attention of opset 23": 23, "group norm": 21, "deformable conv": 19}


GOLDEN = dict(
    line.split(" :: ", 1)
    for line in (Path(__file__).parent / "golden_ties.txt").read_text(encoding="utf-8").splitlines()
)


def ledger_of(name: str) -> Ledger:
    nodes, weights, _ = CASES[name]
    inputs = f"{IN}, float[N, 4, 4, 4] x4, float[N, 5, 6] seq"
    domains = f'<ir_version: 8, opset_import: ["" : {OPSETS.get(name, 17)}, "com.microsoft" : 1]>'
    text = f"{domains} g ({inputs}) => (float[] out) {{ {A} a8 = Conv(x, w8) {nodes} out = ReduceMax(seq) }}"
    return walk(graph_of(model(text, {**WA, "w8": (8, 3, 1, 1), **weights})), rule_of)


def line_of(name: str) -> str:
    ledger = ledger_of(name)
    parts = [describe(ledger, CASES[name][2].split())]
    parts += ["balance " + " | ".join(",".join(map(str, row)) for row in grid.tolist()) for grid in ledger.balances]
    parts += [f"frozen {','.join(map(str, f.ids.tolist()))}: {f.why}" for f in ledger.frozen]
    return " ".join(part for part in parts if part)


@pytest.mark.parametrize("name", CASES)
def test_ties(name: str) -> None:
    assert line_of(name) == GOLDEN[name]


def test_every_case_has_one_line() -> None:
    assert list(GOLDEN) == list(CASES)


def test_every_rule_has_a_line() -> None:
    walked = {rule_of(node) for name in CASES for node in ledger_of(name).graph.nodes}
    assert [op.op_type for op in TABLE.values() if op.ties is not None and op.ties not in walked] == []

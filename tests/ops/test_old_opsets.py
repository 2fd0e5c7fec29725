"""Forms of ops that exporters wrote in opset 7 to 12: cut, and equal to the masked original."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from nets import model as net

from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.view import graph_of
from agmc_onnx.ops import analyse
from agmc_onnx.pruning.cost import count_macs, macs_cost
from agmc_onnx.pruning.importance import choose
from agmc_onnx.pruning.plan import make_plan
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.pruning.verification import norms_of, verify

NORM: dict[str, Any] = {"s": (8,), "t": (8,), "m": (8,), "v": np.ones(8, np.float32)}
HEAD = "a = Conv(x, wa) b = BatchNormalization(a, s, t, m, v) r = Relu(b)"
CONVS: dict[str, Any] = {"wa": (8, 3, 1, 1), "wo": (2, 8, 1, 1), **NORM}
CASES: dict[str, tuple[int, str, dict[str, Any], set[str]]] = {
    # name: (opset, nodes from x to y, weights, names of the groups that must be found)
    "dropout with a ratio, and with a mask": (
        7,
        f"{HEAD} d = Dropout<ratio = 0.5>(r) e, mask = Dropout(d) y = Conv(e, wo)",
        CONVS,
        {"wa"},
    ),
    "upsampling by an attribute": (
        7,
        f'{HEAD} u = Upsample<mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]>(r) y = Conv(u, wo)',
        CONVS,
        {"wa"},
    ),
    "upsampling by an input": (
        9,
        f'{HEAD} u = Upsample<mode = "nearest">(r, scales) y = Conv(u, wo)',
        {**CONVS, "scales": np.array([1, 1, 2, 2], np.float32)},
        {"wa"},
    ),
    "resize without a region": (
        10,
        f'{HEAD} u = Resize<mode = "nearest">(r, scales) y = Conv(u, wo)',
        {**CONVS, "scales": np.array([1, 1, 2, 2], np.float32)},
        {"wa"},
    ),
    "slices, pads and splits by attributes": (
        9,
        f"""{HEAD} f = Slice<axes = [1], starts = [2], ends = [8]>(r) p = Pad<pads = [0, 2, 0, 0, 0, 0, 0, 0]>(f)
            q = Add(p, r) g, h = Split<axis = 1, split = [3, 5]>(q) k = Concat<axis = 1>(h, g) y = Conv(k, wo)""",
        CONVS,
        {"wa"},
    ),
    "squeezes and reductions by attributes, a clip too": (
        7,
        f"""{HEAD} c = Clip<min = 0.0, max = 6.0>(r) z = ReduceMean<axes = [2, 3], keepdims = 0>(c)
            e = Unsqueeze<axes = [2, 3]>(z) w = Conv(e, wb) g = Sigmoid(w) k = Mul(c, g) h = GlobalAveragePool(k)
            q = Squeeze<axes = [2, 3]>(h) y = Gemm<transB = 1>(q, wc, bc)""",
        {**CONVS, "wb": (8, 8, 1, 1), "wc": (5, 8), "bc": (5,)},
        {"wa"},
    ),
    "sums by an attribute": (
        11,
        f"{HEAD} z = ReduceSum<axes = [2], keepdims = 0>(r) q = ReduceSum<axes = [-1], keepdims = 0>(z) y = MatMul(q, wc)",
        {**CONVS, "wc": (8, 5)},
        {"wa"},
    ),
    "flattened into a product, with a coerced softmax": (
        7,
        f"{HEAD} f = Flatten(r) d = Gemm<transB = 1>(f, wf, bf) e = Relu(d) g = Gemm<transB = 1>(e, wg, bg) y = Softmax(g)",
        {**CONVS, "wf": (6, 128), "bf": (6,), "wg": (5, 6), "bg": (5,)},
        {"wa", "wf"},
    ),
    "softmax of all dims from the axis on": (
        12,
        f"{HEAD} e = Softmax<axis = 2>(r) y = Conv(e, wo)",
        CONVS,
        {"wa"},
    ),
    "group of depthwise, local norm, transposed convolution": (
        8,
        """a = Conv(x, wa) b = BatchNormalization(a, s, t, m, v) n = LRN<size = 3>(b) d = Conv<group = 8>(n, wd)
           e = LeakyRelu(d) y = ConvTranspose(e, wt)""",
        {**CONVS, "wd": (8, 1, 1, 1), "wt": (8, 2, 1, 1)},
        {"wa"},
    ),
    "sorted along space by an attribute": (
        9,
        f"{HEAD} y4, i = TopK<axis = 3, k = 2>(r) y = Conv(y4, wo)",
        CONVS,
        {"wa"},
    ),
    "expanded, tiled and gathered": (
        8,
        f"{HEAD} g = GlobalAveragePool(r) e = Expand(g, to) t2 = Add(e, r) k = Gather<axis = 1>(t2, order) y = Conv(k, wo)",
        {**CONVS, "to": np.array([1, 8, 4, 4], np.int64), "order": np.arange(8, dtype=np.int64)[::-1].copy()},
        {"wa"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_old_forms_are_cut(name: str) -> None:
    opset, nodes, weights, names = CASES[name]
    rank = 2 if "Gemm" in nodes or "MatMul" in nodes else 4
    dims = "N, 5" if rank == 2 else "N, 2, H, W"
    head = f'<ir_version: 4, opset_import: ["" : {opset}]>'
    text = f"{head} g (float[N, 3, 4, 4] x) => (float[{dims}] y) {{ {nodes} }}"
    given = {
        key: value
        for key, value in weights.items()
        if key in nodes.replace("(", " ").replace(")", " ").replace(",", " ").split()
    }
    model = normalize(net(text, given))
    channels = analyse(graph_of(model))
    assert {g.name.split("#")[0] for g in channels.groups} == names, [g.why_frozen for g in channels.frozen]
    rng, surgeon, macs = np.random.default_rng(0), Surgeon(channels), macs_cost(channels)
    for _ in range(3):
        counts = [int(rng.integers(1, g.n_units // g.step + 1)) * g.step for g in channels.groups]
        kept = choose(channels, rng.random(channels.n_units), counts)
        pruned = surgeon.cut(kept)
        onnx.checker.check_model(pruned, full_check=True)
        assert sum(count_macs(graph_of(pruned)).values()) == macs(counts)
        norms = norms_of(channels, kept)
        assert verify(model, pruned, make_plan(channels, kept, "0" * 64), norms=norms).masked_equivalence is (
            None if norms is None else True
        )


def test_parameters_of_every_place_stay_whole() -> None:
    """BatchNormalization up to opset 8 could have one scale a channel and place."""
    text = """<ir_version: 4, opset_import: ["" : 7]> g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y) {
        a = Conv(x, wa) b = BatchNormalization<spatial = 0>(a, s, t, m, v) y = Conv(b, wo) }"""
    places: dict[str, Any] = dict.fromkeys("stm", (8, 4, 4))
    model = net(text, {"wa": (8, 3, 1, 1), "wo": (2, 8, 1, 1), **places, "v": np.ones((8, 4, 4), np.float32)})
    channels = analyse(graph_of(normalize(model)))
    assert not channels.groups and "BatchNormalization" in str(channels.frozen[0].why_frozen)

"""What goes with a group that keeps nothing, on nets of a few nodes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.view import graph_of
from agmc_onnx.ops import analyse
from agmc_onnx.ops.vanish import closer_of, repeats
from agmc_onnx.pruning.cost import count_macs, count_params, macs_cost, params_cost
from agmc_onnx.pruning.importance import choose
from agmc_onnx.pruning.masked_norms import norms_of
from agmc_onnx.pruning.plan import make_plan
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.pruning.verification import verify
from agmc_onnx.ties.closed import Closer, now_for
from agmc_onnx.ties.groups import Channels
from tests.nets import model as net

RESIDUAL = net(
    """
    resnet (float[N, 3, 8, 8] x) => (float[N, 5] y) {
        stem = Conv <pads = [1, 1, 1, 1]> (x, ws)
        s = Relu (stem)
        c1 = Conv <pads = [1, 1, 1, 1]> (s, w1, b1)
        r1 = Relu (c1)
        c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2, b2)
        n2 = BatchNormalization (c2, gamma, beta, mean, var)
        t = Add (n2, s)
        u = Relu (t)
        d1 = Conv (u, v1, a1)
        q1 = Relu (d1)
        d2 = Conv <pads = [1, 1, 1, 1]> (q1, v2, a2)
        q2 = Relu (d2)
        d3 = Conv (q2, v3, a3)
        z = Add (u, d3)
        p = GlobalAveragePool (z)
        f = Flatten (p)
        y = Gemm (f, wo)
    }
    """,
    {
        **{
            "ws": (6, 3, 3, 3),
            "w1": (4, 6, 3, 3),
            "b1": (4,),
            "w2": (6, 4, 3, 3),
            "b2": (6,),
            "gamma": (6,),
            "beta": (6,),
        },
        **{
            "mean": (6,),
            "var": np.full(6, 0.7, np.float32),
            "v1": (4, 6, 1, 1),
            "a1": (4,),
            "v2": (3, 4, 3, 3),
            "a2": (3,),
        },
        **{"v3": (6, 3, 1, 1), "a3": (6,), "wo": (6, 5)},
    },
)
INCEPTION = net(
    """
    inception (float[N, 3, 8, 8] x) => (float[N, 5] y) {
        a = Conv (x, wa, ba)
        b0 = Conv (x, wb0)
        b1 = Relu (b0)
        b = Conv <pads = [1, 1, 1, 1]> (b1, wb, bb)
        c0 = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)
        c = Conv (c0, wc)
        d0 = Conv <pads = [2, 2, 2, 2]> (x, wd)
        d = Sigmoid (d0)
        t = Concat <axis = 1> (a, b, c, d)
        o = Conv (t, wt)
        p = GlobalAveragePool (o)
        f = Flatten (p)
        y = Gemm (f, wo)
    }
    """,
    {
        **{"wa": (4, 3, 1, 1), "ba": (4,), "wb0": (3, 3, 1, 1), "wb": (4, 3, 3, 3), "bb": (4,), "wc": (4, 3, 1, 1)},
        **{"wd": (4, 3, 5, 5), "wt": (6, 16, 1, 1), "wo": (6, 5)},
    },
)
GATED = net(
    """
    gated (float[N, 3, 8, 8] x) => (float[N, 5] y) {
        s = Conv (x, ws)
        e0 = Conv (s, we, be)
        e = Relu (e0)
        g0 = GlobalAveragePool (e)
        g1 = Conv (g0, wg1, bg1)
        g2 = Relu (g1)
        g3 = Conv (g2, wg3, bg3)
        g = Sigmoid (g3)
        m = Mul (e, g)
        o = Conv (m, wp, bp)
        t = Add (s, o)
        p = GlobalAveragePool (t)
        f = Flatten (p)
        y = Gemm (f, wo)
    }
    """,
    {
        **{"ws": (6, 3, 1, 1), "we": (8, 6, 1, 1), "be": (8,), "wg1": (3, 8, 1, 1), "bg1": (3,), "wg3": (8, 3, 1, 1)},
        **{"bg3": (8,), "wp": (6, 8, 1, 1), "bp": (6,), "wo": (6, 5)},
    },
)
TRANSFORMER = net(
    """
    transformer (float[N, 9, 6] x) => (float[N, 9, 5] y) {
        s = MatMul (x, ws)
        l1 = LayerNormalization (s, g1, h1)
        q0 = MatMul (l1, wq)
        q1 = Add (q0, bq)
        q2 = Reshape (q1, heads)
        q = Transpose <perm = [0, 2, 1, 3]> (q2)
        k0 = MatMul (l1, wk)
        k2 = Reshape (k0, heads)
        k = Transpose <perm = [0, 2, 3, 1]> (k2)
        v0 = MatMul (l1, wv)
        v1 = Add (v0, bv)
        v2 = Reshape (v1, heads)
        v = Transpose <perm = [0, 2, 1, 3]> (v2)
        a0 = MatMul (q, k)
        a = Softmax (a0)
        o0 = MatMul (a, v)
        o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
        o2 = Reshape (o1, flat)
        o3 = MatMul (o2, wo)
        o = Add (o3, bo)
        t = Add (s, o)
        l2 = LayerNormalization (t, g2, h2)
        m0 = MatMul (l2, wm)
        m1 = Add (m0, bm)
        m2 = Sigmoid (m1)
        m3 = Mul (m1, m2)
        m4 = MatMul (m3, wn)
        m = Add (bn, m4)
        z = Add (t, m)
        y = MatMul (z, wy)
    }
    """,
    {
        **{"ws": (6, 8), "wq": (8, 4), "bq": (4,), "wk": (8, 4), "wv": (8, 4), "bv": (4,), "wo": (4, 8), "bo": (8,)},
        **{"g1": (8,), "h1": (8,), "g2": (8,), "h2": (8,), "wm": (8, 12), "bm": (12,), "wn": (12, 8), "bn": (8,)},
        **{"wy": (8, 5), "heads": np.array([0, 9, 2, 2], np.int64), "flat": np.array([0, 9, 4], np.int64)},
    },
)
PYRAMID = net(
    """
    pyramid (float[N, 3, 16, 16] x) => (float[N, 4, 8, 8] y) {
        c3 = Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x, w3)
        r3 = Relu (c3)
        c4 = Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r3, w4)
        r4 = Relu (c4)
        l3 = Conv (r3, wl3, bl3)
        l4 = Conv (r4, wl4, bl4)
        up = Resize <mode = "nearest"> (l4, , scales)
        p3 = Add (l3, up)
        y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (p3, wy)
    }
    """,
    {
        **{"w3": (6, 3, 3, 3), "w4": (7, 6, 3, 3), "wl3": (5, 6, 1, 1), "bl3": (5,), "wl4": (5, 7, 1, 1), "bl4": (5,)},
        **{"wy": (4, 5, 3, 3), "scales": np.array([1, 1, 2, 2], np.float32)},
    },
)
NETS = {"residual": RESIDUAL, "inception": INCEPTION, "gated": GATED, "transformer": TRANSFORMER, "pyramid": PYRAMID}


def closer(model: onnx.ModelProto, exclude: tuple[str, ...] = ()) -> Closer:
    return closer_of(analyse(graph_of(normalize(model))).excluding(exclude))


def told(found: Closer) -> list[str]:
    """Return what may go, one line a branch: its groups, and the nodes that go with them."""
    names = [group.name for group in found.channels.groups]
    return [f"{' '.join(names[g] for g in b.groups)}: {' '.join(b.gone)}" for b in found.branches]


def check(channels: Channels, model: onnx.ModelProto, branches: list[int], seed: int) -> None:
    """Cut some branches, and random widths of the rest: equal to the masked original, and cost as counted."""
    rng = np.random.default_rng(seed)
    closed = closer_of(channels).of(branches)
    counts = np.array([int(rng.integers(1, g.n_units // g.step + 1)) * g.step for g in channels.groups], np.int64)
    counts[sorted(closed.groups)] = 0
    kept = choose(channels, rng.random(channels.n_units), counts)
    cut = Surgeon(channels).cut(kept)
    plan = make_plan(channels, kept, "0" * 64)
    assert verify(model, cut, plan, norms=norms_of(channels, kept)).masked_equivalence
    assert not {name for node in cut.graph.node for name in node.output} & set(plan.gone)
    assert sum(count_macs(graph_of(cut)).values()) == macs_cost(channels)(counts)
    assert count_params(graph_of(cut)) == params_cost(channels)(counts)


def test_a_residual_branch_goes_with_its_sum_and_the_relu_behind_a_relu() -> None:
    assert told(closer(RESIDUAL)) == ["w1: c1 r1 c2 n2 t u", "v1 v2: d1 q1 d2 q2 d3 z"]


def test_the_constants_of_a_branch_are_neutral_its_last_bias_and_normalisation_too() -> None:
    found = closer(RESIDUAL)
    assert sorted(found.of([0]).neutral) == ["b1", "b2", "beta", "gamma", "mean", "var", "w1", "w2"]
    assert found.of([0]).stands_for == {"t": "s", "u": "s"}


def test_what_fed_the_sum_is_fitted_to_what_it_is_read_as() -> None:
    found = closer(RESIDUAL)
    graph = found.channels.graph
    assert now_for(graph, found.of([0]), repeats) == {"s": "u", "stem": "t"}
    assert now_for(graph, found.of([1]), repeats) == {"u": "z"}
    assert now_for(graph, found.of([0, 1]), repeats) == {"s": "z"}


def test_of_four_branches_any_three_can_go() -> None:
    found = closer(INCEPTION)
    assert told(found) == ["wa: a", "wb0 wb: b0 b1 b", "wc: c0 c", "wd: d0 d"]
    assert found.of([0, 1, 2, 3]).why_not == "y would no longer depend on the inputs"
    assert found.of([0, 1, 3]).inputs == {8: (2,)}
    assert found.possible([0, 1, 2, 3], worth=[5, 2, 3, 4]) == {0, 2, 3}


def test_a_squeeze_goes_with_what_it_gates_and_not_alone() -> None:
    found = closer(GATED)
    assert told(found) == ["we wg1: e0 e g0 g1 g2 g3 g m o t"]
    assert found.why_not["wg1"] == "Sigmoid g: what it gives without its operands is not sure"


def test_keys_go_with_the_values_they_meet_and_not_alone() -> None:
    found = closer(TRANSFORMER)
    first, second = told(found)
    assert first.startswith("wq wv: l1 q0 q1 q2 q k0 k2 k v0 v1 v2 v a0 a o0") and first.endswith("o3 o t")
    assert second == "wm: l2 m0 m1 m2 m3 m4 m z"
    assert found.why_not["wq"] == "Softmax a: what it gives without its operands is not sure"


def test_a_lateral_of_a_pyramid_goes_with_the_stage_it_comes_from() -> None:
    found = closer(PYRAMID)
    assert told(found) == ["w4: c4 r4 l4 up p3"]
    assert found.of([0]).stands_for == {"p3": "l3"}
    assert found.why_not["w3"] == "y would no longer depend on the inputs"


def test_a_bias_that_others_use_keeps_its_branch() -> None:
    shared = onnx.ModelProto()
    shared.CopyFrom(RESIDUAL)
    next(node for node in shared.graph.node if node.output[0] == "d3").input[2] = "b2"
    found = closer(shared)
    assert "is used elsewhere too" in found.why_not["w1"]


def test_what_is_excluded_keeps_its_branch() -> None:
    assert told(closer(RESIDUAL, ("v1",))) == ["w1: c1 r1 c2 n2 t u"]
    assert told(closer(RESIDUAL, ("residual",))) == told(closer(RESIDUAL))


@pytest.mark.parametrize("name", NETS)
def test_without_branches_equal_to_the_masked_original(name: str) -> None:
    model = normalize(NETS[name])
    channels = analyse(graph_of(model))
    n = len(closer_of(channels).branches)
    for seed in range(4):
        asked = np.flatnonzero(np.random.default_rng(seed).random(n) < 0.6).tolist()
        check(channels, model, sorted(closer_of(channels).possible(asked, [1.0] * n)), seed)
    for one in range(n):
        check(channels, model, [one], one)

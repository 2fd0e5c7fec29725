"""Subgraphs and local functions: what they see stays whole, with a reason; the rest is cut."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.view import graph_of
from agmc_onnx.ops import analyse
from agmc_onnx.pruning.importance import choose, l2_norm
from agmc_onnx.pruning.plan import make_plan
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.pruning.verification import verify
from tests.nets import model as net

# `a` is seen by a body or a function, `b` and `c` are not.
BEFORE = "a = Conv(x, wa) b = Conv(a, wb) r = Relu(b) c = Conv(r, wc)"
WEIGHTS: dict[str, object] = {"wa": (6, 3, 1, 1), "wb": (8, 6, 1, 1), "wc": (6, 8, 1, 1), "wo": (2, 6, 1, 1)}
HEAD = '<ir_version: 8, opset_import: ["" : 17, "local" : 1]>'
FUNCTION = """<domain: "local", opset_import: ["" : 17]> twice (v) => (y) { y = Add(v, v) }"""
CASES: dict[str, tuple[str, dict[str, object], str]] = {
    "If": (
        """s = If(flag)<then_branch = t () => (float[N, 6, 4, 4] p) { p = Add(a, k) },
           else_branch = e () => (float[N, 6, 4, 4] q) { q = Identity(a) }> y = Add(s, c)""",
        {"k": (6, 1, 1)},
        "used inside its subgraph",
    ),
    "Loop": (
        """s = Loop(count, , a)<body = l (int64 i, bool go, float[N, 6, 4, 4] v) => (bool on, float[N, 6, 4, 4] w)
           { on = Identity(go) w = Mul(v, k) }> y = Add(s, c)""",
        {"count": np.array(2, np.int64), "k": (6, 1, 1)},
        "this op is not understood",
    ),
    "Scan": (
        """s = Scan<num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1], body = l (float[N, 4, 4] v) =>
           (float[N, 4, 4] w) { w = Neg(v) }>(a) y = Add(s, c)""",
        {},
        "this op is not understood",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_body_sees_stays_whole_and_the_rest_is_cut(name: str) -> None:
    nodes, weights, reason = CASES[name]
    flag = ", bool flag" if name == "If" else ""
    text = f"{HEAD} g (float[N, 3, 4, 4] x{flag}) => (float[N, 2, 4, 4] out) {{ {BEFORE} {nodes} out = Conv(y, wo) }}"
    model = normalize(net(text, {**WEIGHTS, **weights}))
    channels = analyse(graph_of(model))
    assert [g.name for g in channels.groups] == ["wb"]
    assert any(reason in str(g.why_frozen) for g in channels.frozen if "wa" in g.name)
    kept = choose(channels, l2_norm(channels), [4])
    pruned = Surgeon(channels).cut(kept)
    assert verify(model, pruned, make_plan(channels, kept, "0" * 64)).masked_equivalence


def test_a_function_is_inlined_and_cut_like_the_rest() -> None:
    text = f"{HEAD} g (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] out) {{ {BEFORE} s = local.twice(a)"
    model = normalize(net(f"{text} y = Add(s, c) out = Conv(y, wo) }}{FUNCTION}", WEIGHTS))
    channels = analyse(graph_of(model))
    assert sorted(g.name for g in channels.groups) == ["wa", "wb"]
    kept = choose(channels, l2_norm(channels), [4, 4])
    pruned = Surgeon(channels).cut(kept)
    assert verify(model, pruned, make_plan(channels, kept, "0" * 64)).masked_equivalence
    assert not pruned.functions


def test_an_if_that_fixed_sizes_decide_is_its_branch() -> None:
    """What exporters write for squeeze: the names of a branch that the graph has too are made new."""
    text = """g (float[N, 3, 1, L] x) => (float[N, 2, L] out) { a = Conv(x, wa) b = Relu(a)
        d = Shape<start = 2, end = 3>(b) one = Constant<value = int64[1] {1}>() c = Equal(d, one)
        s = If(c)<then_branch = t () => (p) { b2 = Neg(b) ax = Constant<value = int64[1] {2}>() p = Squeeze(b2, ax) },
        else_branch = e () => (q) { q = Identity(b) }> out = Conv(s, wo) }"""
    model = normalize(net(text, {"wa": (6, 3, 1, 1), "wo": (2, 6, 1)}))
    assert "If" not in [node.op_type for node in model.graph.node]
    channels = analyse(graph_of(model))
    assert [g.name for g in channels.groups] == ["wa"]
    kept = [np.arange(4)]
    assert verify(model, Surgeon(channels).cut(kept), make_plan(channels, kept, "0" * 64)).masked_equivalence


def test_a_weight_that_a_body_uses_too_stays_whole() -> None:
    text = f"""{HEAD} g (float[N, 3, 4, 4] x, bool flag) => (float[N, 2, 4, 4] out) {{ {BEFORE}
       s = If(flag)<then_branch = t () => (float[N, 8, 4, 4] p) {{ p = Conv(a, wb) }},
       else_branch = e () => (float[N, 8, 4, 4] q) {{ q = Neg(r) }}> d = Conv(s, wc) y = Add(d, c) out = Conv(y, wo) }}"""
    channels = analyse(graph_of(normalize(net(text, WEIGHTS))))
    assert not [g.name for g in channels.groups if "wb" in g.name]
    assert any("used inside its subgraph" in str(g.why_frozen) for g in channels.frozen)
    assert isinstance(channels.graph.model, onnx.ModelProto)

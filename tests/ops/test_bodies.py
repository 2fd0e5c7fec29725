"""Subgraphs and local functions: what they see stays whole, with a reason; the rest is cut."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.view import captured_names, graph_of
from agmc_onnx.ops import analyse
from agmc_onnx.ops.vanish import closer_of
from agmc_onnx.pruning.cost import count_macs, macs_cost, params_cost, stored_params
from agmc_onnx.pruning.importance import choose, l2_norm
from agmc_onnx.pruning.plan import make_plan
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.pruning.verification import verify
from agmc_onnx.run.analysis import analyse_model
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


def test_an_if_that_the_sizes_it_runs_at_decide_is_its_branch(tmp_path: Path) -> None:
    """A voice detector takes windows of one frame: what it does with more fails, and nothing in the file says so."""
    text = """g (float[N, 1, L] x) => (out) { a = Conv<strides = [64]>(x, wa) d = Shape<start = 2>(a) c = Equal(d, one)
        s = If(c)<then_branch = t () => (p) { p = Squeeze(a, two) }, else_branch = e () => (q) { q = Identity(a) }>
        out = Gemm(s, wo) }"""
    weights = {"wa": (6, 1, 64), "wo": (6, 2), "one": np.array([1]), "two": np.array([2])}
    onnx.save(net(text, weights), tmp_path / "m.onnx")
    found = analyse_model(tmp_path / "m.onnx")
    assert found.sizes.inputs == {"x": (1, 1, 64)}
    assert [group.name for group in found.channels.groups] == ["wa"]
    kept = [np.arange(4)]
    pruned = Surgeon(found.channels).cut(kept)
    feeds = [{"x": np.random.default_rng(n).normal(size=(2, 1, n)).astype(np.float32)} for n in (64, 100)]
    assert verify(found.model, pruned, make_plan(found.channels, kept, "0" * 64), feeds).masked_equivalence


def test_a_weight_that_a_body_uses_too_stays_whole() -> None:
    text = f"""{HEAD} g (float[N, 3, 4, 4] x, bool flag) => (float[N, 2, 4, 4] out) {{ {BEFORE}
       s = If(flag)<then_branch = t () => (float[N, 8, 4, 4] p) {{ p = Conv(a, wb) }},
       else_branch = e () => (float[N, 8, 4, 4] q) {{ q = Neg(r) }}> d = Conv(s, wc) y = Add(d, c) out = Conv(y, wo) }}"""
    channels = analyse(graph_of(normalize(net(text, WEIGHTS))))
    assert not [g.name for g in channels.groups if "wb" in g.name]
    assert any("what comes out of its then_branch stays whole" in str(g.why_frozen) for g in channels.frozen)
    assert isinstance(channels.graph.model, onnx.ModelProto)


# Networks inside of nodes: text of the holder, weights, the widths that may be cut, and other inputs
INSIDE: dict[str, tuple[str, dict[str, object], dict[str, int], str]] = {
    "a branch": (
        """y = If(flag)<then_branch = t () => (float[N, 6, 4, 4] p) { h = Conv(a, w1, b1) r = Relu(h) p = Conv(r, w2) },
           else_branch = e () => (float[N, 6, 4, 4] q) { q = Identity(a) }>""",
        {"w1": (8, 6, 1, 1), "b1": (8,), "w2": (6, 8, 3, 3)},
        {"w1": 8},
        "bool flag",
    ),
    "both branches, each its own": (
        """y = If(flag)<then_branch = t () => (float[N, 6, 4, 4] p) { h = Conv(a, w1) r = Relu(h) p = Conv(r, w2) },
           else_branch = e () => (float[N, 6, 4, 4] q) { h = Conv(a, v1) r = Relu(h) q = Conv(r, v2) }>""",
        {"w1": (8, 6, 1, 1), "w2": (6, 8, 1, 1), "v1": (6, 6, 1, 1), "v2": (6, 6, 1, 1)},
        {"w1": 8, "v1": 6},
        "bool flag",
    ),
    "weights that both branches share": (  # as merged decoders have them
        """y = If(flag)<then_branch = t () => (float[N, 6, 4, 4] p) { h = Conv(a, w1) r = Relu(h) p = Conv(r, w2) },
           else_branch = e () => (float[N, 6, 4, 4] q) { h = Conv(a, w1) r = Tanh(h) q = Conv(r, w2) }>""",
        {"w1": (8, 6, 1, 1), "w2": (6, 8, 1, 1)},
        {"w1": 8},
        "bool flag",
    ),
    "a loop": (
        """y = Loop(count, , a)<body = l (int64 i, bool go, float[N, 6, 4, 4] v) => (bool on, float[N, 6, 4, 4] w)
           { on = Identity(go) h = Conv(v, w1) r = Relu(h) w = Conv(r, w2) }>""",
        {"count": np.array(3, np.int64), "w1": (8, 6, 1, 1), "w2": (6, 8, 1, 1)},
        {"w1": 8},
        "",
    ),
    "a scan": (
        """t = Transpose<perm = [2, 0, 3, 1]>(a)
           u = Scan<num_scan_inputs = 1, body = l (float[N, 4, 6] v) => (float[N, 4, 6] w)
           { h = MatMul(v, w1) r = Relu(h) w = MatMul(r, w2) }>(t) y = Transpose<perm = [1, 3, 0, 2]>(u)""",
        {"w1": (6, 8), "w2": (8, 6)},
        {"w1": 8},
        "",
    ),
    "heads whose sizes are written inside": (
        """y = If(flag)<then_branch = t () => (float[N, 6, 4, 4] p) { m = Reshape(a, flat) k = Transpose<perm = [0, 2, 1]>(m)
           h = MatMul(k, w1) s = Reshape(h, heads) c = Softmax<axis = 1>(s) j = Reshape(c, join) o = MatMul(j, w2)
           z = Transpose<perm = [0, 2, 1]>(o) p = Reshape(z, back) },
           else_branch = e () => (float[N, 6, 4, 4] q) { q = Neg(a) }>""",
        {
            "w1": (6, 8), "w2": (8, 6), "flat": np.array([0, 6, 16]), "heads": np.array([0, 16, 2, 4]),
            "join": np.array([0, 16, 8]), "back": np.array([0, 6, 4, 4]),
        },
        {"w1": 8},
        "bool flag",
    ),
}  # fmt: skip


@pytest.mark.parametrize("is_inside", [False, True])
@pytest.mark.parametrize("name", INSIDE)
def test_what_stands_in_a_body_alone_is_cut(name: str, is_inside: bool) -> None:
    """Its inputs and outputs stay whole; its weights may be stored in it or around it."""
    nodes, weights, widths, given = INSIDE[name]
    text = f"""{HEAD} g (float[N, 3, 4, 4] x{", " + given if given else ""}) => (float[N, 2, 4, 4] out) {{
        a = Conv(x, wa) {nodes} out = Conv(y, wo) }}"""
    original = net(text, {"wa": WEIGHTS["wa"], "wo": WEIGHTS["wo"], **weights})
    if is_inside:
        _store_inside(original)
    model = normalize(original)
    channels = analyse(graph_of(model))
    found = {re.sub(".*/|.*__", "", group.name): group.n_units for group in channels.groups}
    assert found == widths
    assert closer_of(channels).why_not.keys() == {group.name for group in channels.groups}
    kept = choose(channels, l2_norm(channels), [group.n_units // 2 for group in channels.groups])
    pruned = Surgeon(channels).cut(kept)
    feeds = [{"x": np.random.default_rng(i).normal(size=(1 + i, 3, 4, 4)).astype(np.float32)} for i in range(2)]
    if given:
        feeds = [{**feed, "flag": np.array(flag)} for feed in feeds for flag in (False, True)]
    assert verify(model, pruned, make_plan(channels, kept, "0" * 64), feeds).masked_equivalence
    whole, counts = [group.n_units for group in channels.groups], [len(positions) for positions in kept]
    cost, params = macs_cost(channels), params_cost(channels)
    assert cost(whole) == sum(count_macs(graph_of(model)).values())
    assert cost(counts) == sum(count_macs(graph_of(pruned)).values()) < cost(whole)
    assert params(whole) == stored_params(original) and params(counts) == stored_params(pruned)
    assert cost.of_each(np.array([whole, counts])).tolist() == [cost(whole), cost(counts)]


def test_zero_biases_that_layers_inside_share_do_not_tie_them() -> None:
    text = f"""{HEAD} g (float[N, 6] x, bool flag) => (float[N, 6] out) {{
        out = If(flag)<then_branch = t () => (float[N, 6] p) {{
        a = Gemm(x, w1, zero) b = Relu(a) c = MatMul(b, w2) d = Gemm(c, w3, zero) e = Relu(d) p = MatMul(e, w4) }},
        else_branch = e () => (float[N, 6] q) {{ q = Neg(x) }}> }}"""
    original = net(text, {"w1": (6, 8), "zero": np.zeros(8, np.float32), "w2": (8, 6), "w3": (6, 8), "w4": (8, 6)})
    model = normalize(original)
    channels = analyse(graph_of(model))
    assert [group.name for group in channels.groups] == ["w1", "w2", "w3"]
    kept = choose(channels, l2_norm(channels), [4, 5, 2])
    feeds = [{"x": np.ones((2, 6), np.float32), "flag": np.array(True)}]
    assert verify(model, Surgeon(channels).cut(kept), make_plan(channels, kept, "0" * 64), feeds).masked_equivalence


STAYS: dict[str, tuple[str, str]] = {
    "statistics": (
        "h = MatMul(k, w1) r = LayerNormalization<axis = -1>(h, s)",
        "takes statistics over it inside of If",
    ),
    "a running sum": ("h = MatMul(k, w1) r = CumSum(h, last)", "works on the whole dimension 3 of h at once"),
    "the largest": (
        "h = MatMul(k, w1) m = ArgMax<axis = -1>(h) f = Cast<to = 1>(m) r = Add(h, f)",
        "works on the whole dimension 3 of h at once",
    ),
    "a divisor": ("h = MatMul(k, w1) r = Div(h, s)", "divides by it inside of another node"),
    "a body in a body": (
        """h = MatMul(k, w1) r = If(flag)<then_branch = d () => (float[N, 4, 4, 8] m) { m = Add(h, s) },
           else_branch = f () => (float[N, 4, 4, 8] n) { n = Neg(h) }>""",
        "used inside its subgraph, which is not cut",
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_a_body_does_with_all_of_them_stays_whole(name: str) -> None:
    nodes, why = STAYS[name]
    text = f"""{HEAD} g (float[N, 3, 4, 4] x, bool flag) => (float[N, 4, 4, 3] out) {{ a = Conv(x, wa)
        out = If(flag)<then_branch = t () => (float[N, 4, 4, 3] p) {{
        k = Transpose<perm = [0, 2, 3, 1]>(a) {nodes} p = MatMul(r, w2) }},
        else_branch = e () => (float[N, 4, 4, 3] q) {{ z = Transpose<perm = [0, 2, 3, 1]>(x) q = Neg(z) }}> }}"""
    weights = {"wa": WEIGHTS["wa"], "w1": (6, 8), "s": (8,), "w2": (8, 3), "last": np.array(3)}
    channels = analyse(graph_of(normalize(net(text, weights))))
    assert channels.groups == ()
    assert why in {group.name: str(group.why_frozen) for group in channels.frozen}["w1"]


def _store_inside(model: onnx.ModelProto) -> None:
    """Move weights that one body alone uses into it, as exporters store them."""
    for holder in model.graph.node:
        for body in [attribute.g for attribute in holder.attribute if attribute.HasField("g")]:
            others = [used for node in model.graph.node for used in [*node.input, *captured_names(node)]]
            used = {name for node in body.node for name in node.input}
            own = [t for t in model.graph.initializer if t.name in used and others.count(t.name) == 1]
            for tensor in own:
                body.initializer.add().CopyFrom(tensor)
                model.graph.initializer.remove(tensor)

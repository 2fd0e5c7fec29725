"""Sequences whose parts are known become plain ops, with the same outputs, and what passes through them is cut."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.view import graph_of
from agmc_onnx.measuring.session import make_session, run_model
from agmc_onnx.ops import analyse
from agmc_onnx.pruning.importance import choose, l2_norm
from agmc_onnx.pruning.plan import make_plan
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.pruning.verification import verify
from tests.nets import model as net

# nodes that make u and v of a, and their channels
PLAIN = {
    "parts of equal size": ("s = SplitToSequence<axis = 1>(a, four) u = SequenceAt(s, i0) v = SequenceAt(s, i1)", 4, 4),
    "parts of given sizes": ("s = SplitToSequence<axis = -3>(a, sizes) u = SequenceAt(s, i0) v = SequenceAt(s, last)", 5, 3),
    "one at a time": ("s = SplitToSequence<axis = 1>(a) u = SequenceAt(s, i0) v = SequenceAt(s, i1)", 1, 1),
    "a list put together": (
        "r = Relu(a) l = SequenceConstruct(a, r) u = ConcatFromSequence<axis = 1>(l) v = SequenceAt(l, last)", 16, 8,
    ),
}  # fmt: skip
LEFT = {
    "a part that is not known": "s = SplitToSequence<axis = 1>(a, four) u = SequenceAt(s, n) v = SequenceAt(s, n)",
    "parts without the dim": "s = SplitToSequence<axis = 1, keepdims = 0>(a) t = SequenceAt(s, i0) u = Unsqueeze(t, ax)"
    " v = Neg(u)",
    "a new dim": "l = SequenceConstruct(a, a) t = ConcatFromSequence<axis = 1, new_axis = 1>(l) u = Reshape(t, flat) v = Neg(u)",
}
NUMBERS = {
    "four": np.array(4), "sizes": np.array([5, 3]), "i0": np.array(0), "i1": np.array(1), "last": np.array(-1),
    "ax": np.array([1]), "flat": np.array([0, 16, 4, 4]),
}  # fmt: skip
FEED = {"x": np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32), "n": np.array(1)}
SEQUENCES = {"SplitToSequence", "SequenceConstruct", "SequenceAt", "ConcatFromSequence"}


def made(nodes: str, n_u: int, n_v: int) -> onnx.ModelProto:
    text = f"""g (float[N, 3, 4, 4] x, int64 n) => (float[N, 2, 4, 4] y, float[N, 2, 4, 4] z) {{
        a = Conv(x, wa) {nodes} y = Conv(u, wu) z = Conv(v, wv) }}"""
    return net(text, {**NUMBERS, "wa": (8, 3, 1, 1), "wu": (2, n_u, 1, 1), "wv": (2, n_v, 1, 1)})


@pytest.mark.parametrize("name", PLAIN)
def test_a_sequence_whose_parts_are_known_is_plain(name: str) -> None:
    original = made(*PLAIN[name])
    model = normalize(original)
    assert SEQUENCES.isdisjoint(node.op_type for node in model.graph.node)
    want, got = (run_model(make_session(one), FEED) for one in (original, model))
    assert all(np.array_equal(a, b) for a, b in zip(want, got, strict=True))
    channels = analyse(graph_of(model))
    assert "wa" in {group.name.partition("#")[0] for group in channels.groups} or name == "one at a time"
    kept = choose(channels, l2_norm(channels), [max(group.step, group.n_units // 2) for group in channels.groups])
    assert verify(model, Surgeon(channels).cut(kept), make_plan(channels, kept, "0" * 64), [FEED]).masked_equivalence


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_known_is_left(name: str) -> None:
    model = normalize(made(LEFT[name], *((4, 4) if "known" in name else (1, 1) if "without" in name else (16, 16))))
    assert not SEQUENCES.isdisjoint(node.op_type for node in model.graph.node)
    channels = analyse(graph_of(model))
    assert not channels.groups
    assert any("this op is not understood" in str(group.why_frozen) for group in channels.frozen)

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch

from agmc_onnx.data.samples import Samples, synthetic
from agmc_onnx.errors import BudgetError
from agmc_onnx.graph.view import graph_of
from agmc_onnx.measuring.session import make_session, model_inputs, run_model
from agmc_onnx.ops import analyse
from agmc_onnx.pruning.cost import macs_cost
from agmc_onnx.pruning.importance import choose, l2_norm
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.refit import compensation, stream
from agmc_onnx.refit.compensation import Compensator, DualSolver, Solver, compensate, solve
from agmc_onnx.refit.curves import error_curves, greedy_widths, measure_consumers, moment_importance
from agmc_onnx.refit.moments import Line, Moments, Patches, Positions
from agmc_onnx.refit.options import RecoverOptions
from agmc_onnx.refit.rectified import aim_again, aim_through, visible_range
from agmc_onnx.refit.sites import find_sites
from agmc_onnx.refit.stream import Stream, read_batches
from agmc_onnx.ties.groups import Channels
from tests import nets

torch.set_num_threads(1)
OPTIONS = RecoverOptions(batch_size=16)


def blend(n: int, channels: int, seed: int = 0) -> np.ndarray:
    """Return a 1x1 or dense weight whose channels nearly lie in half as many dimensions."""
    generator = np.random.default_rng(seed)
    low = generator.standard_normal((n, channels // 2)) @ generator.standard_normal((channels // 2, channels))
    return (low / np.sqrt(n)).astype(np.float32)


def prune(proto: onnx.ModelProto, share: float = 0.5) -> tuple[Channels, list[np.ndarray], onnx.ModelProto]:
    channels = analyse(graph_of(proto))
    n_kept = [max(g.step, int(g.n_units * share) // g.step * g.step) for g in channels.groups]
    kept = choose(channels, l2_norm(channels), n_kept)
    return channels, kept, Surgeon(channels).cut(kept)


def draw(proto: onnx.ModelProto, n: int = 64, seed: int = 0) -> Samples:
    return synthetic(model_inputs(proto), n, seed)


def error(proto: onnx.ModelProto, other: onnx.ModelProto) -> float:
    """Return the squared error of all outputs on new samples, over their variance."""
    feed = draw(proto, 64, seed=9).feeds(64)[0]
    a, b = (np.concatenate([o.reshape(-1) for o in run_model(make_session(m), feed)]) for m in (proto, other))
    return float(((a - b) ** 2).sum() / ((a - a.mean()) ** 2).sum())


RESIDUAL = """
f (float[n, 6, 9, 8] x) => (float[n, 4] y) {
    s = Conv<pads=[1, 1, 1, 1]> (x, ws)
    a = Conv<pads=[1, 1, 1, 1]> (s, w1)
    an = BatchNormalization (a, g1, b1, m1, v1)
    ar = Relu (an)
    b = Conv<pads=[1, 1, 1, 1]> (ar, w2)
    bn = BatchNormalization (b, g2, b2, m2, v2)
    t = Add (s, bn)
    r = Relu (t)
    d = Conv<pads=[1, 1, 1, 1], group=8> (r, wd, bd)
    e = Conv (d, we)
    p = GlobalAveragePool (e)
    q = Flatten (p)
    y = Gemm<transB=1> (q, wf, bf)
}
"""
RESIDUAL_WEIGHTS = {
    "ws": (8, 6, 3, 3), "w1": (12, 8, 3, 3), "w2": (8, 12, 3, 3), "wd": (8, 1, 3, 3), "bd": (8,), "we": (16, 8, 1, 1),
    "wf": (4, 16), "bf": (4,),
    **{f"{kind}{i}": np.linspace(0.5, 1.5, 12 if i == 1 else 8, dtype=np.float32) for kind in "gbmv" for i in (1, 2)},
}  # fmt: skip
DENSE = """
f (float[n, 5, 10] x) => (float[n, 5, 3] y) {
    a = MatMul (x, w1)
    b = Add (a, b1)
    c = Relu (b)
    d = MatMul (c, w2)
    e = Add (b2, d)
    s = Add (x, e)
    y = MatMul (s, w3)
}
"""
TURNED = """
f (float[n, 4, 6, 5] x) => (float[n, 2, 13, 11] y) {
    a = Conv (x, w1, b1)
    r = Relu (a)
    y = ConvTranspose<strides=[2, 2], pads=[0, 1, 1, 0], output_padding=[1, 1]> (r, w2)
}
"""
GROUPED = """
f (float[n, 4, 8, 8] x) => (float[n, 6, 4, 4] y) {
    a = Conv (x, w1)
    r = Relu (a)
    y = Conv<group=2, strides=[2, 2], auto_pad="SAME_UPPER", dilations=[1, 1]> (r, w2)
}
"""
JOINED = """
f (float[n, 4, 6, 6] x) => (float[n, 3, 6, 6] y) {
    a = Conv (x, w1)
    ar = Relu (a)
    b = Conv (x, w2)
    br = Relu (b)
    c = Concat<axis=1> (ar, br)
    y = Conv<pads=[1, 1, 1, 1]> (c, w3)
}
"""
TIME = """
f (float[n, 4, 20] x) => (float[n, 3, 10] y) {
    a = Conv<pads=[2, 2]> (x, w1)
    r = Relu (a)
    y = Conv<strides=[2], pads=[1, 2], dilations=[2]> (r, w2, b2)
}
"""
NETS = {
    "residual": (RESIDUAL, RESIDUAL_WEIGHTS),
    "dense": (DENSE, {"w1": blend(10, 16), "b1": (16,), "w2": (16, 10), "b2": (10,), "w3": (10, 3)}),
    "turned": (TURNED, {"w1": blend(4, 12).T.reshape(12, 4, 1, 1).copy(), "b1": (12,), "w2": (12, 2, 3, 3)}),
    "grouped": (GROUPED, {"w1": (8, 4, 1, 1), "w2": (6, 4, 3, 3)}),
    "joined": (JOINED, {"w1": (8, 4, 1, 1), "w2": (6, 4, 1, 1), "w3": (3, 14, 3, 3)}),
    "time": (TIME, {"w1": (12, 4, 5), "w2": (3, 12, 3), "b2": (3,)}),
}


@pytest.mark.parametrize("name", NETS)
def test_refit_brings_a_pruned_net_nearer_to_the_original(name: str) -> None:
    proto = nets.model(*NETS[name])
    channels, kept, pruned = prune(proto)
    before = pruned.SerializeToString()
    new = compensate(channels, kept, pruned, draw(proto, 96), OPTIONS)
    assert pruned.SerializeToString() == before
    onnx.checker.check_model(new)
    assert error(proto, new) < 0.7 * error(proto, pruned)
    same = {t.name: (t.dims[:], t.data_type) for t in pruned.graph.initializer}
    added = {t.name: t for t in new.graph.initializer if t.name not in same}
    assert all(same[t.name] == (t.dims[:], t.data_type) for t in new.graph.initializer if t.name in same)
    assert all(name.endswith("__agmc_bias") for name in added)
    for a, b in zip(pruned.graph.node, new.graph.node, strict=True):
        assert (a.op_type, a.output[:]) == (b.op_type, b.output[:])
        extra = b.input[len(a.input) :]
        assert not extra or (a.op_type in ("Conv", "ConvTranspose", "Gemm") and extra[0] in added)


def test_units_that_others_make_up_for_are_removed_for_nothing() -> None:
    text = "f (float[n, 6] x) => (float[n, 3] y) { a = Gemm (x, w1)  y = Gemm (a, w2) }"
    low = np.random.default_rng(0).standard_normal((6, 4)) @ np.random.default_rng(1).standard_normal((4, 8))
    proto = nets.model(text, {"w1": low.astype(np.float32), "w2": (8, 3)})
    channels = analyse(graph_of(proto))
    kept = [np.arange(4)]
    options = RecoverOptions(batch_size=16, ridges=(1e-9,))
    new = compensate(channels, kept, Surgeon(channels).cut(kept), draw(proto), options)
    assert error(proto, new) < 1e-6


def test_refit_changes_nothing_where_nothing_is_cut() -> None:
    proto = nets.model(RESIDUAL, RESIDUAL_WEIGHTS)
    channels = analyse(graph_of(proto))
    kept = [np.arange(g.n_units) for g in channels.groups]
    pruned = Surgeon(channels).cut(kept)
    assert compensate(channels, kept, pruned, draw(proto), OPTIONS).SerializeToString() == pruned.SerializeToString()


def test_refit_is_deterministic_and_a_compensator_gives_the_same_twice() -> None:
    proto = nets.model(RESIDUAL, RESIDUAL_WEIGHTS)
    channels, kept, pruned = prune(proto)
    options = RecoverOptions(batch_size=16, n_positions=300)
    once = compensate(channels, kept, pruned, draw(proto), options)
    again = Compensator(channels, draw(proto), options)
    assert [again(kept, pruned).SerializeToString() for _ in range(2)] == [once.SerializeToString()] * 2


def test_little_memory_gives_the_same_refit() -> None:
    proto = nets.model(RESIDUAL, RESIDUAL_WEIGHTS)
    channels, kept, pruned = prune(proto)
    much = compensate(channels, kept, pruned, draw(proto), OPTIONS)
    little = compensate(channels, kept, pruned, draw(proto), RecoverOptions(batch_size=16, memory_bytes=1))
    for a, b in zip(much.graph.initializer, little.graph.initializer, strict=True):
        assert np.allclose(onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b), atol=1e-5)


def test_sites_name_their_targets() -> None:
    sites = {site.weight: site for site in find_sites(graph_of(nets.model(RESIDUAL, RESIDUAL_WEIGHTS)))}
    told = {name: (site.target, site.others, site.bias, site.can_add_bias) for name, site in sites.items()}
    assert told == {
        "ws": ("s", (), None, True),
        "w1": ("an", (), "b1", True),
        "w2": ("t", ("s",), "b2", True),
        "wd": ("d", (), "bd", False),
        "we": ("e", (), None, True),
        "wf": ("y", (), "bf", False),
    }


def test_only_the_last_of_two_branches_is_fitted_to_their_sum() -> None:
    text = """
    f (float[n, 3, 4, 4] x) => (float[n, 5, 4, 4] y) {
        a = Conv (x, w1)
        b = Conv (x, w2)
        s = Add (a, b)
        y = Relu (s)
    }
    """
    sites = find_sites(graph_of(nets.model(text, {"w1": (5, 3, 1, 1), "w2": (5, 3, 1, 1)})))
    assert [(site.weight, site.target, site.others) for site in sites] == [("w1", "a", ()), ("w2", "s", ("a",))]


@pytest.mark.parametrize("name", NETS)
def test_patches_times_weight_is_the_output(name: str) -> None:
    proto = nets.model(*NETS[name])
    graph = graph_of(proto)
    from agmc_onnx.torch_view.module import TorchGraph

    module = TorchGraph(proto).eval()
    feed = {k: torch.from_numpy(v) for k, v in draw(proto, 3).feeds(3)[0].items()}
    for site in find_sites(graph):
        patches = Patches(site.node, graph.opset)
        y_name = site.node.outputs[0]
        with torch.no_grad():
            values = {**feed, **module.run(feed, [n for n in (site.x, y_name) if n not in feed])}
        weight = torch.from_numpy(graph.array(site.weight).copy())
        y = values[y_name].movedim(site.channel_dim, -1)
        at = np.arange(0, y[..., 0].numel(), 3)
        matrix = patches.matrix(weight)
        assert torch.equal(patches.weight(matrix, weight), weight)
        u = patches.take(values[site.x], patches.places(values[site.x], weight, at))
        got = torch.matmul(u, matrix.transpose(1, 2)).permute(1, 0, 2).reshape(at.size, -1)
        if len(site.node.inputs) > 2:
            got = got + torch.from_numpy(graph.array(site.node.inputs[2]).copy())
        assert torch.allclose(got, y.reshape(-1, y.shape[-1])[at], atol=1e-5)


def test_an_error_curve_is_the_error_of_the_refit() -> None:
    text = "f (float[n, 6] x) => (float[n, 3] y) { a = Gemm (x, w1)  r = Relu (a)  y = Gemm (r, w2) }"
    proto = nets.model(text, {"w1": (6, 8), "w2": (8, 3)})
    channels = analyse(graph_of(proto))
    samples = draw(proto, 500)
    scores = l2_norm(channels)
    curves = error_curves(channels, scores, samples, OPTIONS)
    assert curves.counts[0].tolist() == list(range(1, 9)) and curves.errors[0][-1] == 0
    assert (np.diff(curves.errors[0]) <= 1e-9).all()
    feed = samples.feeds(500)[0]
    wanted = run_model(make_session(proto), feed)[0]
    for n_kept in (2, 5):
        kept = choose(channels, scores, [n_kept])
        pruned = Surgeon(channels).cut(kept)
        new = compensate(channels, kept, pruned, samples, RecoverOptions(ridges=(1e-6,)))
        got = ((run_model(make_session(new), feed)[0] - wanted) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()
        assert curves.error(0, n_kept) == pytest.approx(got, rel=0.02)


def test_moment_importance_removes_what_the_others_make_up_for() -> None:
    text = "f (float[n, 6] x) => (float[n, 3] y) { a = Gemm (x, w1)  r = Relu (a)  y = Gemm (r, w2) }"
    w1 = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    w1[:, 5] = 3 * w1[:, 2]  # after a Relu too, unit 5 is three times unit 2
    proto = nets.model(text, {"w1": w1, "w2": (8, 3)})
    channels = analyse(graph_of(proto))
    scores = moment_importance(channels, draw(proto, 300), OPTIONS)
    units = channels.groups[0].units
    assert min(units, key=lambda unit: scores[unit]) in (units[2], units[5])
    assert sorted(scores[units]) == pytest.approx(np.arange(1, 9) / 8)


def test_greedy_elimination_beats_the_norm() -> None:
    proto = nets.model(RESIDUAL, RESIDUAL_WEIGHTS)
    channels = analyse(graph_of(proto))
    consumers = measure_consumers(channels, draw(proto, 64), OPTIONS)
    by_norm = error_curves(channels, l2_norm(channels), consumers=consumers)
    by_moments = error_curves(channels, moment_importance(channels, consumers=consumers), consumers=consumers)
    half = [g.n_units // 2 for g in channels.groups]
    totals = [sum(c.error(i, n) for i, n in enumerate(half)) for c in (by_norm, by_moments)]
    assert totals[1] < totals[0]


def test_greedy_widths_meet_the_budget_and_leave_no_room() -> None:
    proto = nets.model(RESIDUAL, RESIDUAL_WEIGHTS)
    channels = analyse(graph_of(proto))
    curves = error_curves(channels, l2_norm(channels), draw(proto), OPTIONS)
    cost = macs_cost(channels)
    full = np.array([g.n_units for g in channels.groups])
    ones = np.ones_like(full)
    widths = greedy_widths(curves, cost, full, ones, ones, cost(full) // 2)
    assert cost(widths) <= cost(full) // 2
    assert all(cost(widths + (np.arange(full.size) == i)) > cost(full) // 2 for i in np.flatnonzero(widths < full))
    stepped = greedy_widths(curves, cost, full, [4] * full.size, [4] * full.size, cost(full) // 2)
    assert all(w % 4 == 0 or w == n for w, n in zip(stepped, full, strict=True))
    with pytest.raises(BudgetError, match=r"budget: cannot be reached, got 0.010 of the original; expected at least"):
        greedy_widths(curves, cost, full, ones, full // 2, cost(full) // 100)


def test_moments_that_rounding_made_indefinite_get_a_larger_ridge_and_infinite_ones_a_word():
    from agmc_onnx.errors import ModelError
    from agmc_onnx.refit.compensation import _factor

    second = torch.tensor([[[1.0, 1.0], [1.0, 1.0 - 1e-9]]], dtype=torch.float64)
    factor = _factor(second, torch.tensor([1e-12], dtype=torch.float64))
    assert torch.allclose(factor @ factor.mT, second, atol=1e-6)
    with pytest.raises(ModelError, match="not finite"):
        _factor(second * torch.inf, torch.tensor([1.0], dtype=torch.float64))


CLIPPED = """
f (float[n, 6, 8, 8] x) => (float[n, 12, 8, 8] y) {
    a = Conv<pads=[1, 1, 1, 1]> (x, w1, b1)
    ar = Clip (a, zero, one)
    b = Conv (ar, w2, b2)
    y = Clip (b, zero, one)
}
"""
CLIPPED_WEIGHTS = {"w1": (16, 6, 3, 3), "b1": (16,), "w2": (12, 16, 1, 1), "b2": np.full(12, -0.5, np.float32)}


def clipped() -> onnx.ModelProto:
    bounds = {"zero": np.array(0, np.float32), "one": np.array([1], np.float32)}
    return nets.model(CLIPPED, {**CLIPPED_WEIGHTS, **bounds})


def test_what_an_activation_hides_is_let_go_for_the_rest() -> None:
    proto = clipped()
    channels, kept, pruned = prune(proto)
    errors = {}
    for rounds in (0, 3):
        options = dataclasses.replace(OPTIONS, n_rounds=rounds)
        errors[rounds] = error(proto, compensate(channels, kept, pruned, draw(proto, 96), options))
    assert errors[3] < 0.97 * errors[0]


def test_every_round_lowers_the_error_of_what_comes_out() -> None:
    proto = clipped()
    graph = graph_of(proto)
    site = find_sites(graph)[1]
    patches, stream = Patches(site.node, graph.opset), Stream(graph, [], 1 << 20)
    line = Line(site, stream, patches)
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(1, 400, 16, generator=generator)
    target = torch.randn(400, 12, generator=generator) * 0.5
    now = target - line.residual(u, target, ())
    bounds = visible_range(graph, site.target)
    assert bounds == (0.0, 1.0)
    aim = aim_through(graph, site.target)
    assert aim is not None
    moments = Moments.empty(*line.sizes)
    moments.add(u, line.before_scale(target - now))
    found = []
    for _ in range(4):
        step, offset = solve(moments, 1e-6, True)
        z = now + line.moved(u, step, offset)
        seen, wanted = z.clamp(*bounds), target.clamp(*bounds)
        low, high = torch.relu(bounds[0] - z), torch.relu(z - bounds[1])
        inside = (target > bounds[0]) & (target < bounds[1])
        found.append(float(((seen - wanted) ** 2 + inside * (low**2 + high**2)).sum()))
        aim_again(moments, [(u, target, now)], line, aim, step, offset)
    assert found == sorted(found, reverse=True) and found[-1] < 0.97 * found[0]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("s = Sigmoid (z)\n y = Mul (z, s)", "swish"),
        ("s = Sigmoid (z)\n y = Mul (s, z)", "swish"),
        ("y = HardSwish (z)", "hard swish"),
        ("y = Sigmoid (z)", "sigmoid"),
        ("y = Tanh (z)", "tanh"),
        ("s = Sigmoid (z)\n t = Mul (z, s)\n y = Add (t, s)", None),
        ("s = Sigmoid (z)\n y = Add (z, s)", None),
    ],
)
def test_every_round_comes_nearer_to_what_a_smooth_activation_gives(body: str, name: str | None) -> None:
    text = f"f (float[n, 16] x) => (float[n, 12] y) {{\n z = Gemm (x, w, b)\n {body}\n}}"
    graph = graph_of(nets.model(text, {"w": (16, 12), "b": (12,)}))
    aim, site = aim_through(graph, "z"), find_sites(graph)[0]
    if name is None:
        assert aim is None
        return
    assert aim is not None
    line = Line(site, Stream(graph, [], 1 << 20), Patches(site.node, graph.opset))
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(1, 400, 16, generator=generator)
    target = torch.randn(400, 12, generator=generator) * 3 - 2
    now = target - line.residual(u, target, ())
    moments = Moments.empty(*line.sizes)
    moments.add(u, line.before_scale(target - now))
    function = {
        "swish": torch.nn.functional.silu, "hard swish": torch.nn.functional.hardswish, "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }[name]  # fmt: skip
    found = []
    for _ in range(4):
        step, offset = solve(moments, 1e-6, True)
        z = now + line.moved(u, step, offset)
        found.append(float((function(z) - function(target)).square().sum()))
        aim_again(moments, [(u, target, now)], line, aim, step, offset)
    assert found == sorted(found, reverse=True) and found[-1] < 0.97 * found[0]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Relu (x)", (0.0, np.inf)),
        ("y = Clip (x, zero, six)", (0.0, 6.0)),
        ("y = Clip (x, zero)", (0.0, np.inf)),
        ("a = Clip (x, zero, six)\n b = Relu (x)\n y = Add (a, b)", (0.0, np.inf)),
        ("a = Relu (x)\n y = Add (a, x)", None),
        ("y = Clip (x, moving, six)", None),
        ("y = Tanh (x)", None),
    ],
)
def test_visible_range_of_a_value(body: str, expected: tuple[float, float] | None) -> None:
    text = f"f (float[n, 3] x, float moving) => (float[n, 3] y) {{\n {body}\n}}"
    weights = {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    graph = graph_of(nets.model(text, {name: w for name, w in weights.items() if name in body}))
    assert visible_range(graph, "x") == expected


FOREIGN = {
    "fused": """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
f (float[n, 5, 10] x) => (float[n, 5, 3] y) {
    a = MatMul (x, w1)
    b = com.microsoft.FastGelu (a)
    c = MatMul (b, w2)
    d = com.microsoft.SkipSimplifiedLayerNormalization (c, x, scale)
    y = MatMul (d, w3)
}""",
    "branch": """<ir_version: 8, opset_import: ["" : 17]>
f (float[n, 5, 10] x) => (float[n, 5, 3] y) {
    a = MatMul (x, w1)
    b = Relu (a)
    total = ReduceSum<keepdims = 0> (x)
    zero = Constant<value_float = 0.0> ()
    is_more = Greater (total, zero)
    e = If (is_more) <
        then_branch = more () => (float[n, 5, 10] p) { p = Relu (x) },
        else_branch = less () => (float[n, 5, 10] m) { m = Identity (x) }
    >
    c = MatMul (b, w2)
    d = Add (c, e)
    y = MatMul (d, w3)
}""",
    "function": """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
f (float[n, 5, 10] x) => (float[n, 5, 3] y) {
    a = own.act (x)
    b = MatMul (a, w1)
    c = Relu (b)
    d = MatMul (c, w2)
    y = MatMul (d, w3)
}
<domain: "own", opset_import: ["" : 17]>
act (i) => (o) { s = Sigmoid (i)  o = Mul (i, s) }""",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_ops_that_torch_does_not_know_run_in_onnxruntime(kind: str) -> None:
    weights = {"w1": blend(10, 16, 0), "w2": (16, 10), "w3": (10, 3), "scale": np.ones(10, np.float32)}
    if kind != "fused":
        weights.pop("scale")
    proto = nets.model(FOREIGN[kind], weights)
    channels, kept, as_cut = prune(proto)
    refitted = compensate(channels, kept, as_cut, draw(proto), OPTIONS)
    assert error(proto, refitted) < 0.7 * error(proto, as_cut)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("n_groups", [1, 3])
def test_positions_give_the_correction_that_moments_give(n_groups: int, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    u = torch.rand(n_groups, 40, 90, generator=generator) * torch.rand(90, generator=generator)
    moments, positions = Moments.empty(n_groups, 90, 5), Positions()
    for part in (u[:, :25], u[:, 25:]):
        r = torch.randn(n_groups, part.shape[1], 5, generator=generator)
        moments.add(part, r)
        positions.add(part, r)
    wanted = Solver(moments, 0.1, has_bias)
    solvers = [Solver(moments, 0.1, has_bias, torch.float32), DualSolver(positions, 0.1, has_bias)]
    for _ in range(2):
        for solver in solvers:
            for a, b in zip(solver(), wanted(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)  # 1e-7 of width / ridge = 900
        moments.restart()
        positions.restart()
        for part in (u[:, :25], u[:, 25:]):
            r = torch.randn(n_groups, part.shape[1], 5, generator=generator)
            moments.add_residual(part, r)
            positions.add_residual(part, r)


def test_a_candidate_with_fewer_positions_than_inputs_is_refitted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = nets.model(RESIDUAL, RESIDUAL_WEIGHTS)
    channels, kept, pruned = prune(proto)
    options = RecoverOptions(batch_size=16, n_positions=30, ridges=(0.1,), n_rounds=1)
    solved: list[int] = []
    original = DualSolver.__init__
    monkeypatch.setattr(DualSolver, "__init__", lambda self, *given: solved.append(1) or original(self, *given))
    by_positions = Compensator(channels, draw(proto), options)(kept, pruned)
    n_wide = len(solved)
    monkeypatch.setattr(compensation._Refit, "_is_wide", lambda *given: False)
    by_moments = Compensator(channels, draw(proto), options)(kept, pruned)
    assert n_wide >= 2 and len(solved) == n_wide
    for a, b in zip(by_positions.graph.initializer, by_moments.graph.initializer, strict=True):
        np.testing.assert_allclose(*(onnx.numpy_helper.to_array(t) for t in (a, b)), rtol=1e-3, atol=1e-4)


def test_weights_do_not_make_batches_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = nets.model(
        "f (float[n, 4, 2, 2] x) => (float[n, 4, 2, 2] y) { y = Conv<pads=[1, 1, 1, 1]> (x, w) }", {"w": (4, 4, 3, 3)}
    )
    monkeypatch.setattr(stream, "_CACHED", 16 * 16)  # numbers: 16 samples of an activation, or two weights
    batches = read_batches(draw(proto), OPTIONS, graph_of(proto))
    assert [len(batch["x"]) for batch in batches] == [16] * 4

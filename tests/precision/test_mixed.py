"""Which kernels are int8: the cut against all divisions, and what is measured of a network."""

from __future__ import annotations

from itertools import chain, combinations, pairwise

import numpy as np
import onnx
import pytest

from agmc_onnx.data.samples import synthetic
from agmc_onnx.latency.op_times import time_ops
from agmc_onnx.measuring.session import model_inputs
from agmc_onnx.precision.int8 import TARGETS, plain, write_int8
from agmc_onnx.precision.kernels import OUTSIDE, kernels_of, times_of
from agmc_onnx.precision.mixed import MixedQuantiser, Trade, _why
from tests.nets import model
from tests.precision.test_int8 import digits

NET = """g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu(a)
    c = Conv(r, v)
    s = Sigmoid(c)
    m = Mul(c, s)
    d = Conv(m, u)
    y = Add(d, m)
}"""
WEIGHTS = {"w": (6, 3, 3, 3), "b": (6,), "v": (4, 6, 1, 1), "u": (4, 4, 1, 1)}


def drawn(seed: int, n: int = 7) -> Trade:
    """Return random costs; one kernel has no integer form."""
    rng = np.random.default_rng(seed)
    int8 = rng.uniform(0, 1, n)
    int8[rng.integers(n)] = np.inf
    ends = rng.integers(-1, n, (2 * n, 2)).tolist()
    changes = [(a, b, float(rng.uniform(0, 0.3))) for a, b in ends if a != b]
    return Trade(rng.uniform(0, 1, n).tolist(), int8.tolist(), rng.uniform(0, 1, n).tolist(), changes)


@pytest.mark.parametrize("seed", range(8))
def test_the_cut_is_the_best_of_all_divisions(seed: int) -> None:
    trade = drawn(seed)
    finite = [i for i, ms in enumerate(trade.int8_ms) if ms < np.inf]
    divisions = [*map(frozenset, chain.from_iterable(combinations(finite, k) for k in range(len(finite) + 1)))]
    for rate in (0.0, 0.2, 1.0, 5.0):
        costs = [trade.ms(one) + rate * trade.lost(one) for one in divisions]
        found = trade.best(rate)
        assert trade.ms(found) + rate * trade.lost(found) == pytest.approx(min(costs), abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_a_higher_price_of_errors_only_takes_kernels_away(seed: int) -> None:
    found = [*drawn(seed).hull(20)]
    assert found[0] == drawn(seed).best(0.0) and found[-1] == frozenset()
    assert all(after < before for before, after in pairwise(found))


def test_what_runs_as_one_is_divided_as_one() -> None:
    kernels, crossings = kernels_of(plain(model(NET, WEIGHTS)))
    assert [one.op_types for one in kernels] == [("Conv", "Relu"), ("Conv",), ("Sigmoid", "Mul"), ("Conv",), ("Add",)]
    found = {(one.source, one.reader): one.entries for one in crossings}
    assert found == {
        (OUTSIDE, 0): 192, (0, 1): 384, (1, 2): 2 * 256, (2, 3): 256, (2, 4): 256, (3, 4): 256, (4, OUTSIDE): 256,
    }  # fmt: skip


def test_a_profile_says_what_computes_in_integers() -> None:
    simple = plain(model(NET, WEIGHTS))
    feed = {"x": np.random.default_rng(0).normal(0, 1, (1, 3, 8, 8)).astype(np.float32)}
    values = dict.fromkeys(
        (v.name for v in (*simple.graph.value_info, *simple.graph.input, *simple.graph.output)), (-5.0, 5.0)
    )
    kernels, _ = kernels_of(simple)
    exact, rounded = (
        times_of(kernels, simple, time_ops(one.SerializeToString(), feed)["ops"])
        for one in (simple, write_int8(simple, values, TARGETS["avx2"]))
    )
    assert not any(exact.is_integer) and exact.ms[0] > 0
    assert [rounded.is_integer[i] for i in (0, 1, 3)] == [True] * 3 and not rounded.is_integer[2]
    assert rounded.change_ms["QuantizeLinear"] > 0 and rounded.change_ms["DequantizeLinear"] > 0


def test_one_of_what_was_measured_is_taken_by_its_time_and_answers() -> None:
    proto, samples = digits()
    quantiser = MixedQuantiser(samples, "avx2")
    found = quantiser(proto)
    onnx.checker.check_model(found.model)
    assert {"float", "int8"} <= {one.kind for one in found.tried}
    worth = [one.time / one.alike for one in found.tried]
    assert [one.is_taken for one in found.tried] == [one == min(worth) for one in worth]
    assert found.tried[0].time == 1.0 and found.tried[0].alike == pytest.approx(100)
    floats = sum(kind == "float" for kind in found.precision.values())
    assert floats == next(one.n_float for one in found.tried if one.is_taken)
    again = quantiser(plain(proto))  # a later model: divided at the price of the first, nothing measured
    assert again.tried == found.tried and again.ranges in ("extremes", "least error")
    timed = quantiser.for_timing(proto)
    assert sum(n.op_type == "QuantizeLinear" for n in timed.graph.node) == sum(
        n.op_type == "QuantizeLinear" for n in found.model.graph.node
    )


def test_a_kernel_that_spoils_the_answers_stays_float() -> None:
    trade = Trade([1.0, 1.0, 1.0], [0.4, 0.5, 1.2], [0.9, 0.01, 0.0], [(0, 1, 0.05), (1, 2, 0.05)])
    assert [*trade.hull()] == [frozenset({0, 1}), frozenset({1}), frozenset()]
    assert (
        _why(0, trade, trade.best(0.0)) == "int8 saves 0.600 ms there and changes the answers more than that is worth"
    )
    assert _why(2, trade, trade.best(0.0)) == "int8 is slower there: 1.200 ms for 1.000"


def test_a_network_without_integer_kernels_stays_as_it_is() -> None:
    proto = model("g (float[1, 8] x) => (float[1, 8] y) { s = Softplus(x) y = Erf(s) }", {})
    found = MixedQuantiser(synthetic(model_inputs(proto), 12, 0), "avx2")(proto)
    assert found.n_int8 == 0 and found.model is proto and [one.kind for one in found.tried] == ["float"]

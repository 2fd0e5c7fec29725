import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agmc_onnx.errors import UsageError
from agmc_onnx.search.budget import CLOSE_ENOUGH, algorithm1_literal, meet_target

VECTORS = [  # a, w, d, options, a', achieved: seed-systems.md section 1.6
    ([0.1, 0.2, 0.3], [10, 10, 10], 12, {}, [0.2, 0.4, 0.6], 12.0),
    ([0.1, 0.2, 0.3], [10, 10, 10], 12, {"skip_first": True}, [0.1, 0.4, 0.6], 11.0),
    ([0.1, 0.2, 0.3], [10, 10, 10], 12, {"update_sum_in_place": True}, [0.2, 0.371, 0.507], 10.78),
    ([0.1, 0.2, 0.3], [100, 10, 10], 60, {}, [0.175, 0.8, 0.8], 33.5),
]


@pytest.mark.parametrize("vector", VECTORS)
def test_algorithm1_gives_the_vectors_of_the_dossier(vector):
    a, w, d, options, expected, achieved = vector
    ratios = algorithm1_literal(a, w, d, **options)
    np.testing.assert_allclose(ratios, expected, atol=5e-4)
    assert float(np.dot(w, ratios)) == pytest.approx(achieved, abs=5e-3)


def test_algorithm1_leaves_over_pruning_and_zero_actions_alone():
    np.testing.assert_array_equal(algorithm1_literal([0.5, 0.5], [10, 10], 4), [0.5, 0.5])
    np.testing.assert_array_equal(algorithm1_literal([0.0, 0.0], [10, 10], 4), [0.0, 0.0])


def test_meet_target_gives_the_corrected_vector_of_the_dossier():
    w, units = np.array([100, 10, 10]), np.array([1000, 1000, 1000])
    result = meet_target(
        1 - np.array([0.1, 0.2, 0.3]), lambda k: int(w @ k), units, np.ones(3, int), np.full(3, 200), budget=60_000
    )
    np.testing.assert_allclose(1 - result.keep_ratio, [0.44, 0.8, 0.8], atol=2e-3)
    assert result.reached == 60_000


class Chain:
    """Convs in a row: cost = sum of c_g * k_{g-1} * k_g, the first input and the last output fixed."""

    def __init__(self, units, step, weights):
        self.units, self.step, self.weights = np.array(units), np.array(step), np.array(weights)
        self.min_keep = np.minimum(self.step, self.units // self.step * self.step)
        self.calls = 0

    def __call__(self, kept):
        self.calls += 1
        assert np.all(kept >= self.min_keep) and np.all(kept <= self.units)
        assert np.all((kept % self.step == 0) | (kept == self.units))
        ends = np.concatenate([[3], kept, [10]])
        return int(np.sum(self.weights * ends[:-1] * ends[1:]))

    def meet(self, ratio, budget):
        return meet_target(ratio, self, self.units, self.step, self.min_keep, budget=budget)


@st.composite
def chains(draw):
    n = draw(st.integers(1, 12))
    step = [draw(st.sampled_from([1, 1, 2, 8])) for _ in range(n)]
    units = [s * draw(st.integers(1, 12)) + draw(st.integers(0, s - 1)) for s in step]
    return Chain(units, step, [draw(st.integers(1, 400)) for _ in range(n + 1)])


def proposals(draw, n):
    return np.array(draw(st.lists(st.floats(0, 1), min_size=n, max_size=n, unique=True)))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_never_above_the_budget_and_feasible_iff_the_smallest_network_fits(data):
    chain = data.draw(chains())
    smallest, full = chain(chain.min_keep), chain(chain.units)
    budget = data.draw(st.integers(0, full + 5))
    result = chain.meet(proposals(data.draw, len(chain.units)), budget)
    assert result.feasible == (smallest <= budget)
    assert result.best_reachable == smallest
    assert result.reached == chain(result.kept)
    assert result.reached <= budget if result.feasible else np.array_equal(result.kept, chain.min_keep)
    np.testing.assert_allclose(result.keep_ratio, result.kept / chain.units)
    if budget >= full:
        np.testing.assert_array_equal(result.kept, chain.units)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_more_budget_never_reaches_less(data):
    chain = data.draw(chains())
    smallest, full = chain(chain.min_keep), chain(chain.units)
    ratio = proposals(data.draw, len(chain.units))
    low, high = sorted(data.draw(st.tuples(st.integers(smallest, full), st.integers(smallest, full))))
    assert chain.meet(ratio, low).reached <= chain.meet(ratio, high).reached


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_order_of_the_groups_does_not_matter(data):
    n = data.draw(st.integers(2, 10))
    units = np.array([data.draw(st.integers(4, 90)) for _ in range(n)])
    ratio = 1 - np.array([data.draw(st.integers(1, 997)) for _ in range(n)]) * np.linspace(1, 1.00317, n) / 1001
    coupled = np.random.default_rng(data.draw(st.integers(0, 99))).integers(1, 1000, (n, n))
    turn = np.array(data.draw(st.permutations(range(n))))

    def cost(kept):
        return int(kept @ coupled @ kept)

    def turned_cost(kept):
        return int(kept @ coupled[np.ix_(turn, turn)] @ kept)

    one = np.ones(n, dtype=int)
    budget = data.draw(st.integers(cost(one), cost(units)))
    straight = meet_target(ratio, cost, units, one, one, budget=budget)
    turned = meet_target(ratio[turn], turned_cost, units[turn], one, one, budget=budget)
    np.testing.assert_array_equal(straight.kept[turn], turned.kept)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_equals_algorithm1_where_that_is_right(data):
    n = data.draw(st.integers(1, 8))
    a = np.array([data.draw(st.floats(0.05, 0.4)) for _ in range(n)])
    d = data.draw(st.floats(1.0, 1.9)) * a.sum()
    literal = algorithm1_literal(a, np.ones(n), d)
    units = np.full(n, 2000)
    budget = round((n - d) * 2000)
    result = meet_target(1 - a, lambda k: int(k.sum()), units, np.ones(n, int), np.ones(n, int), budget=budget)
    np.testing.assert_allclose(1 - result.keep_ratio, literal, atol=1.6 / 2000)
    assert result.reached == budget


def test_zero_prune_ratios_join_only_when_needed_and_all_zero_is_uniform():
    units, one = np.array([100, 100, 100]), np.ones(3, int)

    def cost(kept):
        return int(kept.sum())

    ratio = np.array([0.5, 0.9, 1.0])
    assert meet_target(ratio, cost, units, one, one, budget=150).kept[2] == 100
    late = meet_target(ratio, cost, units, one, one, budget=90)
    np.testing.assert_array_equal(late.kept, [1, 1, 88])
    np.testing.assert_array_equal(meet_target(np.ones(3), cost, units, one, one, budget=150).kept, [50, 50, 50])


def test_over_pruning_is_relaxed():
    units, one = np.array([100, 100]), np.ones(2, int)
    result = meet_target([0.1, 0.55], lambda k: int(k.sum()), units, one, one, budget=160)
    np.testing.assert_array_equal(result.kept, [73, 87])


def resnet_like(n, step):
    rng = np.random.default_rng(n)
    units = np.sort(rng.choice([16, 32, 64, 128], n))
    size = 32 * 16 // units
    fixed = units  # inner widths of residual blocks: in and out are the stream

    def cost(kept):
        cost.calls += 1
        return int(np.sum(18 * size**2 * fixed * kept)) + 1_000_000

    cost.calls = 0
    return cost, units, np.full(n, step)


@pytest.mark.parametrize(("n", "step"), [(9, 1), (27, 1), (27, 8), (60, 4), (300, 8)])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_lands_close_below_the_budget_with_few_calls(n, step, share):
    cost, units, steps = resnet_like(n, step)
    full = cost(units)
    rng = np.random.default_rng(7)
    for _ in range(5):
        cost.calls = 0
        result = meet_target(rng.uniform(0.05, 1, n), cost, units, steps, steps, budget=int(share * full))
        assert share - 0.02 < result.reached / full <= share
        assert cost.calls <= 60 + 14 * n


def test_a_network_of_300_groups_takes_milliseconds():
    cost, units, steps = resnet_like(300, 1)
    start = time.process_time()
    result = meet_target(np.linspace(0.2, 0.9, 300), cost, units, steps, steps, budget=cost(units) // 2)
    assert time.process_time() - start < 0.5
    assert 0.5 - CLOSE_ENOUGH < result.reached / cost(units) <= 0.5


def test_bad_arguments_are_named():
    one = np.ones(2, int)
    with pytest.raises(UsageError, match="not finite"):
        meet_target([np.nan, 0.5], lambda k: 1, one, one, one, budget=1)
    with pytest.raises(UsageError, match="shapes differ"):
        meet_target([0.5], lambda k: 1, one, one, one, budget=1)
    with pytest.raises(UsageError, match="1 <= min_keep <= n_units"):
        meet_target([0.5, 0.5], lambda k: 1, one, one, one * 2, budget=1)

"""Latency: what is measured, in which order, and the errors; never how long anything takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import nets
import numpy as np
import onnx
import onnx.parser
import pytest

from agmc_onnx.errors import UsageError
from agmc_onnx.latency import timing as latency
from agmc_onnx.latency.timing import Latency, compare, ratio

FEED = {"x": np.ones((3, 4), np.float32)}


def model(op: str = "Relu") -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[N, 4] x) => (float[N, 4] y) {{ y = {op}(x) }}'
    )


def times(values: list[float], batch: int = 1) -> Latency:
    return Latency(1.0, 1.0, min(values), 1.0, batch, 1, len(values), "cpu", tuple(values))


def test_each_model_gets_its_own_row() -> None:
    a, b = compare([model(), model("Exp").SerializeToString()], FEED, rounds=7, warmup=1)
    for row in (a, b):
        assert (row.batch, row.threads, row.n, row.provider, len(row.rounds_ms)) == (3, 1, 7, "cpu", 7)
        assert 0 < row.minimum == min(row.rounds_ms) <= row.p50 == np.median(row.rounds_ms) <= row.p90
        assert row.mean_cpu_ms >= 0
    assert "rounds_ms" not in repr(a)


def test_models_take_turns_of_two_inferences_in_alternating_order_on_the_same_feed() -> None:
    calls: list[tuple[str, int]] = []

    def run(name: str, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        calls.append((name, int(feed["x"][0])))
        return []

    compare([partial(run, "A"), partial(run, "B")], [{"x": np.array([0])}, {"x": np.array([1])}], rounds=3, warmup=1)
    assert calls[:2] == [("A", 0), ("B", 0)]
    turns = [("A", 0), ("B", 0), ("B", 1), ("A", 1), ("A", 0), ("B", 0)]
    assert calls[2:] == [turn for turn in turns for _ in range(2)]


def test_the_time_limit_leaves_the_fewest_rounds() -> None:
    (row,) = compare([model()], FEED, rounds=50, seconds=0.0)
    assert row.n == latency.MIN_ROUNDS


def test_inputs_without_a_batch_count_as_one() -> None:
    scalar = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>\ng (float x) => (float y) { y = Relu(x) }'
    )
    assert compare([scalar], {"x": np.array(1, np.float32)}, rounds=1)[0].batch == 1


def test_ratio_is_of_pairs_and_of_minima() -> None:
    result = ratio(times([2.0, 6.0, 3.0]), times([4.0, 6.0, 12.0]))
    assert (result.median, result.minimum) == (0.5, 0.5)
    assert ratio(times([1.0, 9.0]), times([2.0, 3.0])).median == 1.75


@pytest.mark.parametrize(
    "models, feeds, options, text",
    [
        ([], FEED, {}, "latency: nothing to measure, got 0 models, 1 feeds; expected 1 or more of both. Give a model "),
        (
            [model()],
            [],
            {},
            "latency: nothing to measure, got 1 models, 0 feeds; expected 1 or more of both. Give a mo",
        ),
        ([model()], FEED, {"rounds": 0}, "latency: bad rounds, got 0 after 5; expected at least 1 after 0. Use 100."),
        (
            [model()],
            [FEED, {"x": np.ones((2, 4), np.float32)}],
            {},
            "latency: batches of different size, got 2, 3; expected one size. Leave out the last batch.",
        ),
    ],
)
def test_what_cannot_be_measured(models: list, feeds: list, options: dict, text: str) -> None:
    with pytest.raises(UsageError, match="^" + re.escape(text)):
        compare(models, feeds, **options)


def test_a_ratio_of_what_was_not_measured_together() -> None:
    text = (
        "latency: not measured together, got 1 rounds of batch 1 and 2 of batch 1; expected one compare(). "
        "Measure them together."
    )
    with pytest.raises(UsageError, match="^" + re.escape(text) + "$"):
        ratio(times([1.0]), times([1.0, 2.0]))


def test_models_with_weights_in_other_files_are_open_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "g (float[N, 64] x) => (float[N, 64] y) { y = MatMul(x, w) }"
    onnx.save(nets.model(text, {"w": (64, 64)}), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    model.graph.initializer[0].external_data[0].value = str(
        tmp_path / model.graph.initializer[0].external_data[0].value
    )
    seen: list[int] = []
    in_turns = latency._in_turns
    monkeypatch.setattr(
        latency, "_in_turns", lambda models, *rest: (seen.append(len(models)), in_turns(models, *rest))[1]
    )
    one, other = compare([model, model], {"x": np.ones((1, 64), np.float32)}, seconds=0, warmup=0)
    assert seen == [1, 1] and one.n == other.n == latency.MIN_ROUNDS and ratio(one, other).median > 0

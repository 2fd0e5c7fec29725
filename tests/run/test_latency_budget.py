"""A budget in time, and results that would be slower than their original, in whole runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agmc_onnx.latency.timing import Ratio
from agmc_onnx.run import latency as run_latency
from agmc_onnx.run.latency import Measured
from agmc_onnx.run.target import Target
from agmc_onnx.verbs.compress import compress

DIGITS = Path(__file__).parents[2] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"


def ratio_of(share: float) -> Ratio:
    return Ratio(share, share, (share - 0.01, share + 0.01), share)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AGMC_ONNX_CACHE", str(tmp_path / "cache"))


def quiet_samples(analysis: Any, environment: Any, *_: Any) -> list[dict[str, Any]]:
    """Samples of a machine whose convolutions take a time for their weights, without noise."""
    samples = []
    for kept in run_latency.samples_of(environment):
        model = environment.candidate(kept)
        dims = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        nodes = [(node.output[0], dims[node.input[1]]) for node in model.graph.node if node.op_type == "Conv"]
        ops = [[owner, f"Conv {shape}", 0.01 + 1e-5 * math.prod(shape)] for owner, shape in nodes]
        samples.append({"kept": kept.tolist(), "ops": ops, "ms": sum(ms for _, _, ms in ops)})
    return samples


def test_a_missed_latency_is_solved_again_until_it_is_met(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[float] = []

    def measured(analysis: Any, model: Any, data: Any, settings: Any, target: Any = None, kept: Any = None) -> Measured:
        predicted = target.cost(kept) / target.full
        asked.append(predicted)
        return Measured(ratio_of(1.1 * predicted), predicted)  # this machine is a tenth slower than its table says

    monkeypatch.setattr(run_latency, "measured", measured)
    monkeypatch.setattr(run_latency, "timed_samples", quiet_samples)
    result = compress(DIGITS, latency=0.85, policy="uniform", latency_seconds=0.2, output=tmp_path / "o.onnx")
    told = result.report["latency_budget"]
    assert told["keep"] == 0.85 and told["reached"] <= 0.855
    assert 1 <= len(told["trials"]) == len(asked) <= 3 * run_latency.CORRECTIONS
    assert result.report["target"]["kind"] == "latency" and result.verification.masked_equivalence
    assert list((tmp_path / "cache").rglob("latency-*.json"))


def test_a_result_slower_than_its_original_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([1.2, 1.2, 0.9])
    monkeypatch.setattr(run_latency, "measured", lambda *_: Measured(ratio_of(next(answers))))
    result = compress(DIGITS, flops=0.5, policy="random", episodes=6, latency_seconds=0.2, round_to=4)
    told = result.report["slower"]
    assert told["reached"] == 0.9 and "another candidate was taken" in told["note"]
    assert told["trials"][0]["kept"] != told["trials"][1]["kept"]
    assert result.report["compressed"]["macs"] <= 0.5 * result.report["original"]["macs"]


def test_a_result_that_is_slower_only_once_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([1.2, 0.95])
    monkeypatch.setattr(run_latency, "measured", lambda *_: Measured(ratio_of(next(answers))))
    result = compress(DIGITS, flops=0.5, policy="random", episodes=3, latency_seconds=0.2, round_to=4)
    assert "slower" not in result.report and next(answers, None) is None


def test_where_all_are_slower_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_latency, "measured", lambda *_: Measured(ratio_of(1.3)))
    told = compress(DIGITS, flops=0.5, policy="random", episodes=3, latency_seconds=0.2, round_to=4).report["slower"]
    assert "no candidate tried is faster" in told["note"] and len(told["trials"]) <= 1 + run_latency.TRIED


def test_a_latency_that_seems_missed_once_is_not_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([1.06, 0.94, 0.985])

    def measured(analysis: Any, model: Any, data: Any, settings: Any, target: Any = None, kept: Any = None) -> Measured:
        return Measured(ratio_of(next(answers) * target.share), target.cost(kept) / target.full)

    monkeypatch.setattr(run_latency, "measured", measured)
    monkeypatch.setattr(run_latency, "timed_samples", quiet_samples)
    told = compress(DIGITS, latency=0.6, policy="uniform", latency_seconds=0.2).report["latency_budget"]
    assert len(told["trials"]) == 3 and told["reached"] == pytest.approx(0.985 * 0.6)


def test_one_measurement_that_is_far_off_does_not_count() -> None:
    assert not run_latency._is_sure([], 0.5)
    assert run_latency._is_sure([0.49], 0.5) and not run_latency._is_sure([0.524], 0.5)
    assert not run_latency._is_sure([0.524, 0.478], 0.5) and run_latency._is_sure([0.524, 0.522], 0.5)
    assert run_latency._is_sure([0.524, 0.478, 0.522], 0.5)


def test_what_the_search_has_evaluated_goes_first() -> None:
    history = [
        {"kept": [8], "reward": -1.0},
        {"kept": [5], "reward": -3.0},
        {"kept": [5], "reward": -2.0},
        {"kept": [4], "reward": 0.0},
    ]
    found: Any = SimpleNamespace(search=SimpleNamespace(history=history))
    aim = Target("latency", 0.5, lambda kept: int(np.asarray(kept)[0]), 10)
    chosen = run_latency._evaluated(aim, found)
    assert chosen is not None and chosen.tolist() == [5]
    assert run_latency._evaluated(replace(aim, share=0.7), found) is None

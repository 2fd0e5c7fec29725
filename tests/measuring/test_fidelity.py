"""Closeness to the original's outputs, which candidates are judged by."""

from __future__ import annotations

import numpy as np
import pytest

from agmc_onnx.data.samples import Samples
from agmc_onnx.errors import ModelError, UsageError
from agmc_onnx.measuring.accuracy import Evaluator
from agmc_onnx.measuring.closeness import are_probabilities, fidelity, soft_classes
from agmc_onnx.options import CompressOptions
from agmc_onnx.search.problem import Outcome
from tests.measuring.agreement import agree

REFERENCE = [np.random.default_rng(0).normal(size=(40, 10)).astype(np.float32)]


def with_noise(scale):
    return [REFERENCE[0] + scale * np.random.default_rng(1).normal(size=(40, 10)).astype(np.float32)]


def test_equal_outputs_are_at_100_and_an_error_as_large_as_the_variation_at_50():
    assert fidelity(REFERENCE, REFERENCE) == 100
    mirrored = [2 * REFERENCE[0].mean(axis=0) - REFERENCE[0]]
    assert fidelity(mirrored, REFERENCE) == pytest.approx(100 / 3, abs=0.01)


def test_fidelity_tells_apart_what_agreement_cannot():
    near, far = with_noise(1e-4), with_noise(1e-2)
    assert agree(near, REFERENCE) == agree(far, REFERENCE) == 100
    assert fidelity(near, REFERENCE) > fidelity(far, REFERENCE)


def test_number_of_outputs_must_match():
    with pytest.raises(ModelError, match="do not match"):
        fidelity(REFERENCE * 2, REFERENCE)


def test_a_reward_is_made_of_the_fidelity_where_there_is_one():
    assert Outcome(90.0).judged == 90.0
    assert Outcome(90.0, fidelity=70.0).judged == 70.0


def test_unknown_judge():
    with pytest.raises(UsageError, match="--judge: unknown name"):
        CompressOptions.of(flops=0.5, judge="me")


def test_class_scores_are_compared_as_soft_probabilities():
    scores = np.array([[4.0, 0.0, -4.0], [8.0, 8.0, 0.0]], np.float32)
    soft = soft_classes(scores, probabilities=False)
    np.testing.assert_allclose(soft.sum(1), 1.0)
    np.testing.assert_allclose(soft[0, 0] / soft[0, 1], np.e)
    np.testing.assert_allclose(soft_classes(scores + 5.0, False), soft, rtol=1e-6)  # a shift of all scores is no change
    hard = np.exp(scores.astype(np.float64))
    hard /= hard.sum(1, keepdims=True)
    assert are_probabilities(hard.astype(np.float16))
    assert not are_probabilities(scores)
    np.testing.assert_allclose(soft_classes(hard, probabilities=True), soft, rtol=1e-6)
    boxes = np.ones((2, 5, 4), np.float32)
    assert soft_classes(boxes, False) is boxes


def test_scores_that_are_no_numbers_are_not_close():
    reference = soft_classes(np.array([[4.0, 0.0], [0.0, 4.0]]), False)
    broken = soft_classes(np.array([[np.nan, 0.0], [0.0, 4.0]]), False)
    assert fidelity([broken], [reference]) == pytest.approx(50.0)


@pytest.mark.parametrize(("metric", "shift"), [("top1", True), ("agreement", False)])
def test_only_a_metric_of_classes_says_that_outputs_are_scores(metric, shift):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((40, 5)).astype(np.float32)
    samples = Samples("test", lambda index: {"x": index[:, None].astype(np.float32)}, np.arange(40), np.zeros(40, int))

    def run(move):
        return lambda feed: [scores[feed["x"][:, 0].astype(int)] + move]

    evaluate = Evaluator(samples, metric, reference=run(0.0), original=run(0.0))
    assert (evaluate(run(3.0)).fidelity == pytest.approx(100.0, abs=1e-3)) == shift

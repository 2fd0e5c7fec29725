"""Closeness to the original's outputs, which candidates are judged by."""

from __future__ import annotations

import numpy as np
import pytest

from agmc_onnx.config import CompressOptions
from agmc_onnx.errors import ModelError, UsageError
from agmc_onnx.measuring.accuracy import agreement, fidelity
from agmc_onnx.search.problem import Outcome

REFERENCE = [np.random.default_rng(0).normal(size=(40, 10)).astype(np.float32)]


def with_noise(scale):
    return [REFERENCE[0] + scale * np.random.default_rng(1).normal(size=(40, 10)).astype(np.float32)]


def test_equal_outputs_are_at_100_and_an_error_as_large_as_the_variation_at_50():
    assert fidelity(REFERENCE, REFERENCE) == 100
    mirrored = [2 * REFERENCE[0].mean(axis=0) - REFERENCE[0]]
    assert fidelity(mirrored, REFERENCE) == pytest.approx(100 / 3, abs=0.01)


def test_fidelity_tells_apart_what_agreement_cannot():
    near, far = with_noise(1e-4), with_noise(1e-2)
    assert agreement(near, REFERENCE) == agreement(far, REFERENCE) == 100
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

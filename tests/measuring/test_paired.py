"""What a metric of counts loses on the same samples, and how sure that is."""

from __future__ import annotations

import numpy as np
import pytest

from agmc_onnx.data.samples import synthetic
from agmc_onnx.measuring.accuracy import Evaluator
from agmc_onnx.measuring.agreeing import MEASURES, Counted, differences
from agmc_onnx.measuring.paired import DropMeter, interval_of
from agmc_onnx.measuring.session import model_inputs
from tests import nets


def boxes(found: np.ndarray, missed: np.ndarray) -> Counted:
    return Counted(np.stack([found, 0 * found, missed], axis=1).astype(float), MEASURES["boxes"].value)


def test_the_interval_of_a_difference_covers_the_truth() -> None:
    """Images differ in how many boxes they have and how hard they are, for both models alike."""
    rng, covered, sure = np.random.default_rng(0), 0, 0
    shares = np.array([0.95, 0.8])  # that the models find of what an easy image holds; on the average two thirds of it
    true = np.subtract(*(200 * shares * 2 / 3 / (1 + shares * 2 / 3)))
    for _ in range(200):
        n, easy = rng.geometric(0.2, size=80), rng.beta(2, 1, size=80)
        found = [rng.binomial(n, easy * share) for share in shares]
        drawn = differences(*(boxes(one, n - one) for one in found))
        assert drawn is not None
        low, high = np.percentile(drawn, (2.5, 97.5))
        covered += low <= true <= high
        sure += low > 0
    assert covered >= 180 and sure >= 150


def test_where_no_sample_tells_two_models_apart_nothing_is_known() -> None:
    one = boxes(np.array([3, 2]), np.array([0, 1]))
    assert differences(one, one) is None
    assert differences(boxes(np.array([3]), np.array([0])), boxes(np.array([2]), np.array([1]))) is None
    classes = MEASURES["miou"].value  # of which one model names three, the other two
    drawn = differences(Counted(np.ones((4, 6)), classes), Counted(np.ones((4, 4)), classes))
    assert drawn is not None and not drawn.any()


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_verdict_on_counted_answers_has_its_interval(noise: float) -> None:
    text = "g (float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y) { a = Conv(x, w) y = Softmax<axis = 1>(a) }"
    weight = np.random.default_rng(0).normal(size=(5, 3, 1, 1)).astype(np.float32)
    original, model = (
        nets.model(text, {"w": (weight + by * np.roll(weight, 1)).astype(np.float32)}) for by in (0.0, noise)
    )
    evaluator = Evaluator(synthetic(model_inputs(original), 40, 0), "agreement", reference=original)
    first, found = evaluator(original, keep_outputs=True), evaluator(model, keep_outputs=True)
    assert found.score.name == "positions" and found.counted is not None
    assert found.counted.whole() == found.score.value
    interval, drop = interval_of(first, found, evaluator), DropMeter(evaluator, original)(model)
    if noise:
        assert interval is not None
        assert 0 < interval[0] < drop.value < drop.most < interval[1]
        assert drop.value == pytest.approx(first.score.value - found.score.value)
    else:
        assert interval is None and drop.most == drop.value == 0

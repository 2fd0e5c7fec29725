"""How much a model loses against its original on the same samples, and how much it may lose in truth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx

from agmc_onnx.arrays import FloatArray, Mask
from agmc_onnx.measuring.accuracy import Evaluation, Evaluator, Outputs
from agmc_onnx.measuring.agreeing import Z95, Interval, differences
from agmc_onnx.measuring.closeness import class_scores

ONE_SIDED = 1.6448536269514722  # 95 % point of the normal distribution
COUNTS = {"top1": 1, "top5": 5, "agreement": 1}  # metrics that count samples, and among how many best classes


@dataclass(frozen=True)
class Drop:
    """A loss, in points of the metric.

    Attributes:
        value: Of the original less that of the model; negative where the model is better.
        most: With 95 % confidence it is at most this on other samples of the same kind; `value` itself where the metric does
            not count samples, or no sample tells the two apart.
        n: Samples compared.
        original, model: The metric of each.
    """

    value: float
    most: float
    n: int
    original: float
    model: float


class DropMeter:
    """Compares models with their original on the same samples."""

    def __init__(self, evaluator: Evaluator, original: onnx.ModelProto) -> None:
        """Measure the original, once."""
        self._evaluator = evaluator
        found = evaluator(original, keep_outputs=True)
        self._original, self._hits = found, hits(found.outputs or [], evaluator)

    def __call__(self, model: onnx.ModelProto) -> Drop:
        """Return what a model loses."""
        found = self._evaluator(model, keep_outputs=True)
        before, after, n = self._original.score.value, found.score.value, self._evaluator.samples.n
        ours = None if self._hits is None else hits(found.outputs or [], self._evaluator)
        if ours is not None and self._hits is not None:
            most = upper_bound(self._hits, ours)
        else:
            drawn = lost(self._original, found)
            most = before - after if drawn is None else float(np.percentile(drawn, 95))
        return Drop(before - after, most, n, before, after)


def lost(original: Evaluation, model: Evaluation) -> FloatArray | None:
    """Return what a metric of counts (F1, errors of reading, mean IoU) falls by on samples drawn anew, the same of both models.

    Efron 1979, percentiles; None where the metric counts nothing sample by sample, or no sample tells the two apart.
    """
    one, other = original.counted, model.counted
    return None if one is None or other is None or original.score.name != model.score.name else differences(one, other)


def interval_of(original: Evaluation, model: Evaluation, evaluator: Evaluator) -> Interval | None:
    """Return the 95 % interval, two-sided, of what a metric falls by on the same samples; None where it is not known."""
    right = [hits(one.outputs or [], evaluator) for one in (original, model)]
    if right[0] is not None and right[1] is not None:
        return interval(right[0], right[1])
    drawn = lost(original, model)
    if drawn is None:
        return None
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


def hits(outputs: Outputs, evaluator: Evaluator) -> Mask | None:
    """Return which samples a model gets right, or None where the metric does not count samples.

    Args:
        outputs: Graph outputs of all samples.
        evaluator: Whose metric and samples they are.
    """
    k, samples = COUNTS.get(evaluator.metric), evaluator.samples
    scores = next((s for o in outputs if len(o) == samples.n and (s := class_scores(o)) is not None), None)
    if k is None or scores is None or (evaluator.metric == "agreement" and len(outputs) != 1):
        return None
    labels = samples.labels
    if evaluator.metric == "agreement":
        wanted = class_scores(evaluator.reference[0])
        labels = None if wanted is None else np.argmax(wanted, axis=1)
    if labels is None:
        return None
    own = np.take_along_axis(scores, np.asarray(labels, np.int64)[:, None], axis=1)
    before = (scores == own) & (np.arange(scores.shape[1]) < np.asarray(labels)[:, None])
    return np.asarray(((scores > own) | before).sum(axis=1) < k)


def upper_bound(original: Mask, model: Mask) -> float:
    """Return what the share of right answers falls by at most, in points, with 95 % confidence, one-sided."""
    difference, error = _matched(original, model)
    return 100 * (difference + ONE_SIDED * error)


def interval(original: Mask, model: Mask) -> tuple[float, float]:
    """Return the 95 % interval, two-sided, of what the share of right answers falls by, in points."""
    difference, error = _matched(original, model)
    return 100 * (difference - Z95 * error), 100 * (difference + Z95 * error)


def _matched(original: Mask, model: Mask) -> tuple[float, float]:
    """Return the difference of two matched shares and its standard error.

    Both models answer the same samples, so only those count where one of the two is right: b that were lost and c that were
    won. Adjusted Wald interval of a difference of matched shares (Agresti and Min 2005), half a sample added to each cell.
    """
    lost, won = int((original & ~model).sum()) + 0.5, int((~original & model).sum()) + 0.5
    n = original.size + 2
    difference = (lost - won) / n
    return difference, math.sqrt(max(lost + won - (lost - won) ** 2 / n, 0.0)) / n

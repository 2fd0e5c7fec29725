"""How much a model loses against its original on the same samples, and how much it may lose in truth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx

from agmc_onnx.arrays import Mask
from agmc_onnx.measuring.accuracy import Evaluator, Outputs
from agmc_onnx.measuring.agreeing import Z95
from agmc_onnx.measuring.closeness import class_scores

ONE_SIDED = 1.6448536269514722  # 95 % point of the normal distribution
COUNTS = {"top1": 1, "top5": 5, "agreement": 1}  # metrics that count samples, and among how many best classes


@dataclass(frozen=True)
class Drop:
    """A loss, in points of the metric.

    Attributes:
        value: Of the original less that of the model; negative where the model is better.
        most: With 95 % confidence it is at most this on other samples of the same kind; `value` itself where the metric is no
            share of samples.
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
        self._original, self._hits = found.score.value, hits(found.outputs or [], evaluator)

    def __call__(self, model: onnx.ModelProto) -> Drop:
        """Return what a model loses."""
        found = self._evaluator(model, keep_outputs=True)
        value, n = self._original - found.score.value, self._evaluator.samples.n
        ours = None if self._hits is None else hits(found.outputs or [], self._evaluator)
        most = value if ours is None or self._hits is None else upper_bound(self._hits, ours)
        return Drop(value, most, n, self._original, found.score.value)


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

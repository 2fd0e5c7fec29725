"""How far two models agree, answer by answer: the metrics that need no labels, each with its 95 % interval.

Each counts something sample by sample, and its value is a function of the sums; so its interval is that of samples drawn
anew (bootstrap percentiles, Efron 1979), and two models can be held against each other on the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from agmc_onnx.arrays import FloatArray
from agmc_onnx.errors import DataError
from agmc_onnx.measuring import boxes, reading
from agmc_onnx.measuring.closeness import check_as_many, class_scores, closeness_of, ranks
from agmc_onnx.measuring.outputs import KINDS, MAX_ENTRIES, Answer, Seen, sampled

Z95 = 1.959963984540054  # two-sided 95 % point of the normal distribution
DRAWS = 1000  # of the bootstrap
MOST_DB = 100.0  # of what is equal
Interval = tuple[float, float]


@dataclass(frozen=True)
class Measure:
    """A metric of answers.

    Attributes:
        title: What it is, as it is printed.
        count: Takes what two models say, ours first; gives (n, k) counts, n = 1 where they are not sample by sample.
        value: Of the sums of counts, (..., k): percent, or decibels.
        unit: "%", "" for shares that are printed as 0.71, or "dB".
    """

    title: str
    count: Callable[[np.ndarray, np.ndarray], FloatArray]
    value: Callable[[FloatArray], FloatArray]
    unit: str = "%"


@dataclass(frozen=True, eq=False)
class Counted:
    """What a metric counted: its value is a function of the sums.

    Attributes:
        counts: (n, k), sample by sample.
        value: Of sums (..., k).
    """

    counts: FloatArray
    value: Callable[[FloatArray], FloatArray]

    def whole(self) -> float:
        """Return the metric."""
        return float(self.value(self.counts.sum(axis=0)))


class Judged(NamedTuple):
    """A metric's name, value and 95 % interval, and what it counted, where that is sample by sample."""

    name: str
    value: float
    interval: Interval | None = None
    counted: Counted | None = None

    @classmethod
    def of(cls, name: str, counted: Counted) -> Judged:
        """Return what counts come to."""
        return cls(name, counted.whole(), bootstrap(counted.counts, counted.value), counted)


def _rows(said: np.ndarray) -> np.ndarray:
    """Return what is said row by row: (n, ...) flat, or one row of what is not sample by sample."""
    return said.reshape(len(said) if said.ndim > 1 else 1, -1)


def _same(ours: np.ndarray, theirs: np.ndarray) -> FloatArray:
    a, b = _rows(ours), _rows(theirs)
    return np.stack([(a == b).sum(axis=1), np.full(len(b), b.shape[1])], axis=1).astype(float)


def _overlap(ours: np.ndarray, theirs: np.ndarray) -> FloatArray:
    """Intersection and union of every class; positions whose label is negative or 255 are not counted."""
    a, b = _rows(ours), _rows(theirs)
    is_known = (b >= 0) & (b != 255)
    n = int(max(a.max(initial=0), b.max(where=is_known, initial=0))) + 1
    found = np.zeros((len(b), n, 2))
    for c in range(n):
        one, other = (a == c) & is_known, (b == c) & is_known
        found[:, c] = np.stack([(one & other).sum(axis=1), (one | other).sum(axis=1)], axis=1)
    return found.reshape(len(b), -1)


def _mean_overlap(sums: FloatArray) -> FloatArray:
    pairs = sums.reshape(*sums.shape[:-1], -1, 2)
    there = pairs[..., 1] > 0
    shares = pairs[..., 0] / np.maximum(pairs[..., 1], 1)
    return np.asarray(100 * (shares * there).sum(axis=-1) / np.maximum(there.sum(axis=-1), 1))


def _cosines(ours: np.ndarray, theirs: np.ndarray) -> FloatArray:
    cosine = np.nan_to_num((ours * theirs).sum(axis=-1)).reshape(len(theirs), -1)
    return np.stack([cosine.sum(axis=1), np.full(len(theirs), cosine.shape[1])], axis=1)


def _neighbours(ours: np.ndarray, theirs: np.ndarray) -> FloatArray:
    """Whether the nearest of the other samples is the same one."""
    nearest = []
    for one in (ours, theirs):
        flat = np.nan_to_num(one.reshape(len(one), -1))
        alike = flat @ flat.T
        np.fill_diagonal(alike, -np.inf)
        nearest.append(alike.argmax(axis=1))
    return np.stack([nearest[0] == nearest[1], np.ones(len(ours))], axis=1).astype(float)


def _decibels(signal: FloatArray, noise: FloatArray) -> FloatArray:
    """Return (n, 2): decibels, at most `MOST_DB`, and 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.clip(np.nan_to_num(10 * np.log10(signal / noise), nan=-MOST_DB, posinf=MOST_DB), -MOST_DB, MOST_DB)
    return np.stack([found, np.ones(len(found))], axis=1)


def _psnr(ours: np.ndarray, theirs: np.ndarray) -> FloatArray:
    """Peak signal to noise: the peak is the range of the original's values."""
    a, b = _rows(ours).astype(np.float64), _rows(theirs).astype(np.float64)
    peak = float(b.max() - b.min()) if b.size else 0.0
    return _decibels(np.full(len(b), peak**2), ((a - b) ** 2).mean(axis=1))


def _si_sdr(ours: np.ndarray, theirs: np.ndarray) -> FloatArray:
    """Scale-invariant signal to distortion ratio (Le Roux et al. 2019, arXiv:1811.02508)."""
    a, b = _rows(ours).astype(np.float64), _rows(theirs).astype(np.float64)
    scale = (a * b).sum(axis=1, keepdims=True) / np.maximum((b * b).sum(axis=1, keepdims=True), 1e-30)
    target = scale * b
    return _decibels((target**2).sum(axis=1), ((a - target) ** 2).sum(axis=1))


def _share(sums: FloatArray) -> FloatArray:
    return np.asarray(100 * sums[..., 0] / np.maximum(sums[..., 1], 1e-30))


def _f1(sums: FloatArray) -> FloatArray:
    all_boxes = 2 * sums[..., 0] + sums[..., 1] + sums[..., 2]
    return np.where(all_boxes > 0, 200 * sums[..., 0] / np.maximum(all_boxes, 1), 100.0)


MEASURES: dict[str, Measure] = {
    "positions": Measure("same class at positions", _same, _share),
    "miou": Measure("mean IoU of classes", _overlap, _mean_overlap, ""),
    "boxes": Measure("F1 of the original's boxes", boxes.matches, _f1, ""),
    "characters": Measure("characters right (100 - error rate)", reading.read_by_classes("characters"), reading.right),
    "words": Measure("words right (100 - error rate)", reading.read_by_classes("words"), reading.right),
    "lines": Measure("exact lines", reading.read_by_classes("lines"), reading.right),
    "cosine": Measure("cosine", _cosines, _share, ""),
    "neighbours": Measure("same nearest neighbour", _neighbours, _share),
    "psnr": Measure("PSNR", _psnr, lambda sums: sums[..., 0] / sums[..., 1], "dB"),
    "sisdr": Measure("SI-SDR", _si_sdr, lambda sums: sums[..., 0] / sums[..., 1], "dB"),
}  # fmt: skip


def agreement(
    answers: Sequence[Answer], ours: Sequence[Seen], theirs: Sequence[Seen], metric: str = "agreement"
) -> Judged:
    """Return the name of what is counted, and how far answers agree with the original's.

    The mean over the answers, each by the metric of its kind, and the name that all of them share; caches and states say
    nothing to anybody and are left out beside others. Class scores: percent of samples whose highest score is of
    the same class. Numbers, and detections where the original finds no box at all: 100 times their closeness.

    Args:
        answers: What the outputs are.
        ours, theirs: What is seen of them, of the model and of the original.
        metric: A key of `MEASURES`, for the answers that it can count; "agreement": that of every kind.

    Raises:
        ModelError: If the number of answers differs, or there are none.
    """
    check_as_many(ours, theirs)
    heard = [i for i, answer in enumerate(answers) if answer.kind != "state"] or range(len(answers))
    found = [_agreement_of(answers[i], ours[i], theirs[i], metric) for i in heard]
    if len(found) == 1:
        return found[0]
    names = {one.name for one in found}
    return Judged(names.pop() if len(names) == 1 else "agreement", float(np.mean([one.value for one in found])))


def _agreement_of(answer: Answer, ours: Seen, theirs: Seen, metric: str) -> Judged:
    name = KINDS[answer.kind].metric if metric == "agreement" else metric
    a, b = ours.said, theirs.said
    if (name, metric) == ("boxes", "agreement") and theirs.compared.size and not (b[..., 0] > 0).any():
        return Judged("closeness", 100 * closeness_of(ours.compared, theirs.compared))  # no box says anything of boxes
    if name in MEASURES:
        if a.shape != b.shape:
            return Judged(name, 0.0)
        return Judged.of(name, Counted(MEASURES[name].count(a, b), MEASURES[name].value))
    if a.shape == b.shape and name == "agreement":
        scores, wanted = class_scores(a), class_scores(b)
        if scores is not None and wanted is not None:
            share = float(np.mean(ranks(scores, np.argmax(wanted, axis=1)) == 0))
            low, high = wilson(share, len(b))
            return Judged(name, 100 * share, (100 * low, 100 * high))
    return Judged(name, 100 * closeness_of(a, b))


def against_labels(answer: Answer, ours: Seen, labels: np.ndarray, metric: str) -> Judged:
    """Return a metric against labels: texts, or the class at every position.

    Args:
        answer: Classes at positions.
        ours: What a model says.
        labels: (n,) texts, or (n, ...) classes; negative ones and 255 are not counted.
        metric: Of `LABELLED`.

    Raises:
        DataError: If labels have another size than the output, or a model does not say what its classes stand for.
    """
    measure = MEASURES[metric]
    if metric in reading.COUNTS:
        counts = reading.read_by_labels(metric, ours.said, labels, answer.alphabet)
    else:
        flat = sampled(labels.reshape(len(labels), -1), MAX_ENTRIES).astype(np.int64)
        if flat.shape != ours.said.shape:
            raise DataError(
                f"metric {metric}: labels of another size than the output, got {flat.shape[1]} positions; expected"
                f" {ours.said.shape[1]}. Give the class at every position of the output."
            )
        counts = measure.count(ours.said, flat)
    return Judged.of(metric, Counted(counts, measure.value))


def bootstrap(counts: FloatArray, value: Callable[[FloatArray], FloatArray]) -> Interval | None:
    """Return the 95 % interval of a function of the sums of (n, k) counts; None of a single row.

    The draws are the same every time.
    """
    if len(counts) < 2:
        return None
    low, high = np.percentile(value(_drawn(len(counts)) @ counts), (2.5, 97.5))
    return float(low), float(high)


def differences(one: Counted, other: Counted) -> FloatArray | None:
    """Return what one model's metric is above another's on samples drawn anew, the same of both, (DRAWS,).

    None where that says nothing: of a single sample, or where no sample tells the two apart.
    """
    n, width = len(one.counts), max(one.counts.shape[1], other.counts.shape[1])
    if n < 2 or len(other.counts) != n:
        return None
    # of classes that only one of them names, the other counts nothing
    ours, theirs = (np.pad(c, ((0, 0), (0, width - c.shape[1]))) for c in (one.counts, other.counts))
    if np.array_equal(ours, theirs):
        return None
    times = _drawn(n)
    return np.asarray(one.value(times @ ours) - other.value(times @ theirs))


def _drawn(n: int) -> np.ndarray:
    """Return how often each of n samples is drawn, (DRAWS, n)."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS)


def wilson(share: float, n: int) -> Interval:
    """Return the 95 % confidence interval of a share in 0..1 of `n` samples, as shares (Wilson 1927)."""
    centre = share + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    scale = 1 + Z95**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)

"""How close outputs are to the original's, in numbers: the fidelity that a search is steered by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from agmc_onnx.arrays import IntArray
from agmc_onnx.errors import ModelError

MAX_ENTRIES = 65536  # of an output, per sample, that are compared
TEMPERATURE = 4.0  # of class scores where outputs are compared, as in distillation
LEAST_PROBABILITY = 1e-9


def fidelity(outputs: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float:
    """Return how close outputs are to the original's, 0..100: the mean of `closeness_of`.

    Which class comes first says one bit of a sample; the error of its scores says how far it is from changing. So
    fidelity tells candidates apart with a quarter of the images, and needs no labels (docs/decisions/judge.md).

    Args:
        outputs: What is compared of them (`measuring.outputs.Seen`), of shape (n, ...) each.
        reference: The original's, likewise.

    Raises:
        ModelError: If their number differs, or there are none.
    """
    check_as_many(outputs, reference)
    return 100 * float(np.mean([closeness_of(a, b) for a, b in zip(outputs, reference, strict=True)]))


def check_as_many(outputs: Sequence[object], reference: Sequence[object]) -> None:
    """Raise ModelError unless there are as many outputs as the original has, and any."""
    if not outputs or len(outputs) != len(reference):
        raise ModelError(
            f"model: outputs do not match the original's, got {len(outputs)}; expected {len(reference)}, at least 1. "
            "Compare a model with the one it was made from."
        )


def class_scores(output: np.ndarray) -> np.ndarray | None:
    """Return an output as class scores of shape (n, classes), or None where it is something else.

    Class scores (logits or probabilities alike) are float, and have one dim beside the samples that is not 1: (n, 10),
    (n, 10, 1, 1), (n, 1, 10); at least 2 classes.
    """
    if not np.issubdtype(output.dtype, np.floating) or output.ndim < 2 or not len(output):
        return None
    classes = max(output.shape[1:])
    is_scores = classes >= 2 and output[0].size == classes
    return output.reshape(len(output), classes) if is_scores else None


def names_classes(metric: str) -> bool:
    """Return whether a metric says that outputs are class scores."""
    return metric in ("top1", "top5")


def are_probabilities(scores: np.ndarray) -> bool:
    """Return whether class scores (n, ...) are probabilities: none below 0, of sum 1."""
    return are_shares(scores.reshape(len(scores), -1), 1)


def are_shares(values: np.ndarray, axis: int) -> bool:
    """Return whether numbers are none below 0, and of sum 1 along a dim."""
    values = values.astype(np.float64)
    return bool((values >= 0).all() and np.allclose(values.sum(axis=axis), 1.0, rtol=0, atol=1e-2))


def soft_classes(output: np.ndarray, probabilities: bool) -> np.ndarray:
    """Return class scores as probabilities softened at `TEMPERATURE`, float64 (n, classes); other outputs as they are.

    Softened as in Hinton et al. 2015, arXiv:1503.02531, what two networks differ by is what the likely classes differ by: of 17
    good candidates of a network its squared error on 500 images correlates with the top-1 of the finished models with 0.66,
    that of the scores with 0.49 (docs/decisions/judge.md).

    Args:
        output: Class scores (`class_scores` knows their form).
        probabilities: Whether they are probabilities already; these are taken by their logarithm.
    """
    scores = class_scores(output)
    return output if scores is None else softened(scores, probabilities)


def softened(scores: np.ndarray, probabilities: bool) -> np.ndarray:
    """Return scores (..., classes) as probabilities softened at `TEMPERATURE`, float64; see `soft_classes`."""
    x = scores.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        if probabilities:
            x = np.log(np.maximum(x, LEAST_PROBABILITY))
        x = np.exp((x - x.max(axis=-1, keepdims=True)) / TEMPERATURE)
        return np.asarray(x / x.sum(axis=-1, keepdims=True))


def closeness_of(output: np.ndarray, reference: np.ndarray) -> float:
    """Return how close one output is to the original's, 0..1; 0 where its shape differs.

    Float entries: one minus the normalised error e = E / (E + S), where E is the root mean square of the difference and S that
    of the original's deviation from its own mean over the samples, entry by entry (from the mean of all entries, where
    there is one sample). So e = 0 means equal, and an error as large as the original's variation gives 1/2; it never
    reaches 1, so a search can always tell better from worse. Samples with an infinite or nan entry count as 0. Whole
    numbers, bools and strings: the share of equal entries.
    """
    if output.shape != reference.shape:
        return 0.0
    if not reference.size:
        return 1.0
    if not np.issubdtype(reference.dtype, np.floating):
        return float(np.mean(output == reference))
    rows = len(reference) if reference.ndim else 1
    a, b = output.reshape(rows, -1).astype(np.float64), reference.reshape(rows, -1).astype(np.float64)
    known = np.isfinite(b).all(axis=1)
    good = known & np.isfinite(a).all(axis=1)
    if not good.any():
        return 0.0 if known.any() else 1.0
    a, b = a[good], b[good]
    error = math.sqrt(np.mean((a - b) ** 2))
    spread = math.sqrt(np.mean((b - (b.mean(axis=0) if len(b) > 1 else b.mean())) ** 2))
    return (1.0 if error == 0 else spread / (error + spread)) * float(good.sum() / known.sum())


def ranks(scores: np.ndarray, label: IntArray) -> IntArray:
    """Return the place of each label, 0 = best; ties go to the lower class, so equal scores are no way to win.

    A sample with a nan is put last.
    """
    own = np.take_along_axis(scores, label[:, None], axis=1)
    is_before = np.arange(scores.shape[1]) < label[:, None]
    rank = ((scores > own) | ((scores == own) & is_before)).sum(axis=1)
    return np.where(np.isnan(scores).any(axis=1), scores.shape[1], rank)


def thinned(outputs: list[np.ndarray]) -> list[np.ndarray]:
    """Return outputs with at most about `MAX_ENTRIES` entries per sample, at equal distances along their largest dim.

    They keep their dims, so that a grid (of a detector, a segmentation) stays one: flat, it would be taken for class
    scores. Class scores, and outputs of one dim beside the samples, are left as they are.
    """
    found = []
    for output in outputs:
        n = output[0].size if output.ndim > 2 and len(output) else 0
        if n <= MAX_ENTRIES or class_scores(output) is not None:
            found.append(output)
            continue
        dim = 1 + int(np.argmax(output.shape[1:]))
        step = min(-(-n // MAX_ENTRIES), output.shape[dim] // 2)
        found.append(output[(slice(None),) * dim + (slice(None, None, step),)].copy())
    return found

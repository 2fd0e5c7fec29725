"""How well a model does on samples: top-1, top-5, agreement with the original, or a user's own metric."""

from __future__ import annotations

import copy
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from agmc_onnx.arrays import FloatArray
from agmc_onnx.data.card import NEEDS_LABELS, shape_text
from agmc_onnx.data.samples import Samples
from agmc_onnx.errors import DataError, ModelError, UsageError
from agmc_onnx.measuring.closeness import (
    agreement,
    are_probabilities,
    class_scores,
    fidelity,
    names_classes,
    ranks,
    soft_classes,
    thinned,
)
from agmc_onnx.measuring.racing import estimate, image_errors, is_lost, looks
from agmc_onnx.measuring.session import Model, Run, opened

Z95 = 1.959963984540054  # two-sided 95 % point of the normal distribution
BATCH = 20  # samples per inference: values of CIFAR networks stay in cache; 100 take 5 to 8 % longer

Outputs = list[np.ndarray]
UserMetric = Callable[[Outputs, np.ndarray | None], float]


@dataclass(frozen=True)
class Score:
    """A metric's value.

    Attributes:
        name: The metric.
        value: Percent, 0..100; of a "module:function" metric, what the function returned (nan counts as 0).
        n: Number of samples.
        interval: (low, high) of 95 % confidence in percent, Wilson; None where the value is not a share of the samples.
    """

    name: str
    value: float
    n: int
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Evaluation:
    """One model's score and what it cost to get.

    Attributes:
        score: The metric's value.
        inference_s: Seconds inside onnxruntime's run.
        session_s: Seconds to make the session.
        outputs: Graph outputs in order, each of all samples, if they were asked for.
        fidelity: `fidelity` to the original, if there is one to compare with; else None. Of a model that lost a race, an
            estimate.
        errors: What other models are raced against, (n,), of a model that won a race; else None.
        n_images: Samples it was measured on, where those were not all; else None.
    """

    score: Score
    inference_s: float
    session_s: float
    outputs: Outputs | None = None
    fidelity: float | None = None
    errors: FloatArray | None = None
    n_images: int | None = None


class Evaluator:
    """Scores models on the same samples, which are read and preprocessed once.

    Attributes:
        samples: What is measured on.
        metric: A key of `METRICS`, or "module:function".
        batch_size: Really used; a model of a fixed batch dictates it.
        n_first: Of the samples, what every model is measured on; those after them only who keeps up in a race.
    """

    def __init__(
        self,
        samples: Samples,
        metric: str = "top1",
        *,
        batch_size: int = BATCH,
        reference: Model | None = None,
        original: Model | None = None,
        n_first: int | None = None,
        stops_early: bool = False,
        threads: int = 1,
        provider: str = "cpu",
    ) -> None:
        """Preload the feeds, and run the reference where the metric needs it.

        Args:
            samples: With labels for top1 and top5.
            metric: A key of `METRICS`, or "module:function" of a function(outputs, labels) -> float, higher is better;
                outputs are the graph outputs in order, all samples along their first axis.
            batch_size: Samples per inference.
            reference: The original model, for "agreement".
            original: Model whose outputs the fidelity is measured to, class scores (metrics top1 and top5 say that they are)
                as `soft_classes`; None: fidelity is not measured.
            n_first: Samples that every model is measured on; None: all.
            stops_early: In a race, stop models that are clearly worse before these too.
            threads: Of onnxruntime.
            provider: As in `make_session`.

        Raises:
            UsageError: If the metric is unknown, or is "agreement" without a reference.
            DataError: If the metric needs labels and there are none.
        """
        self.samples, self.metric, self.batch_size = samples, metric, samples.batch_size(batch_size)
        self._threads, self._provider = threads, provider
        self._score = METRICS.get(metric) or _user_metric(metric)
        if NEEDS_LABELS.get(metric) and samples.labels is None:
            raise DataError(
                f"{samples.name}: metric {metric} needs labels, got samples without; expected labels. "
                'Use a role that has them, or metric "agreement".'
            )
        self._reference: Outputs | None = None
        if metric == "agreement":
            if reference is None:
                raise UsageError(
                    "metric: agreement needs a reference, got none; expected the original. Pass its model."
                )
            self._reference = self._run(reference)[0]
        self._kinds: list[
            bool | None
        ] = []  # of the original's outputs: class scores, as probabilities or not; None: others
        self._original: Outputs | None = None
        if original is not None:
            outputs = thinned(self._reference or self._run(original)[0])
            if names_classes(metric):
                self._kinds = [are_probabilities(o) if class_scores(o) is not None else None for o in outputs]
            self._original = self._comparable(outputs)
        self.n_first, self._stops_early = min(n_first or samples.n, samples.n), stops_early
        self._first: Evaluator | None = None

    def __call__(
        self,
        model: Model | Run,
        keep_outputs: bool = False,
        race: bool = False,
        best: FloatArray | None = None,
    ) -> Evaluation:
        """Return a model's score on the samples.

        Args:
            model: Takes the same inputs as the model the samples were opened for; or a function that runs one.
            keep_outputs: Return the outputs too; for agreement, the entries that were compared.
            race: Measure it on all samples if it keeps up with the best one, and return its errors if it is better.
            best: Errors of the best model so far, on all samples; None: this is the first.

        Raises:
            ModelError: If the model cannot be loaded or run, or has no outputs that the metric can judge.
            DataError: If a label is not a class of the model.
        """
        if self.n_first < self.samples.n and not (race and self._can_race):
            if self._first is None:
                self._first = self._of_first(self.n_first)
            return self._first(model, keep_outputs)
        outputs, inference_s, session_s = self._run(model, best)
        close_by = [] if self._original is None else self._comparable(outputs)
        errors = (
            image_errors(close_by, self._original) if race and self._original is not None and self._can_race else None
        )
        n = self.samples.n if errors is None else len(errors)
        judge = self if n == self.samples.n else self._of_first(n)
        value, interval = self._score(outputs, judge)
        score = Score(self.metric, value, n, interval)
        kept = outputs if keep_outputs else None
        if judge is not self:
            assert errors is not None
            assert best is not None
            return Evaluation(score, inference_s, session_s, kept, estimate(errors, best), None, n)
        close = None if self._original is None else fidelity(close_by, self._original)
        if errors is not None and best is not None and errors.mean() >= best.mean():
            errors = None
        return Evaluation(score, inference_s, session_s, kept, close, errors)

    def _comparable(self, outputs: Outputs) -> Outputs:
        """Return outputs as their closeness is measured: class scores as soft probabilities, others thinned."""
        thin = thinned(outputs)
        if len(thin) != len(self._kinds):
            return thin
        kinds = zip(thin, self._kinds, strict=True)
        return [value if kind is None else soft_classes(value, kind) for value, kind in kinds]

    @property
    def _can_race(self) -> bool:
        """Whether the original's outputs have an error for each sample; detectors give any number of rows."""
        errors = None if self._original is None else image_errors(self._original, self._original)
        return errors is not None and len(errors) == self.samples.n

    def _of_first(self, n: int) -> Evaluator:
        """Return an evaluator of the first samples alone."""
        found = copy.copy(self)
        found.samples, found.n_first, found._first = self.samples.take(n), n, None
        found._reference = None if self._reference is None else [value[:n] for value in self._reference]
        if self._original is not None:
            found._original = [
                value[:n] if value.ndim and len(value) == self.samples.n else value for value in self._original
            ]
        return found

    def _is_lost(
        self, per_batch: list[list[np.ndarray]], valid_rows: list[int], best: FloatArray, margin: float
    ) -> bool:
        """Whether the batches so far show that a model is worse than the best one by so many standard errors."""
        assert self._original is not None
        rows = valid_rows[: len(per_batch)]
        outputs = [_join(parts, rows) for parts in zip(*per_batch, strict=True)]
        errors = image_errors(self._comparable(outputs), self._original)
        return errors is not None and len(errors) == sum(rows) and is_lost(errors, best, margin)

    def _run(self, model: Model | Run, best: FloatArray | None = None) -> tuple[Outputs, float, float]:
        feeds = self.samples.feeds(self.batch_size)
        start = perf_counter()
        run, _ = opened(model, self._threads, self._provider)
        session_s = perf_counter() - start
        inference_s = 0.0
        per_batch: list[list[np.ndarray]] = []
        valid_rows = self.samples.valid_rows(self.batch_size)
        coming = [] if best is None else looks(self.n_first, self.samples.n, self._stops_early)
        for feed, rows in zip(feeds, valid_rows, strict=True):
            start = perf_counter()
            outputs = run(feed)
            inference_s += perf_counter() - start
            per_batch.append([self._valid(value, rows) for value in outputs if isinstance(value, np.ndarray)])
            n = sum(valid_rows[: len(per_batch)])
            if coming and coming[0][0] <= n < self.samples.n:
                margin = coming[0][1]
                coming = [look for look in coming if look[0] > n]
                if best is not None and self._is_lost(per_batch, valid_rows, best, margin):
                    break
        rows_run = valid_rows[: len(per_batch)]
        return [_join(parts, rows_run) for parts in zip(*per_batch, strict=True)], inference_s, session_s

    def _valid(self, output: np.ndarray, rows: int) -> np.ndarray:
        """Return the output without the rows of padding, thinned where only some entries are compared."""
        fixed = self.samples.fixed_batch
        if fixed and rows < fixed and output.ndim and len(output) == fixed:
            output = output[:rows]
        return thinned([output])[0] if self.metric == "agreement" else output

    @property
    def reference(self) -> Outputs:
        """The original's outputs."""
        assert self._reference is not None
        return self._reference


Judged = tuple[float, tuple[float, float] | None]


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share in 0..1 of `n` samples, as shares (Wilson 1927)."""
    centre = share + Z95**2 / (2 * n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    scale = 1 + Z95**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def _join(parts: Sequence[np.ndarray], valid_rows: Sequence[int]) -> np.ndarray:
    """Return one array of all batches: end to end where each has a row for each sample, else stacked.

    Batches of different shapes (a varying number of boxes) become one flat array.
    """
    is_even = all(part.shape[1:] == parts[0].shape[1:] for part in parts)
    if is_even and all(part.ndim and len(part) == rows for part, rows in zip(parts, valid_rows, strict=True)):
        return np.concatenate(parts)
    if all(part.shape == parts[0].shape for part in parts):
        return np.stack(parts)
    return np.concatenate([p.ravel() for p in parts])


def _top(k: int) -> Callable[[Outputs, Evaluator], Judged]:
    def score(outputs: Outputs, evaluator: Evaluator) -> Judged:
        samples = evaluator.samples
        labels = samples.labels
        assert labels is not None
        candidates = (class_scores(output) for output in outputs if output.ndim and len(output) == samples.n)
        scores = next((s for s in candidates if s is not None), None)
        if scores is None:
            got = ", ".join(f"{o.dtype} {shape_text(o.shape)}" for o in outputs) or "no arrays"
            raise ModelError(
                f"model: no class scores among its outputs, got {got}; expected float [{samples.n}, classes]. "
                'Use metric "agreement" or "module:function".'
            )
        n_classes = scores.shape[1]
        if k > 1 and n_classes <= k:
            raise UsageError(
                f"metric: top{k} says nothing here, got {n_classes} classes; expected more than {k}. Use top1."
            )
        if labels.max() >= n_classes:
            raise DataError(
                f"{samples.name}: label is no class of the model, got {labels.max()}; expected 0..{n_classes - 1}. "
                "Check that the labels number the classes as the model does."
            )
        share = float(np.mean(ranks(scores, labels) < k))
        low, high = wilson(share, samples.n)
        return 100 * share, (100 * low, 100 * high)

    return score


def _agree(outputs: Outputs, evaluator: Evaluator) -> Judged:
    value = agreement(outputs, evaluator.reference)
    is_share = len(outputs) == 1 and class_scores(evaluator.reference[0]) is not None
    if not is_share:
        return value, None
    low, high = wilson(value / 100, evaluator.samples.n)
    return value, (100 * low, 100 * high)


METRICS: dict[str, Callable[[Outputs, Evaluator], Judged]] = {"top1": _top(1), "top5": _top(5), "agreement": _agree}


def _user_metric(text: str) -> Callable[[Outputs, Evaluator], Judged]:
    """Return the metric of a function named "module:function"; the working directory is searched as well."""
    module, _, name = text.partition(":")
    choices = ", ".join(METRICS) + ' or "module:function"'
    if not module or not name:
        raise UsageError(f"metric: unknown name, got {text!r}; expected {choices}. Choose one.")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        function: Any = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise UsageError(
            f"metric: cannot import {module!r}, got {str(error)!r}; expected a module. Run it from the module's folder."
        ) from None
    except (Exception, SystemExit) as error:  # the user's code may do anything
        raise UsageError(
            f"metric: {module} fails when it is imported, got {type(error).__name__}: {error}; expected a module. Correct it."
        ) from error
    finally:
        sys.path.remove(here)
    if not callable(function):
        raise UsageError(f"metric: no function {name!r} in {module}, got {function!r}; expected one. Correct the name.")

    def score(outputs: Outputs, evaluator: Evaluator) -> Judged:
        try:
            value = float(function(outputs, evaluator.samples.labels))
        except (Exception, SystemExit) as error:  # the user's code may do anything
            raise UsageError(
                f"metric: {text} failed, got {type(error).__name__}: {error}; expected a number. Correct the function."
            ) from error
        if math.isinf(value):
            raise UsageError(f"metric: {text} gave {value}; expected a finite number. Correct the function.")
        return (0.0 if math.isnan(value) else value), None

    return score

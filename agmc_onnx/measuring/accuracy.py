"""How well a model does on samples: top-1, top-5, agreement with the original, or a user's own metric."""

from __future__ import annotations

import copy
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx

from agmc_onnx.arrays import FloatArray
from agmc_onnx.data.card import LABELLED, NEEDS_LABELS, TEXTS, shape_text
from agmc_onnx.data.samples import Samples
from agmc_onnx.errors import DataError, ModelError, UsageError
from agmc_onnx.graph.files import read_model
from agmc_onnx.measuring.agreeing import MEASURES, Counted, Interval, Judged, against_labels, agreement, wilson
from agmc_onnx.measuring.closeness import (
    are_probabilities,
    class_scores,
    fidelity,
    names_classes,
    ranks,
    soft_classes,
)
from agmc_onnx.measuring.outputs import Answer, Seen, answers_by_shape, answers_of
from agmc_onnx.measuring.racing import estimate, image_errors, is_lost, looks
from agmc_onnx.measuring.session import Model, Run, opened

BATCH = 20  # samples per inference: values of CIFAR networks stay in cache; 100 take 5 to 8 % longer

Outputs = list[np.ndarray]
UserMetric = Callable[[Outputs, np.ndarray | None], float]


@dataclass(frozen=True)
class Score:
    """A metric's value.

    Attributes:
        name: The metric: top1, top5, "module:function"; or what "agreement" came to for the kind of output, a key of
            `agreeing.MEASURES`, "agreement" (classes) or "closeness" (numbers).
        value: Percent, 0..100, or decibels; of a "module:function" metric, what the function returned (nan counts as 0).
        n: Number of samples.
        interval: (low, high) of 95 % confidence in the same unit: Wilson's of shares of samples, else of the bootstrap; or None.
    """

    name: str
    value: float
    n: int
    interval: Interval | None


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
        counted: What the metric counted sample by sample, where it did.
    """

    score: Score
    inference_s: float
    session_s: float
    outputs: Outputs | None = None
    fidelity: float | None = None
    errors: FloatArray | None = None
    n_images: int | None = None
    counted: Counted | None = None


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
        reference: Model | Run | None = None,
        original: Model | Run | None = None,
        answers: Sequence[Answer] | None = None,
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
            reference: The original model, for metrics that need no labels.
            original: Model whose outputs the fidelity is measured to, class scores (metrics top1 and top5 say that they are)
                as `soft_classes`; None: fidelity is not measured.
            answers: What the outputs are (`measuring.outputs`); None: the original's graph tells.
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
        self._answers = None if answers is None else tuple(answers)
        self._told: list[Seen] | None = None  # what the original says
        self._kinds: list[bool | None] = []  # of its answers: class scores, as probabilities or not; None: others
        self._original: Outputs | None = None  # what closeness is measured to
        if needs_original(metric) and reference is None:
            raise UsageError(f"metric: {metric} needs a reference, got none; expected the original. Pass its model.")
        teacher = reference if needs_original(metric) else original
        self._compares = teacher is not None
        if teacher is not None:
            if self._answers is None:
                self._answers = _answers_of(teacher)
            self._told = self._run(teacher).seen
        if original is not None and self._told is not None:
            compared = [seen.compared for seen in self._told]
            if names_classes(metric):
                self._kinds = [are_probabilities(o) if class_scores(o) is not None else None for o in compared]
            self._original = self._comparable(compared)
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
            keep_outputs: Return the outputs too; of metrics that need no labels, what was counted of them.
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
        ran = self._run(model, best)
        close_by = [] if self._original is None else self._comparable([seen.compared for seen in ran.seen])
        errors = (
            image_errors(close_by, self._original) if race and self._original is not None and self._can_race else None
        )
        n = self.samples.n if errors is None else len(errors)
        judge = self if n == self.samples.n else self._of_first(n)
        judged = self._score(ran, judge)
        score = Score(judged.name, judged.value, n, judged.interval)
        kept, costs = ran.outputs if keep_outputs else None, (ran.inference_s, ran.session_s)
        if judge is not self:
            assert errors is not None
            assert best is not None
            return Evaluation(score, *costs, kept, estimate(errors, best), None, n)
        close = None if self._original is None else fidelity(close_by, self._original)
        if errors is not None and best is not None and errors.mean() >= best.mean():
            errors = None
        return Evaluation(score, *costs, kept, close, errors, counted=judged.counted)

    def _comparable(self, compared: Outputs) -> Outputs:
        """Return what is compared of outputs; class scores as soft probabilities where the metric says that they are."""
        if len(compared) != len(self._kinds):
            return compared
        kinds = zip(compared, self._kinds, strict=True)
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
        rows = self.samples.n

        def cut(value: np.ndarray) -> np.ndarray:
            return value[:n] if value.ndim and len(value) == rows else value

        if self._told is not None:
            found._told = [replace(one, compared=cut(one.compared), said=cut(one.said)) for one in self._told]
        if self._original is not None:
            found._original = [cut(value) for value in self._original]
        return found

    def _is_lost(self, seen: Sequence[Sequence[Seen]], rows: Sequence[int], best: FloatArray, margin: float) -> bool:
        """Whether the batches so far show that a model is worse than the best one by so many standard errors."""
        assert self._original is not None
        compared = [_join([one.compared for one in parts], rows) for parts in zip(*seen, strict=True)]
        errors = image_errors(self._comparable(compared), self._original)
        return errors is not None and len(errors) == sum(rows) and is_lost(errors, best, margin)

    def _run(self, model: Model | Run, best: FloatArray | None = None) -> _Ran:
        """Run a model on all samples, or till it is clearly lost; without `_told` it is the original."""
        feeds = self.samples.feeds(self.batch_size)
        start = perf_counter()
        run, _ = opened(model, self._threads, self._provider)
        session_s = perf_counter() - start
        inference_s, at = 0.0, 0
        raw: list[list[np.ndarray]] = []
        seen: list[list[Seen]] = []
        valid_rows = self.samples.valid_rows(self.batch_size)
        coming = [] if best is None else looks(self.n_first, self.samples.n, self._stops_early)
        for feed, rows in zip(feeds, valid_rows, strict=True):
            start = perf_counter()
            outputs = run(feed)
            inference_s += perf_counter() - start
            arrays = [self._valid(value, rows) for value in outputs if isinstance(value, np.ndarray)]
            if not needs_original(self.metric):
                raw.append(arrays)
            if self._compares:
                seen.append(self._look(arrays, at, rows))
            at += rows
            if coming and coming[0][0] <= at < self.samples.n:
                margin = coming[0][1]
                coming = [look for look in coming if look[0] > at]
                if best is not None and self._is_lost(seen, valid_rows[: len(seen)], best, margin):
                    break
        rows_run = valid_rows[: max(len(raw), len(seen))]
        outputs = [_join(parts, rows_run) for parts in zip(*raw, strict=True)]
        joined = [_joined(parts, rows_run) for parts in zip(*seen, strict=True)]
        return _Ran(outputs or [one.said for one in joined], joined, inference_s, session_s)

    def _look(self, arrays: list[np.ndarray], at: int, rows: int) -> list[Seen]:
        """Return what is looked at of a batch whose first sample is number `at`."""
        if self._told is None and not at:
            known = self._answers or ()
            if not known or max(i for answer in known for i in answer.at) >= len(arrays):
                known = answers_by_shape(arrays)
            self._answers = tuple(answer.settled(arrays) for answer in known)
        assert self._answers is not None
        marks = [None if one.marks is None else one.marks[at : at + rows] for one in self._told or ()]
        return [
            answer.seen(arrays, marks[i] if marks else None)
            for i, answer in enumerate(self._answers)
            if answer.at[-1] < len(arrays)
        ]

    def _valid(self, output: np.ndarray, rows: int) -> np.ndarray:
        """Return the output without the rows of padding."""
        fixed = self.samples.fixed_batch
        return output[:rows] if fixed and rows < fixed and output.ndim and len(output) == fixed else output

    @property
    def reference(self) -> Outputs:
        """What is counted of the original's outputs."""
        assert self._told is not None
        return [one.said for one in self._told]


@dataclass(frozen=True)
class _Ran:
    """What a model answered, and what it took."""

    outputs: Outputs
    seen: list[Seen]
    inference_s: float
    session_s: float


def needs_original(metric: str) -> bool:
    """Return whether a metric holds answers against the original's."""
    return metric == "agreement" or metric in MEASURES


def _answers_of(teacher: Model | Run) -> tuple[Answer, ...] | None:
    """Return what the graph of a model tells of its outputs; None of a function."""
    if isinstance(teacher, onnx.ModelProto):
        return answers_of(teacher)
    if isinstance(teacher, Path):
        return answers_of(read_model(teacher).proto)
    return answers_of(onnx.load_model_from_string(teacher)) if isinstance(teacher, bytes) else None


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


def _joined(parts: Sequence[Seen], rows: Sequence[int]) -> Seen:
    marks = [part.marks for part in parts if part.marks is not None]
    return Seen(
        _join([part.compared for part in parts], rows),
        _join([part.said for part in parts], rows),
        _join(marks, rows) if marks else None,
    )


def _top(k: int) -> Callable[[_Ran, Evaluator], Judged]:
    def score(ran: _Ran, evaluator: Evaluator) -> Judged:
        samples, outputs = evaluator.samples, ran.outputs
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
        return Judged(f"top{k}", 100 * share, (100 * low, 100 * high))

    return score


def _agree(ran: _Ran, evaluator: Evaluator) -> Judged:
    told, answers = evaluator._told, evaluator._answers
    assert told is not None
    assert answers is not None
    labels, metric = evaluator.samples.labels, evaluator.metric
    at = next((i for i, answer in enumerate(answers) if answer.kind in ("positions", "mask")), None)
    if metric in TEXTS and at is None:
        kinds = ", ".join(answer.kind for answer in answers)
        raise DataError(
            f"metric {metric}: no output of the model is classes at positions, got {kinds}; expected one. Say which it is in"
            ' the card: NAME = "positions" under [outputs].'
        )
    if metric in LABELLED and labels is not None and at is not None:
        return against_labels(answers[at], ran.seen[at], labels, metric)
    return agreement(answers, ran.seen, told, evaluator.metric)


METRICS: dict[str, Callable[[_Ran, Evaluator], Judged]] = {
    "top1": _top(1), "top5": _top(5), "agreement": _agree, **dict.fromkeys(MEASURES, _agree),
}  # fmt: skip


def user_function(text: str, what: str, choices: str = '"module:function"') -> Callable[..., Any]:
    """Return the function of a user's that is named "module:function"; the working directory is searched as well.

    Args:
        text: Its name.
        what: What it is for, as errors say it: "metric".
        choices: What else might be named.

    Raises:
        UsageError: If there is none, or its module cannot be imported.
    """
    module, _, name = text.partition(":")
    if not module or not name:
        raise UsageError(f"{what}: unknown name, got {text!r}; expected {choices}. Choose one.")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        function: Any = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise UsageError(
            f"{what}: cannot import {module!r}, got {str(error)!r}; expected a module. Run it from the module's folder."
        ) from None
    except (Exception, SystemExit) as error:  # the user's code may do anything
        raise UsageError(
            f"{what}: {module} fails when it is imported, got {type(error).__name__}: {error}; expected a module. Correct it."
        ) from error
    finally:
        sys.path.remove(here)
    if not callable(function):
        raise UsageError(f"{what}: no function {name!r} in {module}, got {function!r}; expected one. Correct the name.")
    return function  # type: ignore[no-any-return]


def _user_metric(text: str) -> Callable[[_Ran, Evaluator], Judged]:
    """Return the metric of a function named "module:function"."""
    function = user_function(text, "metric", ", ".join(METRICS) + ' or "module:function"')

    def score(ran: _Ran, evaluator: Evaluator) -> Judged:
        try:
            value = float(function(ran.outputs, evaluator.samples.labels))
        except (Exception, SystemExit) as error:  # the user's code may do anything
            raise UsageError(
                f"metric: {text} failed, got {type(error).__name__}: {error}; expected a number. Correct the function."
            ) from error
        if math.isinf(value):
            raise UsageError(f"metric: {text} gave {value}; expected a finite number. Correct the function.")
        return Judged(text, 0.0 if math.isnan(value) else value)

    return score

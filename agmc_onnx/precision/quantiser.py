"""What quantises a run's models: ranges and biases from its calibration role, and what stays float where nothing else works."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from agmc_onnx.data.samples import Samples
from agmc_onnx.errors import ModelError
from agmc_onnx.measuring.accuracy import Evaluator
from agmc_onnx.measuring.session import make_session
from agmc_onnx.precision.int8 import TARGETS, corrected_biases, plain, precision_of, target_here, write_int8
from agmc_onnx.precision.ranges import Observed, Range, extremes, least_error, observe

__all__ = ["Quantised", "Quantiser", "target_here"]

Kind = Callable[
    [onnx.ModelProto, Mapping[str, Observed], bool], dict[str, Range]
]  # of the plain model, and whether symmetric

KINDS: dict[str, Kind] = {
    "extremes": lambda model, observed, is_symmetric: extremes(observed),
    "least error": lambda model, observed, is_symmetric: least_error(observed, is_symmetric),
}
SAMPLES = 100  # of the calibration role
MOST_FLOAT = 16  # nodes that may stay float one after the other, because onnxruntime refuses what was made of them


@dataclass(frozen=True)
class Tried:
    """A division of a model's nodes into int8 and float, as it was measured on the calibration role.

    Attributes:
        kind: "float", "int8" or "mixed".
        n_float: Nodes in float.
        time: Share of the float model's.
        alike: Percent, the lesser of closeness and agreement with the float model.
        name: What agreement came to for its outputs.
        value: Of it.
        is_taken: Whether it has the least time / alike.
    """

    kind: str
    n_float: int
    time: float
    alike: float
    name: str
    value: float
    is_taken: bool = False


@dataclass(frozen=True, eq=False)
class Quantised:
    """A quantised model.

    Attributes:
        model: Takes and gives what the float model does.
        precision: "int8" or "float" of every node of the float model, by its first output.
        ranges: "extremes" or "least error", whichever answers more as the float model does on the calibration role.
        why_float: Why nodes stay float although their kind has integer kernels, by name: onnxruntime refuses them.
        stays: Why nodes stay float of mixed precision, by name.
        tried: What was measured before that was chosen.
    """

    model: onnx.ModelProto
    precision: Mapping[str, str]
    ranges: str
    why_float: Mapping[str, str] = field(default_factory=dict)
    stays: Mapping[str, str] = field(default_factory=dict)
    tried: tuple[Tried, ...] = ()

    @property
    def n_int8(self) -> int:
        """Nodes of the float model that compute in int8."""
        return sum(one == "int8" for one in self.precision.values())


@dataclass(frozen=True, eq=False)
class Prepared:
    """A float model before it is quantised.

    Attributes:
        model: As it was given.
        plain: Its plain form.
        observed: What its values are on the calibration role.
        ranges: Of them, by kind.
        judge: Says how alike another model answers there.
    """

    model: onnx.ModelProto
    plain: onnx.ModelProto
    observed: Mapping[str, Observed]
    ranges: Mapping[str, Mapping[str, Range]]
    judge: Evaluator


class Quantiser:
    """Quantises float models; what it made last is kept.

    Attributes:
        target: Key of `TARGETS`.
    """

    def __init__(
        self, samples: Samples, target: str, threads: int = 1, kinds: Mapping[str, Kind] = KINDS, n: int = SAMPLES
    ) -> None:
        """Take some of the calibration role.

        Args:
            samples: Of it.
            target: Key of `TARGETS`.
            threads: Of onnxruntime.
            kinds: Ways to find ranges, by name; the one that answers best is taken.
            n: Samples, at most.
        """
        self.target, self._threads, self._kinds = target, threads, kinds
        self._samples, self._one = samples.take(min(samples.n, n)), samples.take(1)
        self._last: dict[bytes, Quantised] = {}

    def __call__(self, model: onnx.ModelProto, stay_float: Sequence[str] = ()) -> Quantised:
        """Return a model quantised, with the ranges that answer best.

        Args:
            model: In float; not changed.
            stay_float: Names of nodes of its plain form.

        Raises:
            ModelError: If it cannot be quantised.
        """
        key = hashlib.sha256(model.SerializeToString(deterministic=True) + repr(stay_float).encode()).digest()
        if key not in self._last:
            self._last = {key: self._quantised(model, stay_float)}
        return self._last[key]

    def _quantised(self, model: onnx.ModelProto, stay_float: Sequence[str]) -> Quantised:
        return self._best(self._prepared(model), stay_float)

    def _prepared(self, model: onnx.ModelProto) -> Prepared:
        simple = plain(model)
        judge = Evaluator(self._samples, "agreement", reference=model, original=model, threads=self._threads)
        observed = observe(simple, self._samples, self._threads)
        is_symmetric = TARGETS[self.target].symmetric
        ranges = {name: kind(simple, observed, is_symmetric) for name, kind in self._kinds.items()}
        return Prepared(model, simple, observed, ranges, judge)

    def _best(self, given: Prepared, stay_float: Sequence[str]) -> Quantised:
        """Return a model quantised with the ranges that answer best."""
        made = [self._made(given, name, stay_float) for name in self._kinds]
        return max(made, key=lambda one: given.judge(one.model).fidelity or 0.0)  # the first of equals

    def _made(self, given: Prepared, ranges: str, stay_float: Sequence[str]) -> Quantised:
        """Return a model quantised with ranges of one of the kinds."""
        target = TARGETS[self.target]
        corrected = corrected_biases(given.plain, given.observed, target, stay_float)
        made, why = self._running(corrected, given.ranges[ranges], stay_float)
        return Quantised(made, precision_of(given.model, given.plain, made), ranges, why)

    def for_timing(self, model: onnx.ModelProto, stay_float: Sequence[str] = ()) -> onnx.ModelProto:
        """Return a model quantised as `__call__` does it, but with the ranges of one sample: its times are the same."""
        plain_model = plain(model)
        return self._running(plain_model, extremes(observe(plain_model, self._one, self._threads)), stay_float)[0]

    def _running(
        self, plain_model: onnx.ModelProto, ranges: Mapping[str, Range], stay_float: Sequence[str]
    ) -> tuple[onnx.ModelProto, dict[str, str]]:
        """Return the quantised model, and which nodes stay float for that onnxruntime loads it, and why."""
        names = sorted((node.name for node in plain_model.graph.node), key=len, reverse=True)
        why: dict[str, str] = {}
        while True:
            made = write_int8(plain_model, ranges, TARGETS[self.target], [*stay_float, *why])
            try:
                make_session(made, self._threads)
            except ModelError as error:
                text = str(error)
                wrong = next((name for name in names if name in text and name not in why), None)
                if wrong is None or len(why) >= MOST_FLOAT:
                    raise
                why[wrong] = text
            else:
                return made, why

"""Whether an imported model answers as its source does, on the same synthetic inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from agmc_onnx.data.samples import Samples, synthetic
from agmc_onnx.errors import AgmcError, ModelError
from agmc_onnx.exchange.importers.source import Conversion, one_line, silence
from agmc_onnx.measuring.random_inputs import runnable
from agmc_onnx.measuring.session import make_session, model_inputs, run_model

BATCHES = (1, 2, 5)  # where the batch is open; each also says that the batch really is
N_SAMPLES = sum(BATCHES)
# Largest difference that counts as rounding, as a share of the largest output. Some 800 roundings of float32 in a row;
# imports of sound networks differ by less than 1e-5 here (docs/import.md).
ALLOWED = {"float64": 1e-4, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


@dataclass(frozen=True)
class OutputAgreement:
    """How far one output of the imported model is from that of its source.

    Attributes:
        name: Of the graph output.
        max_abs: Largest absolute difference; for outputs that are no floats, the share of entries that differ.
        max_rel: `max_abs` as a share of the largest absolute value of the source's output.
        allowed: Largest `max_rel` that counts as rounding; 0 for outputs that are no floats.
        varies: Whether the source's output is not the same for all samples; if not, the comparison says little.
    """

    name: str
    max_abs: float
    max_rel: float
    allowed: float
    varies: bool

    @property
    def holds(self) -> bool:
        """Return whether the difference is rounding."""
        return bool(self.max_rel <= self.allowed)  # False for nan


@dataclass(frozen=True)
class Agreement:
    """How far an imported model is from its source.

    Attributes:
        outputs: One entry for each graph output.
        n_samples: Synthetic samples compared.
        batches: Sizes of the batches they were fed in.
        notes: What the user should know.
    """

    outputs: tuple[OutputAgreement, ...]
    n_samples: int
    batches: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Return whether all outputs agree to rounding."""
        return all(output.holds for output in self.outputs)

    @property
    def worst(self) -> OutputAgreement:
        """Return the output that differs most, in terms of what is allowed."""
        return max(self.outputs, key=lambda output: (not output.holds, output.max_rel))


def compare(conversion: Conversion, seed: int = 0) -> Agreement:
    """Return how an imported model agrees with its source, on synthetic samples in batches of several sizes.

    Args:
        conversion: Model and source.
        seed: Of the samples.

    Raises:
        ModelError: If one of the two does not run, or they give different outputs in number or shape.
    """
    model = conversion.model
    samples = runnable(model, N_SAMPLES, seed)
    feeds = _feeds(_with_ranges(samples, conversion.ranges, seed))
    session = make_session(model)
    names = [value.name for value in model.graph.output]
    pairs: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in names]
    for feed in feeds:
        found = run_model(session, feed)
        for place, pair in zip(pairs, _pairs(names, found, _ask(conversion, feed)), strict=True):
            place.append(pair)
    notes = _other_sizes(conversion, session, seed)
    outputs = tuple(_judge(name, place) for name, place in zip(names, pairs, strict=True))
    sizes = tuple(_batch_of(feed) for feed in feeds)
    return Agreement(outputs, sum(sizes), sizes, notes)


def _feeds(samples: Samples) -> list[dict[str, np.ndarray]]:
    if samples.fixed_batch is not None:
        n = max(3 * samples.fixed_batch, 3)
        return samples.take(min(n, samples.n)).feeds(samples.fixed_batch)
    starts = np.cumsum((0, *BATCHES[:-1]))
    return [samples.read(np.arange(start, start + n)) for start, n in zip(starts, BATCHES, strict=True)]


def _with_ranges(samples: Samples, ranges: Mapping[str, tuple[int, int]], seed: int) -> Samples:
    """Return the samples with integers drawn from their ranges, such as tokens of the whole vocabulary."""
    if not ranges:
        return samples
    generator = np.random.default_rng(seed)
    plain = samples.read(np.arange(samples.n))
    arrays = {
        name: generator.integers(*ranges[name], array.shape).astype(array.dtype) if name in ranges else array
        for name, array in plain.items()
    }
    read = lambda index: {name: array[index] for name, array in arrays.items()}  # noqa: E731
    return Samples(samples.name, read, np.arange(samples.n), None, fixed_batch=samples.fixed_batch)


def _ask(conversion: Conversion, feed: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
    try:
        with silence():
            return [np.asarray(array) for array in conversion.answer(feed)]
    except AgmcError:
        raise
    except Exception as error:  # the source framework may raise anything
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
        raise ModelError(
            f"agreement: {conversion.framework} fails on inputs that the imported model takes ({shapes}), got"
            f" {one_line(error)!r}; expected outputs. Fix the sizes with --input-shape, or give --fixed-batch."
        ) from error


def _pairs(
    names: Sequence[str], found: Sequence[Any], wanted: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    if len(found) != len(wanted):
        raise ModelError(
            f"agreement: the imported model has {len(found)} outputs ({', '.join(names)}), the source gives {len(wanted)};"
            " expected as many. Look at the outputs of the source."
        )
    pairs = []
    for name, one, other in zip(names, found, wanted, strict=True):
        array = np.asarray(one)
        if array.shape != other.shape:
            raise ModelError(
                f"agreement: output {name} has shape {list(array.shape)}, the source gives {list(other.shape)}; expected"
                " the same. The converter has fixed a size: give --fixed-batch, or other --input-shape."
            )
        pairs.append((array, other))
    return pairs


def _judge(name: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> OutputAgreement:
    found, wanted = (np.concatenate([np.atleast_1d(pair[i]) for pair in pairs]) for i in (0, 1))
    varies = bool(len(wanted) > 1 and (wanted != wanted[:1]).any())
    if not (np.issubdtype(wanted.dtype, np.floating) and np.issubdtype(found.dtype, np.floating)):
        if not all(array.dtype == np.bool_ or np.issubdtype(array.dtype, np.number) for array in (found, wanted)):
            found, wanted = found.astype(str), wanted.astype(str)
        differing = float(np.mean(found != wanted)) if wanted.size else 0.0
        return OutputAgreement(name, differing, differing, 0.0, varies)
    allowed = max(ALLOWED.get(str(array.dtype), ALLOWED["float32"]) for array in (found, wanted))
    if not wanted.size:
        return OutputAgreement(name, 0.0, 0.0, allowed, False)
    with np.errstate(invalid="ignore"):  # infinities agree with themselves
        difference = np.where(found == wanted, 0.0, np.abs(found.astype(np.float64) - wanted))
    finite = np.abs(wanted[np.isfinite(wanted)]).astype(np.float64)
    scale = finite.max() if finite.size else 1.0
    worst = float(difference.max())
    return OutputAgreement(name, worst, worst / scale if worst and scale else worst, allowed, varies)


def _other_sizes(conversion: Conversion, session: Any, seed: int) -> tuple[str, ...]:
    """Try a second size of the dims that stay open beside the batch; the first was the usual one."""
    inputs = model_inputs(conversion.model)
    if not any(size is None for spec in inputs for size in spec.shape[1:]):
        return ()
    first = runnable(conversion.model, 1, seed).read(np.arange(1))
    usual = max(
        size for spec in inputs for size, known in zip(first[spec.name].shape, spec.shape, strict=True) if not known
    )
    size = usual + usual // 2
    samples = _with_ranges(synthetic(inputs, 2, seed, default_size=size), conversion.ranges, seed)
    feed = samples.read(np.arange(2)) if samples.fixed_batch is None else samples.take(1).feeds(1)[0]
    names = [value.name for value in conversion.model.graph.output]
    try:
        pairs = _pairs(names, run_model(session, feed), _ask(conversion, feed))
    except ModelError as error:
        return (f"open dims: {usual} works, {size} does not ({one_line(str(error), 120)})",)
    if not all(_judge(name, [pair]).holds for name, pair in zip(names, pairs, strict=True)):
        return (f"open dims: the two agree at {usual}, but not at {size}; feed {usual} only",)
    return ()


def _batch_of(feed: Mapping[str, np.ndarray]) -> int:
    return max((len(array) for array in feed.values() if array.ndim), default=1)


def check_model(model: onnx.ModelProto, what: str) -> None:
    """Raise where a converted model is not valid ONNX that onnxruntime takes.

    Raises:
        ModelError: If the checker or onnxruntime refuses it.
    """
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    local = {function.name for function in model.functions}
    kinds = {node.op_type for node in model.graph.node if node.domain in ("", "ai.onnx")} - local
    unknown = sorted(kind for kind in kinds if not onnx.defs.has(kind, opset, ""))
    if unknown:
        raise ModelError(
            f"{what}: the converter left ops that ONNX has not in opset {opset}, got {', '.join(unknown)}; expected none."
            " Replace them in the network, or try another --opset."
        )
    try:
        onnx.checker.check_model(model)
    except ValueError as error:
        if "too large" not in str(error):  # above 2 GB it cannot be checked in memory; onnxruntime below still reads it
            raise ModelError(
                f"{what}: the converted model is not valid, got {one_line(error)!r}. Convert it anew."
            ) from None
    except onnx.checker.ValidationError as error:
        raise ModelError(
            f"{what}: the converted model is not valid ONNX, got {one_line(error)!r}; expected one that onnx.checker takes."
            " Try another --opset."
        ) from None
    make_session(model)

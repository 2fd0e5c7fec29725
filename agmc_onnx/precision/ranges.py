"""Ranges of a network's values, from one pass over calibration samples: the extremes, or those with the least error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from agmc_onnx.arrays import FloatArray
from agmc_onnx.data.samples import Samples
from agmc_onnx.measuring.session import make_session, run_model

Range = tuple[float, float]

CHUNK = 10  # samples whose values of every node are in memory at once, at most
CHUNK_BYTES = 256_000_000  # that these may take
ENTRIES = 4096  # of every value and chunk, at equal distances, that errors are computed on
CLIPS = np.linspace(1.0, 0.4, 13)  # shares of the extremes that are tried


@dataclass(frozen=True, eq=False)
class Observed:
    """What a value was on calibration samples.

    Attributes:
        low, high: Extremes.
        entries: Some of it, float32 (n,).
        mean: Of every channel, (channels,); None for values without channels.
    """

    low: float
    high: float
    entries: FloatArray
    mean: FloatArray | None


def observe(model: onnx.ModelProto, samples: Samples, threads: int = 1) -> dict[str, Observed]:
    """Return what every float value of a model is on samples, inputs included.

    Args:
        model: With the shapes of its values.
        samples: Calibration.
        threads: Of onnxruntime.

    Raises:
        ModelError: If onnxruntime cannot run it.
    """
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    outputs = {value.name for value in model.graph.output}
    float_values = [
        value.name for value in model.graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    ]
    known = {name for node in model.graph.node for name in node.output}
    wide.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in float_values if name not in outputs and name in known
    )
    session = make_session(wide, threads, optimise=False)
    names = [value.name for value in wide.graph.output]
    seen: dict[str, list[tuple[float, float, FloatArray, FloatArray | None, int]]] = {}
    first = run_model(session, next(iter(samples.batches(samples.batch_size(1))))[0])
    each = sum(value.nbytes for value in first if isinstance(value, np.ndarray))
    chunk = int(np.clip(CHUNK_BYTES // max(each, 1), 1, CHUNK))
    for feed, _ in samples.batches(samples.batch_size(chunk)):
        values = dict(zip(names, run_model(session, feed), strict=True)) | dict(feed)
        for name, value in values.items():
            if isinstance(value, np.ndarray) and value.dtype == np.float32 and value.size:
                seen.setdefault(name, []).append(_of(value))
    return {name: _joined(parts) for name, parts in seen.items()}


def _of(value: np.ndarray) -> tuple[float, float, FloatArray, FloatArray | None, int]:
    flat = value.ravel()
    mean = value.mean(axis=(0, *range(2, value.ndim))) if value.ndim > 1 else None
    entries = flat[:: max(1, flat.size // ENTRIES)].copy()
    return float(flat.min()), float(flat.max()), entries, mean, len(value) if value.ndim else 1


def _joined(parts: list[tuple[float, float, FloatArray, FloatArray | None, int]]) -> Observed:
    means = [(mean, n) for _, _, _, mean, n in parts if mean is not None]
    same = len(means) == len(parts) and len({mean.shape for mean, _ in means}) == 1
    mean = sum(mean * n for mean, n in means) / sum(n for _, n in means) if same else None
    return Observed(
        min(part[0] for part in parts),
        max(part[1] for part in parts),
        np.concatenate([part[2] for part in parts]),
        None if mean is None else np.asarray(mean, np.float64),
    )


def extremes(observed: Mapping[str, Observed]) -> dict[str, Range]:
    """Return the ranges from the lowest to the highest value."""
    return {name: (one.low, one.high) for name, one in observed.items()}


def least_error(observed: Mapping[str, Observed], is_symmetric: bool = False) -> dict[str, Range]:
    """Return the ranges at which rounding to 255 steps, and clipping what lies outside, changes the values least.

    The squared error over the shares `CLIPS` of both extremes; as MSE ranges of Nagel et al. 2021, arXiv:2106.08295, sec. 3.1.
    """
    found = {}
    for name, one in observed.items():
        low, high = min(one.low, 0.0), max(one.high, 0.0)
        if is_symmetric:
            low, high = -max(-low, high), max(-low, high)
        best = (np.inf, (low, high))
        for clip in CLIPS.tolist():
            a, b = clip * low, clip * high
            step = max((b - a) / 255, 1e-30)
            near = np.rint(np.clip(one.entries, a, b) / step) * step
            best = min(best, (float(((near - one.entries) ** 2).mean()), (a, b)))
        found[name] = best[1]
    return found

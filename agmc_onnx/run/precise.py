"""The precision of a run: candidates as they will run, quantised where that was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx

from agmc_onnx.errors import UsageError
from agmc_onnx.latency.layout import keep_layout
from agmc_onnx.latency.tables import layout_block
from agmc_onnx.measuring.roles import Roles
from agmc_onnx.options import CompressOptions
from agmc_onnx.precision.mixed import MixedQuantiser
from agmc_onnx.precision.quantiser import Quantised, Quantiser, target_here

_QUANTISERS: WeakKeyDictionary[Roles, dict[str, Quantiser]] = WeakKeyDictionary()  # of a run, by precision


def quantiser_of(data: Roles, settings: CompressOptions) -> Quantiser | None:
    """Return what quantises a run's models; None where they stay float.

    Raises:
        UsageError: If there is no data: ranges of made-up inputs are none.
    """
    precision, here = settings.sparsity.precision, settings.execution
    if precision not in ("int8", "mixed"):
        return None
    if not data.real:
        raise UsageError(
            f"--precision: {precision} needs inputs to find the range of every value, got no --data; expected a card with a"
            " calibration role. Add --data CARD."
        )
    known = _QUANTISERS.setdefault(data, {})
    if precision not in known:
        kind = MixedQuantiser if precision == "mixed" else Quantiser
        known[precision] = kind(data.role("calibration"), target_here(here.provider), here.threads)
        if precision == "mixed":
            known[precision](data.original)  # which says what rounding is worth
    return known[precision]


def quantised(model: onnx.ModelProto, data: Roles, settings: CompressOptions) -> Quantised | None:
    """Return a float model quantised as the run asks; None where it stays float."""
    quantiser = quantiser_of(data, settings)
    return None if quantiser is None else quantiser(model)


def as_run(model: onnx.ModelProto, data: Roles, settings: CompressOptions) -> onnx.ModelProto:
    """Return a float model as it is written, judged and timed."""
    found = quantised(model, data, settings)
    return laid_out(model, settings.execution.provider) if found is None or not found.n_int8 else found.model


def as_timed(model: onnx.ModelProto, data: Roles, settings: CompressOptions) -> onnx.ModelProto:
    """Return a float model that takes as long as `as_run` would make it."""
    quantiser = quantiser_of(data, settings)
    return laid_out(model, settings.execution.provider) if quantiser is None else quantiser.for_timing(model)


def laid_out(model: onnx.ModelProto, provider: str) -> onnx.ModelProto:
    """Return a float result as it is written and timed: its shortcuts keep to onnxruntime's layout where there is one here."""
    return model if provider == "cuda" else keep_layout(model, layout_block())


def rank_correlation(finalists: Sequence[Mapping[str, Any]]) -> float | None:
    """Return Spearman's correlation of what finalists are worth in float and quantised; None of fewer than three."""
    pairs = [(one["float_fidelity"], one["fidelity"]) for one in finalists if one.get("float_fidelity") is not None]
    if len(pairs) < 3 or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return None
    from scipy.stats import spearmanr  # takes as long to import as a small model to inspect

    found = float(spearmanr(np.array(pairs)[:, 0], np.array(pairs)[:, 1]).statistic)
    return found if np.isfinite(found) else None

"""ONNX with 8-bit integers: QuantizeLinear and DequantizeLinear around every node, ranges from the calibration role."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from agmc_onnx.data.samples import Feed, Samples
from agmc_onnx.errors import DataError
from agmc_onnx.exchange.exporters.row import Source
from agmc_onnx.graph.files import read_model, write_model
from agmc_onnx.precision.int8 import quiet
from agmc_onnx.precision.mixed import MixedQuantiser
from agmc_onnx.precision.quantiser import KINDS, Quantiser
from agmc_onnx.precision.ranges import CHUNK, Observed, Range
from agmc_onnx.reporting.text import division_lines


def to_int8(source: Source, path: Path) -> list[str]:
    """Write a statically quantised model, as `precision.quantiser` makes it; return what has to be known of it.

    Raises:
        DataError: If there is no calibration role.
    """
    return _write("int8", Quantiser, source, path)


def to_mixed(source: Source, path: Path) -> list[str]:
    """Write a model in int8 where that is worth it, as `precision.mixed` makes it; return as `to_int8`.

    Raises:
        DataError: If there is no calibration role.
    """
    return _write("mixed", MixedQuantiser, source, path)


def _write(name: str, kind: type[Quantiser], source: Source, path: Path) -> list[str]:
    if source.calibration is None:
        raise DataError(
            f"{name}: needs inputs to find the range of every value, got no --data; expected a card with a calibration role. "
            "Add --data CARD."
        )
    settings = source.settings
    samples = source.calibration.take(settings.calibration_samples)
    kinds: dict[str, Any] = {
        "best": KINDS,
        "minmax": {"extremes": KINDS["extremes"]},
        "percentile": {"percentile": partial(_as_onnxruntime, "Percentile", samples)},
        "entropy": {"entropy": partial(_as_onnxruntime, "Entropy", samples)},
    }
    quantiser = kind(samples, settings.target, settings.threads, kinds[settings.calibrate], samples.n)
    found = quantiser(read_model(source.path).proto)
    write_model(found.model, path)
    return [
        f"stays float, since onnxruntime refuses it in int8: {node} ({why[:160]})"
        for node, why in found.why_float.items()
    ] + division_lines([asdict(one) for one in found.tried], found.stays)


def _as_onnxruntime(
    method: str, samples: Samples, plain_model: onnx.ModelProto, observed: Mapping[str, Observed], is_symmetric: bool
) -> dict[str, Range]:
    """Return the ranges that a calibrator of onnxruntime finds."""
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    with tempfile.TemporaryDirectory(prefix="agmc-") as folder, quiet():
        given, wide = Path(folder, "model.onnx"), Path(folder, "wide.onnx")
        write_model(plain_model, given)
        calibrator = create_calibrator(
            given, None, augmented_model_path=str(wide), calibrate_method=CalibrationMethod[method],
            extra_options={"symmetric": is_symmetric},
        )  # fmt: skip
        calibrator.collect_data(_reader(samples))
        found = calibrator.compute_data()
    return {name: (float(low), float(high)) for name, one in found.items() for low, high in [one.range_value]}


def _reader(samples: Samples) -> Any:
    """Return samples as onnxruntime's calibrators read them, some at a time."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = (feed for feed, _ in samples.batches(samples.batch_size(CHUNK)))

        def get_next(self) -> dict[str, np.ndarray] | Feed | None:
            return next(self.left, None)

    return Reader()

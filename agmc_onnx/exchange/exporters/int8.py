"""ONNX with 8-bit integers: QuantizeLinear and DequantizeLinear around every node, ranges from the calibration role."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
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
from agmc_onnx.precision.quantiser import KINDS, Quantiser
from agmc_onnx.precision.ranges import CHUNK, Observed, Range


def to_int8(source: Source, path: Path) -> None:
    """Write a statically quantised model, as `precision.quantiser` makes it: int8 weights with one scale per output channel.

    Raises:
        DataError: If there is no calibration role.
    """
    if source.calibration is None:
        raise DataError(
            "int8: needs inputs to find the range of every value, got no --data; expected a card with a calibration role. "
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
    quantiser = Quantiser(samples, settings.target, settings.threads, kinds[settings.calibrate], samples.n)
    write_model(quantiser(read_model(source.path).proto).model, path)


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

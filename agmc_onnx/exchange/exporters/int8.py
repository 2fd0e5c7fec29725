"""ONNX with 8-bit integers: QuantizeLinear and DequantizeLinear around every node, ranges from the calibration role."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from agmc_onnx.data.samples import Feed, Samples
from agmc_onnx.errors import DataError
from agmc_onnx.exchange.exporters.row import Source

CHUNK = 10  # samples whose values of every node are in memory at once


def to_int8(source: Source, path: Path) -> None:
    """Write a statically quantised model.

    onnxruntime's quantiser does it: int8 weights with one scale per output channel (one scale for all took MobileNetV2 from
    68 to 1 % top-1), activations with one scale each. By target: x86 takes uint8 activations; avx2 the same with 7-bit
    weights, as its sums of 8-bit products overflow 16 bits; arm int8 activations; gpu symmetric int8 ones (zero point 0).

    Raises:
        DataError: If there is no calibration role.
    """
    if source.calibration is None:
        raise DataError(
            "int8: needs inputs to find the range of every value, got no --data; expected a card with a calibration role. "
            "Add --data CARD."
        )
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

    settings = source.settings
    samples = source.calibration.take(settings.calibration_samples)
    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    options: dict[str, Any] = {"ActivationSymmetric": settings.target == "gpu", "CalibStridedMinMax": 1}
    with _quiet():
        quantize_static(
            source.plain,
            path,
            reader_of(samples),
            per_channel=True,
            reduce_range=settings.target == "avx2",
            activation_type=QuantType.QInt8 if settings.target in ("arm", "gpu") else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=methods[settings.calibrate],
            extra_options=options,
        )


def reader_of(samples: Samples) -> Any:
    """Return samples as onnxruntime's quantiser reads them, some at a time."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds: list[Feed] = [feed for feed, _ in samples.batches(CHUNK)]
            self.left = iter(self.feeds)

        def __len__(self) -> int:
            return len(self.feeds)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.left = iter(self.feeds[start_index:end_index])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's advice on pre-processing (which was done) and its logs away."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)

"""OpenVINO's intermediate representation: OUT.xml and OUT.bin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from agmc_onnx.exchange.exporters.row import Source
from agmc_onnx.measuring.session import Run


def convert(source: Source, path: Path) -> None:
    """Write the model with float32 weights; open dims stay open."""
    import openvino

    openvino.save_model(openvino.Core().read_model(source.path), path, compress_to_fp16=False)


def open_model(path: Path, source: Source) -> Run:
    """Return what runs it in float32; left alone, OpenVINO computes in bfloat16 on processors that have it."""
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": source.settings.threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    n_outputs = len(source.outputs)

    def run(feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        found = request.infer(dict(feed))
        return [np.array(found[i]) for i in range(n_outputs)]

    return run

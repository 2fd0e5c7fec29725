"""Apple's Core ML: OUT.mlpackage, a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from agmc_onnx.exchange.exporters.row import Source
from agmc_onnx.exchange.exporters.through_torch import flat_module_of
from agmc_onnx.measuring.session import Run


def convert(source: Source, path: Path) -> None:
    """Write an ML program with float32 numbers; inputs and outputs keep their names."""
    import coremltools
    import torch

    module, inputs = flat_module_of(source)
    with torch.no_grad():
        script = torch.jit.trace(module, inputs)
        kinds = [
            coremltools.TensorType(name, shape=source.shapes[name], dtype=source.feed[name].dtype.type)
            for name in (spec.name for spec in source.inputs)
        ]
        model = coremltools.convert(
            script,
            inputs=kinds,
            outputs=[coremltools.TensorType(name) for name in source.outputs],
            convert_to="mlprogram",
            compute_precision=coremltools.precision.FLOAT32,
            skip_model_load=True,
        )
    model.save(str(path))


def open_model(path: Path, source: Source) -> Run:
    """Return what runs it, on macOS."""
    import coremltools

    model = coremltools.models.MLModel(str(path))
    names = [output.name for output in model.get_spec().description.output]

    def run(feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        found = model.predict(dict(feed))
        return [np.asarray(found[name]) for name in names]

    return run

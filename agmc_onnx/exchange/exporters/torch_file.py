"""PyTorch's own format, torch.export: OUT.pt2, which `torch.export.load` opens without this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from agmc_onnx.exchange.exporters.row import Source
from agmc_onnx.exchange.exporters.through_torch import flat_module_of
from agmc_onnx.measuring.session import Run


def convert(source: Source, path: Path) -> None:
    """Write the model as a program of torch; inputs are in the order of the ONNX model."""
    import torch

    module, inputs = flat_module_of(source)
    torch.export.save(torch.export.export(module, inputs), path)


def open_model(path: Path, source: Source) -> Run:
    """Return what runs it."""
    import torch

    program = torch.export.load(path).module()
    names = [spec.name for spec in source.inputs]

    def run(feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            found = program(*(torch.from_numpy(np.ascontiguousarray(feed[name])) for name in names))
        return [value.numpy() for value in found]

    return run

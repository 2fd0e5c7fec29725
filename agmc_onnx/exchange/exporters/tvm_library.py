"""A library compiled by Apache TVM: OUT.so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from agmc_onnx.exchange.exporters.row import Source
from agmc_onnx.measuring.session import Run


def convert(source: Source, path: Path) -> None:
    """Compile the model for this kind of processor with TVM's default schedules: correct, but not tuned."""
    import tvm
    from tvm.relax.frontend.onnx import from_onnx

    shapes = {name: list(shape) for name, shape in source.shapes.items()}
    module = from_onnx(onnx.load(source.plain), shape_dict=shapes, keep_params_in_input=False)
    tvm.compile(module, target="llvm").export_library(str(path))


def open_model(path: Path, source: Source) -> Run:
    """Return what runs it."""
    os.environ.setdefault("TVM_NUM_THREADS", str(source.settings.threads))  # read when its first thread starts
    import tvm
    from tvm import relax

    machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
    names = [spec.name for spec in source.inputs]

    def run(feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        found = machine["main"](*(tvm.runtime.tensor(feed[name]) for name in names))
        parts = [found] if hasattr(found, "numpy") else list(found)
        return [part.numpy() for part in parts]

    return run

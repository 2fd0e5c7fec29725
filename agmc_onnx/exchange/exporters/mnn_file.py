"""MNN's format: OUT.mnn."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from agmc_onnx.errors import ModelError
from agmc_onnx.exchange.exporters.plain import run_program
from agmc_onnx.exchange.exporters.row import Source
from agmc_onnx.measuring.session import Run

# What `mnnconvert` calls, without `mnnconvert` itself: that one runs pip and sends usage data.
_CONVERT = "import sys, _tools; _tools.mnnconvert(['mnnconvert', *sys.argv[1:]])"


def convert(source: Source, path: Path) -> None:
    """Write the model with float32 weights; open dims stay open."""
    words = ["-f", "ONNX", "--modelFile", str(source.path), "--MNNModel", str(path), "--bizCode", "onnx"]
    run_program("mnn", [sys.executable, "-c", _CONVERT, *words], path.parent)
    if not path.is_file():
        raise ModelError("mnn: conversion failed, got no file; expected one. MNN may lack an op of this model.")


def open_model(path: Path, source: Source) -> Run:
    """Return what runs it in float32."""
    import MNN

    network = MNN.Interpreter(str(path))
    session = network.createSession({"backend": "CPU", "numThread": source.settings.threads, "precision": "high"})
    kinds = {np.dtype(np.float32): MNN.Halide_Type_Float, np.dtype(np.int32): MNN.Halide_Type_Int}
    order, shapes = MNN.Tensor_DimensionType_Caffe, dict[str, tuple[int, ...]]()

    def run(feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        given = {name: np.ascontiguousarray(array) for name, array in feed.items()}
        given = {name: array.astype(np.int32) if array.dtype == np.int64 else array for name, array in given.items()}
        changed = {name: array.shape for name, array in given.items() if shapes.get(name) != array.shape}
        for name, shape in changed.items():
            network.resizeTensor(network.getSessionInput(session, name), shape)
        if changed:
            network.resizeSession(session)
            shapes.update(changed)
        for name, array in given.items():
            tensor = MNN.Tensor(array.shape, kinds[array.dtype], array, order)
            network.getSessionInput(session, name).copyFrom(tensor)
        network.runSession(session)
        return [fetched(name, answer.dtype) for name, answer in zip(source.outputs, source.answers, strict=True)]

    def fetched(name: str, dtype: np.dtype) -> np.ndarray:
        output = network.getSessionOutput(session, name)
        shape = output.getShape()
        host = MNN.Tensor(shape, output.getDataType(), np.zeros(shape, dtype), order)
        output.copyToHostTensor(host)
        return np.array(host.getNumpyData(), copy=True).reshape(shape)

    return run

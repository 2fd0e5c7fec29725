"""ncnn's format: OUT.param and OUT.bin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from agmc_onnx.errors import ModelError, UsageError
from agmc_onnx.exchange.exporters.plain import run_program, strides_as_pools
from agmc_onnx.exchange.exporters.row import Source
from agmc_onnx.measuring.session import Run


def check(source: Source, _output: Path) -> None:
    """Raise where ncnn cannot take the inputs.

    Raises:
        UsageError: For batches of more than one sample: pnnx makes a model that answers nonsense then.
    """
    sizes = [shape[0] for shape in source.shapes.values() if len(shape) > 1]
    if any(size != 1 for size in sizes):
        raise UsageError(f"ncnn: it has no batch axis, got batches of {max(sizes)}; expected 1. Leave out --batch.")


def convert(source: Source, path: Path) -> None:
    """Write the model with float32 weights, for one sample at a time: ncnn has no batch axis.

    pnnx does it. It has no strided Slice (its result would not load), so rows and columns are skipped by a pool.
    """
    import pnnx

    onnx.save(strides_as_pools(onnx.load(source.plain)), path.with_name("model.onnx"))
    shapes = ",".join(f"[{','.join(map(str, shape))}]{_code(source, name)}" for name, shape in source.shapes.items())
    run_program("ncnn", [pnnx.EXEC_PATH, "model.onnx", f"inputshape={shapes}", "fp16=0"], path.parent)
    made = path.with_name("model.ncnn.param"), path.with_name("model.ncnn.bin")
    if not all(file.is_file() for file in made):
        raise ModelError("ncnn: conversion failed, got no files; expected two. pnnx may lack an op of this model.")
    made[0].rename(path)
    made[1].rename(path.with_suffix(".bin"))
    for rest in (*path.parent.glob("model.*"), *path.parent.glob("model_*")):
        rest.unlink()


def open_model(path: Path, source: Source) -> Run:
    """Return what runs it in float32."""
    import ncnn

    network = ncnn.Net()
    network.opt.num_threads = source.settings.threads
    network.opt.use_fp16_packed = network.opt.use_fp16_storage = network.opt.use_fp16_arithmetic = False
    if network.load_param(str(path)) or network.load_model(str(path.with_suffix(".bin"))):
        raise ModelError(
            "ncnn: it cannot load what pnnx wrote; expected known layers. An op of this model has no ncnn layer."
        )
    shapes = [answer.shape for answer in source.answers]
    names = [spec.name for spec in source.inputs]

    def run(feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        extractor = network.create_extractor()
        for i, name in enumerate(names):
            array = feed[name]
            extractor.input(f"in{i}", ncnn.Mat(np.ascontiguousarray(array[0] if array.ndim > 1 else array)))
        found = []
        for i, shape in enumerate(shapes):
            failed, value = extractor.extract(f"out{i}")
            if failed:
                raise ModelError(
                    f"ncnn: inference failed, got code {failed}; expected output {i}. Compare it with onnxruntime."
                )
            found.append(np.array(value).reshape(shape))
        return found

    return run


def _code(source: Source, name: str) -> str:
    return {"float32": "f32", "float16": "f16", "int32": "i32", "int64": "i64"}.get(source.feed[name].dtype.name, "f32")

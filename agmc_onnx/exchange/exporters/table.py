"""The formats; a new one is a row here and a module of two functions."""

from __future__ import annotations

import importlib.util
from importlib import metadata

from agmc_onnx.errors import UsageError
from agmc_onnx.exchange.exporters import (
    coreml_package,
    int8,
    mnn_file,
    ncnn_files,
    onnx_files,
    openvino_ir,
    tensorrt_engine,
    tflite_file,
    torch_file,
    tvm_library,
)
from agmc_onnx.exchange.exporters.row import Exporter

_ROWS = (
    Exporter("ort", "onnxruntime's own format", ".ort", onnx_files.to_ort, onnx_files.open_onnx, tolerance=1e-3),
    Exporter(
        "fp16", "ONNX in float16", ".fp16.onnx", onnx_files.to_fp16, onnx_files.open_onnx, tolerance=None,
        note="onnxruntime computes float16 on a CPU as float32 between casts: float16 gains time on a GPU",
    ),
    Exporter(
        "bf16", "ONNX with bfloat16 weights", ".bf16.onnx", onnx_files.to_bf16, onnx_files.open_onnx, tolerance=None,
        note="weights are stored in bfloat16 and computed with in float32: half the file, the same time",
    ),
    Exporter(
        "int8", "ONNX quantised to 8 bits", ".int8.onnx", int8.to_int8, onnx_files.open_onnx, plain="open", tolerance=None,
    ),
    Exporter(
        "mixed", "ONNX in 8 bits where that is worth it here, node by node", ".mixed.onnx", int8.to_mixed,
        onnx_files.open_onnx, plain="open", tolerance=None,
    ),
    Exporter(
        "torch", "a program of PyTorch (torch.export)", ".pt2", torch_file.convert, torch_file.open_model,
        plain="fixed", fixed_batch=True,
    ),
    Exporter(
        "openvino", "OpenVINO", ".xml", openvino_ir.convert, openvino_ir.open_model,
        packages=(("openvino", "openvino"),), extra="export-openvino",
    ),
    Exporter(
        "tflite", "TensorFlow Lite (LiteRT)", ".tflite", tflite_file.convert, tflite_file.open_model,
        packages=(("litert_torch", "litert-torch"),), runtime=(("ai_edge_litert", "ai-edge-litert"),),
        extra="export-tflite", plain="fixed", fixed_batch=True,
    ),
    Exporter(
        "ncnn", "ncnn", ".param", ncnn_files.convert, ncnn_files.open_model,
        packages=(("pnnx", "pnnx"),), runtime=(("ncnn", "ncnn"),), extra="export-ncnn", plain="fixed", fixed_batch=True,
        check=ncnn_files.check,
    ),
    Exporter(
        "mnn", "MNN", ".mnn", mnn_file.convert, mnn_file.open_model, packages=(("MNN", "MNN"),), extra="export-mnn",
    ),
    Exporter(
        "tvm", "a library compiled by Apache TVM", ".so", tvm_library.convert, tvm_library.open_model,
        packages=(("tvm", "apache-tvm"),), extra="export-tvm", plain="fixed", fixed_batch=True,
        note="TVM's default schedules are not tuned: this time is no measure of what TVM can do",
    ),
    Exporter(
        "coreml", "Core ML", ".mlpackage", coreml_package.convert, coreml_package.open_model,
        packages=(("coremltools", "coremltools"),), extra="export-coreml", plain="fixed", fixed_batch=True, system="Darwin",
    ),
    Exporter(
        "tensorrt", "a TensorRT engine", ".engine", tensorrt_engine.convert, tensorrt_engine.open_model,
        packages=(("tensorrt", "tensorrt"),), extra="export-tensorrt", fixed_batch=True, check=tensorrt_engine.check,
    ),
)  # fmt: skip
EXPORTERS = {row.name: row for row in _ROWS}


def exporter_of(name: str) -> Exporter:
    """Return the row of a format.

    Raises:
        UsageError: If there is none of that name.
    """
    if name not in EXPORTERS:
        raise UsageError(f"--to: unknown format, got {name!r}; expected one of {', '.join(EXPORTERS)}. Choose one.")
    return EXPORTERS[name]


def missing(packages: tuple[tuple[str, str], ...]) -> list[str]:
    """Return the distributions that are not installed."""
    return [distribution for module, distribution in packages if importlib.util.find_spec(module) is None]


def check_installed(row: Exporter) -> None:
    """Raise where a format's converter is not installed.

    Raises:
        UsageError: With the extra that brings it.
    """
    absent = missing(row.packages)
    if absent:
        raise UsageError(
            f"{row.name}: its converter is not installed, got no {', '.join(absent)}; expected it."
            f" Run: pip install 'agmc-onnx[{row.extra}]'"
        )


def versions_of(row: Exporter) -> dict[str, str]:
    """Return the versions of what converts and runs a format, by distribution; onnxruntime's where nothing else does."""
    from onnxruntime import __version__ as onnxruntime_version

    names = [name for module, name in (*row.packages, *row.runtime) if importlib.util.find_spec(module) is not None]
    return {name: metadata.version(name) for name in names} or {"onnxruntime": onnxruntime_version}

"""ONNX with 16-bit numbers, and onnxruntime's own format."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

from agmc_onnx.exchange.exporters.row import Source
from agmc_onnx.graph.edit import Made, edited, rewire
from agmc_onnx.graph.files import read_model, write_model
from agmc_onnx.measuring.session import Run, opened, save_optimised


def open_onnx(path: Path, source: Source) -> Run:
    """Return what runs an .onnx or .ort file."""
    return opened(path, source.settings.threads)[0]


def to_ort(source: Source, path: Path) -> None:
    """Write onnxruntime's format, already optimised; for x86 with the convolution layout of this machine.

    Old files list the weights as inputs too; onnxruntime drops weights that equal others, but not such inputs.
    """
    graph = read_model(source.path).proto.graph
    with tempfile.TemporaryDirectory() as folder:
        model = source.path
        if {value.name for value in graph.input} & {tensor.name for tensor in graph.initializer}:
            model = Path(folder, "model.onnx")
            write_model(_load(source.path), model)
        save_optimised(model, path, "all", is_portable=source.settings.target != "x86")


def to_fp16(source: Source, path: Path) -> None:
    """Write the model in float16; inputs and outputs stay float32.

    onnxruntime's converter does it: numbers out of float16's range become its largest, ops without a float16 form stay.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = convert_float_to_float16(_load(source.path), keep_io_types=True)
    write_model(rewire(half, lambda graph: None), path)  # its nodes are in no order


def to_bf16(source: Source, path: Path) -> None:
    """Write the model with its weights in bfloat16, made float32 again by a Cast, which a runtime does once.

    So it runs everywhere, at half the size. A graph that computes in bfloat16 needs opset 22 and a runtime with such
    kernels; onnxruntime's CPU provider has none for Conv.
    """
    model = _load(source.path)
    if max(entry.version for entry in model.opset_import if not entry.domain) < 13:  # older Casts know no bfloat16
        model = onnx.version_converter.convert_version(model, 13)
    changes, arrays = [], {}
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:  # biases, scales of a Resize: nothing to gain
            continue
        name, dtype = tensor.name, helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
        arrays[f"{name}_bf16"] = numpy_helper.to_array(tensor).astype(dtype)
        changes.append(Made("Cast", (f"{name}_bf16",), (name,), (("to", TensorProto.FLOAT),), name=f"{name}_to_float"))
    write_model(edited(model, changes, arrays), path)


def _load(path: Path) -> onnx.ModelProto:
    """Return a model whose inputs are those that are fed; old files list the weights there too."""
    model = onnx.load(path)
    stored = {tensor.name for tensor in model.graph.initializer}
    fed = [value for value in model.graph.input if value.name not in stored]
    if len(fed) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(fed)
        model.ir_version = max(model.ir_version, 4)
    return model

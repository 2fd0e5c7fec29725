"""ONNX models in the form that other converters understand best, and the noise of those converters kept apart."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import onnx
from onnx import numpy_helper

from agmc_onnx.data.samples import Feed
from agmc_onnx.errors import AgmcError, ModelError
from agmc_onnx.graph.edit import Made, edited
from agmc_onnx.measuring.session import save_optimised


def write_plain(path: Path, folder: Path, feed: Feed | None) -> Path:
    """Write a model in standard ops with its constants folded, and return the file.

    Chains that compute shapes and pads become numbers, BatchNormalization is merged into Conv.

    Args:
        path: The model.
        folder: Where to write.
        feed: Gives every input its shape, so that all that depends on shapes is folded too; None leaves open dims open.

    Raises:
        ModelError: If onnxruntime refuses the model.
    """
    target = folder / ("open.onnx" if feed is None else "plain.onnx")
    given = path
    if feed is not None:
        fixed = onnx.load(path)
        for value in fixed.graph.input:
            if value.name in feed:
                _fix(value, feed[value.name].shape)
        for value in fixed.graph.output:
            if value.type.tensor_type.HasField("shape"):
                value.type.tensor_type.ClearField("shape")  # an open batch there would contradict the fixed one
        given = folder / "fixed.onnx"
        onnx.save(fixed, given)
    save_optimised(given, target)
    model = onnx.load(target)
    used = {node.domain for node in model.graph.node} | {""}
    opsets = [entry for entry in model.opset_import if entry.domain in used or entry.domain == "ai.onnx"]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    onnx.save(model, target)
    return target


def _fix(value: onnx.ValueInfoProto, shape: Sequence[int]) -> None:
    for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
        dim.Clear()
        dim.dim_value = size


def strides_as_pools(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every strided Slice of image rows or columns as a MaxPool of a 1x1 window, its equal.

    Args:
        model: With folded constants; not changed.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.input)
    rank = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    changes = []
    for node in model.graph.node:
        if node.op_type != "Slice" or len(node.input) < 5 or any(name not in constants for name in node.input[1:5]):
            continue
        start, stop, axes, steps = (constants[name].tolist() for name in node.input[1:5])
        whole = not any(start) and min(stop) >= 2**31 - 1 and min(steps) >= 1
        if rank.get(node.input[0]) != 4 or not whole or not {axis % 4 for axis in axes} <= {2, 3}:
            continue
        strides = [1, 1]
        for axis, step in zip(axes, steps, strict=True):
            strides[axis % 4 - 2] = step
        window = (("kernel_shape", (1, 1)), ("strides", tuple(strides)))
        changes.append(Made("MaxPool", (node.input[0],), (node.output[0],), window, name=node.name))
    return edited(model, changes)


@contextmanager
def converting(name: str) -> Iterator[None]:
    """Run another library's code: what it prints and warns of is kept from the terminal, what it raises
    becomes one line.

    Raises:
        ModelError: Whatever was raised that is no error of ours.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as noise:
        try:
            os.dup2(noise.fileno(), 1)
            os.dup2(noise.fileno(), 2)
            with redirect_stdout(io.StringIO()) as said, redirect_stderr(said), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except AgmcError:
            raise
        except Exception as error:  # each library has exceptions of its own
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise _failed(name, f"{type(error).__name__}: {lines[-1] if lines else ''}") from error
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, number)
                os.close(copy)


def run_program(name: str, words: Sequence[str], folder: Path) -> None:
    """Run a converter that is a program.

    Raises:
        ModelError: If it fails, with the last line that it printed.
    """
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise _failed(name, f"{lines[-1][:200] if lines else ''} (exit code {done.returncode})")


def _failed(name: str, what: str) -> ModelError:
    return ModelError(
        f"{name}: conversion failed, got {' '.join(what.split())[:300]!r}; expected a model in that format. "
        "The converter may not know an op of this model."
    )

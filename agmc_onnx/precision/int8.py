"""Static int8: QuantizeLinear and DequantizeLinear round every node that an integer kernel takes, by onnxruntime's writer.

What is ours is where the ranges come from (`precision.ranges`), which nodes stay float, and the biases.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from agmc_onnx.errors import ModelError
from agmc_onnx.graph.files import write_model
from agmc_onnx.measuring.session import one_line, save_optimised
from agmc_onnx.precision.ranges import Observed, Range

OPSET = 13  # the first with a scale for every channel
WEIGHTED = ("Conv", "Gemm", "MatMul", "ConvTranspose")


@dataclass(frozen=True)
class Target:
    """What integer kernels of a kind of processor take.

    Attributes:
        text: What it is.
        activations: "QUInt8" or "QInt8".
        reduce_range: Weights of 7 bits, where sums of 8-bit products overflow 16 bits.
        symmetric: Activations with zero point 0.
    """

    text: str
    activations: str
    reduce_range: bool = False
    symmetric: bool = False


TARGETS = {
    "x86": Target("x86 with 8-bit dot products (VNNI)", "QUInt8"),
    "avx2": Target("x86 without them", "QUInt8", reduce_range=True),
    "arm": Target("ARM cores", "QInt8"),
    "gpu": Target("GPUs and other accelerators", "QInt8", symmetric=True),
}


def target_here(provider: str = "cpu") -> str:
    """Return the target, a key of `TARGETS`, of this machine."""
    if provider == "cuda":
        return "gpu"
    if platform.machine() not in ("x86_64", "AMD64"):
        return "arm"
    return "x86" if has_vnni() else "avx2"


def has_vnni() -> bool:
    """Return False where this is an x86 processor that is known to have no 8-bit dot products."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # no Linux: not known
        return True
    return "avx512_vnni" in flags or "avx_vnni" in flags


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model in the form that is quantised: constants folded, normalisation merged, shapes known, opset 13 or later.

    Raises:
        ModelError: If onnxruntime refuses the model.
    """
    with tempfile.TemporaryDirectory(prefix="agmc-") as folder:
        source, target = Path(folder, "model.onnx"), Path(folder, "plain.onnx")
        write_model(raised(model), source)
        save_optimised(source, target)
        found = onnx.load(target)
    return shaped(found)


def raised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model of opset 13 or later; one that onnx cannot convert stays as it is, with one scale for all channels."""
    if _opset(model) >= OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError):
        return model


def shaped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with the shapes of its values, without the opsets of domains that it does not use."""
    used = {node.domain for node in model.graph.node} | {""}
    opsets = [entry for entry in model.opset_import if entry.domain in used or entry.domain == "ai.onnx"]
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.opset_import[:]
    found.opset_import.extend(opsets)
    seen: set[str] = set()
    for node in found.graph.node:
        node.name = node.name if node.name and node.name not in seen else node.output[0]  # by which op times find it
        seen.add(node.name)
    return onnx.shape_inference.infer_shapes(found)


def write_int8(
    plain_model: onnx.ModelProto, ranges: Mapping[str, Range], target: Target, stay_float: Sequence[str] = ()
) -> onnx.ModelProto:
    """Return a quantised model.

    onnxruntime's quantiser writes it: int8 weights with one scale per output channel (one scale for all took MobileNetV2 from
    68 to 1 % top-1), activations with one scale each.

    Args:
        plain_model: As `plain` returns it; not changed.
        ranges: Lowest and highest value of every float value.
        target: What kernels take.
        stay_float: Names of nodes.

    Raises:
        ModelError: If it cannot be quantised.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.registry import QDQRegistry

    made = onnx.ModelProto()
    made.CopyFrom(plain_model)
    given = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    with quiet():
        try:
            writer = QDQQuantizer(
                made,
                _opset(made) >= OPSET,
                target.reduce_range,
                QuantType.QInt8,
                QuantType[target.activations],
                TensorsData(CalibrationMethod.MinMax, given),
                [],
                list(stay_float),
                list(QDQRegistry),
                {"ActivationSymmetric": target.symmetric},
            )
            writer.quantize_model()
            writer.model.topological_sort()
        except Exception as error:  # onnxruntime's quantiser raises whatever comes
            raise ModelError(
                f"int8: cannot be quantised, got {type(error).__name__}: {one_line(error)}; expected a model whose nodes"
                " onnxruntime's quantiser knows. Leave out --precision."
            ) from error
    found: onnx.ModelProto = writer.model.model
    return found


def corrected_biases(
    plain_model: onnx.ModelProto, observed: Mapping[str, Observed], target: Target, stay_float: Sequence[str] = ()
) -> onnx.ModelProto:
    """Return a model whose biases make good what rounding its weights changes in the mean of every output channel.

    A weight w is rounded to w + d; the output's mean moves by d E[x], which is taken off the bias (Nagel et al. 2019,
    arXiv:1906.04721, sec. 4.2, with E[x] from calibration inputs). A convolution's is that of positions that no padding
    touches.

    Args:
        plain_model: As `plain` returns it; not changed.
        observed: Of its values.
        target: What kernels take.
        stay_float: Names of nodes that are not quantised.
    """
    made = onnx.ModelProto()
    made.CopyFrom(plain_model)
    tensors = {tensor.name: tensor for tensor in made.graph.initializer}
    uses: dict[str, int] = {}
    for node in made.graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    for node in made.graph.node:
        bias = node.input[2] if len(node.input) > 2 else ""
        is_known = node.input[0] in observed and observed[node.input[0]].mean is not None and uses.get(bias, 0) == 1
        if node.op_type != "Conv" or node.name in stay_float or bias not in tensors or not is_known:
            continue
        weight = numpy_helper.to_array(tensors[node.input[1]])
        group = next((a.i for a in node.attribute if a.name == "group"), 1)
        mean = observed[node.input[0]].mean
        assert mean is not None
        if mean.size != weight.shape[1] * group:
            continue
        moved = (rounded(weight, target) - weight).reshape(*weight.shape[:2], -1).sum(axis=2)  # (out, in / group)
        of_group = mean.reshape(group, weight.shape[1]).repeat(weight.shape[0] // group, axis=0)
        shift = (moved * of_group).sum(axis=1)
        old = numpy_helper.to_array(tensors[bias])
        tensors[bias].CopyFrom(numpy_helper.from_array((old - shift).astype(old.dtype), bias))
    return made


def rounded(weight: np.ndarray, target: Target) -> np.ndarray:
    """Return a weight as its int8 form has it: one symmetric scale for every output channel, 8 bits or 7."""
    top = 64 if target.reduce_range else 127
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    scale = np.where(largest > 0, largest / top, 1.0).reshape(-1, *[1] * (weight.ndim - 1))
    return np.asarray(np.rint(weight / scale) * scale, weight.dtype)


def precision_of(model: onnx.ModelProto, plain_model: onnx.ModelProto, quantised: onnx.ModelProto) -> dict[str, str]:
    """Return what every node of a model computes in, by its first output: "int8" or "float".

    A node that was merged into another one has that one's: a Conv that of the normalisation behind it, a Relu that an integer
    kernel's range replaces that of the node before it.

    Args:
        model: The float model.
        plain_model: Its plain form, that was quantised.
        quantised: The result.
    """
    dequantised = {node.output[0] for node in quantised.graph.node if node.op_type == "DequantizeLinear"}
    ahead = {node.input[0] for node in quantised.graph.node if node.op_type == "QuantizeLinear"}
    named = {node.name: node for node in quantised.graph.node}
    known: dict[str, bool] = {}
    for node in plain_model.graph.node:
        now = named.get(node.name)
        read = node.input[0] if node.input else ""
        is_clipped = node.output[0] in ahead and known.get(read, False)  # a Relu before a rounding does nothing more
        known[node.output[0]] = (
            known.get(read, False) if now is None else is_clipped or any(n in dequantised for n in now.input)
        )
    found: dict[str, str] = {}
    readers: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.output[0])
    for node in reversed(model.graph.node):
        name = node.output[0]
        after = {found[reader] for reader in readers.get(name, ()) if reader in found}
        found[name] = "int8" if known.get(name, after == {"int8"}) else "float"
    return dict(reversed(found.items()))


def _opset(model: onnx.ModelProto) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the quantiser's advice on pre-processing (which was done) and its logs away."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)

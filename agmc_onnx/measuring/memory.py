"""Peak memory of one inference, counted from the values that a model really makes: not what an allocator sets aside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from agmc_onnx.errors import AgmcError
from agmc_onnx.graph.files import write_model
from agmc_onnx.measuring.session import make_session, run_model, save_optimised


def peak_bytes(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> int | None:
    """Return the largest number of bytes that values between the nodes need at once; weights are not in it.

    The nodes run in their order, a value stays from the node that makes it to the last that reads it, graph inputs and outputs
    stay to the end. Sizes are those of one run with every value as an output. What a runtime sets aside (an arena, copies in
    other layouts) differs from machine to machine and is not counted.

    Args:
        model: Any model.
        feed: One batch.

    Returns:
        Bytes, or None where it cannot be told: a node makes values inside of it (If, Loop, Scan, a function of the model), or
        onnxruntime cannot give every value.
    """
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        try:
            model = _with_integer_kernels(model)
        except AgmcError:
            return None
    functions = {(function.domain, function.name) for function in model.functions}
    if any((node.domain, node.op_type) in functions or _holds_graph(node) for node in model.graph.node):
        return None
    nodes = [node for node in model.graph.node if not (node.op_type == "Constant" and not node.domain)]
    names = [name for node in nodes for name in node.output if name]
    told = onnx.ModelProto()
    told.CopyFrom(model)
    del told.graph.output[:]
    told.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    try:
        values = dict(zip(names, run_model(make_session(told, optimise=False), feed), strict=True))
    except AgmcError:
        return None
    if not all(isinstance(value, np.ndarray) for value in values.values()):
        return None
    size = {name: value.nbytes for name, value in values.items()}
    last = {output.name: len(nodes) for output in model.graph.output}
    for at, node in enumerate(nodes):
        for name in node.input:
            last[name] = max(at, last.get(name, 0))
    live = sum(value.nbytes for value in feed.values())
    peak = live
    for at, node in enumerate(nodes):
        live += sum(size[name] for name in node.output if name)
        peak = max(peak, live)
        gone = {name for name in (*node.input, *node.output) if last.get(name, 0) <= at}
        live -= sum(size.get(name, 0) for name in gone)
    return peak


def _with_integer_kernels(model: onnx.ModelProto) -> onnx.ModelProto:
    with TemporaryDirectory() as folder:
        given, taken = Path(folder) / "given.onnx", Path(folder) / "taken.onnx"
        write_model(model, given)
        save_optimised(given, taken, "all")
        return onnx.load(taken)


def _holds_graph(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)

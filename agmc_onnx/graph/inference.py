"""onnx's shape inference, which is C++ and may end the process: in a child of its own where a graph has an op that does so."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Sequence
from contextlib import suppress

import onnx

from agmc_onnx.graph.registry import graph_op

# A size below zero fails an assertion here, and too small an input gives one behind ops that shrink what they get
_ABORTING = frozenset(("Slice",))
_SECONDS = 20.0


def infer_graph(model: onnx.ModelProto, is_guess: bool) -> onnx.GraphProto:
    """Return the graph with the types that onnx's inference finds, constants propagated.

    Args:
        model: Without large weights; not changed.
        is_guess: Whether sizes of its inputs are guesses, which may be too small for it.

    Raises:
        Exception: What onnx raises at the first contradiction; RuntimeError where it crashes, or takes over 20 s.
    """
    if not (is_guess and hasattr(os, "fork") and _may_abort(model.graph.node)):
        return onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(model, writing)
    os.close(writing)
    try:
        raw = _read(reading)
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    found = onnx.ModelProto()
    if not raw.endswith(b"whole"):
        raise RuntimeError("onnx's shape inference did not come to an end")
    found.ParseFromString(raw[: -len(b"whole")])
    return found.graph


def _answer(model: onnx.ModelProto, writing: int) -> None:
    """In the child: infer, write what was found, and go, whatever happens."""
    try:
        for number in (signal.SIGABRT, signal.SIGSEGV, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a failed assertion prints a line
        raw = onnx.shape_inference.infer_shapes(model, data_prop=True).SerializeToString() + b"whole"
        while raw:
            raw = raw[os.write(writing, raw) :]
    finally:
        os._exit(0)


def _read(reading: int) -> bytes:
    parts = []
    while select.select([reading], [], [], _SECONDS)[0]:
        part = os.read(reading, 1 << 20)
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


def _may_abort(nodes: Sequence[onnx.NodeProto]) -> bool:
    known = [graph_op(node.domain, node.op_type) for node in nodes]
    return any(op is not None and op.shrinks for op in known) and any(node.op_type in _ABORTING for node in nodes)

"""onnx's shape inference, which is C++ and may end the process: in a child of its own where a graph has an op that does so."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

import onnx

from agmc_onnx.graph.registry import graph_op

# A size below zero fails an assertion here, and too small an input gives one behind ops that shrink what they get
_ABORTING = frozenset(("Slice",))
_SECONDS = 20.0
_LENGTH = 8  # bytes that say how many follow


class Infer(Protocol):
    """What `inferring` gives."""

    def __call__(self, model: onnx.ModelProto, is_guess: bool) -> onnx.GraphProto:
        """Return the graph with the types that onnx's inference finds, constants propagated.

        Args:
            model: Without large weights; not changed.
            is_guess: Whether sizes of its inputs are guesses, which may be too small for it.

        Raises:
            Exception: What onnx raises at the first contradiction; RuntimeError where it crashes, or takes over 20 s.
        """
        ...


@contextmanager
def inferring() -> Iterator[Infer]:
    """Give what infers shapes; guesses at what may end the process go to one child, which ends here."""
    child = _Child()

    def infer(model: onnx.ModelProto, is_guess: bool) -> onnx.GraphProto:
        if is_guess and hasattr(os, "fork") and _may_abort(model.graph.node):
            return child.infer(model)
        return onnx.shape_inference.infer_shapes(model, data_prop=True).graph

    try:
        yield infer
    finally:
        child.end()


class _Child:
    """A fork of this process that infers one model after the other; another one is made where it has died."""

    def __init__(self) -> None:
        self._pid = 0

    def infer(self, model: onnx.ModelProto) -> onnx.GraphProto:
        """Return the graph with its types; see `Infer`."""
        if not self._pid:
            self._begin()
        raw = model.SerializeToString()
        try:
            _write(self._asks, raw)
            said = _read(self._answers, _SECONDS)
        except OSError:
            said = None
        if said is None:
            self.end()
            raise RuntimeError("onnx's shape inference did not come to an end")
        if not said:
            raise RuntimeError("onnx's shape inference failed")
        return onnx.ModelProto.FromString(said).graph

    def _begin(self) -> None:
        asked, self._asks = os.pipe()
        self._answers, answering = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _serve(asked, answering)
        os.close(asked)
        os.close(answering)

    def end(self) -> None:
        """Let it end, if there is one."""
        if self._pid:
            for pipe in (self._asks, self._answers):
                os.close(pipe)
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0


def _serve(asked: int, answering: int) -> None:
    """In the child: answer until nobody asks, and go, whatever happens."""
    try:
        for number in (signal.SIGABRT, signal.SIGSEGV, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a failed assertion prints a line
        while (raw := _read(asked)) is not None:
            said = b""
            with suppress(Exception):  # a contradiction
                found = onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(raw), data_prop=True)
                said = found.SerializeToString()
            _write(answering, said)
    finally:
        os._exit(0)


def _write(pipe: int, raw: bytes) -> None:
    raw = len(raw).to_bytes(_LENGTH, "little") + raw
    while raw:
        raw = raw[os.write(pipe, raw) :]


def _read(pipe: int, seconds: float | None = None) -> bytes | None:
    """Return what was written at once; None where there is no more, or it does not come in time."""
    found, wanted = bytearray(), _LENGTH
    while len(found) < wanted:
        if not select.select([pipe], [], [], seconds)[0] or not (part := os.read(pipe, 1 << 20)):
            return None
        found += part
        if wanted == _LENGTH and len(found) >= _LENGTH:
            wanted += int.from_bytes(found[:_LENGTH], "little")
    return bytes(found[_LENGTH:])


def _may_abort(nodes: Sequence[onnx.NodeProto]) -> bool:
    known = [graph_op(node.domain, node.op_type) for node in nodes]
    return any(op is not None and op.shrinks for op in known) and any(node.op_type in _ABORTING for node in nodes)

"""SIGTERM ends a command as Ctrl-C does: what was measured is kept, nothing is half written; the exit code is its own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from agmc_onnx.errors import Terminated

INTERRUPTED, TERMINATED = 130, 143


class Stop:
    """What has stopped a command."""

    code = INTERRUPTED

    def __call__(self, number: int, frame: Any) -> None:
        """Take SIGTERM."""
        self.code = TERMINATED
        raise Terminated


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Let SIGTERM raise `Terminated` meanwhile; elsewhere than in the main thread signals are somebody else's."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)

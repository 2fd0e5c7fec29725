"""What is left to do where a library in C++ crashes or Python meets a defect: one line, and exit code 2 for a broken file."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from agmc_onnx.cli.words import PROGRAM, is_verbose

_SIGNALS = ("SIGABRT", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL")
_kept: list[object] = []  # what C holds a pointer to


def catch_crashes() -> None:
    """End the process with exit code 2 and one line where it would be killed by a crash; C++'s own words are not shown.

    Failed assertions in onnx's shape inference abort the process, and print a line first. So stderr's file is replaced by
    nothing for all but Python, unless --verbose was given.
    """
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return
    said = 2
    if "--verbose" not in sys.argv:
        sys.stderr.flush()
        said = os.dup(2)
        sys.stderr = os.fdopen(
            said, "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace", closefd=False
        )
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        os.close(nothing)

    @ctypes.CFUNCTYPE(None, ctypes.c_int)  # type: ignore[untyped-decorator]
    def end(number: int) -> None:
        line = (
            f"{PROGRAM}: error: a library in C++ crashed ({signal.Signals(number).name}), and nothing was written; expected a"
            " model that it can work on. Check it with onnx.checker; --verbose shows where.\n"
        )
        os.write(said, line.encode())
        if is_verbose():
            faulthandler.dump_traceback(said)
        os._exit(2)

    _kept.append(end)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    for name in _SIGNALS:
        if hasattr(signal, name):
            libc.signal(getattr(signal, name), ctypes.cast(end, ctypes.c_void_p))


def limit_memory() -> None:
    """Let this process have no more memory than is free now, or half of the machine's where that is more.

    What wants more ends with `MemoryError` and one line, instead of being killed by the system, or another process in its place.
    A driver of a GPU maps far more than it uses, so there is no limit beside one.
    """
    if "cuda" in " ".join(sys.argv):
        return
    with suppress(ImportError, OSError, ValueError):  # no Linux
        import resource

        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kib = {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}
        wanted = 1024 * max(kib["MemAvailable"], kib["MemTotal"] // 2)
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        least = min((limit for limit in (soft, hard, wanted) if limit != resource.RLIM_INFINITY), default=wanted)
        resource.setrlimit(resource.RLIMIT_DATA, (least, hard))


def broken_model(words: Sequence[str]) -> str | None:
    """Return what is wrong with a model that the command line names, asked in a process of its own; None for nothing."""
    from agmc_onnx.measuring.probe import why_unusable

    for word in words:
        path = Path(word)
        if path.suffix == ".onnx" and path.is_file() and (found := why_unusable(path)):
            return found
    return None

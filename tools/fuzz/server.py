"""A process for every input: a fork of this one, which holds the imported program."""

from __future__ import annotations

import json
import os
import pkgutil
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """What an input may take.

    Attributes:
        seconds: Of processor time.
        wall_s: Of the wall clock: other processes may be in the way.
        n_bytes: Of data; more of it is "out of memory".
    """

    seconds: int = 20
    wall_s: float = 200.0
    n_bytes: int = 4 * 2**30


@dataclass(frozen=True)
class Row:
    """How a verb ended.

    Attributes:
        verb: Its name.
        code: Exit code; None where the process ended in it.
        trace: Of an exception that came out of it, or "".
        stdout: What it printed.
        stderr: What it said.
    """

    verb: str
    code: int | None
    trace: str = ""
    stdout: str = ""
    stderr: str = ""


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        rows: Of the verbs that began.
        signal: That ended it, or 0.
        seconds: Of the wall clock.
        n_bytes: Largest resident size.
        timed_out: Whether a limit of time ended it.
    """

    rows: list[Row]
    signal: int
    seconds: float
    n_bytes: int
    timed_out: bool

    @property
    def last(self) -> Row:
        """Of the verb that ended it."""
        return self.rows[-1]


class silent:
    """Send stdout and stderr of this process, of C++ too, to files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._old = os.dup(1), os.dup(2)
        for number, name in ((1, "stdout"), (2, "stderr")):
            handle = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, number)
            os.close(handle)

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), self._old, strict=True):
            os.dup2(old, number)
            os.close(old)


def import_all() -> None:
    """Import what the verbs import when they are used, before the first fork."""
    import agmc_onnx

    for module in pkgutil.walk_packages(agmc_onnx.__path__, "agmc_onnx."):
        if not any(part in module.name for part in ("exchange", "paddle", "cluster", "__main__", "_moved")):
            __import__(module.name)


def run(verbs: Sequence[Sequence[str]], folder: Path, limits: Limits = Limits()) -> Ended:
    """Run command lines in a fork, one after the other until one fails.

    Args:
        verbs: Words of every command line.
        folder: Where they run.
        limits: What they may take together.
    """
    with tempfile.TemporaryDirectory() as name:
        record, start = Path(name), time.perf_counter()
        pid = os.fork()
        if pid == 0:
            try:
                _child(verbs, folder, record, limits)
            finally:
                os._exit(97)
        status, usage, timed_out = _wait(pid, start + limits.wall_s)
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return Ended(
            _rows(record) or [Row(verbs[0][0], None)],
            number,
            time.perf_counter() - start,
            usage.ru_maxrss * 1024,
            timed_out or number in (signal.SIGXCPU, signal.SIGKILL),
        )


def _rows(record: Path) -> list[Row]:
    try:
        found = json.loads((record / "now").read_text())
    except (OSError, ValueError):
        return []
    return [
        Row(*row, *((record / f"log{i}" / name).read_text(errors="replace") for name in ("stdout", "stderr")))
        for i, row in enumerate(found)
    ]


def _child(verbs: Sequence[Sequence[str]], folder: Path, record: Path, limits: Limits) -> None:
    """Write down the exit code of every verb and what it said."""
    from agmc_onnx.cli import main

    resource.setrlimit(resource.RLIMIT_DATA, (limits.n_bytes, limits.n_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds, limits.seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["AGMC_ONNX_DEBUG"] = "1"
    os.environ["AGMC_ONNX_CACHE"] = str(record)
    os.chdir(folder)
    rows: list[tuple[str, int | None, str]] = []
    for verb in verbs:
        log = record / f"log{len(rows)}"
        log.mkdir()
        (record / "now").write_text(json.dumps([*rows, (verb[0], None, "")]))
        with silent(log):
            try:
                code, trace = main(list(verb)), ""
            except BaseException as error:
                code, trace = 1, _place(error)
        rows.append((verb[0], code, trace))
        (record / "now").write_text(json.dumps(rows))
        if code:
            break
    os._exit(0)


def _place(error: BaseException) -> str:
    """Return an error with the last places in the package that it came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "agmc_onnx" in f.filename]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[:-4:-1])
    return f"{type(error).__name__}: {str(error)[:200]} at {places}"


def _wait(pid: int, deadline: float) -> tuple[int, resource.struct_rusage, bool]:
    timed_out = False
    pause = 0.001
    while True:
        done, status, usage = os.wait4(pid, 0 if timed_out else os.WNOHANG)
        if done:
            return status, usage, timed_out
        if time.perf_counter() > deadline:
            os.kill(pid, signal.SIGKILL)
            timed_out = True
        time.sleep(pause)
        pause = min(2 * pause, 0.05)

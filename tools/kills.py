"""Kill `compress` over and over while it writes a set over another, and look at what the next command finds.

    python tools/kills.py --kills 60

Half of the kills come at a change of the output's folder (renames, links, removals in turn), half at a random moment; with KILL,
TERM and INT in turn. After each, the next command must find one whole set, the old one or the new one, and nothing else.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agmc_onnx.cli import main as agmc
from agmc_onnx.graph.outputs import output_files, set_of
from agmc_onnx.verbs import compress as _warm  # noqa: F401  # what children need is imported once

DIGITS = Path(__file__).parents[1] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CALLS = ("replace", "link", "unlink", "rmdir", "mkdir")
PARTS = ("html", "model", "plan", "report")


def compress(output: Path, flops: float) -> int:
    """Compress the digits model as quickly as can be."""
    options = ["--policy", "uniform", "--recover", "none", "--latency-seconds", "0.02", "--quiet"]
    return agmc(["compress", str(DIGITS), "--flops", str(flops), "-o", str(output), *options])


def in_child(work: Callable[[], int]) -> tuple[int, float]:
    """Run something in a fork; return its exit code, negative for a signal, and the seconds it took."""
    start = time.monotonic()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), time.monotonic() - start
    code = 1
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = work()
    finally:
        os._exit(code)


def counting(at: int, number: int, folder: Path) -> list[int]:
    """Send this process a signal at the at-th change of a folder; return where the changes are counted."""
    count = [0]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if any(str(folder) in str(arg) for arg in args):
                count[0] += 1
                if count[0] == at:
                    os.kill(os.getpid(), number)
            return call(*args, **kwargs)

        return run

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    return count


def killed(output: Path, flops: float, number: int, at: int | None, after_s: float) -> int:
    """Compress in a child that gets a signal at a change of the folder, or after some seconds; return its exit code."""

    def work() -> int:
        if at is not None:
            counting(at, number, output.parent)
        else:
            threading.Timer(after_s, os.kill, (os.getpid(), number)).start()
        return compress(output, flops)

    return in_child(work)[0]


def changes(folder: Path) -> tuple[int, float]:
    """Return how often a run that writes over a set changes its folder, modulo 255, and how long it takes."""
    output = folder / "count.onnx"
    assert in_child(lambda: compress(output, 0.5))[0] == 0

    def work() -> int:
        count = counting(-1, 0, folder)
        return count[0] if compress(output, 0.6) == 0 else 0

    return in_child(work)


def check(output: Path) -> str:
    """Return what is wrong with a set after the next command, or ""."""
    code, _ = in_child(lambda: agmc(["verify", str(DIGITS), str(output), "--quiet"]))
    ids = {part: set_of(path) for part, path in output_files(output).items() if path.exists()}
    hidden = [path.name for path in output.parent.iterdir() if path.name.startswith(".")]
    if code != 0:
        return f"verify says {code}"
    if tuple(sorted(ids)) != PARTS or len(set(ids.values())) != 1:
        return f"a mixed set: {ids}"
    return f"left over: {hidden}" if hidden else ""


def main(argv: list[str] | None = None) -> int:
    """Kill as often as asked; return 1 where a set was not whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rng, seen, wrong = random.Random(args.seed), collections.Counter[str](), 0
    with tempfile.TemporaryDirectory() as name:
        n_changes, wall_s = changes(Path(name))
        folder = Path(name, "out")
        folder.mkdir()
        output = folder / "x.onnx"
        assert in_child(lambda: compress(output, 0.5))[0] == 0
        for i in range(args.kills):
            number, before = SIGNALS[i % 3], set_of(output)
            at = 1 + (i // 2 * max(1, 2 * n_changes // max(args.kills, 1))) % n_changes if i % 2 == 0 else None
            code = killed(output, (0.6, 0.5)[i % 2], number, at, wall_s * rng.random())
            problem = check(output)
            became = "new" if set_of(output) != before else "old"
            seen[f"{number.name} exit {code}: {became} set"] += 1
            if problem:
                wrong += 1
                print(f"kill {i} ({number.name} at {at or 'a moment'}): {problem}")
    for what, n in sorted(seen.items()):
        print(f"{n:4} {what}")
    print(f"{args.kills} kills ({n_changes} changes of the folder in a run): {wrong} sets not whole")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

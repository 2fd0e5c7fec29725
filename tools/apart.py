"""Each job in a process of its own, forked from one that has the heavy imports, and rows kept as lines of JSON."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ENGINE = ("ties", "graph", "ops", "pruning", "search/budget.py", "measuring/random_inputs.py")
_FORK = multiprocessing.get_context("fork")


def run_apart(job: Callable[[], Row], seconds: int) -> Row:
    """Return what a job returns, or `{"error": ...}` where it raises, crashes, or uses more processor time.

    Args:
        job: Runs in a forked process; prints to nowhere.
        seconds: Limit of its processor time; four times as long on the clock.
    """
    receiver, sender = _FORK.Pipe(duplex=False)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            row = job()
        except Exception as error:  # a row says what happened to its model, whatever it was
            row = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        sender.send(row)
        os._exit(0)  # destructors of forked threads have nothing to do here

    process = _FORK.Process(target=work)
    process.start()
    sender.close()
    try:
        row: Row = receiver.recv() if receiver.poll(4 * seconds) else {"error": f"no result after {4 * seconds} s"}
        process.join(20)
    except EOFError:
        process.join(20)
        over = process.exitcode is not None and process.exitcode in (-24, -9)
        row = {"error": f"over {seconds} s of processor time" if over else f"the process ended with {process.exitcode}"}
    if process.is_alive():
        process.kill()
        process.join()
    return row


def read_rows(*paths: Path) -> list[Row]:
    """Return the rows of files, of rows of the same key the last, where it stands."""
    last: dict[tuple[str, str], Row] = {}
    for line in (line for path in paths if path.exists() for line in path.read_text().splitlines()):
        row = json.loads(line)
        last.pop(key_of(row), None)
        last[key_of(row)] = row
    return list(last.values())


def key_of(row: Row) -> tuple[str, str]:
    """Return what a row is about."""
    return row["name"], row["exporter"]


def fill(
    path: Path,
    jobs: Iterable[tuple[str, str]],
    make: Callable[[str, str], Row],
    part: str = "1/1",
    again: bool = False,
    minutes: float = 1e9,
) -> None:
    """Append a row for every job that the file has none of yet; several processes may fill one file.

    Args:
        path: File of rows.
        jobs: Names with exporters.
        make: Makes a row, without its name.
        part: "K/N" does every N-th job from the K-th (1 is the first).
        again: Also repeat rows that failed, or that older code of the engine made.
        minutes: No job begins later than this.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    number, count = (int(text) for text in part.split("/"))
    code, end = engine(), time.monotonic() + 60 * minutes
    for name, exporter in list(jobs)[number - 1 :: count]:
        known = {key_of(row): row for row in read_rows(path)}.get((name, exporter))
        if known is not None and not (again and ("error" in known or known.get("engine") != code)):
            continue
        if time.monotonic() > end:
            return
        row = {"name": name, "exporter": exporter, "engine": code, "commit": commit()} | make(name, exporter)
        with path.open("a") as out:
            out.write(json.dumps(row) + "\n")
        shown = (
            *(k for k in row if isinstance(row[k], dict)),
            "macs_left",
            "valid",
            "equivalent",
            "relative",
            "seconds",
            "total_seconds",
            "error",
            "note",
        )
        sys.stdout.write(" ".join([name, exporter, *(f"{k}={row[k]}" for k in shown if row.get(k) not in (None, ""))]))
        sys.stdout.write("\n")
        sys.stdout.flush()


def commit() -> str:
    """Return the last commit that changed the package, with a + where the working tree changed it since."""
    root = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout

    changed = git("status", "--porcelain", "--untracked-files=no", "agmc_onnx")
    return git("log", "-1", "--format=%h", "--", "agmc_onnx").strip() + "+" * bool(changed)


def engine() -> str:
    """Return a digest of the code that a row depends on."""
    root = Path(__file__).resolve().parents[1] / "agmc_onnx"
    paths = [path for part in ENGINE for path in sorted((root / part).rglob("*.py") or [root / part])]
    paths += [root / part for part in ENGINE if part.endswith(".py")]
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]

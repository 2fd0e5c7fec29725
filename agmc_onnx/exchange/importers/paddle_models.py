"""Paddle programs to ONNX: paddle2onnx pins its own onnx, so it runs in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from agmc_onnx.errors import ModelError, UsageError
from agmc_onnx.exchange.importers.source import Conversion, Feed, ImportOptions, Source, one_line

OPSET = 17
WORKER = Path(__file__).with_name("paddle_worker.py")
HOW = "python -m venv paddle && paddle/bin/pip install paddlepaddle paddle2onnx packaging, then --python paddle/bin/python"
MINUTES = 30


def convert_program(source: Source, options: ImportOptions) -> Conversion:
    """Convert an inference program (`.json` or `.pdmodel`, with `.pdiparams` beside it) in Paddle's environment."""
    model, params = _files(source)
    python = str(options.python or sys.executable)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        said = _run(source, python, "convert", model, params, path, options.opset or OPSET)
        proto = onnx.load(path)
    versions = next(line for line in said.splitlines() if line.startswith("versions ")).split()
    names = [value.name for value in proto.graph.input]

    def answer(feed: Feed) -> list[np.ndarray]:
        with tempfile.TemporaryDirectory() as folder:
            given, found = Path(folder, "in.npz"), Path(folder, "out.npz")
            arrays: dict[str, Any] = {name: feed[name] for name in names}
            np.savez(given, **arrays)
            _run(source, python, "answer", model, params, given, found)
            with np.load(found, allow_pickle=False) as answers:
                return [answers[str(i)] for i in range(len(answers.files))]

    return Conversion(proto, answer, f"paddlepaddle {versions[1]}", f"paddle2onnx {versions[2]}")


def _files(source: Source) -> tuple[Path, Path]:
    """Return the program and its parameters.

    Raises:
        UsageError: If one is missing, or a folder has several.
    """
    path = source.path
    if path.is_dir():
        found = [p.with_suffix(end) for p in sorted(path.glob("*.pdiparams")) for end in (".json", ".pdmodel")]
        found = [program for program in found if program.is_file()]
        if len(found) != 1:
            names = ", ".join(program.name for program in found) or "none"
            raise UsageError(
                f"{source}: programs in this folder: {names}; expected one. Name the .json or .pdmodel file."
            )
        path = found[0]
    params = path.with_suffix(".pdiparams")
    if not params.is_file():
        raise UsageError(f"{source}: its parameters are missing, got no {params.name}; expected it beside the program.")
    return path, params


def _run(source: Source, python: str, verb: str, *arguments: object) -> str:
    """Run the worker in Paddle's environment and return what it printed.

    Raises:
        UsageError: If that environment has no Paddle.
        ModelError: If the worker fails.
    """
    try:
        done = subprocess.run(
            [python, str(WORKER), verb, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60 * MINUTES,
            check=False,
        )
    except OSError as error:
        raise UsageError(
            f"--python: cannot be run, got {python} ({error.strerror}); expected a python. {HOW}."
        ) from None
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"{source}: Paddle did not end after {MINUTES} minutes; expected less. Try a smaller model."
        ) from None
    if done.returncode == 0:
        return done.stdout
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing said"]
    if "No module named" in lines[-1]:
        raise UsageError(
            f"{source}: needs Paddle, got {python} with {lines[-1]}. Its converter needs its own environment: {HOW}."
        )
    raise ModelError(
        f"{source}: paddle2onnx cannot convert it, got {one_line(lines[-1])!r} (exit code {done.returncode}); expected a program"
        " that it supports. Look for the message in its documentation."
    )

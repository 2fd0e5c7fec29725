"""What a verb says: on stdout for the user to read or pipe, on stderr what went wrong."""

from __future__ import annotations

import os
import sys

PROGRAM = "agmc-onnx"
INTERRUPTED = 130


def tell(line: str) -> None:
    """Print one line to stdout."""
    print(line)


def say(line: str) -> None:
    """Print one line to stderr, whatever became of it."""
    try:
        print(" ".join(line.split()), file=sys.stderr, flush=True)
    except OSError:  # nobody is left to read it
        return


def fail(message: str, code: int) -> int:
    """Say an error on stderr and return the code to leave with."""
    say(f"{PROGRAM}: error: {message}")
    return code


def drop_stdout() -> None:
    """Send what stdout still holds nowhere, so that leaving does not fail once more."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # a stdout without a file, as in tests
        return

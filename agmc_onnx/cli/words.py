"""What a verb says: on stdout for the user to read or pipe, on stderr what went wrong."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

PROGRAM = "agmc-onnx"

_level = {"quiet": False, "verbose": False}


def set_level(quiet: bool = False, verbose: bool = False) -> None:
    """Set what `tell` and `note` say from now on."""
    _level.update(quiet=quiet, verbose=verbose)


def is_verbose() -> bool:
    """Whether --verbose was given."""
    return _level["verbose"]


FORCE = "write over files at the output that agmc-onnx did not write; files that are read are never written over"


def tell(line: str) -> None:
    """Print one line to stdout, unless --quiet (or --json, whose output shall stand alone) was given."""
    if not _level["quiet"]:
        _out(wrapped(line, shutil.get_terminal_size().columns) if sys.stdout.isatty() else line)


def wrapped(line: str, width: int) -> str:
    """Return a line that is wider than a terminal as several, broken between words; names and paths stay whole."""
    if len(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def tell_json(value: Any) -> None:
    """Print a value as JSON to stdout; numbers that JSON has not (nan) become null."""
    _out(json.dumps(_plain(value), indent=1, default=str))


def _out(text: str) -> None:
    """Print to stdout; who reads it may have seen enough, which must not stop the work that is still to be done."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        drop_stdout()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and value - value != 0 else value


def noting() -> Callable[[str], None] | None:
    """Return what takes every step of progress where --verbose was given."""
    return note if _level["verbose"] else None


def note(line: str) -> None:
    """Print one line to stderr where --verbose was given."""
    if _level["verbose"]:
        say(line)


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


def no_card(data: str | None) -> list[str]:
    """Return what is to be known of a folder given as data without a card: that its pixels are only divided."""
    if data is None or not os.path.isdir(data):
        return []
    return [
        f"{data}: a folder without a card, so 8-bit pixels are divided by 255 and nothing else is done; if the model was trained"
        " with a mean and std, a crop or another scale, write a card that says so."
    ]

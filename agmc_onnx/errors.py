"""The exception tree; every error a user can meet is an `AgmcError` with one line that says what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
# a flag, and behind it what stands for a value; not in a command line that is told to be run
_FLAG = re.compile(r"(agmc-onnx \S[^.]*)|--([a-z][a-z-]*)(?:[ ](\d[\d.]*\b|[A-Z][A-Z0-9:]*\b(?=[ .,;)]|$)))?")


class AgmcError(Exception):
    """Root of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 2


class UsageError(AgmcError):
    """An option or argument has a value that cannot be used."""


class ModelError(AgmcError):
    """A model file cannot be read, written or understood."""


class DataError(AgmcError):
    """A data card, its images or its labels cannot be used."""


class PlanError(AgmcError):
    """A plan does not fit the model it is applied to."""


class BudgetError(AgmcError):
    """The budget cannot be reached.

    Attributes:
        best: Smallest reachable share of the original's cost, in (0, 1].
    """

    exit_code = 3

    def __init__(self, message: str, best: float) -> None:
        super().__init__(message)
        self.best = best


class VerificationError(AgmcError):
    """A result failed its own verification; nothing was written."""

    exit_code = 4


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return " Did you mean ...?" where a choice is near, else nothing."""
    near = difflib.get_close_matches(word, list(choices), 1, 0.5)
    return f" Did you mean {near[0]}?" if near else ""


def in_python(text: str) -> str:
    """Return a message about flags as one about arguments: `max_drop=P` of --max-drop P, `latency_table` of --latency-table."""

    def named(found: re.Match[str]) -> str:
        command, name, value = found.groups()
        return command or name.replace("-", "_") + (f"={value}" if value else "")

    return _FLAG.sub(named, text)


def told_in_python(verb: Callable[P, R]) -> Callable[P, R]:
    """Return a verb whose errors speak of arguments, for those who call it from Python."""

    @wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return verb(*args, **kwargs)
        except AgmcError as error:
            error.args = (in_python(str(error)), *error.args[1:])
            raise

    return call


class Terminated(KeyboardInterrupt):
    """SIGTERM came; what ends on Ctrl-C ends on it."""


class Notice(UserWarning):
    """Something that a user should know, and nothing fails of: the command line says it in a line."""

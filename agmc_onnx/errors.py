"""The exception tree; every error a user can meet is an `AgmcError` with one line that says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


class Terminated(KeyboardInterrupt):
    """SIGTERM came; what ends on Ctrl-C ends on it."""


class Notice(UserWarning):
    """Something that a user should know, and nothing fails of: the command line says it in a line."""

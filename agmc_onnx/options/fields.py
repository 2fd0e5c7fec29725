"""How an option is described: help, range and choices stand in the metadata of a field."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from agmc_onnx.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its type and default; `option` puts it into a field's metadata.

    Attributes:
        help: What it does, for --help; the choices and the default are added.
        metavar: What stands for the value there.
        more: What else there is to know, for the reference: where the default comes from, what was measured.
        low, high: Bounds of a number; None: no bound.
        is_open: Whether the bounds themselves are no values.
        example: Of a value, for errors.
        wrong: What is said of a number outside of the bounds.
        choices: The allowed names; or the tables that they are the keys of, "module:TABLE", read when they are asked for.
        default_text: Said where the default depends on other options.
        is_common: Whether --help shows it; --help-all shows every one.
        extra: A text that is allowed beside numbers.
    """

    help: str
    metavar: str = ""
    more: str = ""
    low: float | None = None
    high: float | None = None
    is_open: bool = False
    example: str = ""
    wrong: str = "out of range"
    choices: tuple[str, ...] = ()
    default_text: str | None = None
    is_common: bool = False
    extra: str | None = None

    @property
    def expected(self) -> str:
        """What a value must be, such as "0 < R < 1, such as 0.5 to keep half"."""
        sign, letter, low = "<" if self.is_open else "<=", self.metavar or "N", f"{self.low or 0:g}"
        if self.high is not None:
            found = f"{low} {sign} {letter} < {self.high:g}"
        elif self.low is not None:
            found = f"more than {low}" if self.is_open else f"at least {low}"
        else:
            found = "a number"
        beside = f", or {self.extra}" if self.extra else ""
        return f"{found}{f', such as {self.example}' if self.example else ''}{beside}"

    def names(self) -> tuple[str, ...]:
        """Return the allowed names; empty where any will do."""
        found: list[str] = []
        for choice in self.choices:
            module, _, table = choice.partition(":")
            found += getattr(importlib.import_module(module), table) if table else [choice]
        return tuple(found)

    def check(self, name: str, value: Any, kind: type) -> None:
        """Raise for a value that the option cannot have.

        Args:
            name: Of the option, as a field.
            value: What was given; None is no value.
            kind: bool, int, float, str or tuple.

        Raises:
            UsageError: If it is of another kind, out of range, or no known name.
        """
        if value is None or (self.extra is not None and value == self.extra):
            return
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if kind is bool and not isinstance(value, bool):
            raise self._wrong(name, "not a switch's value", value, "true or false. Choose one")
        if kind is int and not (is_number and isinstance(value, int)):
            raise self._wrong(name, "not a whole number", value, self.expected)
        if kind is float and not is_number:
            raise self._wrong(name, "not a number", value, self.expected)
        if kind is str and not isinstance(value, str | PathLike):
            raise self._wrong(name, "not a text", value, "a name or a path")
        if kind is tuple and (isinstance(value, str) or not all(isinstance(item, str) for item in value)):
            raise self._wrong(name, "not a list of texts", value, "one text for each")
        if kind in (int, float) and not self._holds(value):
            raise self._wrong(name, self.wrong, value, self.expected)
        if self.choices and value not in (known := self.names()):
            text = f"one of {', '.join(known)}.{did_you_mean(value, known) or ' Choose one.'}"
            raise self._wrong(name, "unknown name", value, text.rstrip("."))

    def _holds(self, value: float) -> bool:
        low = self.low is None or (value > self.low if self.is_open else value >= self.low)
        return low and math.isfinite(value) and (self.high is None or value < self.high)

    def _wrong(self, name: str, what: str, value: Any, expected: str) -> UsageError:
        end = "" if expected.endswith("?") else "."
        return UsageError(f"{flag(name)}: {what}, got {value!r}; expected {expected}{end}")


def flag(name: str) -> str:
    """Return an option as it is typed: --latency-table of latency_table."""
    return f"--{name.replace('_', '-')}"


def option(default: Any, help: str, metavar: str = "", **facts: Any) -> Any:
    """Return a field with a default and what `Option` says of it."""
    return field(default=default, metadata={"option": Option(help, metavar, **facts)})


SHARE = {
    "low": 0,
    "high": 1,
    "is_open": True,
    "wrong": "the share to keep is out of range",
    "example": "0.5 to keep half",
}
AT_LEAST_1 = {"low": 1, "wrong": "too small"}
AT_LEAST_0 = {"low": 0, "wrong": "too small"}

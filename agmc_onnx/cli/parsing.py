"""Arguments: a parser that raises and guesses what was meant, and the kinds of values that options have."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from agmc_onnx.errors import UsageError

SHARE = "0 < R < 1, such as 0.5 to keep half"


@dataclass(frozen=True)
class Verb:
    """A command; a row of `agmc_onnx.cli.VERBS`.

    Attributes:
        name: As typed.
        text: What it does, for the help; lower case, no full stop.
        add: Adds its arguments to a parser; called only when the verb is wanted, so it may import tables.
        run: Does it and returns the exit code.
        is_answer: What it prints is what it is for, so that it has no --quiet.
    """

    name: str
    text: str
    add: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int]
    is_answer: bool = False


@dataclass(frozen=True)
class Flag:
    """One option of `compress`; its name and default are those of a field of `CompressOptions`.

    Attributes:
        field: Field of `CompressOptions`; the flag is --field with dashes.
        kind: `share`, `whole`, `seconds`, `str`, or `bool` for a switch without a value.
        metavar: What stands for the value in the help.
        help: What it does; the default is added.
        choices: Gives the allowed names, when asked.
        default: Said in the help where the default depends on other options.
    """

    field: str
    kind: Callable[[str], Any]
    metavar: str
    help: str
    choices: Callable[[], Iterable[str]] | None = None
    default: str | None = None


def seconds(text: str) -> float:
    """Return a time, at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"not a time, got {text!r}; expected a number, such as 5.")
    return value


def points(text: str) -> float:
    """Return points of a metric; their range is checked with the other options."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number, got {text!r}; expected points such as 1.") from None


def share(text: str) -> float:
    """Return a share; its range is checked with the other options."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number, got {text!r}; expected {SHARE}.") from None


def whole(text: str) -> int:
    """Return a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a whole number, got {text!r}; expected one such as 8.") from None


class Parser(argparse.ArgumentParser):
    """Raises instead of exiting, and guesses what was meant.

    Attributes:
        alternatives: Sets of arguments of which only one may be given; one on the command line beats others of its set in a
            --config file.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.alternatives: list[set[str]] = []

    def add_common(self, verb: Verb) -> None:
        """Add the options that every verb has."""
        self.add_argument("--config", metavar="FILE", help=f"a .toml file with options in a table [{verb.name}]")
        if not verb.is_answer and "--quiet" not in self._option_string_actions:
            self.add_argument("--quiet", action="store_true", help="print nothing but errors")
        if "--verbose" not in self._option_string_actions:
            self.add_argument(
                "--verbose", action="store_true", help="say more on stderr: every stage, warnings, where an error arose"
            )

    def error(self, message: str) -> NoReturn:
        """Raise a UsageError."""
        message = message.removeprefix("argument ")
        raise UsageError(message if message.endswith(".") else f"{message}. See {self.prog} --help.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = "unknown verb" if isinstance(action, argparse._SubParsersAction) else "unknown name"
            expected = f"one of {', '.join(action.choices)}"
            raise argparse.ArgumentError(
                action if action.option_strings else None,
                f"{what}, got {value!r}; expected {expected}.{did_you_mean(str(value), action.choices) or ' Choose one.'}",
            )

    def check_options(self, words: Sequence[str]) -> None:
        """Raise for an option that there is not, before anything else is wrong because of it."""
        known = self._option_string_actions
        for word in words:
            if word == "--":
                return
            name = word.split("=", 1)[0]
            if not word.startswith("-") or word == "-" or name in known or self._negative_number_matcher.match(word):
                continue
            if not word.startswith("--") and word[:2] in known:
                continue
            hint = did_you_mean(name, [option for option in known if option.startswith("--")])
            raise UsageError(f"{self.prog}: unknown option, got {name}.{hint} See {self.prog} --help.")


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return " Did you mean ...?" where a choice is near, else nothing."""
    near = difflib.get_close_matches(word, list(choices), 1, 0.5)
    return f" Did you mean {near[0]}?" if near else ""

"""--config FILE: options of a verb from a TOML table of its name; what stands on the command line wins."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agmc_onnx.cli.parsing import Parser, did_you_mean
from agmc_onnx.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OPTION = "--config"


def with_config(parser: Parser, verb: str, verbs: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Return the arguments of a verb with those of its --config file before them, so that later ones win.

    Keys are the long options without their dashes, with - or _; arguments without an option have their name in the help,
    in small letters (`model = "m.onnx"`). Paths are as on the command line: relative to where the program is started.

    Args:
        parser: Of the verb, with all its arguments; made to accept missing ones that the file gives.
        verb: Its name, and that of its table.
        verbs: All names, allowed as other tables.
        argv: What was typed behind the verb.

    Raises:
        UsageError: If the file cannot be read, or has a key or value that the verb does not know.
    """
    path = _given(argv)
    if path is None:
        return list(argv)
    table = _table(path, verb, verbs)
    options = {_key(name): action for name, action in parser._option_string_actions.items() if name.startswith("--")}
    places = {action.dest: action for action in parser._actions if not action.option_strings}
    typed = {options[_key(word.split("=", 1)[0])].dest for word in argv if _key(word.split("=", 1)[0]) in options}
    typed |= {action.dest for word in argv for action in [parser._option_string_actions.get(word)] if action}
    beaten = {name for group in parser.alternatives if typed & group for name in group} | typed
    words: list[str] = []
    for name, value in table.items():
        where = f"{path} [{verb}] {name}"
        key = _key(f"--{name}")
        if key in options and options[key].dest not in ("help", "config"):
            if options[key].dest not in beaten:
                words += _words(where, options[key], value)
        elif name.replace("-", "_") in places:
            _fill(where, places[name.replace("-", "_")], value)
        else:
            known = sorted({*(key.removeprefix("--") for key in options), *places} - {"help", "config"})
            hint = did_you_mean(key.removeprefix("--"), known)
            raise UsageError(
                f"{path}: unknown key in [{verb}], got {name!r}; expected an option of {parser.prog}.{hint}"
            )
    return [*words, *argv]


def _given(argv: Sequence[str]) -> Path | None:
    """Return the file named by --config; the last one counts."""
    found = None
    for i, word in enumerate(argv):
        if word == "--":
            break
        if word.startswith(f"{OPTION}="):
            found = word.split("=", 1)[1]
        elif word == OPTION:
            if i + 1 == len(argv):
                raise UsageError(f"{OPTION}: expected a file, got nothing. Name a .toml file.")
            found = argv[i + 1]
    return None if found is None else Path(found)


def _table(path: Path, verb: str, verbs: Sequence[str]) -> Mapping[str, Any]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}). Check the path of {OPTION}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML ({error}). Correct that line.") from None
    for name, value in found.items():
        if not isinstance(value, dict):
            raise UsageError(
                f"{path}: key outside of a table, got {name!r}; expected it below [{verb}]. Move it there."
            )
        if name not in verbs:
            hint = did_you_mean(name, verbs) or " Remove it."
            raise UsageError(f"{path}: unknown table, got [{name}]; expected one of {', '.join(verbs)}.{hint}")
    if verb not in found:
        got = ", ".join(f"[{name}]" for name in found) or "an empty file"
        raise UsageError(f"{path}: no table for {verb}, got {got}; expected [{verb}]. Add it, or leave out {OPTION}.")
    table: Mapping[str, Any] = found[verb]
    return table


def _key(name: str) -> str:
    return name.replace("_", "-")


def _words(where: str, action: argparse.Action, value: Any) -> list[str]:
    """Return one option of the file as it would be typed."""
    option = next(name for name in action.option_strings if name.startswith("--"))
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UsageError(f"{where}: not a switch's value, got {value!r}; expected true or false. Choose one.")
        return [option] if value else []
    if isinstance(action, argparse._AppendAction):
        values = value if isinstance(value, list) else [value]
        return [f"{option}={_text(where, one)}" for one in values]
    if isinstance(value, list):
        return [option, *(_text(where, one) for one in value)] if action.nargs else [_bad(where, value)]
    return [f"{option}={_text(where, value)}"]


def _fill(where: str, action: argparse.Action, value: Any) -> None:
    """Make an argument without an option one that may be left out."""
    if action.nargs in ("+", "*"):
        action.nargs, action.default = (
            "*",
            [_text(where, one) for one in (value if isinstance(value, list) else [value])],
        )
    else:
        action.nargs, action.default = "?", _text(where, value)
    action.required = False


def _text(where: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        _bad(where, value)
    return str(value)


def _bad(where: str, value: Any) -> str:
    raise UsageError(
        f"{where}: bad value, got {value!r}; expected a string or a number. Write it as on the command line."
    )

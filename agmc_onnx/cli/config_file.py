"""--config FILE: options of a verb from a TOML table of its name; what stands on the command line wins."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich_click as click

from agmc_onnx.errors import UsageError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NO_KEYS = {"help", "help_all", "config"}


def default_map(path: str | Path, command: click.Command, verb: str, verbs: Sequence[str]) -> dict[str, Any]:
    """Return what a file gives to the parameters of a verb, by their names: click takes it where nothing was typed.

    Keys are the long options without their dashes, with - or _, and arguments by their name in the help, in small letters
    (`model = "m.onnx"`). Paths are as on the command line: relative to where the program is started.

    Args:
        path: Of the file.
        command: The verb.
        verb: Its name, and that of its table.
        verbs: All names, allowed as other tables.

    Raises:
        UsageError: If the file cannot be read, or has a key or value that the verb does not know.
    """
    known = {name: one for one in command.params for name in _names(one) if name not in NO_KEYS}
    found: dict[str, Any] = {}
    for name, value in _table(Path(path), verb, verbs).items():
        one = known.get(name.replace("-", "_"))
        if one is None:
            hint = did_you_mean(name, [key.replace("_", "-") for key in known])
            raise UsageError(f"{path}: unknown key in [{verb}], got {name!r}; expected an option of {verb}.{hint}")
        assert one.name is not None
        found[one.name] = _value(f"{path} [{verb}] {name}", one, value)
    return found


def _names(one: click.Parameter) -> set[str]:
    return {name.removeprefix("--").replace("-", "_") for name in one.opts if name[:2] == "--" or name[:1] != "-"}


def _value(where: str, one: click.Parameter, value: Any) -> Any:
    if isinstance(one, click.Option) and one.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{where}: not a switch's value, got {value!r}; expected true or false. Choose one.")
        return value
    is_list = one.multiple or one.nargs != 1
    values = value if is_list and isinstance(value, list) else [value]
    if any(isinstance(item, bool) or not isinstance(item, str | int | float) for item in values):
        raise UsageError(
            f"{where}: bad value, got {value!r}; expected a string or a number. Write it as on the command line."
        )
    return values if is_list else value


def _table(path: Path, verb: str, verbs: Sequence[str]) -> dict[str, Any]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}). Check the path of --config.") from None
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
        raise UsageError(f"{path}: no table for {verb}, got {got}; expected [{verb}]. Add it, or leave out --config.")
    table: dict[str, Any] = found[verb]
    return table

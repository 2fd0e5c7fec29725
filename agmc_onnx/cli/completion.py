"""completion: a script for the shell that completes verbs, options and names; made from the parsers themselves."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from agmc_onnx.cli.parsing import Parser, Verb
from agmc_onnx.cli.words import PROGRAM, tell


@dataclass(frozen=True)
class Option:
    """An option of a verb.

    Attributes:
        names: As typed, "-o" and "--output".
        help: One line.
        takes_value: Whether a value follows.
        choices: Names that the value is one of; empty where it is free (a file, a number).
    """

    names: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...]


Verbs = Mapping[str, tuple[str, Sequence[Option]]]  # name -> (help, options)


def add(one: Parser) -> None:
    """Add the arguments of `completion`."""
    one.add_argument("shell", choices=list(SHELLS), metavar="SHELL", help=f"one of {', '.join(SHELLS)}")


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    from agmc_onnx.cli import parser_of_all

    parser, verbs = parser_of_all()
    helps = {verb.dest: verb.help or "" for action in parser._actions for verb in _subparsers(action)}
    found = {name: (helps.get(name, ""), list(_options(one))) for name, one in verbs.items()}
    for line in SHELLS[arguments.shell](found):
        tell(line)
    return 0


def _subparsers(action: argparse.Action) -> list[argparse.Action]:
    return list(action._get_subactions()) if isinstance(action, argparse._SubParsersAction) else []


def _options(one: Parser) -> Iterator[Option]:
    for action in one._actions:
        if action.option_strings:
            text = " ".join((action.help or "").split()).split("; default:")[0]
            choices = tuple(str(choice) for choice in action.choices or ())
            yield Option(tuple(action.option_strings), text, action.nargs != 0, choices)


def _bash(verbs: Verbs) -> Iterator[str]:
    name = "_agmc_onnx"
    yield f"# bash completion of {PROGRAM}:  source <({PROGRAM} completion bash)"
    yield f"{name}() {{"
    yield '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" verb="${COMP_WORDS[1]}" names=""'
    yield "  COMPREPLY=()"
    yield '  if [ "$COMP_CWORD" -eq 1 ]; then'
    yield f'    COMPREPLY=($(compgen -W "{" ".join(verbs)} --help --version" -- "$word"))'
    yield "    return"
    yield "  fi"
    yield '  case "$verb $before" in'
    for verb, (_, options) in verbs.items():
        for option in options:
            if option.choices:
                patterns = "|".join(f'"{verb} {typed}"' for typed in option.names)
                yield f'    {patterns}) COMPREPLY=($(compgen -W "{" ".join(option.choices)}" -- "$word")); return ;;'
    yield "  esac"
    yield '  case "$verb" in'
    for verb, (_, options) in verbs.items():
        yield f'    {verb}) names="{" ".join(typed for option in options for typed in option.names)}" ;;'
    yield "  esac"
    yield '  if [[ "$word" == -* ]]; then COMPREPLY=($(compgen -W "$names" -- "$word")); return; fi'
    shells = " ".join(SHELLS)
    yield f'  if [ "$verb" = completion ]; then COMPREPLY=($(compgen -W "{shells}" -- "$word")); return; fi'
    yield '  compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$word"))'
    yield "}"
    yield f"complete -F {name} {PROGRAM}"


def _zsh(verbs: Verbs) -> Iterator[str]:
    def quoted(text: str) -> str:
        return text.replace("'", "'\\''").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")

    yield f"#compdef {PROGRAM}"
    yield f"# zsh completion of {PROGRAM}:  source <({PROGRAM} completion zsh)"
    yield "_agmc_onnx() {"
    yield "  local -a verbs"
    listed = " ".join(f"'{verb}:{quoted(text)}'" for verb, (text, _) in verbs.items())
    yield f"  verbs=({listed})"
    yield "  if (( CURRENT == 2 )); then _describe verb verbs; return; fi"
    yield "  local verb=$words[2]"
    yield "  shift words; (( CURRENT-- ))"
    yield "  case $verb in"
    for verb, (_, options) in verbs.items():
        yield f"    {verb})"
        yield "      _arguments \\"
        for option in options:
            for typed in option.names:
                action = f"({' '.join(option.choices)})" if option.choices else "_files"
                value = f":value:{action}" if option.takes_value else ""
                yield f"        '{typed}[{quoted(option.help)}]{value}' \\"
        rest = f"({' '.join(SHELLS)})" if verb == "completion" else "_files"
        yield f"        '*:file:{rest}' ;;"
    yield "  esac"
    yield "}"
    yield f'if [ "$funcstack[1]" = "_agmc_onnx" ]; then _agmc_onnx "$@"; else compdef _agmc_onnx {PROGRAM}; fi'


def _fish(verbs: Verbs) -> Iterator[str]:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    yield f"# fish completion of {PROGRAM}:  {PROGRAM} completion fish | source"
    for verb, (text, _) in verbs.items():
        yield f"complete -c {PROGRAM} -n __fish_use_subcommand -f -a {verb} -d {quoted(text)}"
    for verb, (_, options) in verbs.items():
        there = f"complete -c {PROGRAM} -n '__fish_seen_subcommand_from {verb}'"
        for option in options:
            short = "".join(f" -s {name[1:]}" for name in option.names if not name.startswith("--"))
            long = "".join(f" -l {name[2:]}" for name in option.names if name.startswith("--"))
            value = (
                f" -x -a {quoted(' '.join(option.choices))}" if option.choices else " -r" if option.takes_value else ""
            )
            yield f"{there}{short}{long}{value} -d {quoted(option.help)}"
        if verb == "completion":
            yield f"{there} -f -a {quoted(' '.join(SHELLS))}"


SHELLS: dict[str, Callable[[Verbs], Iterator[str]]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
VERBS = (Verb("completion", "print a script with which bash, zsh or fish completes what you type", add, run, True),)

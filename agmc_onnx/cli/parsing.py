"""Verbs on click: their options from what `agmc_onnx.options` says of them, their help in panels, their errors in one line."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import rich_click as click
from click.core import ParameterSource
from click.shell_completion import CompletionItem
from rich_click.rich_panel import RichOptionPanel

from agmc_onnx.cli.config_file import default_map
from agmc_onnx.cli.program import VERBS, sentence
from agmc_onnx.cli.words import set_level, tell, tell_json
from agmc_onnx.options import Known, Option, flag, known_options

PANELS = {
    "budget": "Budget, one of the first four",
    "data": "Data",
    "search": "Search",
    "recovery": "Recovery",
    "sparsity": "Sparsity and precision",
    "execution": "Execution",
}
ORDER = ("Arguments", *PANELS.values(), "Import, where MODEL is not ONNX", "Source", "Options", "Output")
SHORT = "agmc_onnx.short"  # set while a help without the rarer options is made
Function = Callable[..., Any]


@dataclass(frozen=True)
class Said:
    """What a verb has to say.

    Attributes:
        json: With --json.
        lines: Without.
        code: To leave with.
    """

    json: Any
    lines: Iterable[str]
    code: int = 0


class Value(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.5 on
    """The value of an option: read from text, and checked as everywhere else."""

    def __init__(self, name: str, kind: type, says: Option) -> None:
        self.name, self.kind, self.says = name, str if kind is tuple else kind, says

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a number of a text that is one; what is no value of the option is refused."""
        if isinstance(value, str) and self.kind in (int, float) and value != self.says.extra:
            with contextlib.suppress(ValueError):
                value = self.kind(value)
        self.says.check(self.name, value, self.kind)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that a value may have, or that files are to be completed."""
        if self.says.choices:
            return [CompletionItem(name) for name in self.says.names() if name.startswith(incomplete)]
        return [CompletionItem(incomplete, type="file")] if self.kind is str else []


class Verb(click.RichCommand):
    """A command of the program."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return all parameters, or those that the short help shows."""
        found = super().get_params(ctx)
        return [one for one in found if not (ctx.meta.get(SHORT) and getattr(one, "is_rare", False))]

    def get_help(self, ctx: click.Context) -> str:
        """Return the help; the rarer options only where all were asked for."""
        ctx.meta.setdefault(SHORT, True)
        return super().get_help(ctx)


class Flag(click.RichOption):
    """An option that knows whether the short help shows it; the names that it may have are read when its help is.

    Attributes:
        known: What is known of it.
        is_rare: Whether only --help-all shows it.
    """

    def __init__(self, *args: Any, known: Known, is_rare: bool = False, **more: Any) -> None:
        self.known, self.is_rare = known, is_rare
        super().__init__(*args, **more)

    @property
    def help(self) -> str:
        """What it does, its names and its default."""
        says, default = self.known.says, self.known.says.default_text or self.known.default
        plain = [name for name in says.names() if ":" not in name]
        names = f": {', '.join(plain)}" if says.choices else ""
        if len(plain) < len(says.names()):
            names += "; bare:NAME without our guide, guided:NAME with it"
        is_said = default is not None and default != () and self.known.kind is not bool
        return f"{says.help}{names}" + (f"; default: {default}" if is_said else "")

    @help.setter
    def help(self, text: str | None) -> None:
        """Take no other."""


def _flag_of(known: Known, panel: str, is_rare: bool, is_given: bool, *short: str, required: bool = False) -> Function:
    """Return a decorator that adds an option; where `is_given` is false it has no value unless it is typed."""
    names = [*short, flag(known.name), known.name]
    common: dict[str, Any] = {"cls": Flag, "known": known, "is_rare": is_rare, "panel": panel}
    if known.kind is bool:
        return click.option(*names, is_flag=True, default=False if is_given else None, **common)
    if is_given and known.default not in (None, ()):
        common["default"] = known.default  # to click a default of None is a value too
    return click.option(
        *names,
        type=Value(known.name, known.kind, known.says),
        metavar=known.says.metavar,
        multiple=known.kind is tuple,
        required=required,
        **common,
    )


def option_of(part: type, *names: str, panel: str = "Options") -> Function:
    """Return a decorator that adds options of `compress` to another verb, with their defaults."""
    known = [known_options()[one.name] for one in fields(part) if one.name in names]
    return _all_of([_flag_of(one, panel, False, True) for one in known])


def option(
    name: str,
    kind: type,
    metavar: str,
    help: str,
    default: Any = None,
    *,
    short: str = "",
    required: bool = False,
    panel: str = "Options",
    is_rare: bool = False,
    **says: Any,
) -> Function:
    """Return a decorator that adds an option of one verb.

    Args:
        name: As a field; typed with dashes.
        kind: bool, int, float, str, or tuple of texts that may be given several times.
        metavar: What stands for the value in the help; "" of a switch.
        help: What it does.
        default: Where it is not given.
        short: Its one-letter name, "-o".
        required: Whether it must be given.
        panel: Where the help has it.
        is_rare: Whether only --help-all shows it.
        says: More for `agmc_onnx.options.Option`.
    """
    known = Known(name, "", kind, default, Option(help, metavar, **says))
    return _flag_of(known, panel, is_rare, True, *([short] if short else []), required=required)


def options_of_compress() -> Function:
    """Return a decorator that adds the options of `compress`, in the panels of their parts; what is not given is None."""
    known = known_options().values()
    return _all_of([_flag_of(one, PANELS[one.part], not one.says.is_common, False) for one in known])


def _all_of(decorators: Sequence[Function]) -> Function:
    def decorate(function: Function) -> Function:
        for one in reversed(decorators):
            function = one(function)
        return function

    return decorate


def argument(name: str, metavar: str, help: str = "", **more: Any) -> Function:
    """Return a decorator that adds an argument: a file, unless `type` says otherwise."""
    more.setdefault("type", click.Path())
    return click.argument(name, metavar=metavar, help=help, **more)


def _all_help(ctx: click.Context, param: click.Parameter, is_asked: bool) -> None:
    if is_asked:
        ctx.meta[SHORT] = False
        click.echo(ctx.get_help())
        ctx.exit()


def _config(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    if path is not None:
        from agmc_onnx.graph.outputs import COMMAND_FILES

        ctx.default_map = default_map(path, ctx.command, str(ctx.info_name), tuple(VERBS))
        COMMAND_FILES.set((Path(path),))  # for this command: main() runs each in a context of its own


def verb(name: str, example: str) -> Callable[[Function], Verb]:
    """Return a decorator that makes a verb of a function which returns `Said`.

    The function gets its arguments and options by name; --json, --quiet and --verbose are seen to here, but where it takes one.

    Args:
        name: A key of `VERBS`.
        example: A command line.
    """

    def decorate(function: Function) -> Verb:
        takes = inspect.signature(function).parameters

        def run(json: bool, quiet: bool, verbose: bool, **given: Any) -> int:
            set_level(quiet or json, verbose)
            said: Said = function(**given, **({"quiet": quiet} if "quiet" in takes else {}))
            if json:
                tell_json(said.json)
            for line in said.lines:
                tell(line)
            return said.code

        own: list[click.Parameter] = getattr(function, "__click_params__", [])
        shown = {"Arguments", "Options", "Output", *(getattr(one, "panel", "") for one in own)}
        is_long = any(getattr(one, "is_rare", False) for one in own)
        config = Known(
            "config", "", str, None, Option("a .toml file with options in a table of the verb's name", "FILE")
        )
        _all_of(
            [
                option("json", bool, "", "print one JSON document on stdout and nothing else there", False, panel="Output"),
                option("quiet", bool, "", "print nothing but errors", False, panel="Output"),
                option("verbose", bool, "", "print every stage on stderr, and where an error arose", False, panel="Output"),
                click.option(
                    "--config", cls=Flag, known=config, is_rare=is_long, panel="Output", metavar="FILE", type=click.Path(),
                    is_eager=True, expose_value=False, callback=_config,
                ),
                *([_help_all()] if is_long else []),
                click.help_option("-h", "--help", panel="Output", help="show this and exit"),
            ]
        )(run)  # fmt: skip
        run.__click_params__ += own  # type: ignore[attr-defined]  # which click shows first
        return click.command(
            name,
            cls=Verb,
            panels=[RichOptionPanel(panel) for panel in ORDER if panel in shown],
            help=sentence(VERBS[name]),
            epilog=f"Example: {example}",
            add_help_option=False,
        )(run)

    return decorate


def _help_all() -> Function:
    known = Known("help_all", "", bool, False, Option("show every option and exit"))
    return click.option(
        "--help-all",
        cls=Flag,
        known=known,
        panel="Output",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_all_help,
    )


def beaten(names: Sequence[str]) -> set[str]:
    """Return those of several options, of which one may be given, that a config file gives beside one that was typed."""
    ctx = click.get_current_context()
    assert ctx is not None
    source = {name: ctx.get_parameter_source(name) for name in names}
    if ParameterSource.COMMANDLINE not in source.values():
        return set()
    return {name for name, where in source.items() if where is ParameterSource.DEFAULT_MAP}

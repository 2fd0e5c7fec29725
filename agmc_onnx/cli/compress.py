"""compress: make a smaller model that keeps at most a share of the original's cost."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agmc_onnx.cli.import_ import add_options, as_onnx
from agmc_onnx.cli.parsing import Parser, Verb
from agmc_onnx.cli.progress import Episodes
from agmc_onnx.cli.stopping import INTERRUPTED
from agmc_onnx.cli.words import PROGRAM, no_card, tell, tell_json
from agmc_onnx.cli.words import say as say_error
from agmc_onnx.options import ONE_OF, PARTS, CompressOptions, Known, flag, known_options

LONG = ("history", "network")  # parts of the report that --json leaves to the file


def number(kind: type) -> Callable[[str], Any]:
    """Return what reads a number; a text that is none stays one, for the check of all options to refuse."""

    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            return text

    return read


def add(one: Parser) -> None:
    """Add the arguments of `compress`: one flag for each option."""
    one.add_argument("model", metavar="MODEL.onnx", help="or anything that `import` understands")
    one.add_argument("-o", "--output", metavar="OUT.onnx", help="default: MODEL.agmc.onnx beside the model")
    one.add_argument(
        "--json", action="store_true", help="print the result as JSON: the report without the search and graph"
    )
    add_settings(one)
    add_options(one.add_argument_group("import, where MODEL is not ONNX"), has_shape=True)


def add_settings(one: Parser) -> None:
    """Add data, budgets and settings."""
    one.add_argument(
        "--data",
        metavar="CARD",
        help="a data card (.toml), an .npz, a folder of images, or 'digits'; without it accuracy is not measured",
    )
    one.alternatives.append(set(ONE_OF))
    for part, kind in PARTS.items():
        group = one.add_argument_group(part, kind.__doc__)
        for known in known_options().values():
            if known.part == part:
                _add(group, known)


def _add(group: Any, known: Known) -> None:
    says = known.says
    if known.kind is bool:
        group.add_argument(flag(known.name), action="store_true", default=None, help=says.help)
        return
    names = list(says.names()) or None
    choices = f": {', '.join(names)}" if names else ""
    default = says.default_text or known.default
    text = f"{says.help}{choices}" + ("" if default is None else f"; default: {default}")
    if known.kind is tuple:
        group.add_argument(flag(known.name), action="append", metavar=says.metavar, help=text)
        return
    kind = number(known.kind) if known.kind in (int, float) else str
    group.add_argument(flag(known.name), type=kind, metavar=says.metavar, choices=names, help=text)


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given, by name."""
    found = {name: value for name in known_options() if (value := getattr(arguments, name)) is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def run(arguments: argparse.Namespace) -> int:
    """Compress; 130 after an interruption that still gave a model."""
    options = settings_of(arguments)
    settings = CompressOptions.of(**options)
    output = arguments.output or default_output(arguments.model)
    say: Callable[[str], None] = (lambda line: None) if arguments.json else tell

    from agmc_onnx.reporting.text import budget_line, summary

    for name in ONE_OF:
        if name in options:
            say(budget_line(name, options[name]))
    if not arguments.output:
        say(f"no -o given: the result goes to {output}")
    for line in no_card(arguments.data):
        say(line)
    model = as_onnx(arguments, output, say)
    if str(model) != str(arguments.model):
        options.pop("input_shape", None)  # the source was read at it, and its names may be other ones

    from agmc_onnx.verbs.compress import compress, output_files

    with Episodes(arguments.quiet, settings.execution.minutes) as episodes:  # on stderr, beside --json too

        def progress(stage: str, facts: Mapping[str, Any]) -> None:
            if stage == "journal":
                for line in journal_lines(facts):
                    say(line)
            else:
                episodes(stage, facts)

        result = compress(
            model, output=output, data=arguments.data, force=arguments.force, progress=progress, **options
        )
    files = {name: str(path) for name, path in output_files(output).items()}
    if arguments.json:
        tell_json({**{name: fact for name, fact in result.report.items() if name not in LONG}, "files": files})
    for line in summary(result.report):
        say(line)
    say(f"wrote {', '.join(files.values())}")
    n_done = result.report["episodes"]
    if settings.execution.minutes is not None and n_done < episodes.n_episodes and not result.report.get("interrupted"):
        say(
            f"search: ended after {n_done} of {episodes.n_episodes} candidates by --minutes {settings.execution.minutes:g}"
        )
    if result.report.get("interrupted"):
        say_error(
            f"{PROGRAM}: interrupted after {result.report['episodes']} of {episodes.n_episodes} episodes;"
            " the best model so far was verified and written. The same command with --resume goes on."
        )
        return INTERRUPTED
    return 0


def journal_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return what is to be said of the journal that a run begins with; of a new one nothing."""
    n = facts["resumed"] or facts["set_aside"]
    what = f"{n} evaluation{'s' if n > 1 else ''} of an interrupted run"
    if facts["resumed"]:
        return [f"resumed: {what}, from {facts['path']}"]
    return [f"starts anew: {what} set aside in {facts['old']}"] if n else []


def default_output(model: str | Path) -> Path:
    """Return where a compressed model goes when nothing was said: MODEL.agmc.onnx beside MODEL.onnx."""
    from agmc_onnx.exchange.importers import Source, is_onnx

    if Source(model).is_reference:
        return Path(f"{str(model).partition(':')[2]}.agmc.onnx")
    path = Path(model)
    is_stem = path.suffix == ".onnx" or not (path.is_dir() or is_onnx(path))
    return path.with_name(f"{path.stem if is_stem else path.name}.agmc.onnx")


VERBS = (Verb("compress", "make a smaller model that keeps at most a share of the original's cost", add, run),)

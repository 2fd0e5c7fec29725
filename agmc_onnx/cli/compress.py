"""compress: make a smaller model that keeps at most a share of the original's cost."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from agmc_onnx.cli.import_ import add_options, as_onnx
from agmc_onnx.cli.parsing import Flag, Parser, Verb, points, seconds, share, whole
from agmc_onnx.cli.progress import Episodes
from agmc_onnx.cli.words import INTERRUPTED, PROGRAM, no_card, tell, tell_json
from agmc_onnx.cli.words import say as say_error
from agmc_onnx.options import BUDGETS as COSTS
from agmc_onnx.options import (
    JUDGES,
    RECOVER,
    SPARSE_DECIDE,
    SPARSE_LAYERS,
    SPARSE_METHODS,
    SPARSE_STORAGE,
    CompressOptions,
)

LONG = ("history", "network")  # parts of the report that --json leaves to the file


def _policies() -> Iterable[str]:
    from agmc_onnx.policies import POLICIES

    return POLICIES


def _rewards() -> Iterable[str]:
    from agmc_onnx.search.rewards import REWARDS

    return REWARDS


def _importances() -> Iterable[str]:
    from agmc_onnx.pruning.importance import IMPORTANCE, NEED_DATA

    return (*IMPORTANCE, *NEED_DATA)


def _providers() -> Iterable[str]:
    return ("cpu", "cuda", "auto")


def width(text: str) -> int | str:
    """Return a number of channels, or "auto"."""
    return text if text == "auto" else whole(text)


BUDGETS = (
    Flag("flops", share, "R", "keep at most this share of the multiply-adds, 0 < R < 1"),
    Flag("params", share, "R", "keep at most this share of the parameters, 0 < R < 1"),
    Flag("latency", share, "R", "keep at most this share of the latency, 0 < R < 1, measured on this machine"),
    Flag("max_drop", points, "P", "the smallest model that loses at most P points of the metric; needs --data"),
)
FLAGS = (
    Flag("policy", str, "NAME", "what decides how much of every group to keep", _policies),
    Flag("episodes", whole, "N", "candidates evaluated; 0 searches nothing, the policy names the finalists"),
    Flag("minutes", seconds, "M", "end a search after so many minutes, with the best found by then", default="none"),
    Flag("seed", whole, "S", "of every random choice; the same seed gives the same result"),
    Flag(
        "recover",
        str,
        "NAME",
        "how candidates and the result recover from the cut",
        lambda: RECOVER,
        "compensate with --data, else none",
    ),
    Flag("search_samples", whole, "N", "calibration samples a candidate is refitted with"),
    Flag("search_positions", whole, "N", "output positions sampled per node for that"),
    Flag("distill_steps", whole, "N", "optimiser steps of --recover distill"),
    Flag("minimise", str, "NAME", "what --max-drop makes small", lambda: COSTS),
    Flag("stages", whole, "N", "steps in which the budget is reached, each recovered before the next"),
    Flag("sparsity", share, "R", "share of the weights of dense layers that become zero", default="none"),
    Flag(
        "sparse_pattern", str, "N:M", "of M such weights in a row keep at most N; instead of --sparsity", default="none"
    ),
    Flag(
        "sparse_method",
        str,
        "NAME",
        "how they are chosen",
        lambda: SPARSE_METHODS,
        "obs, or magnitude without recovery",
    ),
    Flag(
        "sparse_layers", str, "NAME", "which layers: fully connected ones, or convolutions too", lambda: SPARSE_LAYERS
    ),
    Flag("sparse_decide", str, "NAME", "who divides the zeros among the layers", lambda: SPARSE_DECIDE),
    Flag("sparse_storage", str, "NAME", "dense, or as sparse_initializer where smaller", lambda: SPARSE_STORAGE),
    Flag(
        "round_to",
        width,
        "K",
        "kept channels are a multiple of K where the group allows; auto: of what is fast here",
        default="auto with --latency, else 4",
    ),
    Flag("floor", share, "R", "smallest share kept of any group, unless the budget needs less"),
    Flag(
        "exclude",
        str,
        "NAMES",
        "groups that stay whole: names as inspect prints them, separated by commas, with * and ?, or residual for all that"
        " shortcuts join",
        default="none",
    ),
    Flag(
        "importance",
        str,
        "NAME",
        "ranking of the channels of a group",
        _importances,
        "moments with --data and depthwise convolutions, else l2",
    ),
    Flag("reward", str, "NAME", "what the policy is rewarded for", _rewards),
    Flag("judge", str, "NAME", "what a reward is made of", lambda: JUDGES),
    Flag(
        "reward_samples",
        whole,
        "N",
        "samples every candidate is measured on, at most; the best ones on eight times as many",
    ),
    Flag("racing", bool, "", "stop measuring a candidate that is clearly worse than the best so far"),
    Flag("resume", bool, "", "go on with an interrupted run of the same output, model, data and options"),
    Flag("workers", whole, "N", "processes that evaluate candidates side by side, with --threads each"),
    Flag(
        "ray",
        str,
        "ADDRESS",
        "Ray cluster where --workers run: local, auto, host:port or ray://host:port",
        default="none",
    ),
    Flag("batch", whole, "N", "candidates proposed before the first is learned from", default="as many as --workers"),
    Flag("finalists", whole, "N", "best candidates recovered in full and measured on more samples at the end"),
    Flag("threads", whole, "N", "threads of onnxruntime"),
    Flag("provider", str, "NAME", "where onnxruntime runs", _providers),
    Flag(
        "latency_table",
        str,
        "FILE",
        "op times of another device for --latency; see tools/time_ops.py",
        default="timed here",
    ),
    Flag("latency_seconds", seconds, "S", "time given to measuring latency"),
)


def add(one: Parser) -> None:
    """Add the arguments of `compress`: one flag for each option."""
    one.add_argument("model", metavar="MODEL.onnx", help="or anything that `import` understands")
    one.add_argument("-o", "--output", metavar="OUT.onnx", help="default: MODEL.agmc.onnx beside the model")
    one.add_argument(
        "--json", action="store_true", help="print the result as JSON: the report without the search and graph"
    )
    add_settings(one)
    add_options(one.add_argument_group("import, where MODEL is not ONNX"))


def add_settings(one: Parser) -> None:
    """Add data, budgets and settings."""
    one.add_argument(
        "--data",
        metavar="CARD",
        help="a data card (.toml), an .npz, a folder of images, or 'digits'; without it accuracy is not measured",
    )
    one.alternatives.append({flag.field for flag in BUDGETS})
    budget = one.add_argument_group("budget, one of")
    for flag in BUDGETS:
        budget.add_argument(_option(flag), type=flag.kind, metavar=flag.metavar, help=flag.help)
    for flag in FLAGS:
        if flag.kind is bool:
            one.add_argument(_option(flag), action="store_true", default=None, help=flag.help)
            continue
        default = flag.default or getattr(CompressOptions, flag.field)
        choices = list(flag.choices()) if flag.choices else None
        names = f": {', '.join(choices)}" if choices else ""
        text = f"{flag.help}{names}; default: {default}"
        one.add_argument(_option(flag), type=flag.kind, metavar=flag.metavar, choices=choices, help=text)


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given, by field of `CompressOptions`."""
    names = [flag.field for flag in (*BUDGETS, *FLAGS)]
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def _option(flag: Flag) -> str:
    return f"--{flag.field.replace('_', '-')}"


def run(arguments: argparse.Namespace) -> int:
    """Compress; 130 after an interruption that still gave a model."""
    options = settings_of(arguments)
    settings = CompressOptions.of(**options)
    output = arguments.output or default_output(arguments.model)
    say: Callable[[str], None] = (lambda line: None) if arguments.json else tell

    from agmc_onnx.reporting.text import budget_line, summary

    for flag in BUDGETS:
        if getattr(settings, flag.field) is not None:
            say(budget_line(flag.field, getattr(settings, flag.field)))
    if not arguments.output:
        say(f"no -o given: the result goes to {output}")
    for line in no_card(arguments.data):
        say(line)
    model = as_onnx(arguments, output, say)
    sys.stdout.flush()

    from agmc_onnx.verbs.compress import compress, output_files

    with Episodes(arguments.quiet, settings.minutes) as episodes:  # on stderr, beside --json too

        def progress(stage: str, facts: Mapping[str, Any]) -> None:
            if stage == "journal":
                for line in journal_lines(facts):
                    say(line)
            else:
                episodes(stage, facts)

        result = compress(model, output=output, data=arguments.data, progress=progress, **options)
    files = {name: str(path) for name, path in output_files(output).items()}
    if arguments.json:
        tell_json({**{name: fact for name, fact in result.report.items() if name not in LONG}, "files": files})
    for line in summary(result.report):
        say(line)
    say(f"wrote {', '.join(files.values())}")
    n_done = result.report["episodes"]
    if settings.minutes is not None and n_done < episodes.n_episodes and not result.report.get("interrupted"):
        say(f"search: ended after {n_done} of {episodes.n_episodes} candidates by --minutes {settings.minutes:g}")
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

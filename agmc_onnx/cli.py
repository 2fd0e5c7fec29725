"""The command line: reads arguments, calls the verbs of `agmc_onnx`, prints. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from agmc_onnx import __version__
from agmc_onnx.config import RECOVER, CompressOptions
from agmc_onnx.errors import AgmcError, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PROGRAM = "agmc-onnx"
INTERRUPTED = 130
DEBUG = "AGMC_ONNX_DEBUG"
SHARE = "0 < R < 1, such as 0.5 to keep half"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2, 3, 4 or 130 as in the contract; 1 is a defect of our own.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
    """
    if argv is None and not sys.warnoptions:
        warnings.simplefilter("ignore")  # a library's warning is nothing that a user of this program can act on
    try:
        code = _run(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
        return code
    except AgmcError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt as stop:
        _say(f"{PROGRAM}: interrupted; nothing was written. {stop}".rstrip())
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        _drop_stdout()
        return 0
    except OSError as error:
        _drop_stdout()
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}. Check the disk and the paths.", 2)
    except MemoryError:
        return _fail("out of memory. Use a smaller --reward-samples, or a machine with more memory.", 2)
    except Exception as error:  # a defect of ours: said in one line, with the way to see more
        if os.environ.get(DEBUG):
            raise
        return _fail(f"internal error, {type(error).__name__}: {error}. Please report it; {DEBUG}=1 shows where.", 1)


@dataclass(frozen=True)
class Flag:
    """One option of `compress`; its name and default are those of a field of `CompressOptions`.

    Attributes:
        field: Field of `CompressOptions`; the flag is --field with dashes.
        kind: `_share`, `_whole`, `_seconds`, `str`, or `bool` for a switch without a value.
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


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"not a time, got {text!r}; expected seconds, such as 5.")
    return value


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number, got {text!r}; expected {SHARE}.") from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a whole number, got {text!r}; expected one such as 8.") from None


def _policies() -> Iterable[str]:
    from agmc_onnx.search.policies import POLICIES

    return POLICIES


def _rewards() -> Iterable[str]:
    from agmc_onnx.search.rewards import REWARDS

    return REWARDS


def _importances() -> Iterable[str]:
    from agmc_onnx.pruning.importance import IMPORTANCE

    return IMPORTANCE


def _providers() -> Iterable[str]:
    return ("cpu", "cuda", "auto")


BUDGETS = (
    Flag("flops", _share, "R", "keep at most this share of the multiply-adds, 0 < R < 1"),
    Flag("params", _share, "R", "keep at most this share of the parameters, 0 < R < 1"),
)
FLAGS = (
    Flag("policy", str, "NAME", "what decides how much of every group to keep", _policies),
    Flag("episodes", _whole, "N", "candidates evaluated"),
    Flag("seed", _whole, "S", "of every random choice; the same seed gives the same result"),
    Flag(
        "recover",
        str,
        "NAME",
        "how candidates and the result recover from the cut",
        lambda: RECOVER,
        "compensate with --data, else none",
    ),
    Flag("search_samples", _whole, "N", "calibration samples a candidate is refitted with"),
    Flag("search_positions", _whole, "N", "output positions sampled per node for that"),
    Flag("distill_steps", _whole, "N", "optimiser steps of --recover distill"),
    Flag("round_to", _whole, "K", "kept channels are a multiple of K where the group allows"),
    Flag("floor", _share, "R", "smallest share kept of any group, unless the budget needs less"),
    Flag("importance", str, "NAME", "ranking of the channels of a group", _importances),
    Flag("reward", str, "NAME", "what the policy is rewarded for", _rewards),
    Flag("reward_samples", _whole, "N", "samples a candidate is measured on, at most"),
    Flag("resume", bool, "", "go on with an interrupted run of the same output, model, data and options"),
    Flag("workers", _whole, "N", "processes that evaluate candidates side by side, with --threads each"),
    Flag("batch", _whole, "N", "candidates proposed before the first is learned from", default="as many as --workers"),
    Flag("finalists", _whole, "N", "best candidates recovered in full and measured on more samples at the end"),
    Flag("threads", _whole, "N", "threads of onnxruntime"),
    Flag("provider", str, "NAME", "where onnxruntime runs", _providers),
    Flag("latency_seconds", _seconds, "S", "time given to measuring latency"),
)


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting, and guesses what was meant."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        raise UsageError(message if message.endswith(".") else f"{message}. See {self.prog} --help.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            what = "unknown verb" if isinstance(action, argparse._SubParsersAction) else "unknown name"
            expected = f"one of {', '.join(action.choices)}"
            raise argparse.ArgumentError(
                action if action.option_strings else None,
                f"{what}, got {value!r}; expected {expected}.{_did_you_mean(str(value), action.choices) or ' Choose one.'}",
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
            hint = _did_you_mean(name, [option for option in known if option.startswith("--")])
            raise UsageError(f"{self.prog}: unknown option, got {name}.{hint} See {self.prog} --help.")


def _did_you_mean(word: str, choices: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(choices), 1, 0.5)
    return f" Did you mean {near[0]}?" if near else ""


def _parser(wanted: str) -> tuple[_Parser, dict[str, _Parser]]:
    """Return the parser and those of its verbs; the tables that `compress` lists are imported only where it is wanted."""
    parser = _Parser(
        prog=PROGRAM,
        description="Compress any ONNX model to an exact budget by channel pruning with a learned graph policy.",
        epilog="Exit codes: 0 done; 2 bad input or usage; 3 the budget cannot be reached; 4 the result failed its own"
        " verification (nothing is written); 130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", parser_class=_Parser)
    made: dict[str, _Parser] = {}

    def verb(name: str, run: Callable[[argparse.Namespace], int], text: str) -> _Parser:
        made[name] = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
        made[name].set_defaults(run=run)
        return made[name]

    one = verb("compress", _compress, "make a smaller model that keeps at most a share of the original's cost")
    if wanted == "compress":
        _add_compress(one)

    one = verb("inspect", _inspect, "say what could be pruned of a model, and what not and why")
    one.add_argument("model", metavar="MODEL.onnx")
    one.add_argument("--json", action="store_true", help="print machine-readable JSON")

    one = verb("apply", _apply, "rebuild a compressed model from its plan, as cut: without data, search or recovery")
    one.add_argument("model", metavar="MODEL.onnx")
    one.add_argument("plan", metavar="PLAN.json")
    one.add_argument("-o", "--output", metavar="OUT.onnx", required=True, help="where to write it")

    one = verb("verify", _verify, "check that a compressed model equals the original with its removed channels at zero")
    one.add_argument("model", metavar="MODEL.onnx")
    one.add_argument("compressed", metavar="OUT.onnx")
    one.add_argument("--plan", metavar="PLAN.json", help="default: OUT.plan.json beside OUT.onnx")

    one = verb("finetune", _finetune, "let a compressed model learn from its original, without labels")
    one.add_argument("model", metavar="OUT.onnx")
    one.add_argument("--teacher", metavar="MODEL.onnx", required=True, help="the original")
    one.add_argument("--data", metavar="CARD", required=True, help="a data card, an .npz, a folder, or 'digits'")
    one.add_argument("-o", "--output", metavar="TUNED.onnx", help="default: OUT.tuned.onnx beside OUT.onnx")
    one.add_argument("--steps", type=_whole, metavar="N", default=1000, help="optimiser steps; default: %(default)s")
    one.add_argument(
        "--label-weight", type=_seconds, metavar="W", default=0.0, help="weight of labels; default: 0, learn without"
    )
    one.add_argument("--seed", type=_whole, metavar="S", default=0, help="default: %(default)s")
    one.add_argument(
        "--threads", type=_whole, metavar="N", default=CompressOptions.threads, help="default: %(default)s"
    )

    one = verb("measure", _measure, "measure size, accuracy and latency of models side by side")
    one.add_argument("models", metavar="MODEL.onnx", nargs="+", help="ratios refer to the first")
    one.add_argument("--data", metavar="CARD", help="measure accuracy too: a data card, an .npz, a folder, or 'digits'")
    one.add_argument(
        "--threads", type=_whole, metavar="N", default=CompressOptions.threads, help="default: %(default)s"
    )
    one.add_argument(
        "--batch", type=_whole, metavar="N", default=1, help="samples per timed inference; default: %(default)s"
    )
    one.add_argument(
        "--seconds", type=_seconds, metavar="S", default=CompressOptions.latency_seconds, help="default: %(default)s"
    )
    one.add_argument("--provider", choices=_providers(), default=CompressOptions.provider, help="default: %(default)s")
    one.add_argument("--json", action="store_true", help="print machine-readable JSON")
    return parser, made


def _add_compress(one: _Parser) -> None:
    one.add_argument("model", metavar="MODEL.onnx")
    one.add_argument("-o", "--output", metavar="OUT.onnx", help="default: MODEL.agmc.onnx beside the model")
    one.add_argument(
        "--data",
        metavar="CARD",
        help="a data card (.toml), an .npz, a folder of images, or 'digits'; without it accuracy is not measured",
    )
    one.add_argument("--quiet", action="store_true", help="print nothing but errors")
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


def _option(flag: Flag) -> str:
    return f"--{flag.field.replace('_', '-')}"


def _run(argv: list[str]) -> int:
    name = argv[0] if argv else ""
    parser, verbs = _parser(name)
    try:
        if name in verbs:
            verbs[name].check_options(argv[1:])
        elif name.startswith("-"):
            parser.check_options(argv[:1])
        arguments = parser.parse_args(argv)
        if not arguments.verb:
            raise UsageError(f"no verb given; expected one of {', '.join(verbs)}. See {PROGRAM} --help.")
    except SystemExit as done:  # --help and --version have printed
        return int(done.code or 0)
    code: int = arguments.run(arguments)
    return code


def _compress(arguments: argparse.Namespace) -> int:
    names = [flag.field for flag in (*BUDGETS, *FLAGS)]
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    settings = CompressOptions.of(**options)
    output = arguments.output or default_output(arguments.model)
    say: Callable[[str], None] = (lambda line: None) if arguments.quiet else _tell

    from agmc_onnx.report.text import budget_line, summary

    for flag in BUDGETS:
        if getattr(settings, flag.field) is not None:
            say(budget_line(flag.field, getattr(settings, flag.field)))
    if not arguments.output:
        say(f"no -o given: the result goes to {output}")
    sys.stdout.flush()

    from agmc_onnx.pipeline import compress, output_files

    with Episodes(quiet=arguments.quiet) as episodes:

        def progress(stage: str, facts: Mapping[str, Any]) -> None:
            if stage == "journal":
                for line in journal_lines(facts):
                    say(line)
            else:
                episodes(stage, facts)

        result = compress(arguments.model, output=output, data=arguments.data, progress=progress, **options)
    for line in summary(result.report):
        say(line)
    say(f"wrote {', '.join(str(path) for path in output_files(output).values())}")
    if result.report.get("interrupted"):
        _say(
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
    path = Path(model)
    return path.with_name(f"{path.stem if path.suffix == '.onnx' else path.name}.agmc.onnx")


class Episodes:
    """The progress bar of a search, on stderr where that is a terminal."""

    def __init__(self, quiet: bool = False) -> None:
        """Show nothing where `quiet`, or where stderr is no terminal."""
        self.n_episodes = 0
        self._best = float("-inf")
        self._metric = 0.0
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._is_shown = not quiet and sys.stderr.isatty()

    def __enter__(self) -> Episodes:
        """Start the bar."""
        if self._is_shown:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

            best = TextColumn("{task.fields[best]}")
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                best,
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress.start()
            self._task = self._progress.add_task("reading the model", total=None, best="")
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Take what `compress` tells of its progress."""
        if stage == "episode":
            self.n_episodes = facts["n_episodes"]
            if facts["reward"] > self._best:
                self._best, self._metric = facts["reward"], facts["metric"]
        if self._progress is None or self._task is None:
            return
        best = f"best reward {self._best:.2f}, metric {self._metric:.2f}"
        if stage == "episode":
            done = facts["episode"] + 1
            text = f"episode {done}/{self.n_episodes}"
            self._progress.update(self._task, description=text, completed=done, total=self.n_episodes, best=best)
        elif stage == "analysed":
            self._progress.update(self._task, description=f"{facts['groups']} groups, first episode")
        elif stage != "done":
            self._progress.update(self._task, description=stage, best=best if self.n_episodes else "")


def _inspect(arguments: argparse.Namespace) -> int:
    from agmc_onnx.inspection import inspect

    found = inspect(arguments.model)
    if arguments.json:
        _tell(json.dumps(found, indent=1))
        return 0
    from agmc_onnx.report.text import inspection

    for line in inspection(found):
        _tell(line)
    return 0


def _apply(arguments: argparse.Namespace) -> int:
    from agmc_onnx.pipeline import apply
    from agmc_onnx.report.text import applied

    for line in applied(apply(arguments.model, arguments.plan, arguments.output).report):
        _tell(line)
    _tell(f"wrote {arguments.output}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from agmc_onnx.pipeline import verify_files
    from agmc_onnx.report.text import verified_line

    _tell(verified_line(asdict(verify_files(arguments.model, arguments.compressed, arguments.plan))))
    return 0


def _finetune(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from agmc_onnx.finetuning import finetune
    from agmc_onnx.report.text import finetuned

    path = Path(arguments.model)
    output = arguments.output or str(path.with_name(f"{path.name.removesuffix('.onnx')}.tuned.onnx"))
    tuned = finetune(
        path,
        teacher=arguments.teacher,
        data=arguments.data,
        output=output,
        steps=arguments.steps,
        label_weight=arguments.label_weight,
        seed=arguments.seed,
        threads=arguments.threads,
    )
    for line in finetuned(tuned.report):
        _tell(line)
    _tell(f"wrote {output}")
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    from agmc_onnx.inspection import measure

    found = measure(
        *arguments.models,
        data=arguments.data,
        threads=arguments.threads,
        seconds=arguments.seconds,
        provider=arguments.provider,
        batch=arguments.batch,
    )
    if arguments.json:
        _tell(json.dumps(found, indent=1))
        return 0
    from agmc_onnx.report.text import measurement

    for line in measurement(found):
        _tell(line)
    return 0


def _tell(line: str) -> None:
    print(line)


def _say(line: str) -> None:
    """Print one line to stderr, whatever became of it."""
    try:
        print(" ".join(line.split()), file=sys.stderr, flush=True)
    except OSError:  # nobody is left to read it
        return


def _fail(message: str, code: int) -> int:
    _say(f"{PROGRAM}: error: {message}")
    return code


def _drop_stdout() -> None:
    """Send what stdout still holds nowhere, so that leaving does not fail once more."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # a stdout without a file, as in tests
        return

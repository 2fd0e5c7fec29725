"""The program itself: what `agmc-onnx` is without a verb. No option is read here, so that its help comes at once."""

from __future__ import annotations

import importlib

import rich_click as click

from agmc_onnx import __version__
from agmc_onnx.cli.words import PROGRAM
from agmc_onnx.errors import UsageError, did_you_mean

VERBS = {
    "compress": "make a smaller model that keeps at most a share of the original's cost",
    "inspect": "say what could be pruned of a model, and what not and why",
    "measure": "measure size, accuracy and latency of models side by side",
    "verify": "check that a compressed model equals the original with its removed channels at zero",
    "apply": "rebuild a compressed model from its plan, as cut: without data, search or recovery",
    "finetune": "let a compressed model learn from its original, without labels",
    "frontier": "original, int8, pruned, and both, at several points: one page, one table",
    "card": "write a data card for a model and a folder of images: usual preprocessings are tried",
    "batch": "compress every model of a folder, each in a process of its own",
    "report": "make the HTML report of a run again, or one page of several runs",
    "export": "write a model for another runtime, and measure it there",
    "import": "convert a model of another framework to ONNX, and compare the two",
    "time-ops": "time the ops of a model on another device, for compress --latency-table",
    "demo": "compress the digits network that comes with the package",
    "doctor": "check this installation: versions, providers that really start, extras",
    "completion": "print a script with which bash, zsh or fish completes what you type",
}
COMPLETE = "_AGMC_ONNX_COMPLETE"  # set by the completion scripts that click makes
LISTED = "agmc_onnx.listed"  # set while a help of all verbs is made


class Program(click.RichGroup):
    """All verbs; the module of one is imported when it is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the verbs."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a verb; for a list of all only its name and text."""
        if cmd_name not in VERBS:
            return None
        if ctx.meta.get(LISTED):
            return click.Command(cmd_name, help=sentence(VERBS[cmd_name]))
        return verb_named(cmd_name)

    def get_help(self, ctx: click.Context) -> str:
        """Return the help."""
        ctx.meta[LISTED] = True
        return super().get_help(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the verb that was typed; an unknown one is an error with a guess."""
        if args[0] not in VERBS and not args[0].startswith("-"):
            hint = did_you_mean(args[0], VERBS) or " Choose one."
            raise UsageError(f"unknown verb, got {args[0]!r}; expected one of {', '.join(VERBS)}.{hint}")
        return super().resolve_command(ctx, args)


def verb_named(name: str) -> click.RichCommand:
    """Return a verb; its module has its name."""
    module = importlib.import_module(f"agmc_onnx.cli.{'import_' if name == 'import' else name.replace('-', '_')}")
    command: click.RichCommand = module.command
    return command


def sentence(text: str) -> str:
    """Return a text as a sentence."""
    return f"{text[0].upper()}{text[1:]}."


def one_line(error: click.ClickException) -> UsageError:
    """Return what click found wrong, in our words."""
    ctx = getattr(error, "ctx", None)
    where = PROGRAM if ctx is None or ctx.parent is None else f"{PROGRAM} {ctx.info_name}"
    see = "" if ctx is None else f" See {where} --help."
    if isinstance(error, click.NoSuchOption):
        known = [name for one in ctx.command.get_params(ctx) for name in one.opts if name[:2] == "--"] if ctx else []
        return UsageError(
            f"{where}: unknown option, got {error.option_name}.{did_you_mean(error.option_name, known)}{see}"
        )
    if isinstance(error, click.MissingParameter) and error.param is not None:
        is_argument = isinstance(error.param, click.Argument)
        name = error.param.metavar if is_argument else "/".join(error.param.opts)
        return UsageError(f"{where}: {name} is missing.{see}")
    if isinstance(error, click.BadOptionUsage):
        return UsageError(f"{error.option_name}: expected a value, got none.{see}")
    if isinstance(error, click.BadParameter) and error.param is not None:
        return UsageError(f"{error.param.opts[0]}: {error.message.rstrip('.')}.{see}")
    return UsageError(f"{where}: {error.format_message().rstrip('.')}.{see}")


@click.group(
    PROGRAM,
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: agmc-onnx compress model.onnx --flops 0.5 --data photos -o small.onnx\n\n"
    "agmc-onnx help VERB, or agmc-onnx VERB --help, says what a verb takes. Exit codes: 0 done; 2 bad input or usage; 3 the"
    " budget cannot be reached; 4 the result failed its own verification (nothing is written); 130 interrupted, 143 by SIGTERM.",
)
@click.version_option(__version__, "-V", "--version", message=f"{PROGRAM} {__version__}")
def command() -> None:
    """Compress any ONNX model to an exact budget by channel pruning with a learned graph policy."""

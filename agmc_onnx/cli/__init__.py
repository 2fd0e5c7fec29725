"""The command line: reads arguments, calls the verbs of `agmc_onnx`, prints. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from agmc_onnx import __version__
from agmc_onnx.cli import batch, checking, completion, compress, demo, doctor, export, finetune, import_, report
from agmc_onnx.cli.config_file import with_config
from agmc_onnx.cli.parsing import Parser
from agmc_onnx.cli.stopping import INTERRUPTED, stoppable
from agmc_onnx.cli.words import PROGRAM, drop_stdout, fail, is_verbose, say, set_level
from agmc_onnx.errors import AgmcError, Notice, UsageError

DEBUG = "AGMC_ONNX_DEBUG"
VERBS = (
    *compress.VERBS,
    *batch.VERBS,
    *checking.VERBS,
    *finetune.VERBS,
    *import_.VERBS,
    *export.VERBS,
    *report.VERBS,
    *demo.VERBS,
    *doctor.VERBS,
    *completion.VERBS,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2, 3, 4, 130 or 143 as in docs/command-line.md; 1 is a defect of our own.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
    """
    if argv is None and not sys.warnoptions and "--verbose" not in sys.argv:
        warnings.simplefilter("ignore")  # a library's warning is nothing that a user of this program can act on
        warnings.simplefilter("default", Notice)
        warnings.showwarning = lambda message, *_: say(f"{PROGRAM}: note: {message}")
    with stoppable() as stop:
        code = _main(argv)
        return stop.code if code == INTERRUPTED else code


def _main(argv: Sequence[str] | None) -> int:
    try:
        code = _run(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
        return code
    except AgmcError as error:
        return fail(str(error), error.exit_code)
    except SystemExit as stop:  # of a user's metric, factory or loss
        return fail(
            f"code of yours ended the program (SystemExit: {stop.code}); nothing was written. Let it return.", 2
        )
    except KeyboardInterrupt as stop:
        say(f"{PROGRAM}: interrupted; nothing was written. {stop}".rstrip())
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        drop_stdout()
        return 0
    except OSError as error:
        drop_stdout()
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{error.strerror or error}. Check the disk and the paths.", 2)
    except MemoryError:
        return fail("out of memory. Use a smaller --reward-samples, or a machine with more memory.", 2)
    except Exception as error:  # a defect of ours: said in one line, with the way to see more
        if os.environ.get(DEBUG) or is_verbose():
            raise
        return fail(f"internal error, {type(error).__name__}: {error}. Please report it; --verbose shows where.", 1)
    finally:
        set_level()


def _parser() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser and those of its verbs, which have no arguments yet."""
    parser = Parser(
        prog=PROGRAM,
        description="Compress any ONNX model to an exact budget by channel pruning with a learned graph policy.",
        epilog="Exit codes: 0 done; 2 bad input or usage; 3 the budget cannot be reached; 4 the result failed its own"
        " verification (nothing is written); 130 interrupted, 143 by SIGTERM.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    made = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", parser_class=Parser)
    verbs: dict[str, Parser] = {}
    for verb in VERBS:
        text = f"{verb.text[0].upper()}{verb.text[1:]}."
        verbs[verb.name] = made.add_parser(verb.name, help=verb.text, description=text, allow_abbrev=False)
        verbs[verb.name].set_defaults(run=verb.run)
    return parser, verbs


def parser_of_all() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser and those of its verbs with all their arguments; it imports what the verbs' tables need."""
    parser, verbs = _parser()
    for verb in VERBS:
        verb.add(verbs[verb.name])
        verbs[verb.name].add_common(verb)
    return parser, verbs


def _run(argv: list[str]) -> int:
    name = argv[0] if argv else ""
    parser, verbs = _parser()
    for verb in VERBS:
        if verb.name == name:
            verb.add(verbs[name])
            verbs[name].add_common(verb)
    try:
        if name in verbs:
            verbs[name].check_options(argv[1:])
            argv = [name, *with_config(verbs[name], name, list(verbs), argv[1:])]
        elif name.startswith("-"):
            parser.check_options(argv[:1])
        arguments = parser.parse_args(argv)
        if not arguments.verb:
            raise UsageError(f"no verb given; expected one of {', '.join(verbs)}. See {PROGRAM} --help.")
    except SystemExit as done:  # --help and --version have printed
        return int(done.code or 0)
    set_level(getattr(arguments, "quiet", False) and not getattr(arguments, "json", False), arguments.verbose)
    code: int = arguments.run(arguments)
    return code

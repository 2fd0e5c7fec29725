"""The command line: reads arguments, calls the verbs of `agmc_onnx`, prints. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from contextvars import copy_context

from agmc_onnx.cli.crash import broken_model, catch_crashes, limit_memory
from agmc_onnx.cli.stopping import INTERRUPTED, stoppable
from agmc_onnx.cli.words import PROGRAM, drop_stdout, fail, is_verbose, say, set_level
from agmc_onnx.errors import AgmcError, Notice

DEBUG = "AGMC_ONNX_DEBUG"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2, 3, 4, 130 or 143 as in docs/command-line.md; 1 is a defect of our own.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
    """
    if argv is None and not sys.warnoptions and "--verbose" not in sys.argv:
        warnings.simplefilter("ignore")  # a library's warning is nothing that a user of this program can act on
        warnings.simplefilter("default", Notice)
        warnings.showwarning = lambda message, *_: say(f"{PROGRAM}: note: {message}")
    if argv is None:
        catch_crashes()
        limit_memory()
    with stoppable() as stop:
        code = _main(sys.argv[1:] if argv is None else list(argv))
        return stop.code if code == INTERRUPTED else code


def _main(argv: list[str]) -> int:
    try:
        code = copy_context().run(_run, argv)
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
        return fail(
            "out of memory: the model's values, or the data, need more than there is. Give smaller sizes (--input-shape), fewer"
            " samples, or a machine with more memory.",
            2,
        )
    except Exception as error:
        broken = broken_model(argv)
        if broken:
            return fail(broken, 2)
        # a defect of ours: said in one line, with the way to see more
        if os.environ.get(DEBUG) or is_verbose():
            raise
        return fail(f"internal error, {type(error).__name__}: {error}. Please report it; --verbose shows where.", 1)
    finally:
        set_level()


def _run(argv: list[str]) -> int:
    from click import ClickException
    from click.exceptions import Exit

    from agmc_onnx.cli.program import COMPLETE, command, one_line

    if COMPLETE in os.environ:
        from click.shell_completion import shell_complete

        return shell_complete(command, {}, PROGRAM, COMPLETE, os.environ[COMPLETE])
    if not argv or argv[0] == "help":
        argv = [*argv[1:], "--help"]
    try:
        with command.make_context(PROGRAM, argv) as context:  # not main(), which catches what is handled above
            code: int = command.invoke(context)
            return code
    except ClickException as error:
        raise one_line(error) from None
    except Exit as done:
        return done.exit_code

"""completion: a script with which the shell completes verbs, options and names."""

from __future__ import annotations

import rich_click as click

from agmc_onnx.cli.parsing import Said, argument, verb
from agmc_onnx.cli.program import COMPLETE
from agmc_onnx.cli.words import PROGRAM

SHELLS = ("bash", "zsh", "fish")


@verb("completion", "source <(agmc-onnx completion bash); for fish: agmc-onnx completion fish | source")
@argument("shell", "SHELL", f"one of {', '.join(SHELLS)}", type=click.Choice(SHELLS))
def command(shell: str) -> Said:
    """Make the script; click has one for every shell."""
    from click.shell_completion import get_completion_class

    from agmc_onnx.cli.program import command

    of = get_completion_class(shell)
    assert of is not None
    script = of(command, {}, PROGRAM, COMPLETE).source()
    return Said({"shell": shell, "script": script}, script.splitlines())

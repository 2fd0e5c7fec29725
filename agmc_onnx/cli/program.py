"""The program itself: what `agmc-onnx` is without a verb."""

from __future__ import annotations

import rich_click as click

from agmc_onnx import __version__
from agmc_onnx.cli.parsing import Program
from agmc_onnx.cli.words import PROGRAM


@click.group(
    PROGRAM,
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: agmc-onnx compress model.onnx --flops 0.5 --data card.toml -o small.onnx\n\n"
    "agmc-onnx help VERB, or agmc-onnx VERB --help, says what a verb takes. Exit codes: 0 done; 2 bad input or usage; 3 the"
    " budget cannot be reached; 4 the result failed its own verification (nothing is written); 130 interrupted, 143 by SIGTERM.",
)
@click.version_option(__version__, "-V", "--version", message=f"{PROGRAM} {__version__}")
def command() -> None:
    """Compress any ONNX model to an exact budget by channel pruning with a learned graph policy."""

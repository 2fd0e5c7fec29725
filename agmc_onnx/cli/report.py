"""report: the HTML page of a run made again, or of several side by side."""

from __future__ import annotations

import argparse

from agmc_onnx.cli.parsing import Parser, Verb
from agmc_onnx.cli.words import FORCE, tell


def add(one: Parser) -> None:
    """Add the arguments of `report`."""
    one.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="X.report.json, the X.onnx beside it, or the folder X.run of a run that has not ended; several: side by side",
    )
    one.add_argument(
        "-o", "--output", metavar="OUT.html", help="default: X.report.html of one run, comparison.html of several"
    )
    one.add_argument("--force", action="store_true", help=FORCE)


def run(arguments: argparse.Namespace) -> int:
    """Make a page and say where it lies."""
    from agmc_onnx.verbs.report import write_report

    tell(f"wrote {write_report(*arguments.runs, output=arguments.output, force=arguments.force)}")
    return 0


VERBS = (Verb("report", "make the HTML report of a run again, or one page of several runs", add, run),)

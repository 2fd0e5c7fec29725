"""report: the HTML page of a run made again, or of several side by side."""

from __future__ import annotations

from agmc_onnx.cli.parsing import Said, argument, option, verb
from agmc_onnx.cli.words import FORCE

RUN = "X.report.json, the X.onnx beside it, or the folder X.run of a run that has not ended; several: side by side"


@verb("report", "agmc-onnx report small.onnx smaller.onnx -o comparison.html")
@argument("runs", "RUN...", RUN, nargs=-1, required=True)
@option("output", str, "OUT.html", "default: X.report.html of one run, comparison.html of several", short="-o")
@option("force", bool, "", FORCE, False)
@option("watch", bool, "", "make the page again every ten seconds until the run has ended", False)
def command(runs: tuple[str, ...], output: str | None, force: bool, watch: bool) -> Said:
    """Make a page and say where it lies."""
    from agmc_onnx.verbs.report import report

    path = report(*runs, output=output, force=force, watch=watch)
    return Said({"output": str(path)}, [f"wrote {path}"])

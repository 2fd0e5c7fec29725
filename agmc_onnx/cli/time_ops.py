"""time-ops: op times of another device, for `compress --latency-table`."""

from __future__ import annotations

from typing import Any

from agmc_onnx.cli.parsing import Said, argument, option, option_of, verb
from agmc_onnx.cli.words import noting
from agmc_onnx.options import Execution


@verb("time-ops", "agmc-onnx time-ops model.onnx -o request.zip")
@argument("source", "MODEL.onnx", "to be timed elsewhere: makes a request; or REQUEST.zip: times it here")
@option("output", str, "FILE", "REQUEST.zip of a model, TABLE.json of a request", short="-o", required=True)
@option("batch", int, "N", "samples per inference, of a request that is made", 1, low=1, wrong="too small")
@option(
    "round_to", int, "K", "widths that are timed beside multiples of 4", "auto", extra="auto", low=1, wrong="too small"
)
@option("runs", int, "N", "timed runs of every model", default_text="as many as are needed", low=1, wrong="too small")
@option_of(Execution, "threads", "provider")
def command(source: str, output: str, quiet: bool, **given: Any) -> Said:
    """Make a request, or fill one here."""
    from agmc_onnx.reporting.progress import Counted
    from agmc_onnx.verbs.time_ops import time_ops

    with Counted("timing", quiet, noting()) as progress:
        found = time_ops(source, output, progress=progress, **given)
    return Said(found, [f"wrote {output}: {found['text']}"])

"""measure: models side by side."""

from __future__ import annotations

from typing import Any

from agmc_onnx.cli.compress import DATA
from agmc_onnx.cli.parsing import Said, argument, option, option_of, verb
from agmc_onnx.cli.words import no_card
from agmc_onnx.options import Data, Execution


@verb("measure", "agmc-onnx measure model.onnx small.onnx --data card.toml")
@argument("models", "MODEL.onnx...", "ratios refer to the first", nargs=-1, required=True)
@option("data", str, "CARD", f"measure accuracy too, on the test role: {DATA}")
@option_of(Data, "input_shape")
@option("batch", int, "N", "samples per timed inference", 1, low=1, wrong="too small")
@option_of(Execution, "threads", "provider", "custom_ops")
@option("seconds", float, "S", "time given to latency", Execution.latency_seconds, low=0, wrong="not a time")
def command(models: tuple[str, ...], data: str | None, **given: Any) -> Said:
    """Measure models."""
    from agmc_onnx.reporting.tables import measurement
    from agmc_onnx.verbs.measure import measure

    found = measure(*models, data=data, **given)
    return Said(found, [*measurement(found), *no_card(data)])

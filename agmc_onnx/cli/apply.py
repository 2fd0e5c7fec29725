"""apply: a compressed model from its plan."""

from __future__ import annotations

from agmc_onnx.cli.parsing import Said, argument, option, verb
from agmc_onnx.cli.words import FORCE


@verb("apply", "agmc-onnx apply model.onnx small.plan.json -o small.onnx")
@argument("model", "MODEL.onnx")
@argument("plan", "PLAN.json")
@option("output", str, "OUT.onnx", "where to write it", short="-o", required=True)
@option("force", bool, "", FORCE, False)
def command(model: str, plan: str, output: str, force: bool) -> Said:
    """Rebuild a model."""
    from agmc_onnx.reporting.tables import applied
    from agmc_onnx.verbs.apply import apply

    report = apply(model, plan, output, force=force).report
    return Said({**report, "output": output}, [*applied(report), f"wrote {output}"])

"""apply: a compressed model from its plan."""

from __future__ import annotations

from agmc_onnx.cli.parsing import Said, argument, option, verb


@verb("apply", "agmc-onnx apply model.onnx small.plan.json -o small.onnx")
@argument("model", "MODEL.onnx")
@argument("plan", "PLAN.json")
@option("output", str, "OUT.onnx", "where to write it", short="-o", required=True)
def command(model: str, plan: str, output: str) -> Said:
    """Rebuild a model."""
    from agmc_onnx.reporting.text import applied
    from agmc_onnx.verbs.compress import apply

    report = apply(model, plan, output).report
    return Said({**report, "output": output}, [*applied(report), f"wrote {output}"])

"""verify: a compressed model against its original and plan."""

from __future__ import annotations

from dataclasses import asdict

from agmc_onnx.cli.parsing import Said, argument, option, option_of, verb
from agmc_onnx.options import Data, Execution


@verb("verify", "agmc-onnx verify model.onnx small.onnx")
@argument("model", "MODEL.onnx")
@argument("compressed", "OUT.onnx")
@option("plan", str, "PLAN.json", "default: OUT.plan.json beside OUT.onnx")
@option("data", str, "CARD", "compare on its calibration samples", default_text="random inputs")
@option_of(Data, "input_shape")
@option_of(Execution, "custom_ops")
def command(
    model: str,
    compressed: str,
    plan: str | None,
    data: str | None,
    input_shape: tuple[str, ...],
    custom_ops: tuple[str, ...],
) -> Said:
    """Check a model."""
    from agmc_onnx.reporting.text import verified_line
    from agmc_onnx.verbs.verify import verify

    found = asdict(verify(model, compressed, plan, data, input_shape, custom_ops))
    return Said(found, [verified_line(found)])

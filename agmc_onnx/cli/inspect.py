"""inspect: what could be pruned of a model."""

from __future__ import annotations

from agmc_onnx.cli.parsing import Said, argument, option_of, verb
from agmc_onnx.options import Data, Execution


@verb("inspect", "agmc-onnx inspect model.onnx")
@argument("model", "MODEL.onnx")
@option_of(Data, "input_shape")
@option_of(Execution, "custom_ops")
def command(model: str, input_shape: tuple[str, ...], custom_ops: tuple[str, ...]) -> Said:
    """Analyse a model."""
    from agmc_onnx.reporting.tables import inspection
    from agmc_onnx.verbs.inspect import inspect

    found = inspect(model, input_shape=input_shape, custom_ops=custom_ops)
    return Said(found, inspection(found))

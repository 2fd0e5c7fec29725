"""finetune: a compressed model learns from its original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agmc_onnx.cli.compress import DATA
from agmc_onnx.cli.parsing import Said, argument, option, verb
from agmc_onnx.cli.words import FORCE, noting
from agmc_onnx.refit.options import RecoverOptions


@verb("finetune", "agmc-onnx finetune small.onnx --teacher model.onnx --data card.toml")
@argument("model", "OUT.onnx")
@option("teacher", str, "MODEL.onnx", "the original", required=True)
@option("data", str, "CARD", DATA, required=True)
@option("steps", int, "N", "optimiser steps", 1000, low=1, wrong="too small")
@option("label_weight", float, "W", "weight of labels; 0 learns without", 0.0, low=0, wrong="too small")
@option("learning_rate", float, "R", "highest, of AdamW", RecoverOptions.learning_rate, low=0, high=1, is_open=True)
@option("loss", str, "MODULE:FUNCTION", "a loss of your own, of outputs, the original's and labels")
@option("seed", int, "S", "of the order of the samples and their augmentation", 0, low=0)
@option("threads", int, "N", "of onnxruntime and torch", default_text="all processors", low=1, wrong="too small")
@option("output", str, "TUNED.onnx", "default: OUT.tuned.onnx beside OUT.onnx", short="-o")
@option("force", bool, "", FORCE, False)
def command(model: str, output: str | None, quiet: bool, **given: Any) -> Said:
    """Fine-tune a compressed model and write it beside."""
    from agmc_onnx.reporting.progress import Steps
    from agmc_onnx.reporting.tables import finetuned
    from agmc_onnx.verbs.finetune import finetune

    path = Path(model)
    target = output or str(path.with_name(f"{path.name.removesuffix('.onnx')}.tuned.onnx"))
    with Steps(quiet, noting()) as progress:
        tuned = finetune(path, output=target, progress=progress, **given)
    return Said({**tuned.report, "output": target}, [*finetuned(tuned.report), f"wrote {target}"])

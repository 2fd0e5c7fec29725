"""finetune."""

from __future__ import annotations

import argparse
from pathlib import Path

from agmc_onnx.cli.parsing import Parser, Verb, points, seconds, whole
from agmc_onnx.cli.progress import Steps
from agmc_onnx.cli.words import FORCE, tell, tell_json
from agmc_onnx.refit.options import RecoverOptions


def add(one: Parser) -> None:
    """Add the arguments of `finetune`."""
    one.add_argument("model", metavar="OUT.onnx")
    one.add_argument("--teacher", metavar="MODEL.onnx", required=True, help="the original")
    one.add_argument("--data", metavar="CARD", required=True, help="a data card, an .npz, a folder, or 'digits'")
    one.add_argument("-o", "--output", metavar="TUNED.onnx", help="default: OUT.tuned.onnx beside OUT.onnx")
    one.add_argument("--steps", type=whole, metavar="N", default=1000, help="optimiser steps; default: %(default)s")
    one.add_argument(
        "--label-weight", type=seconds, metavar="W", default=0.0, help="weight of labels; default: 0, learn without"
    )
    rate = RecoverOptions.learning_rate
    one.add_argument(
        "--learning-rate", type=points, metavar="R", default=rate, help="highest, of AdamW; default: %(default)s"
    )
    one.add_argument("--seed", type=whole, metavar="S", default=0, help="default: %(default)s")
    one.add_argument("--json", action="store_true", help="print machine-readable JSON")
    one.add_argument("--force", action="store_true", help=FORCE)
    one.add_argument("--threads", type=whole, metavar="N", help="default: all processors")


def run(arguments: argparse.Namespace) -> int:
    """Fine-tune a compressed model and write it beside."""
    from agmc_onnx.reporting.text import finetuned
    from agmc_onnx.verbs.finetune import finetune

    path = Path(arguments.model)
    output = arguments.output or str(path.with_name(f"{path.name.removesuffix('.onnx')}.tuned.onnx"))
    with Steps(quiet=arguments.quiet) as progress:
        tuned = finetune(
            path,
            teacher=arguments.teacher,
            data=arguments.data,
            output=output,
            steps=arguments.steps,
            label_weight=arguments.label_weight,
            learning_rate=arguments.learning_rate,
            seed=arguments.seed,
            threads=arguments.threads,
            force=arguments.force,
            progress=progress,
        )
    if arguments.json:
        tell_json({**tuned.report, "output": output})
        return 0
    for line in finetuned(tuned.report):
        tell(line)
    tell(f"wrote {output}")
    return 0


VERBS = (Verb("finetune", "let a compressed model learn from its original, without labels", add, run),)

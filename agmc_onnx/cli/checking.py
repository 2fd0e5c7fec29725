"""inspect, apply, verify, measure."""

from __future__ import annotations

import argparse

from agmc_onnx.cli.parsing import Parser, Verb, seconds, whole
from agmc_onnx.cli.words import FORCE, no_card, tell, tell_json
from agmc_onnx.options import Execution


def _add_inspect(one: Parser) -> None:
    one.add_argument("model", metavar="MODEL.onnx")
    _add_sizes(one)
    one.add_argument("--json", action="store_true", help="print machine-readable JSON")


def _add_sizes(one: Parser) -> None:
    one.add_argument(
        "--input-shape",
        metavar="NAME=SIZES",
        action="append",
        default=[],
        help="sizes of an input's open dims, such as x=1,3,224,224; default: the data's, else a guess that is printed",
    )


def _add_apply(one: Parser) -> None:
    one.add_argument("model", metavar="MODEL.onnx")
    one.add_argument("plan", metavar="PLAN.json")
    one.add_argument("-o", "--output", metavar="OUT.onnx", required=True, help="where to write it")
    one.add_argument("--force", action="store_true", help=FORCE)
    one.add_argument("--json", action="store_true", help="print machine-readable JSON")


def _add_verify(one: Parser) -> None:
    one.add_argument("model", metavar="MODEL.onnx")
    one.add_argument("compressed", metavar="OUT.onnx")
    one.add_argument("--plan", metavar="PLAN.json", help="default: OUT.plan.json beside OUT.onnx")
    one.add_argument("--data", metavar="CARD", help="compare on its calibration samples; default: on random inputs")
    _add_sizes(one)
    one.add_argument("--json", action="store_true", help="print machine-readable JSON")


def _add_measure(one: Parser) -> None:
    one.add_argument("models", metavar="MODEL.onnx", nargs="+", help="ratios refer to the first")
    one.add_argument("--data", metavar="CARD", help="measure accuracy too: a data card, an .npz, a folder, or 'digits'")
    _add_sizes(one)
    one.add_argument("--threads", type=whole, metavar="N", default=Execution.threads, help="default: %(default)s")
    one.add_argument(
        "--batch", type=whole, metavar="N", default=1, help="samples per timed inference; default: %(default)s"
    )
    one.add_argument(
        "--seconds", type=seconds, metavar="S", default=Execution.latency_seconds, help="default: %(default)s"
    )
    one.add_argument(
        "--provider", choices=("cpu", "cuda", "auto"), default=Execution.provider, help="default: %(default)s"
    )
    one.add_argument("--json", action="store_true", help="print machine-readable JSON")


def _inspect(arguments: argparse.Namespace) -> int:
    from agmc_onnx.verbs.inspect import inspect

    found = inspect(arguments.model, input_shape=arguments.input_shape)
    if arguments.json:
        tell_json(found)
        return 0
    from agmc_onnx.reporting.text import inspection

    for line in inspection(found):
        tell(line)
    return 0


def _apply(arguments: argparse.Namespace) -> int:
    from agmc_onnx.reporting.text import applied
    from agmc_onnx.verbs.compress import apply

    report = apply(arguments.model, arguments.plan, arguments.output, force=arguments.force).report
    if arguments.json:
        tell_json({**report, "output": arguments.output})
        return 0
    for line in applied(report):
        tell(line)
    tell(f"wrote {arguments.output}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from agmc_onnx.reporting.text import verified_line
    from agmc_onnx.verbs.compress import verify_files

    found = asdict(
        verify_files(arguments.model, arguments.compressed, arguments.plan, arguments.data, arguments.input_shape)
    )
    if arguments.json:
        tell_json(found)
    else:
        tell(verified_line(found))
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    from agmc_onnx.verbs.inspect import measure

    found = measure(
        *arguments.models,
        data=arguments.data,
        threads=arguments.threads,
        seconds=arguments.seconds,
        provider=arguments.provider,
        batch=arguments.batch,
        input_shape=arguments.input_shape,
    )
    if arguments.json:
        tell_json(found)
        return 0
    from agmc_onnx.reporting.text import measurement

    for line in [*measurement(found), *no_card(arguments.data)]:
        tell(line)
    return 0


VERBS = (
    Verb("inspect", "say what could be pruned of a model, and what not and why", _add_inspect, _inspect, True),
    Verb(
        "apply",
        "rebuild a compressed model from its plan, as cut: without data, search or recovery",
        _add_apply,
        _apply,
    ),
    Verb(
        "verify",
        "check that a compressed model equals the original with its removed channels at zero",
        _add_verify,
        _verify,
    ),
    Verb("measure", "measure size, accuracy and latency of models side by side", _add_measure, _measure, True),
)

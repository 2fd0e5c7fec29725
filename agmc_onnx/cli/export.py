"""export: a model in the format of another runtime."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from agmc_onnx.cli.parsing import Parser, Verb, seconds, whole
from agmc_onnx.cli.words import FORCE, tell
from agmc_onnx.options import Execution


def add(one: Parser) -> None:
    """Add the arguments of `export`."""
    from agmc_onnx.exchange.exporters.row import CALIBRATIONS, TARGETS, Settings
    from agmc_onnx.exchange.exporters.table import EXPORTERS

    kinds = "; ".join(f"{name}: {row.text}" for name, row in EXPORTERS.items())
    targets = "; ".join(f"{name}: {text}" for name, text in TARGETS.items())
    one.add_argument("model", metavar="OUT.onnx")
    one.add_argument("--to", required=True, choices=list(EXPORTERS), metavar="FORMAT", help=kinds)
    one.add_argument("-o", "--output", metavar="PATH", help="default: beside the model, under its name")
    one.add_argument(
        "--data",
        metavar="CARD",
        help="measure accuracy too, on the test role; int8 calibrates on the calibration role: a data card, an .npz, a"
        " folder, or 'digits'",
    )
    one.add_argument("--samples", type=whole, metavar="N", help="measure on N samples of the test role; default: all")
    one.add_argument(
        "--target",
        choices=list(TARGETS),
        default=Settings.target,
        metavar="NAME",
        help=f"what int8 and ort are made for; {targets}; default: %(default)s",
    )
    one.add_argument(
        "--calibrate",
        choices=CALIBRATIONS,
        default=Settings.calibrate,
        metavar="NAME",
        help=f"how int8 finds the range of every value: {', '.join(CALIBRATIONS)}; default: %(default)s",
    )
    for name, text in (
        ("calibration_samples", "samples that int8 calibrates on, at most"),
        ("batch", "samples per inference, of formats that fix it and of the timed ones"),
        ("threads", "threads of both runtimes"),
    ):
        option = f"--{name.replace('_', '-')}"
        default = getattr(Settings, name)
        one.add_argument(option, type=whole, metavar="N", default=default, help=f"{text}; default: %(default)s")
    one.add_argument(
        "--seconds", type=seconds, metavar="S", default=Execution.latency_seconds, help="default: %(default)s"
    )
    one.add_argument("--force", action="store_true", help=FORCE)
    one.add_argument("--json", action="store_true", help="print machine-readable JSON")


def run(arguments: argparse.Namespace) -> int:
    """Export a model, run it there, and say how it does."""
    from agmc_onnx.verbs.export import export

    names = (
        "to",
        "output",
        "data",
        "samples",
        "target",
        "calibrate",
        "calibration_samples",
        "batch",
        "threads",
        "force",
        "seconds",
    )
    report = export(arguments.model, **{name: getattr(arguments, name) for name in names})
    if arguments.json:
        tell(json.dumps(report, indent=1))
        return 0
    for line in lines(report):
        tell(line)
    return 0


def lines(report: Mapping[str, Any]) -> list[str]:
    """Return what `export` prints."""
    from agmc_onnx.reporting.text import aligned, interval_text, metric_text, ratio, setting_text

    versions = ", ".join(f"{name} {version}" for name, version in report["converter"].items())
    found = [f"{report['to']}, with {versions}"]
    before, after = report["model"]["file_bytes"], report["output"]["file_bytes"]
    table = [["", "ONNX", report["to"], "ratio"], ["file bytes", f"{before:,}", f"{after:,}", ratio(after, before)]]
    metric, times = report["metric"], report["latency_ms"]
    if metric:
        one, other = metric["onnx"], metric["exported"]
        change = f"{other['value'] - one['value']:+.2f}" + (" points" if "%" in metric_text(one) else "")
        table.append([f"{one['name']} (n = {one['n']:,})", metric_text(one), metric_text(other), change])
        if one.get("interval"):
            table.append(["95 % interval", interval_text(one), interval_text(other), ""])
    if times:
        label = f"median ms, {setting_text(times['onnx'])}"
        share = f"{100 * report['latency_ratio']['median']:.1f} %"
        table.append([label, f"{times['onnx']['p50']:.3f}", f"{times['exported']['p50']:.3f}", share])
    found += aligned(table)
    if report["ran"]:
        gap = report["difference"]
        inputs = "synthetic samples" if gap["inputs"] == "synthetic" else f"samples of the {gap['inputs']}"
        text = (
            f"largest difference {gap['max_abs']:.3g} (largest output {gap['max_abs_output']:.3g}), {gap['n']} {inputs}"
        )
        same = f"; the same class for {gap['same_class']:.1f} %" if gap["same_class"] is not None else ""
        found.append(text + same)
        if not metric:
            found.append("Accuracy was not measured: no --data was given.")
    else:
        found.append(f"not run here: {report['why_not']}")
    found += [f"note: {note}" for note in report["notes"]]
    return [*found, f"wrote {', '.join(report['output']['files'])}"]


VERBS = (Verb("export", "write a model for another runtime, and measure it there", add, run),)

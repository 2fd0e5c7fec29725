"""export: a model in the format of another runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agmc_onnx.cli.compress import DATA
from agmc_onnx.cli.parsing import Said, argument, option, verb
from agmc_onnx.cli.words import FORCE
from agmc_onnx.exchange.exporters.row import CALIBRATIONS, Settings
from agmc_onnx.options import Execution
from agmc_onnx.precision.int8 import TARGETS

TARGET_TEXT = "; ".join(f"{name}: {one.text}" for name, one in TARGETS.items())


@verb("export", "agmc-onnx export small.onnx --to int8 --data card.toml")
@argument("model", "OUT.onnx")
@option("to", str, "FORMAT", "the format", required=True, choices=("agmc_onnx.exchange.exporters.table:EXPORTERS",))
@option("output", str, "PATH", "default: beside the model, under its name", short="-o")
@option("data", str, "CARD", f"measure accuracy too, on the test role; int8 calibrates on the calibration role: {DATA}")
@option("samples", int, "N", "measure on N samples of the test role", default_text="all", low=1)
@option(
    "target", str, "NAME", f"what int8 and ort are made for; {TARGET_TEXT}", Settings.target, choices=tuple(TARGETS)
)
@option(
    "calibrate", str, "NAME", "how int8 finds the range of every value", Settings.calibrate, choices=tuple(CALIBRATIONS)
)
@option(
    "calibration_samples", int, "N", "samples that int8 calibrates on, at most", Settings.calibration_samples, low=1
)
@option("batch", int, "N", "samples per inference, of formats that fix it and of the timed ones", Settings.batch, low=1)
@option("threads", int, "N", "threads of both runtimes", Settings.threads, low=1)
@option("seconds", float, "S", "time given to latency", Execution.latency_seconds, low=0, wrong="not a time")
@option("force", bool, "", FORCE, False)
def command(model: str, **given: Any) -> Said:
    """Export a model, run it there, and say how it does."""
    from agmc_onnx.verbs.export import export

    report = export(model, **given)
    return Said(report, lines(report))


def lines(report: Mapping[str, Any]) -> list[str]:
    """Return what `export` prints."""
    from agmc_onnx.reporting.tables import aligned
    from agmc_onnx.reporting.text import interval_text, metric_text, ms_text, ratio, setting_text
    from agmc_onnx.reporting.times import shown_ms

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
        what, (slow, fast) = shown_ms([times["onnx"], times["exported"]])
        label = f"{what}, {setting_text(times['onnx'])}"
        table.append([label, ms_text(slow), ms_text(fast), ratio(fast, slow)])
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

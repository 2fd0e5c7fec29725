"""Export a model to every format whose converter is installed, and print one table: differences, accuracy, times.

    python -m tools.export_table MODEL.onnx --data CARD --folder OUT [--to FORMAT ...] [--samples N]
    python -m tools.export_table MODEL.onnx --data CARD --folder OUT --latency

The first exports and measures each (report in OUT/FORMAT.json); the second times all that is in OUT in one interleaved
run, and prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from agmc_onnx.data.samples import load_card, open_data
from agmc_onnx.errors import AgmcError
from agmc_onnx.exchange.exporters.plain import converting
from agmc_onnx.exchange.exporters.table import EXPORTERS
from agmc_onnx.graph.files import read_model
from agmc_onnx.latency.timing import compare
from agmc_onnx.measuring.session import model_inputs
from agmc_onnx.verbs.export import export, open_exported


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--to", nargs="+", choices=list(EXPORTERS), default=list(EXPORTERS))
    parser.add_argument("--samples", type=int)
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    if arguments.latency:
        times(arguments.model, arguments.data, arguments.folder, arguments.seconds)
        return
    arguments.folder.mkdir(exist_ok=True)
    for name in arguments.to:
        output = arguments.folder / f"{arguments.model.stem}{EXPORTERS[name].suffix}"
        if name in ("openvino", "ncnn"):  # both write a .bin
            output = output.with_name(f"{name}_{output.name}")
        try:
            report = export(
                arguments.model, to=name, output=output, data=arguments.data, samples=arguments.samples, seconds=0.1
            )
        except AgmcError as error:
            report = {"to": name, "failed": str(error)}
        (arguments.folder / f"{name}.json").write_text(json.dumps(report, indent=1))
        print(row(report, None), flush=True)


def times(model: Path, data: str, folder: Path, seconds: float) -> None:
    """Time all exported models of a folder beside the ONNX model, and print the table."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    reports.sort(key=lambda report: list(EXPORTERS).index(report["to"]))
    dataset = open_data(load_card(data), model_inputs(read_model(model).proto))
    feeds = dataset.role("test").take(8).feeds(1)
    ran = [report for report in reports if report.get("ran")]
    slow = [report for report in ran if report["latency_ratio"]["median"] > 10]  # a few rounds of these say enough
    found: dict[str, str] = {"ONNX": ""}
    for part, part_of in (([r for r in ran if r not in slow], 0.8), (slow, 0.2)):
        if not part:
            continue
        runs = [open_exported(model, report["to"], report["output"]["path"], feeds[0]) for report in part]
        with converting("latency"):
            measured = compare([model, *runs], feeds, seconds=part_of * seconds, rounds=1000)
        for report, latency in zip([{"to": "ONNX"}, *part], measured, strict=True):
            share = latency.mean_cpu_ms / measured[0].mean_cpu_ms  # other work on the machine disturbs it least
            text = f"{latency.minimum:.2f} / {latency.p50:.2f} | {latency.mean_cpu_ms:.2f} | {share:.0%}"
            found[report["to"]] = found.get("ONNX") or text if report["to"] == "ONNX" else text
    print(
        "| format | version | bytes | largest difference | same class | top-1 (n) | ms, min / median | CPU ms | CPU ratio |"
    )
    print(f"| ONNX | | {model.stat().st_size:,} | | | | {found['ONNX']} |")
    for report in reports:
        print(row(report, found.get(report["to"])))


def row(report: dict[str, Any], timed: str | None) -> str:
    """Return one line of the table."""
    if "failed" in report:
        return f"| {report['to']} | {report['failed']} |"
    cells = [report["to"], ", ".join(f"{n} {v}" for n, v in report["converter"].items())]
    cells.append(f"{report['output']['file_bytes']:,}")
    if not report["ran"]:
        return f"| {' | '.join([*cells, report['why_not']])} |"
    gap, metric = report["difference"], report["metric"]
    cells += [f"{gap['max_abs']:.1e} of {gap['max_abs_output']:.1f}", f"{gap['same_class']:.1f} % of {gap['n']}"]
    values = [f"{metric[which]['value']:.2f}" for which in ("onnx", "exported")]
    cells.append(f"{values[0]} -> {values[1]} ({metric['onnx']['n']:,})")
    return f"| {' | '.join([*cells, timed or '-'])} |"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

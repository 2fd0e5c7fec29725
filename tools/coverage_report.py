"""docs/coverage.md from the rows of tools/coverage.py, tools/bench/peers.py and tools/bench/scaling.py.

python -m tools.coverage_report --rows rows.jsonl --peers peers.jsonl --scaling scaling.jsonl --out docs/coverage.md
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from tools import zoo
from tools.apart import Row, engine, read_rows
from tools.coverage import kinds_of

DEEP, FAR = 0.27, 0.30  # the goal for the median, and what counts as falling short
SETS = {"torchscript": "TorchScript", "dynamo": "dynamo", "file": "files"}
PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime-gpu", "onnxscript", "numpy")


def label(row: Row) -> str:
    return row["name"].rpartition("/")[2].removeprefix("light:")


def percentiles(values: list[float]) -> str:
    return f"{statistics.median(values):.3f}" if values else "-"


def headline(rows: list[Row], code: str) -> list[str]:
    """Return the table of headline numbers, a column a set of models."""
    sets = {text: [r for r in rows if r["exporter"] == key] for key, text in SETS.items()}
    sets = {text: own for text, own in sets.items() if own}

    def line(what: str, cell: Iterable[str]) -> str:
        return f"| {what} | " + " | ".join(cell) + " |"

    def of(test: str, among: str = "valid") -> list[str]:
        cells = []
        for own in sets.values():
            known = [r for r in own if r.get(among) is not None]
            cells.append(f"{sum(bool(r.get(test)) for r in known)} of {len(known)}")
        return cells

    ran = {text: [r for r in own if "valid" in r] for text, own in sets.items()}
    left = {text: [r["macs_left"] for r in own if "macs_left" in r] for text, own in ran.items()}
    worst = [max((r["relative"] for r in own if r.get("equivalent")), default=0) for own in ran.values()]
    return [
        line("", [f"{text}" for text in sets]),
        "| --- |" + " ---: |" * len(sets),
        line("models tried", [str(len(own)) for own in sets.values()]),
        line("exported and analysed", [str(len(own)) for own in ran.values()]),
        line("valid: checker, onnxruntime, output shapes", of("valid")),
        line("equal to the masked original, where it must hold", of("equivalent", "equivalent")),
        line("largest relative difference of these", [f"{value:.0e}" for value in worst]),
        line("MACs counted in the cut file as predicted", of("as_predicted", "as_predicted")),
        line("MACs left when every group keeps half, median", [percentiles(own) for own in left.values()]),
        line(f"at most {FAR}", [f"{sum(x <= FAR for x in own)} of {len(own)}" for own in left.values()]),
        line("budget 0.5 met exactly (0.495 to 0.500)", of("budget_met")),
        line("graph and cut, median s", [percentiles([r["seconds"] for r in own]) for own in ran.values()]),
        line("rows made by the code beside this file", of_code(sets.values(), code)),
    ]


def of_code(sets: Iterable[list[Row]], code: str) -> list[str]:
    return [f"{sum(r['engine'] == code for r in own)} of {len(own)}" for own in sets]


def shortfalls(rows: list[Row]) -> list[str]:
    """Return the list of what falls short, with reasons; models whose groups are all cut come together at the end."""
    lines, whole = [], []
    for row in sorted(rows, key=lambda r: (-r.get("macs_left", 0), r["name"])):
        bad = row.get("valid") is False or row.get("equivalent") is False
        if not bad and row.get("macs_left", 0) <= FAR and row.get("budget_met", True):
            continue
        reasons = kinds_of(row["reasons"])
        where = f"**{label(row)}** ({SETS[row['exporter']]}, {row['macs_left']:.3f})"
        if bad:
            lines.append(f"- {where}: {'not valid' if not row['valid'] else 'not equal'}: {row['note'][:220]}")
        elif not reasons:
            whole.append(f"{label(row)} {row['macs_left']:.3f}")
        else:
            lines.append(f"- {where}: " + "; ".join(f"{n} x {why}" for why, n in reasons[:4]))
    if whole:
        names = ", ".join(dict.fromkeys(whole))
        lines += [
            "",
            "All groups are cut in these. What is left is in the first and the last layer, in steps (heads, groups), and in the",
            "products of attention: queries times keys, and scores times values, have positions on two sides and heads x size on",
            "the third. Heads x size is one decision, cut along the size; half of it leaves half of these products, and would if",
            f"whole heads went instead: {names}.",
        ]
    return lines


def failures(rows: list[Row]) -> list[str]:
    return [
        f"- {label(r)} ({SETS[r['exporter']]}): {' '.join(r['error'].split())[:170]}"
        for r in sorted(rows, key=lambda r: r["name"])
        if "error" in r
    ]


def all_models(rows: list[Row], code: str) -> list[str]:
    lines = ["| model | nodes | groups | MACs left | budget 0.5 | equal to | s |", "|---|---|---|---|---|---|---|"]
    by_name: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_name.setdefault(label(row), {})[row["exporter"]] = row
    for name, own in sorted(by_name.items()):
        pair = [r for key in SETS if (r := own.get(key)) is not None and "valid" in r]
        if not pair:
            continue

        def cells(form: str, key: str, pair: list[Row] = pair) -> str:
            return " / ".join(format(r[key], form) if r.get(key) is not None else "-" for r in pair)

        equal = [
            "**no**" if r["equivalent"] is False else "-" if r["equivalent"] is None else f"{r['relative']:.0e}"
            for r in pair
        ]
        old = "" if all(r["engine"] == code for r in pair) else " \\*"
        only = " (dynamo)" if next(iter(own)) == "dynamo" and len(pair) == 1 else ""
        lines.append(
            f"| {name}{only}{old} | {cells('d', 'nodes')} | {cells('d', 'groups')} | {cells('.3f', 'macs_left')} | "
            f"{cells('.3f', 'budget_reached')} | {' / '.join(equal)} | {cells('.2f', 'seconds')} |"
        )
    return lines


# -- peers


def peers(rows: list[Row]) -> list[str]:
    tools = {"ours": "agmc-onnx", "torch_pruning": "Torch-Pruning 1.6.1", "onnxsim": "onnxsim 0.8.1"}
    ran = {tool: [r for r in rows if r[tool].get("valid")] for tool in tools}
    lines = [f"| of {len(rows)} models | " + " | ".join(tools.values()) + " |", "| --- |" + " ---: |" * len(tools)]
    lines.append("| valid | " + " | ".join(str(len(own)) for own in ran.values()) + " |")
    for what, key in (("MACs left, median of the valid", "macs_left"), ("seconds, median of the valid", "seconds")):
        cells = [percentiles([r[tool][key] for r in own]) for tool, own in ran.items()]
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    cells = [str(sum(r[tool]["macs_left"] <= FAR for r in own)) for tool, own in ran.items()]
    lines.append(f"| MACs left at most {FAR} | " + " | ".join(cells) + " |")
    lines.append("")
    both = [r for r in ran["torch_pruning"] if r["ours"].get("valid")]
    if both:
        ratios = sorted(r["torch_pruning"]["seconds"] / r["ours"]["seconds"] for r in both)
        slower = [label(r) for r in both if r["ours"]["seconds"] > r["torch_pruning"]["seconds"]]
        lines += [
            f"Time of Torch-Pruning over ours, graph and cut, on the {len(both)} models where both are valid: median "
            f"{statistics.median(ratios):.1f}, smallest {ratios[0]:.2f}, largest {ratios[-1]:.0f}. "
            + (f"Ours is slower on {', '.join(slower)}." if slower else "Ours is never slower."),
        ]
    same = [r for r in rows if all(r[tool].get("valid") for tool in tools)]
    if same:
        medians = [percentiles([r[tool]["macs_left"] for r in same]) for tool in tools]
        lines.append(f"Where all three are valid ({len(same)} models), medians of the MACs left: {', '.join(medians)}.")
    lines += [
        "",
        "| model | agmc-onnx: left, s | Torch-Pruning: left, s | onnxsim: left, s |",
        "|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: r["name"]):
        cells = []
        for tool in tools:
            r = row[tool]
            error = r.get("error", "not valid").split(":")[0][:40]
            cells.append(f"{r['macs_left']:.3f}, {r['seconds']:.2f}" if r.get("valid") else error)
        lines.append(f"| {label(row)} | {' | '.join(cells)} |")
    return lines


# -- size


def sizes(path: Path) -> list[str]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    nodes: dict[int, Row] = {}
    for r in rows:
        if r["kind"] == "nodes":  # of several runs the fastest
            nodes[r["nodes"]] = min(r, nodes.get(r["nodes"], r), key=lambda row: row["total_s"])
    files = {(r["file_mb"], r["verb"]): r for r in rows if r["kind"] == "file"}
    lines = []
    if nodes:
        stages = list(next(iter(nodes.values()))["seconds"])
        lines += [f"| nodes | groups | {' | '.join(stages)} | all, s | peak MB |", "|" + " ---: |" * (len(stages) + 4)]
        for n, r in sorted(nodes.items()):
            times = " | ".join(f"{r['seconds'][stage]:.2f}" for stage in stages)
            lines.append(f"| {n} | {r['groups']} | {times} | {r['total_s']:.2f} | {r['peak_mb']} |")
    if len(nodes) > 1:
        logs = [[math.log(r[key]) for r in nodes.values()] for key in ("nodes", "total_s")]
        value = statistics.linear_regression(*logs).slope
        lines += ["", f"Growth exponent of the time, least squares on the logarithms: **{value:.2f}**."]
    if files:
        lines += ["", "| file, MB | verb | processor s | s | peak MB | peak / file |", "| ---: | --- |" + " ---: |" * 4]
        for (mb, verb), r in sorted(files.items()):
            peak = f"{r['peak_mb']} | {r['peak_over_file']:.2f}"
            lines.append(f"| {mb:.0f} | {verb} | {r['cpu_s']:.1f} | {r['wall_s']:.1f} | {peak} |")
    return lines


# -- the page

INTRO = """# Coverage

Written by `tools/coverage_report.py`; do not edit. Networks of torchvision and timm with random weights (zero tensors
too, BatchNorm statistics of their own activations), exported here by both PyTorch exporters with an open batch, at
their usual input size; the `light_*` topologies of the onnx package with random weights put in; trained models as files
(a face detector with initializers as inputs, a tf2onnx network in NHWC, a speech model with If and LSTM, CIFAR and
ImageNet networks). Half of every group is cut by L2 norm, nothing is recovered. Equal: on three random inputs, to the
original whose removed entries are zero, and whose normalisations take their statistics over the kept entries; where a
normalisation cannot be written that way, with only those groups cut that it does not see. Seconds are processor time,
one thread, on two shared cores under load. With open height and width too: [open sizes](open-sizes.md)."""


def page(rows: list[Row], peer_rows: list[Row], scaling: Path | None, note: str) -> str:
    code = engine()
    names = {r["name"] for r in rows} & set(zoo.architectures())
    per = {key: len({r["name"] for r in rows if r["exporter"] == key} & names) for key in zoo.EXPORTERS}
    lines = [
        INTRO, "", "## In short", "", *headline(rows, code), "",
        f"Of the {len(zoo.architectures())} names in `tools/architectures.txt`, " + " and ".join(
            f"{n} went through the {SETS[key]} exporter" for key, n in per.items()) + ". A model marked \\* has a row made by "
        "code of the same day before the last changes to the engine.", *([note] if note else []),
        "", "## What falls short", "", *shortfalls(rows),
        "", "### Not exported, or not analysed", "", *failures(rows),
    ]  # fmt: skip
    if peer_rows:
        lines += ["", "## Beside other tools", "", *peer_intro(peer_rows, code), "", *peers(peer_rows)]
    if scaling is not None and scaling.exists():
        lines += ["", "## Size", "", *SIZE, "", *sizes(scaling)]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    lines += [
        "", "## All models", "", "Two numbers are TorchScript / dynamo.", "", *all_models(rows, code),
        "", "## Commands", "", "```", *COMMANDS, "```", "", f"Versions: Python {sys.version.split()[0]}, {versions}.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def peer_intro(rows: list[Row], code: str) -> list[str]:
    old = sum(r["engine"] != code for r in rows)
    text = [
        "One run, the three one after the other on each model: half of everything, L2 norm, one thread. This",
        "project and onnxsim (`apply_structured_pruning`) start from the same ONNX model; Torch-Pruning",
        "(`MagnitudePruner`) from the module it was exported from, with the classifier as the only ignored layer",
        "and nothing said about heads; it does better with scripts of its own for a family of networks. Seconds",
        "are processor time of graph and cut. MACs are counted in the ONNX graphs, by one counter; a pruned",
        "module is exported first.",
    ]
    return [*text, f"{old} of the {len(rows)} rows were made by earlier code of the same day."] if old else text


SIZE = (
    "Generated networks of residual, concatenating, gated and shuffling blocks; read, analysed, cut to half and",
    "written in a process of its own, processor seconds. The file is a residual network of dense layers with",
    "LayerNorm, its weights in external data; whole commands, with their imports and verification. Memory is the",
    "peak resident set, mapped pages of files included.",
)
COMMANDS = (
    "pip install -e '.[test,coverage]' && pip install --no-deps torch-pruning==1.6.1 onnxsim==0.8.1",
    "python -m tools.coverage --out rows.jsonl --keep exported --data MODELS",
    "python -m tools.bench.peers --out peers.jsonl --keep exported",
    "python -m tools.bench.scaling nodes --out scaling.jsonl",
    "python -m tools.bench.scaling file --megabytes 100 2500 --out scaling.jsonl",
    "python -m tools.coverage_report --rows rows.jsonl --peers peers.jsonl --scaling scaling.jsonl \\",
    "    --out docs/coverage.md",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--scaling", type=Path)
    parser.add_argument("--note", default="", help="a line for the report: what must be known about these rows")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    peer_rows = read_rows(args.peers) if args.peers and args.peers.exists() else []
    args.out.write_text(page(read_rows(args.rows), peer_rows, args.scaling, args.note))


if __name__ == "__main__":
    main()

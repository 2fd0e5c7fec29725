"""docs/coverage.md from the rows of tools/coverage.py, tools/bench/peers.py and tools/bench/scaling.py.

    python -m tools.coverage_report [--rows FILE ...] [--peers FILE ...] [--scaling FILE] --out docs/coverage.md

Rows are kept in docs/measured; of rows about the same model by the same exporter the last counts, so new files come last.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path

from tools import zoo
from tools.apart import Row, key_of, read_rows
from tools.coverage import kinds_of

FAR = 0.30  # what counts as falling short
NEAR = 0.03  # how much more of the MACs may stay with open sizes
MEASURED = Path("docs/measured")
SETS = {"torchscript": "TorchScript", "dynamo": "dynamo", "file": "files"}
PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime-gpu", "onnxscript", "numpy")


def label(row: Row) -> str:
    return row["name"].rpartition("/")[2].removeprefix("light:")


def percentiles(values: list[float]) -> str:
    return f"{statistics.median(values):.3f}" if values else "-"


def headline(rows: list[Row]) -> list[str]:
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
        *opened(list(sets.values()), line),
    ]


def opened(sets: Sequence[list[Row]], line: Callable[[str, Iterable[str]], str]) -> list[str]:
    """Return the rows of the table that are about open height and width."""
    tried = [[r for r in own if "open" in r] for own in sets]
    ran = [[r for r in own if "macs_left" in r["open"]] for own in tried]

    def of(test: Callable[[Row], bool]) -> list[str]:
        return [f"{sum(map(test, own))} of {len(own)}" if own else "" for own in ran]

    return [
        line("with open height and width too: exported and analysed", [f"{len(a)} of {len(b)}" if b else "" for a, b in
             zip(ran, tried, strict=True)]),
        line("as much left as with fixed sizes, or less", of(lambda r: more_left(r) < 0.001)),
        line(f"at most {NEAR} more", of(lambda r: more_left(r) <= NEAR)),
        line("equal to the masked original at two sizes", of(lambda r: compared(r) == 2)),
        line("at one size, the only one at which it was seen to run", of(lambda r: compared(r) == 1)),
        line("MACs as a run makes them at each of these sizes", of(lambda r: r["open"]["as_counted"])),
    ]  # fmt: skip


def more_left(row: Row) -> float:
    """Return how much more of the MACs is left with open sizes."""
    return float(row["open"]["macs_left"] - row["macs_left"])


def compared(row: Row) -> int:
    """Return at how many sizes the cut of an open model equals the masked original."""
    return int(row["open"]["compared"]) if row["open"].get("equivalent") else 0


def by_commit(rows: Iterable[Row]) -> str:
    """Say how many rows are of which commit."""
    return ", ".join(f"{n} of {commit}" for commit, n in Counter(r["commit"] for r in rows).most_common())


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


def open_shortfalls(rows: list[Row]) -> list[str]:
    """Return what keeps more with open height and width, or was not compared at two sizes, with reasons."""
    lines = []
    for row in sorted((r for r in rows if "open" in r), key=key_of):
        found, where = row["open"], f"- **{label(row)}** ({SETS[row['exporter']]}): "
        if "error" in found:
            lines.append(where + " ".join(found["error"].split())[:170])
            continue
        if more_left(row) >= 0.001:
            why = "; ".join(f"{n} x {text}" for text, n in kinds_of(found["reasons"])[:3])
            lines.append(f"{where}{found['macs_left']:.3f} for {row['macs_left']:.3f}: {why}")
        if compared(row) < 2 or not found["as_counted"]:
            at = " and ".join("x".join(map(str, one)) for one in found["sizes"])
            alone = f"compared at {at} alone, for it ran at no other size tried"
            lines.append(where + (alone if compared(row) else f"not compared: {found['note']}"))
            lines += [f"{where}the MACs of a run are others"] if not found["as_counted"] else []
    return lines


def failures(rows: list[Row]) -> list[str]:
    return [
        f"- {label(r)} ({SETS[r['exporter']]}): {' '.join(r['error'].split())[:170]}"
        for r in sorted(rows, key=lambda r: r["name"])
        if "error" in r
    ]


def all_models(rows: list[Row]) -> list[str]:
    lines = [
        "| model | nodes | groups | MACs left | open height, width | equal at | budget 0.5 | equal to | s | commit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
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
        only = " (dynamo)" if len(pair) == 1 and pair[0]["exporter"] == "dynamo" else ""
        tried = any("open" in r for r in pair)
        left = [f"{r['open']['macs_left']:.3f}" if "macs_left" in r.get("open", ()) else "-" for r in pair if tried]
        sizes = [str(compared(r)) if "open" in r else "-" for r in pair if tried]
        commits = dict.fromkeys(r["commit"] for r in pair)
        lines.append(
            f"| {name}{only} | {cells('d', 'nodes')} | {cells('d', 'groups')} | {cells('.3f', 'macs_left')} | "
            f"{' / '.join(left)} | {' / '.join(sizes)} | {cells('.3f', 'budget_reached')} | {' / '.join(equal)} | "
            f"{cells('.2f', 'seconds')} | {' / '.join(commits)} |"
        )
    return lines


# -- peers

TOOLS = {"ours": "agmc-onnx", "torch_pruning": "Torch-Pruning 1.6.1", "onnxsim": "onnxsim 0.8.1"}


def peers(rows: list[Row]) -> list[str]:
    ran = {tool: [r for r in rows if r[tool].get("valid")] for tool in TOOLS}
    lines = [f"| of {len(rows)} models | " + " | ".join(TOOLS.values()) + " |", "| --- |" + " ---: |" * len(TOOLS)]
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
    same = [r for r in rows if all(r[tool].get("valid") for tool in TOOLS)]
    if same:
        medians = [percentiles([r[tool]["macs_left"] for r in same]) for tool in TOOLS]
        lines.append(f"Where all three are valid ({len(same)} models), medians of the MACs left: {', '.join(medians)}.")
    lines += [
        "",
        "| model | agmc-onnx: left, s | Torch-Pruning: left, s | onnxsim: left, s |",
        "|---|---|---|---|",
    ]
    return [*lines, *(f"| {label(row)} | {' | '.join(peer_cells(row))} |" for row in sorted(rows, key=key_of))]


def peer_cells(row: Row) -> list[str]:
    """Return what each tool left of a model, and its seconds, or why it made nothing."""
    found = [row[tool] for tool in TOOLS]
    errors = [one.get("error", "not valid").split(":")[0][:40] for one in found]
    return [
        f"{one['macs_left']:.3f}, {one['seconds']:.2f}" if one.get("valid") else error
        for one, error in zip(found, errors, strict=True)
    ]


# -- size


def sizes(path: Path) -> list[str]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    nodes: dict[int, Row] = {}
    for r in rows:
        if r["kind"] == "nodes":  # of several runs the fastest
            nodes[r["nodes"]] = min(r, nodes.get(r["nodes"], r), key=lambda row: row["total_s"])
    files = {(r["file_mb"], r["verb"]): r for r in rows if r["kind"] == "file"}
    lines = [f"Rows: {by_commit(rows)}.", ""]
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
one thread, on two shared cores under load. Some were exported with open height and width too, analysed at their usual
size, and their cut to half compared with the masked original at that size and at another: [open sizes](open-sizes.md)
has more of such models, and transformers."""


def page(rows: list[Row], peer_rows: list[Row], scaling: Path | None, note: str) -> str:
    names = {r["name"] for r in rows} & set(zoo.architectures())
    per = {key: len({r["name"] for r in rows if r["exporter"] == key} & names) for key in zoo.EXPORTERS}
    went = " and ".join(f"{n} went through the {SETS[key]} exporter" for key, n in per.items())
    lines = [
        INTRO, "", "## In short", "", *headline(rows), "",
        f"Of the {len(zoo.architectures())} names in `tools/architectures.txt`, {went}. Rows: {by_commit(rows)}.",
        *([note] if note else []),
        "", "## What falls short", "", *shortfalls(rows),
        "", "### With open height and width", "", *(open_shortfalls(rows) or ["Nothing."]),
        "", "### Not exported, or not analysed", "", *failures(rows),
    ]  # fmt: skip
    if peer_rows:
        lines += ["", "## Beside other tools", "", *PEERS, "", *paired(peer_rows), "", *peers(peer_rows)]
    if scaling is not None and scaling.exists():
        lines += ["", "## Size", "", *SIZE, "", *sizes(scaling)]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    lines += [
        "", "## All models", "", *ALL, "", *all_models(rows),
        "", "## Commands", "", "```", *COMMANDS, "```", "", f"Versions: Python {sys.version.split()[0]}, {versions}.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def paired(rows: list[Row]) -> list[str]:
    """Return the models of the newest commit: the three tools beside one another."""
    commit = rows[-1]["commit"]
    own = [r for r in rows if r["commit"] == commit]
    if len(own) == len(rows):
        return [f"Rows: {by_commit(rows)}."]
    lines = [
        f"{len(own)} models again by commit {commit}, and Torch-Pruning's and onnxsim's time over ours:", "",
        "| model | agmc-onnx: left, s | Torch-Pruning: left, s | onnxsim: left, s | Torch-Pruning / ours | onnxsim / ours |",
        "|---|---|---|---|---:|---:|",
    ]  # fmt: skip
    ratios: dict[str, list[float]] = {"torch_pruning": [], "onnxsim": []}
    for row in sorted(own, key=key_of):
        for tool, found in ratios.items():
            found.append(row[tool]["seconds"] / row["ours"]["seconds"] if row[tool].get("valid") else math.nan)
        over = " | ".join(f"{found[-1]:.2f}" for found in ratios.values())
        lines.append(f"| {label(row)} | {' | '.join(peer_cells(row))} | {over} |")
    medians = [statistics.median(x for x in found if not math.isnan(x)) for found in ratios.values()]
    lines += [f"| median | | | | {medians[0]:.2f} | {medians[1]:.2f} |", ""]
    return [*lines, f"All of them, with rows of before where a model was not made again ({by_commit(rows)}):"]


PEERS = (
    "One run, the three one after the other on each model: half of everything, L2 norm, one thread. This",
    "project and onnxsim (`apply_structured_pruning`) start from the same ONNX model; Torch-Pruning",
    "(`MagnitudePruner`) from the module it was exported from, with the classifier as the only ignored layer",
    "and nothing said about heads; it does better with scripts of its own for a family of networks. Seconds",
    "are processor time of graph and cut. MACs are counted in the ONNX graphs, by one counter; a pruned",
    "module is exported first.",
)
ALL = (
    "Two numbers are TorchScript / dynamo. Open height, width: what is left of the MACs at the usual size where the model was",
    "exported with these open too, and at how many sizes its cut equals the masked original; empty where that was not tried.",
    "Commits say which code made a row; rows of 5ca6489 and before were read back from the page of that commit, rounded.",
)
SIZE = (
    "Generated networks of residual, concatenating, gated and shuffling blocks; read, analysed, cut to half and",
    "written in a process of its own, processor seconds. The file is a residual network of dense layers with",
    "LayerNorm, its weights in external data; whole commands, with their imports and verification. Memory is the",
    "peak resident set, mapped pages of files included.",
)
COMMANDS = (
    "pip install -e '.[test,coverage]' && pip install --no-deps torch-pruning==1.6.1 onnxsim==0.8.1",
    "python -m tools.coverage --out rows.jsonl --keep exported --data MODELS --open",
    "python -m tools.bench.peers --out peers.jsonl --keep exported",
    "python -m tools.bench.scaling nodes --out scaling.jsonl",
    "python -m tools.bench.scaling file --megabytes 100 2500 --out scaling.jsonl",
    "python -m tools.coverage_report --rows docs/measured/coverage.jsonl rows.jsonl \\",
    "    --peers docs/measured/peers.jsonl peers.jsonl --scaling scaling.jsonl --out docs/coverage.md",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=Path, nargs="+", default=[MEASURED / "coverage.jsonl"])
    parser.add_argument("--peers", type=Path, nargs="*", default=[MEASURED / "peers.jsonl"])
    parser.add_argument("--scaling", type=Path, default=MEASURED / "scaling.jsonl")
    parser.add_argument("--note", default="", help="a line for the report: what must be known about these rows")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.write_text(page(read_rows(*args.rows), read_rows(*args.peers), args.scaling, args.note))


if __name__ == "__main__":
    main()

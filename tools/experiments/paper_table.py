"""The papers' numbers beside what was measured, as markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tools.experiments.paper_rows import Row
from tools.experiments.paper_runs import DEMONSTRATION, RANDOM

TITLES = {
    "agmc-table1": "AGMC, table 1: CIFAR-10",
    "agmc-table2": "AGMC, table 2: ImageNet",
    "agmc-table3": "AGMC, table 3: latency and memory",
    "agmc-figure4": "AGMC, figure 4: what the agent sees",
    "agmc-figure5": "AGMC, figure 5: ResNet-20, accuracy against episodes",
    "agmc-figure6": "AGMC, figure 6: ResNet-56, accuracy against episodes",
    "agmc-transfer": "AGMC: transfer from ResNet-56 to ResNet-20",
    "agmc-nodes": "AGMC: node classification",
    "gnn-rl": "GNN-RL",
}
NAMES = {
    "before": "{} before fine-tuning",
    "after": "{} after fine-tuning",
    "change": "{:+} points",
    "validation": "validation {}",
    "accuracy": "{} %",
}
IDENTITY = ("network", "weights", "episodes", "data", "finetune", "batch")  # of runs that differ in the seed only
Run = Mapping[str, Any]


def markdown(rows: Sequence[Row], runs: Sequence[Run]) -> str:
    """Return a table for each table of the papers; a row that was run in several settings has a line for each."""
    blocks = []
    for table in dict.fromkeys(row.table for row in rows):
        lines = [
            "| row | network, kept | policy | paper | here | how | differs |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in rows:
            if row.table != table:
                continue
            settings: dict[str, list[Run]] = {}
            for run in runs:
                if run["row"] == row.id:
                    settings.setdefault(json.dumps([run.get(name) for name in IDENTITY]), []).append(run)
            for same in settings.values() or [[]]:
                kept = f"{row.network.name}, {row.setting}"
                cells = (
                    f"`{row.id}`",
                    kept,
                    row.policy,
                    paper_text(row),
                    here_text(row, same),
                    how_text(same),
                    row.differs,
                )
                lines.append(f"| {' | '.join(cells)} |")
        blocks.append(f"## {TITLES.get(table, table)}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(blocks)


def paper_text(row: Row) -> str:
    """Return the paper's numbers in words."""
    told = []
    for name, value in row.paper.items():
        if isinstance(value, str):
            told.append(f"validation {value}" if name == "validation" else value)
        else:
            told.append(NAMES[name].format(value))
    return "; ".join(told) or "no number"


def how_text(runs: Sequence[Run]) -> str:
    """Return how runs that differ in the seed only were made."""
    if not runs:
        return ""
    first = runs[0]
    told = []
    if "episodes" in first:
        n = first["evaluations"]
        told.append(f"{first['network']}, {n} candidate{'s' * (n > 1)}")
    seeds = ", ".join(str(run["seed"]) for run in runs)
    told.append(f"seed{'s' if len(runs) > 1 else ''} {seeds}")
    if first.get("weights") == RANDOM:
        told.append(f"random weights, {first['policy_used']} widths: no accuracy")
    if first.get("weights") == DEMONSTRATION:
        told.append("the digits example in its place")
    return ", ".join(told)


def here_text(row: Row, runs: Sequence[Run]) -> str:
    """Return what was measured, means over the seeds, or "not run"."""
    if not runs:
        return "not run"
    if row.kind == "nodes":
        return "; ".join(f"{name}: {_mean([run['accuracy'][name] for run in runs])} %" for name in runs[0]["accuracy"])
    told = []
    if runs[0]["metric"]:
        told.append(_accuracy(runs))
    if "validation" in row.paper and runs[0]["validation"]:
        bests = runs[0]["validation"]
        told.insert(
            0, "validation " + ", ".join(f"{_mean([r['validation'][n] for r in runs])} after {n}" for n in bests)
        )
    told.append(
        f"{statistics.mean(run['compressed']['macs'] / run['original']['macs'] for run in runs):.3f} of the MACs"
    )
    if "sparsity" in row.options:
        share = statistics.mean(run["compressed"]["nonzero"] / run["original"]["nonzero"] for run in runs)
        told.append(f"{share:.3f} of the non-zero weights")
    if "latency" in row.paper or runs[0]["weights"] == RANDOM:
        told += _sizes(runs)
    return "; ".join(told)


def _accuracy(runs: Sequence[Run]) -> str:
    """Return the accuracy on the test role, and what it lost."""
    metrics = [run["metric"] for run in runs]
    name = metrics[0]["name"]
    text = f"{name} {metrics[0]['original']:.2f} -> {_mean([m['refitted'] for m in metrics])} refitted"
    if all(m["finetuned"] is not None for m in metrics):
        text += f", {_mean([m['finetuned'] for m in metrics])} fine-tuned"
    return text + f" (as cut {_mean([m['as_cut'] for m in metrics])})"


def _sizes(runs: Sequence[Run]) -> list[str]:
    """Return latency, bytes of the weights and peak memory, before and after."""

    def pair(name: str, unit: float, digits: int) -> str:
        values = [statistics.mean(run[which][name] for run in runs) / unit for which in ("original", "compressed")]
        return " -> ".join(f"{value:.{digits}f}" for value in values)

    batch = runs[0]["latency"]["batch"]
    ratio = statistics.mean(run["latency"]["ratio"] for run in runs)
    told = [
        f"{pair('latency_ms', 1, 2)} ms a batch of {batch} (x {ratio:.2f})",
        f"weights {pair('weight_bytes', 1e6, 2)} MB",
    ]
    if runs[0]["original"]["peak_bytes"] is not None:
        told.append(f"peak memory {pair('peak_bytes', 1e6, 2)} MB")
    return told


def _mean(values: Sequence[float]) -> str:
    """Return the mean, and the standard deviation where there are several."""
    spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"

"""Pages of runs on disk: a report made again, a run while it lasts, several runs side by side."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agmc_onnx.errors import UsageError
from agmc_onnx.graph.outputs import check_output, write_page
from agmc_onnx.reporting import tables, text
from agmc_onnx.reporting.html import bars_of, page, render
from agmc_onnx.reporting.loading import Run, read_run
from agmc_onnx.reporting.plots import curves, scatter

SEVERAL = "comparison.html"
WATCH_S = 10.0  # between two makings of a page that is watched, and between two loadings by the browser


def report(*sources: str | Path, output: str | Path | None = None, force: bool = False, watch: bool = False) -> Path:
    """Make one HTML page of one run or several, and return where it was written.

    Args:
        sources: For each run its X.report.json, its X.onnx, or its folder X.run while it lasts.
        output: The page; default: X.report.html of a single run (X.running.html while it lasts), comparison.html in the
            working directory of several.
        force: Write over a file that is not ours; what is read is never written over.
        watch: Make the page again and again until the run has ended; a browser that shows it loads it by itself. One run only.

    Raises:
        UsageError: If there is no run, a file is none, or the page cannot be written.
    """
    if not sources:
        raise UsageError("report: got no run; expected X.report.json, X.onnx or X.run. Name what compress wrote.")
    if watch and len(sources) > 1:
        raise UsageError(f"report: --watch takes one run, got {len(sources)}. Name one.")
    runs = [read_run(source) for source in sources]
    made = render_runs(runs, watch)
    path = Path(output) if output is not None else _default(runs)
    files = [file for run in runs for file in (run.path, run.beside["model"], run.beside["plan"])]
    check_output(path, {"what is read": files}, force, alone=True)
    write_page(made, path)
    while watch and runs[0].report is None:
        time.sleep(WATCH_S)
        runs = [_further(runs[0])]
        write_page(render_runs(runs, watch), path)
    return path


def _further(run: Run) -> Run:
    """Return a run as it stands now; its report once its journal is gone."""
    place = run.path if run.path.exists() else run.beside["report"]
    return read_run(place) if place.exists() else run


def render_runs(runs: Sequence[Run], watched: bool = False) -> str:
    """Return the page of one run, or that of several; one that lasts loads itself again where it is watched."""
    if len(runs) > 1:
        return _comparison(runs)
    run = runs[0]
    if run.report is None:
        return _running(run, WATCH_S if watched else None)
    return render(run.report)


def _default(runs: Sequence[Run]) -> Path:
    if len(runs) > 1:
        return Path(SEVERAL)
    run = runs[0]
    if run.report is None:
        return run.path.parent.with_name(f"{run.name}.running.html")
    return run.path.with_name(f"{run.name}.report.html")


def _running(run: Run, every: float | None) -> str:
    rows, settings = run.evaluations, run.settings
    best = max(rows, key=lambda row: row["reward"], default=None)
    tops = [max(row["kept"][i] for row in rows) for i in range(len(rows[0]["kept"]))] if rows else []
    kind = next((kind for kind in text.KINDS if settings.get(kind) is not None), None)
    asked = f"{text.budget_line(kind, settings[kind])}; " if kind else ""
    said = f"{len(rows)} of at most {settings.get('episodes', '?')} candidates measured"
    if best is not None:
        best = {
            "reward": best["reward"],
            "metric": f"{best['metric']:.6g}",
            "heights": [100 * k / max(1, *tops) for k in best["kept"]],
        }
    return page(
        "running.html",
        every=every,
        name=run.name,
        said=f"{asked}{said}",
        path=str(run.path),
        curves=curves({run.name: rows}),
        best=best,
        settings=settings,
    )


def _comparison(runs: Sequence[Run]) -> str:
    names = _names(runs)
    ended = [
        (name, run.report, i) for i, (name, run) in enumerate(zip(names, runs, strict=True)) if run.report is not None
    ]
    originals = {report["model"]["sha256"] for _, report, _ in ended}
    measured = all(report.get("accuracy_measured", True) for _, report, _ in ended)
    metrics = {(r["original"]["metric"]["name"], r["original"]["metric"]["n"]) for _, r, _ in ended}
    notes = []
    if len(originals) > 1:
        notes.append("These runs began with different models.")
    if len(metrics) > 1:
        notes.append("These runs were not measured with the same metric and samples: their metrics do not compare.")
    if ended and not measured:
        notes.append("At least one run was made without data; its metric says nothing about accuracy.")
    if len(ended) < len(runs):
        open_runs = ", ".join(name for name, run in zip(names, runs, strict=True) if run.report is None)
        notes.append(f"Not ended yet: {open_runs}. Nothing of that has been verified or tested.")
    comparable = bool(ended) and len(metrics) == 1 and len(originals) == 1 and measured
    histories = {
        name: run.evaluations if run.report is None else run.report["history"]
        for name, run in zip(names, runs, strict=True)
    }
    return page(
        "comparison.html",
        names=names,
        notes=notes,
        runs=[_row(name, run) for name, run in zip(names, runs, strict=True)],
        scatter=scatter([(name, report) for name, report, _ in ended]) if comparable else None,
        scatter_names=[name for name, _, _ in ended],
        curves=curves(histories),
        groups=[{"name": name, "index": i, "bars": bars_of(report["groups"])} for name, report, i in ended],
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """Return names that tell the runs apart: of the output, with its folder where two are alike."""
    counts = Counter(run.name for run in runs)
    names = [run.name if counts[run.name] == 1 else f"{run.path.resolve().parent.name}/{run.name}" for run in runs]
    seen: Counter[str] = Counter()
    for i, name in enumerate(names):
        seen[name] += 1
        names[i] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return names


def _budget(settings: Mapping[str, Any], kind: str) -> str:
    if kind:
        return f"{text.percent(settings[kind])} {text.KINDS[kind]}"
    return f"loses at most {settings['max_drop']:g}" if settings.get("max_drop") is not None else "-"


def _row(name: str, run: Run) -> dict[str, Any]:
    """Return a line of the table of runs."""
    settings, report = run.settings, run.report
    kind = next((kind for kind in text.KINDS if settings.get(kind) is not None), "")
    row = {
        "name": name,
        "policy": settings.get("policy", "?"),
        "seed": settings.get("seed", "?"),
        "budget": _budget(settings, kind),
    }
    if report is None:
        unknown = dict.fromkeys(("macs", "params", "change", "latency", "seconds"), "-")
        return {**row, **unknown, "metric": "running", "evaluations": len(run.evaluations), "command": None}
    shown = {what.what.split(" (")[0].split(",")[0]: what for what in tables.rows(report)}
    metric = report["compressed"]["metric"]
    return {
        **row,
        "macs": shown["MACs"].change,
        "params": shown["parameters"].change,
        "metric": f"{metric['name']} {text.metric_text(metric)} {text.interval_text(metric)}".strip(),
        "change": shown[metric["name"]].change if report.get("accuracy_measured", True) else "not measured",
        "latency": shown["latency"].change,
        "evaluations": report["evaluations"],
        "seconds": f"{report['wall_s']:.0f}",
        "command": " \\\n  ".join(text.command(report)),
    }

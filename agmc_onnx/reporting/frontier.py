"""The frontier of a model as data, in words and as a page: what time and bytes cost of the metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from agmc_onnx.reporting.html import page
from agmc_onnx.reporting.plots import Tick, ticks
from agmc_onnx.reporting.schema import Metric
from agmc_onnx.reporting.tables import aligned, shortened
from agmc_onnx.reporting.text import interval_text, metric_text, metric_title, ms_text
from agmc_onnx.schema import Count, Record

FORMAT: Literal["agmc-onnx/frontier@1"] = "agmc-onnx/frontier@1"
LONGEST_FILE = 26  # in the table of a terminal
ADVISED = (1.0, 3.0)  # points that a sentence says the fastest model for


@dataclass(frozen=True, eq=False)
class Point(Record):
    """One model of a frontier, measured beside all others."""

    file: Annotated[str, Meta(description="within the folder; the original's as it was named")]
    kind: Annotated[
        str, Meta(description="original, int8 alone, mixed alone, pruned, pruned and int8, or pruned and mixed")
    ]
    precision: str
    macs: Count
    params: Count
    file_bytes: Count
    latency_ms: Annotated[
        float, Meta(description="of one inference: on one thread processor time, first decile; else the median")
    ]
    time: Annotated[float, Meta(description="latency_ms over the original's, all measured in turns")]
    metric: Metric
    lost: Annotated[float, Meta(description="of the metric, less than the original's")]


@dataclass(frozen=True, eq=False)
class Frontier(Record):
    """What `frontier` found; reads as the mapping that frontier.json holds."""

    points: list[Point]
    advice: str
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    wall_s: float = 0.0
    format: Literal["agmc-onnx/frontier@1"] = FORMAT


def advice_of(points: Sequence[Point]) -> str:
    """Return the sentence that says which file to take, computed from the points.

    For so many points at most, it is the fastest model that loses no more; the original, where none is faster.
    """
    original = points[0]
    said = []
    for most in ADVISED:
        good = [one for one in points if one.lost <= most and one.time <= 1.0]
        best = min(good, key=lambda one: (one.time, one.lost), default=original)
        unit = f"{most:g} point{'s' if most != 1 else ''}"
        if best is original:
            said.append(f"losing at most {unit}: nothing measured is faster than the original")
        elif not said or best.file not in said[-1]:
            said.append(
                f"losing at most {unit}: {best.file}, {best.time:.2f} of the original's time, {best.lost:.2f} points lost"
            )
    return "; ".join(said)


def best_of(points: Sequence[Point], of: str = "time") -> list[Point]:
    """Return the points that no other one beats in both cost and metric, cheapest first."""
    found: list[Point] = []
    for one in sorted(points, key=lambda p: (p[of], -p.metric.value)):
        if not found or one.metric.value > found[-1].metric.value:
            found.append(one)
    return found


def lines(found: Frontier) -> list[str]:
    """Return what the terminal prints: one table, notes, and the advice last."""
    table = [["file", "time", "ms", "MB", metric_title(found.points[0].metric.name), "95 % interval", "lost"]]
    for one in found.points:
        numbers = [f"{one.time:.3f}", ms_text(one.latency_ms), f"{one.file_bytes / 1e6:.3f}", metric_text(one.metric)]
        table.append([shortened(one.file, LONGEST_FILE), *numbers, interval_text(one.metric), f"{one.lost:.2f}"])
    both = next((one.kind for one in found.points if one.kind.startswith("pruned and")), None)
    about = [f"pruned-N.onnx: {both}; pruned-N.float.onnx: the same in float"] if both else []
    return ["", *aligned(table, ""), "", *about, *found.notes, found.advice]


def render(found: Frontier, name: str) -> str:
    """Return a frontier as one HTML file."""
    pictures = [
        ("time", "Share of the original's time", _plot(found.points, "time", lambda share: f"{share:.2g}")),
        ("file_bytes", "File size, MB", _plot(found.points, "file_bytes", lambda n: f"{n / 1e6:.3g}")),
    ]
    rows = [
        {
            "file": one.file, "kind": one.kind, "css": _CSS[one.kind], "time": f"{one.time:.3f}", "ms": f"{one.latency_ms:.3f}",
            "bytes": f"{one.file_bytes:,}", "macs": f"{one.macs:,}", "metric": metric_text(one.metric),
            "interval": interval_text(one.metric), "lost": f"{one.lost:.2f}", "is_best": one in best_of(found.points),
        }
        for one in found.points
    ]  # fmt: skip
    kinds = {one.kind: _CSS[one.kind] for one in found.points}
    return page("frontier.html", frontier=found, name=name, pictures=pictures, rows=rows, kinds=kinds)


_CSS = {
    "original": "k0", "int8 alone": "k1", "mixed alone": "k4", "pruned": "k2", "pruned and int8": "k3", "pruned and mixed": "k3",
}  # fmt: skip


@dataclass(frozen=True)
class _Mark:
    css: str
    says: str
    x: float
    y: float
    low: float
    high: float


def _plot(points: Sequence[Point], of: str, said: Any) -> dict[str, Any]:
    """Return a plot of the metric over a cost: marks, the line of the best, ticks; places in percent, y downwards."""
    costs = [float(one[of]) for one in points]
    ends = [
        end
        for one in points
        for end in (one.metric.interval or (one.metric.value, one.metric.value))
        if end is not None
    ]
    right = 1.06 * max(costs)
    low, high = min(ends), max(ends)
    pad = 0.05 * max(high - low, 0.5)
    low, high = low - pad, high + pad

    def across(cost: float) -> float:
        return 100 * cost / right

    def down(value: float) -> float:
        return 100 * (high - value) / (high - low)

    marks = []
    for one in points:
        bottom, top = one.metric.interval or (one.metric.value, one.metric.value)
        says = f"{one.file}: {metric_text(one.metric)} {interval_text(one.metric)}, {one.time:.3f} of the time"
        ys = (down(one.metric.value), down(bottom or one.metric.value), down(top or one.metric.value))
        marks.append(_Mark(_CSS[one.kind], says, across(float(one[of])), *ys))
    path = " ".join(f"{across(float(p[of])):.2f},{down(p.metric.value):.2f}" for p in best_of(points, of))
    xs = tuple(Tick(across(at), said(at)) for at in ticks(0.0, right) if at <= right)
    ys_of = tuple(Tick(down(at), f"{at:g}") for at in ticks(low, high) if low <= at <= high)
    return {"marks": marks, "path": path, "x": xs, "y": ys_of}

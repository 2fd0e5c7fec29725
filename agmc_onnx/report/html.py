"""The report as one self-contained HTML file: no script, no network, for phones and desks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agmc_onnx.report import text

if TYPE_CHECKING:
    from jinja2 import Template

MAX_DOTS = 2000  # of the curve; longer searches show every n-th episode


@dataclass(frozen=True)
class Tick:
    """A label of an axis, at 0..100 percent of its length."""

    at: float
    label: str


@dataclass(frozen=True)
class Curve:
    """Rewards of a search, in a box of 100 by 100 whose y grows downwards.

    Attributes:
        dots: Path that has one point for every episode.
        best: Path of the best reward so far.
        x, y: Ticks of the axes.
    """

    dots: str
    best: str
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]


@dataclass(frozen=True)
class Span:
    """A value with its interval on a common scale, each at 0..100 percent of its width."""

    label: str
    text: str
    at: float
    low: float
    high: float


@dataclass(frozen=True)
class Bar:
    """One group: how many of its units are kept."""

    name: str
    units: int
    kept: int
    why_frozen: str | None

    @property
    def width(self) -> float:
        """Kept share in percent."""
        return 100 * self.kept / max(self.units, 1)


def render(report: Mapping[str, Any]) -> str:
    """Return a report (`agmc-onnx/report@1`) as one HTML file."""
    before, after = report["original"], report["compressed"]
    return _template().render(
        report=report,
        name=Path(report["model"]["path"]).name,
        headline=headline(report),
        rows=text.rows(report),
        budget=text.budget_line(report["target"]["kind"], report["target"]["keep"]),
        target=text.target_line(report),
        verified=text.verified_line(report["verified"]),
        not_measured=None if report.get("accuracy_measured", True) else text.NOT_MEASURED,
        bars=[Bar(g["name"], g["units"], g["kept"], g["why_frozen"]) for g in report["groups"]],
        frozen=_by_reason(report["groups"]),
        curve=curve(report["history"]),
        best=max((record["reward"] for record in report["history"]), default=None),
        metric=_metric_spans(before, after),
        metric_name=before["metric"]["name"],
        n_samples=before["metric"]["n"],
        latency=_latency_spans(before["latency_ms"], after["latency_ms"]),
        latency_setting=text.setting_text(before["latency_ms"]),
        command=" \\\n  ".join(text.command(report)),
    )


def headline(report: Mapping[str, Any]) -> str:
    """Return the result in one sentence."""
    one, other, target = report["original"]["metric"], report["compressed"]["metric"], report["target"]
    cost = f"{100 * target['reached']:.1f} % of the {text.KINDS.get(target['kind'], target['kind'])} kept"
    if not report.get("accuracy_measured", True):
        return f"{cost}; accuracy not measured"
    return f"{cost}; {one['name']} {text.metric_text(one)} before, {text.metric_text(other)} after"


def curve(history: Sequence[Mapping[str, Any]]) -> Curve | None:
    """Return the curve of a search's rewards, or None where there are fewer than two finite ones."""
    points = [(record["episode"] + 1, record["reward"]) for record in history if math.isfinite(record["reward"])]
    if len(points) < 2:
        return None
    best: list[tuple[int, float]] = []
    top = -math.inf
    for episode, reward in points:
        top = max(top, reward)
        best.append((episode, top))
    y_ticks = ticks(min(reward for _, reward in points), top)
    low, high = y_ticks[0], y_ticks[-1]
    first, last = points[0][0], points[-1][0]

    def x(episode: float) -> float:
        return 100 * (episode - first) / (last - first)

    def y(reward: float) -> float:
        return 100 * (high - reward) / (high - low)

    thin = -(-len(points) // MAX_DOTS)
    dots = "".join(f"M{x(e):.2f} {y(r):.2f}h0" for e, r in points[::thin])
    steps = f"M{x(best[0][0]):.2f} {y(best[0][1]):.2f}" + "".join(
        f"H{x(e):.2f}" + (f"V{y(r):.2f}" if r != best[i][1] else "") for i, (e, r) in enumerate(best[1:])
    )
    inner = [t for t in ticks(first, last) if first < t < last and t == int(t)]
    near = 0.12 * (last - first)
    shown = [first, *(int(t) for t in inner if min(t - first, last - t) > near), last]
    return Curve(
        dots=dots,
        best=steps,
        x=tuple(Tick(x(e), str(e)) for e in shown),
        y=tuple(Tick(y(t), f"{t:g}") for t in y_ticks),
    )


def ticks(low: float, high: float, n: int = 5) -> list[float]:
    """Return about `n` round numbers at equal distances that enclose low..high."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _metric_spans(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Span]:
    """Return the metric of both models, and of the compressed one before recovery where that differs."""
    one, other = before["metric"], after["metric"]
    entries = [("original", one["value"], one.get("interval")), ("compressed", other["value"], other.get("interval"))]
    cut = after.get("metric_before_recovery")
    if cut is not None and abs(cut - other["value"]) > 1e-9:
        entries.insert(1, ("as cut", cut, None))
    percent = one["name"] in text.PERCENT_METRICS
    low = 0.0 if percent else min(0.0, *(value for _, value, _ in entries))
    high = 100.0 if percent else max([value for _, value, _ in entries] + [low + 1e-9])

    def at(value: float) -> float:
        return min(100.0, max(0.0, 100 * (value - low) / (high - low)))

    return [
        Span(label, f"{text.metric_text(one, value)}", at(value), *(at(v) for v in interval or (value, value)))
        for label, value, interval in entries
    ]


def _latency_spans(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Span]:
    high = max(before["p90"], after["p90"], 1e-9)
    return [
        Span(
            label,
            f"{t['p50']:.3f} ms",
            100 * t["p50"] / high,
            100 * t.get("min", t["p50"]) / high,
            100 * t["p90"] / high,
        )
        for label, t in (("original", before), ("compressed", after))
    ]


def _by_reason(groups: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for group in groups:
        if group["why_frozen"] is not None:
            found.setdefault(group["why_frozen"], []).append(group["name"])
    return found


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    return environment.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))

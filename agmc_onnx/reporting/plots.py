"""What the pages of a report plot, as places in percent of a box; y grows downwards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agmc_onnx.reporting import text

MAX_DOTS = 2000  # of the curve; longer searches show every n-th episode
N_BINS = 32  # of the latency histograms
FAR = 2.5  # medians: slower runs are off the scale of the histograms, as other work of the machine makes some
NEAR = 0.35  # a value further from the others than this share of their range stands off the scale


@dataclass(frozen=True)
class Tick:
    """A label of an axis, at 0..100 percent of its length."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """The rewards of one search: a path of dots, one an episode, and one of the best so far."""

    name: str
    dots: str
    best: str
    last: str


@dataclass(frozen=True)
class Curves:
    """Rewards of one search or several, in a box of 100 by 100 whose y grows downwards."""

    lines: tuple[Line, ...]
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]


@dataclass(frozen=True)
class Span:
    """A value with its interval, each at 0..100 percent of a scale; `at` is None where the value is off the scale."""

    label: str
    text: str
    at: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Scale:
    """Values side by side on one scale."""

    spans: tuple[Span, ...]
    ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Histogram:
    """How often each latency was measured: bars (x, height) in percent, all of one `width`, and the median's place."""

    label: str
    text: str
    bars: tuple[tuple[float, float], ...]
    width: float
    median: float


@dataclass(frozen=True)
class Dot:
    """A run in the plot of cost and accuracy; `low` and `high` are its interval."""

    name: str
    says: str
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Scatter:
    """Runs by the MACs they keep and their metric."""

    dots: tuple[Dot, ...]
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]


def ticks(low: float, high: float, n: int = 5) -> list[float]:
    """Return about `n` round numbers at equal distances that enclose low..high."""
    low, high = min(low, high), max(low, high)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Curves | None:
    """Return the rewards of searches by name, or None where none has two finite ones."""
    found = {
        name: [(record["episode"] + 1, record["reward"]) for record in history if math.isfinite(record["reward"])]
        for name, history in histories.items()
    }
    found = {name: points for name, points in found.items() if len(points) > 1}
    if not found:
        return None
    rewards = [reward for points in found.values() for _, reward in points]
    marks = ticks(_low_end(rewards), max(rewards))
    low, high = marks[0], marks[-1]
    first, last = min(p[0][0] for p in found.values()), max(p[-1][0] for p in found.values())

    def x(episode: float) -> float:
        return (
            100 * (episode - first) / ((last - first) or 1)
        )  # or 1: a file changed by hand may name one episode twice

    def y(reward: float) -> float:
        return min(100.0, 100 * (high - reward) / (high - low))

    lines = []
    for name, points in found.items():
        best = [(points[0][0], points[0][1])]
        for episode, reward in points[1:]:
            best.append((episode, max(best[-1][1], reward)))
        thin = -(-len(points) // MAX_DOTS)
        dots = "".join(f"M{x(e):.2f} {y(r):.2f}h0" for e, r in points[::thin])
        steps = f"M{x(best[0][0]):.2f} {y(best[0][1]):.2f}" + "".join(
            f"H{x(e):.2f}" + (f"V{y(r):.2f}" if r != best[i][1] else "") for i, (e, r) in enumerate(best[1:])
        )
        lines.append(Line(name, dots, steps, f"{best[-1][1]:.2f}"))
    inner = [t for t in ticks(first, last) if first < t < last and t == int(t)]
    near = 0.12 * (last - first)
    shown = [first, *(int(t) for t in inner if min(t - first, last - t) > near), last]
    return Curves(tuple(lines), tuple(Tick(x(e), str(e)) for e in shown), tuple(Tick(y(t), f"{t:g}") for t in marks))


def _low_end(rewards: Sequence[float]) -> float:
    """Return where the scale of rewards begins: few very bad candidates shall not press all others together."""
    ordered = sorted(rewards)
    low, quarter, top = ordered[0], ordered[len(ordered) // 4], ordered[-1]
    return max(low, quarter - 1.5 * (top - quarter)) if top > quarter else low


def metric_scale(metrics: Sequence[tuple[str, Mapping[str, Any]]]) -> Scale:
    """Return metrics (label, {"name", "value", "interval"}) on one scale.

    The scale encloses the values that have an interval; of the others those that are near.
    """
    ends = [end for _, m in metrics for end in (m["value"], *(m.get("interval") or ())) if m.get("interval")]
    ends = ends or [m["value"] for _, m in metrics]
    room = NEAR * max(max(ends) - min(ends), 1e-9)
    ends += [m["value"] for _, m in metrics if min(ends) - room <= m["value"] <= max(ends) + room]
    marks = ticks(min(ends), max(ends), 4)
    low, high = marks[0], marks[-1]

    def at(value: float) -> float:
        return 100 * (value - low) / (high - low)

    spans = []
    for label, metric in metrics:
        value = metric["value"]
        inside = low <= value <= high
        lower, upper = metric.get("interval") or (value, value)
        said = text.metric_text(metric)
        spans.append(Span(label, said, at(value) if inside else None, at(lower), at(upper)))
    return Scale(tuple(spans), tuple(Tick(at(t), f"{t:g}") for t in marks))


def latency_scale(times: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[list[Histogram], tuple[Tick, ...]] | None:
    """Return histograms of latencies (label, {"p50", "rounds", ...}) on one scale, or None where a report has no rounds."""
    if not all(t.get("rounds") for _, t in times):
        return None
    rounds = [sorted(t["rounds"]) for _, t in times]
    low = min(r[0] for r in rounds)
    tops = [min(r[int(0.95 * (len(r) - 1))], FAR * t["p50"]) for r, (_, t) in zip(rounds, times, strict=True)]
    high = max(*tops, *(t["p50"] for _, t in times))
    marks = ticks(low, high, 4)
    first, last = marks[0], marks[-1]
    width = 100 / N_BINS
    found = []
    for (label, t), row in zip(times, rounds, strict=True):
        counts = [0] * N_BINS
        for ms in row:
            place = int((ms - first) / (last - first) * N_BINS)
            if place < N_BINS:
                counts[place] += 1
        bars = tuple((i * width, 100 * n / max(counts)) for i, n in enumerate(counts) if n)
        found.append(Histogram(label, f"{t['p50']:.3f} ms", bars, width, 100 * (t["p50"] - first) / (last - first)))
    return found, tuple(Tick(100 * (t - first) / (last - first), f"{t:g}") for t in marks)


def scatter(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> Scatter:
    """Return runs (name, report) and their original by the share of MACs kept and the metric."""
    base = runs[0][1]["original"]
    points = [("original", 100.0, base["metric"])]
    for name, report in runs:
        share = 100 * report["compressed"]["macs"] / max(1, report["original"]["macs"])
        points.append((name, share, report["compressed"]["metric"]))
    ends = [end for _, _, m in points for end in (m["value"], *(m.get("interval") or ()))]
    xs, ys = ticks(min(x for _, x, _ in points), 100.0, 6), ticks(min(ends), max(ends))

    def x(share: float) -> float:
        return 100 * (share - xs[0]) / (xs[-1] - xs[0])

    def y(value: float) -> float:
        return 100 * (ys[-1] - value) / (ys[-1] - ys[0])

    dots = []
    for name, share, metric in points:
        low, high = metric.get("interval") or (metric["value"], metric["value"])
        says = f"{name}: {share:.1f} % of the MACs, {text.metric_text(metric)}"
        dots.append(Dot(name, says, x(share), y(metric["value"]), y(low), y(high)))
    return Scatter(tuple(dots), tuple(Tick(x(t), f"{t:g} %") for t in xs), tuple(Tick(y(t), f"{t:g}") for t in ys))

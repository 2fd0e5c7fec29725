"""Reports as self-contained HTML files: nothing is loaded from anywhere, for phones and desks, light and dark."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agmc_onnx.reporting import tables, text, verdict
from agmc_onnx.reporting.drawing import draw
from agmc_onnx.reporting.plots import curves, latency_scale, metric_scale

if TYPE_CHECKING:
    from jinja2 import Environment

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Bar:
    """One group: how many of its units are kept.

    Attributes:
        name: Of the group.
        units, kept: Counts.
        why_frozen: Why it stays whole, or None.
        size: Logarithm of `units` in percent of that of the widest group.
    """

    name: str
    units: int
    kept: int
    why_frozen: str | None
    size: float

    @property
    def width(self) -> float:
        """Kept share in percent."""
        return 100 * self.kept / max(self.units, 1)


def render(report: Report) -> str:
    """Return a report (`agmc-onnx/report@1`) as one HTML file."""
    before, after = report["original"], report["compressed"]
    picture = draw(report["network"]) if report.get("network") else None
    bars = bars_of(report["groups"])
    return page(
        "report.html",
        report=report,
        set_id=report.get("set") or "",
        name=Path(report["model"]["path"]).name,
        headline=headline(report),
        verdict=verdict.lines(report.get("verdict")),
        kind=(report.get("verdict") or {}).get("kind", ""),
        rows=tables.rows(report),
        target=text.target_line(report),
        verified=text.verified_line(report["verified"]),
        not_measured=None if report.get("accuracy_measured", True) else text.NOT_MEASURED,
        few=text.few_samples(report),
        also=[
            *text.precision_lines(report),
            *text.gone_lines(report),
            *text.stage_lines(report),
            *text.sparsity_lines(report),
        ],
        bars=bars,
        kept_line=f"{sum(bar.kept for bar in bars):,} of {sum(bar.units for bar in bars):,} channels kept",
        frozen=_by_reason(report["groups"]),
        network=picture,
        details=_json(picture.details) if picture else "",
        curves=curves({report["policy"]: report["history"]}),
        best=max((record["reward"] for record in report["history"]), default=None),
        metric=metric_scale(_metrics(report)),
        metric_name=text.metric_title(before["metric"]["name"]),
        n_samples=before["metric"]["n"],
        latency=latency_scale([("original", before["latency_ms"]), ("compressed", after["latency_ms"])]),
        latency_ratio=latency_words(report.get("latency_ratio")),
        latency_setting=text.setting_text(before["latency_ms"]),
        finalists=_finalists(report),
        command=" \\\n  ".join(text.command(report)),
    )


def cards(report: Report) -> str:
    """Return the first numbers of a report, for the output of a notebook's cell; styles are its own, scripts there are none."""
    from markupsafe import escape

    box = "display:inline-block;border:1px solid #8884;border-radius:8px;padding:8px 14px;margin:4px"
    found = (
        [(row.what.split(" (")[0], row.change, f"{row.before} \u2192 {row.after}") for row in tables.rows(report)]
        if ("metric" in report["original"])
        else [("result", text.one_line(report), "")]
    )
    shown = "".join(
        f'<div style="{box}"><small>{escape(what)}</small><br><b>{escape(change)}</b><br><small>{escape(pair)}</small></div>'
        for what, change, pair in found
    )
    said = "".join(f"<div><b>{escape(line)}</b></div>" for line in verdict.lines(report.get("verdict"))[:1])
    return f"<div>{said}{shown}<div><small>{escape(text.verified_line(report['verified']))}</small></div></div>"


def headline(report: Report) -> str:
    """Return the result in one sentence."""
    one, other, target = report["original"]["metric"], report["compressed"]["metric"], report["target"]
    cost = f"{100 * target['reached']:.1f} % of the {text.KINDS.get(target['kind'], target['kind'])} kept"
    if target["kind"] != "latency":
        times = [report[which]["latency_ms"]["p50"] for which in ("compressed", "original")]
        cost += f", {100 * times[0] / times[1]:.0f} % of the time"
    if not report.get("accuracy_measured", True):
        return f"{cost}; accuracy not measured"
    return f"{cost}; {text.metric_title(one['name'])} {text.metric_text(one)} before, {text.metric_text(other)} after"


def latency_words(found: Mapping[str, Any] | None) -> str:
    """Return what the ratio of two latencies is, as surely as a report knows it."""
    if not found:
        return ""
    words = f"Median of the rounds' ratios {100 * found['median']:.1f} %"
    interval = found.get("interval")
    if interval and all(math.isfinite(end) for end in interval):
        words += f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    if found.get("cpu") is not None:
        return f"{words}; by processor time, which other programs disturb less, {100 * found['cpu']:.1f} %."
    return f"{words}, of the fastest runs {100 * found['minimum']:.1f} %."


def bars_of(groups: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """Return the bars of a report's groups."""
    widest = math.log(1 + max((group["units"] for group in groups), default=1))
    return [
        Bar(
            g.get("layer") or g["name"], g["units"], g["kept"], g["why_frozen"], 100 * math.log(1 + g["units"]) / widest
        )
        for g in groups
    ]


def _metrics(report: Report) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the metric of both models, and of the compressed one before recovery where that differs."""
    one, other = report["original"]["metric"], report["compressed"]["metric"]
    cut = report["compressed"].get("metric_before_recovery")
    found = [("original", one), ("compressed", other)]
    if cut is not None and abs(cut - other["value"]) > 1e-9:
        found.insert(1, ("as cut", {**other, "value": cut, "interval": None}))
    return found


def _finalists(report: Report) -> list[dict[str, Any]]:
    """Return the finalists with kept shares in percent, and which of them was taken."""
    found = report.get("finalists") or []
    best = max((one["metric"] for one in found), default=None)  # of reports that do not say which was taken
    widest = [max(1, *(one["kept"][i] for one in found)) for i in range(len(found[0]["kept"]))] if found else []
    units = [group["units"] for group in report["groups"] if group["why_frozen"] is None]
    full = units if len(units) == len(widest) and all(u >= w for u, w in zip(units, widest, strict=True)) else widest
    name = report["original"]["metric"]
    return [
        {
            "kept": [100 * k / u for k, u in zip(one["kept"], full, strict=True)],
            "reward": one["reward"],
            "metric": text.metric_text(name, one["metric"]),
            "fidelity": one.get("fidelity"),
            "taken": one.get("taken", one["metric"] == best),
        }
        for one in found
    ]


def _by_reason(groups: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for group in groups:
        if group["why_frozen"] is not None:
            found.setdefault(group["why_frozen"], []).append(group.get("layer") or group["name"])
    return found


def _json(value: Any) -> Any:
    """Return JSON that is safe inside of a script element."""
    from markupsafe import Markup

    raw = json.dumps(value, separators=(",", ":"))
    return Markup(raw.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def page(template: str, **facts: Any) -> str:
    """Return a page made from a template of this folder; undefined facts are an error."""
    return _environment().get_template(template).render(**{"set_id": "", **facts})


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(__file__).parent
    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    for name in ("css", "js"):
        made.globals[name] = Markup((folder / f"page.{name}").read_text(encoding="utf-8"))
    return made

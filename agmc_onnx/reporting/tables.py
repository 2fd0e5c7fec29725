"""What the verbs print in a terminal of 80 columns: tables, with the sentences of `agmc_onnx.reporting.text` below them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agmc_onnx.reporting import verdict
from agmc_onnx.reporting.text import (
    NOT_MEASURED,
    NOTHING_RECOVERED,
    Report,
    few_samples,
    gone_lines,
    interval_text,
    metric_text,
    metric_title,
    metric_unit,
    ms_text,
    precision_lines,
    ratio,
    setting_text,
    sizes_lines,
    sparsity_lines,
    stage_lines,
    target_line,
    verified_line,
)
from agmc_onnx.reporting.times import BUSY, CPU, shown_ms

_SMALLEST_GAIN = 5e-4  # of the MACs that is worth a word: 0.1 % when rounded
NOTHING_GAINED = (
    "Nothing was gained: no state was better than the model given, by the metric on the reward role, or the gain does not show on"
    " the test role. Give more samples to learn from, more --steps, or another --learning-rate."
)

UNKNOWN = "not known"
LONGEST_NAME = 32  # in the first column of a table
WIDTH = 80  # columns of a terminal, that tables fit


@dataclass(frozen=True)
class Row:
    """One line of the before/after table.

    Attributes:
        what: The quantity, with its unit.
        before, after: Of the original and of the compressed model.
        change: Their ratio in percent, or their difference.
        better: True where the compressed model is better, False where it is worse, None where neither.
    """

    what: str
    before: str
    after: str
    change: str
    better: bool | None = None


def rows(report: Report) -> list[Row]:
    """Return the before/after table of a report."""
    before, after = report["original"], report["compressed"]
    found = [
        Row(what, f"{before[key]:,}", f"{after[key]:,}", ratio(after[key], before[key]), _less(after[key], before[key]))
        for what, key in (("MACs", "macs"), ("parameters", "params"), ("file bytes", "file_bytes"))
    ]
    one, other = before["metric"], after["metric"]
    unit = {"%": " points", "dB": " dB"}.get(metric_unit(one["name"]) or "", "")
    label = f"{metric_title(one['name'])} (n = {one['n']:,}{', 95 % interval' if one.get('interval') else ''})"
    change = other["value"] - one["value"]
    found.append(
        Row(
            label,
            f"{metric_text(one)} {interval_text(one)}".strip(),
            f"{metric_text(other)} {interval_text(other)}".strip(),
            f"{change / 100:+.3f}" if metric_unit(one["name"]) == "" else f"{change:+.2f}{unit}",
            None if abs(change) < 0.005 or _overlap(one.get("interval"), other.get("interval")) else change > 0,
        )
    )
    slow, fast = before["latency_ms"], after["latency_ms"]
    what, (one_ms, other_ms) = shown_ms([slow, fast])
    share, between = other_ms / one_ms, report.get("latency_ratio") or {}
    # where processor time does not compare, the ratios of the rounds say how busy the machine was
    paired = between.get("median", share) if between.get("cpu") is None else share
    busy = f" ({100 * paired:.1f} % by round: busy machine)" if abs(paired - share) > BUSY * share else ""
    found.append(
        Row(
            f"latency, {what} ({setting_text(slow)})",
            ms_text(one_ms),
            ms_text(other_ms),
            f"{100 * share:.1f} %{busy}",
            _less(paired, 1.0),
        )
    )
    one, other = before.get("peak_bytes"), after.get("peak_bytes")
    if one or other:
        was, now = (UNKNOWN if peak is None else f"{peak:,}" for peak in (one, other))
        change, better = (ratio(other, one), _less(other, one)) if one and other else ("-", None)
        found.append(Row("peak bytes of activations", was, now, change, better))
    return found


def summary(report: Report) -> list[str]:
    """Return what the terminal prints at the end of `compress`."""
    table, remarks = narrow(rows(report))
    lines = [*verdict.lines(report.get("verdict")), "", *aligned(table), *remarks, ""]
    lines += [*sizes_lines(report), target_line(report)]
    cut, metric = report["compressed"].get("metric_before_recovery"), report["compressed"]["metric"]
    if cut is not None and report["verified"].get("recovered"):
        lines.append(
            f"recovery: {metric_title(metric['name'])} {metric_text(metric, cut)} as cut, {metric_text(metric)} after it"
        )
        if (
            cut == metric["value"] != report["original"]["metric"]["value"]
        ):  # where nothing was lost, nothing comes back
            lines.append(NOTHING_RECOVERED)
    lines += [*precision_lines(report), *gone_lines(report), *stage_lines(report), *sparsity_lines(report)]
    lines.append(verified_line(report["verified"]))
    if not report.get("accuracy_measured", True):
        lines.append(NOT_MEASURED)
    few = few_samples(report)
    return [*lines, few] if few else lines


def narrow(found: Sequence[Row]) -> tuple[list[tuple[str, str, str, str]], list[str]]:
    """Return the cells of a table for 80 columns, and remarks below it: what stands in brackets gets lines of its own."""
    table, remarks = [("", "original", "compressed", "ratio")], []
    for row in found:
        what, _, setting = row.what.removesuffix(")").partition(" (")
        setting = setting.removesuffix(", 95 % interval")
        (before, _, low), (after, _, high) = row.before.partition(" ["), row.after.partition(" [")
        change, _, remark = row.change.removesuffix(")").partition(" (")
        name = f"{what} ({setting})" if setting else what
        fits = len(name) <= LONGEST_NAME
        table.append((name if fits else what, before, after, change))
        table += [] if fits else [(f"  {setting}", "", "", "")]
        table += [("  95 % interval", f"[{low}" if low else "", f"[{high}" if high else "", "")] if low or high else []
        remarks += [f"  {what}: {remark}"] if remark else []
    return table, remarks


def shortened(text: str, width: int) -> str:
    """Return a name that is too long for its column without its beginning: the ends of paths and nodes tell them apart."""
    return text if len(text) <= width else f"…{text[1 - width :]}"


def aligned(table: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Return the lines of a table: the first column flush left, all others flush right."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return [
        (
            indent
            + "  ".join([row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)])
        ).rstrip()
        for row in table
    ]


def _overlap(one: Sequence[float] | None, other: Sequence[float] | None) -> bool:
    return bool(one and other) and one[0] <= other[1] and other[0] <= one[1]  # type: ignore[index]


def _less(after: float, before: float) -> bool | None:
    return None if abs(after - before) <= 1e-3 * abs(before) else after < before


def applied(report: Report) -> list[str]:
    """Return what `apply` prints: sizes before and after."""
    before, after = report["original"], report["compressed"]
    table = [("", "original", "compressed", "ratio")]
    for what, key in (("MACs", "macs"), ("parameters", "params"), ("file bytes", "file_bytes")):
        table.append((what, f"{before[key]:,}", f"{after[key]:,}", ratio(after[key], before[key])))
    return [*aligned(table), verified_line(report["verified"])]


def finetuned(report: Report) -> list[str]:
    """Return what `finetune` prints: the metric of the original, and of the model before and after."""
    table = [("test role", metric_title(report["after"]["name"]), "95 % interval")]
    for what in ("teacher", "before", "after"):
        table.append((what, metric_text(report[what]), interval_text(report[what])))
    labels = "with labels" if report["labels"] else "without labels"
    taught = f"{report['steps']:,} steps on {report['samples']:,} samples {labels}, {report['wall_s']:.0f} s"
    gained = report["after"]["value"] - report["before"]["value"]
    nothing = [] if gained > 0 else [NOTHING_GAINED]
    return [*aligned(table), taught, *nothing]


def carded(report: Report) -> list[str]:
    """Return what `card` prints: what was found, what the choice was made by, how sure it is, and some answers."""
    lines = [f"{report['files']:,} images found, {report['skipped']:,} other files skipped; {report['images']} tried"]
    tried, sure = report["tried"], report["sure"]
    if sure is None:
        lines.append(
            "The model's answers do not say which preprocessing is right: this is the most usual one. Check it."
        )
    else:
        by = "accuracy" if report["judged"] == "accuracy" else "how much the answers say"
        certain = "sure" if sure >= 0.95 else "NOT sure: check it"
        lines.append(
            f"by {by}: {tried[0]['score']:.3f}; none better by over 1 % in {100 * sure:.0f} % of draws: {certain}"
        )
        lines += [f"  {one['score']:.3f}  {_preprocessing(one['card'])}" for one in tried[:4]]
    for one in report["answers"]:
        if "classes" in one:
            named = ", ".join(f"class {c} {100 * s:.0f} %" for c, s in zip(one["classes"], one["shares"], strict=True))
        else:
            named = "; ".join(f"class {box[1]:.0f} at {box[2:]}" for box in one["boxes"]) or "no box"
        lines.append(f"answer: {named}")
    return lines


def _preprocessing(card: Mapping[str, Any]) -> str:
    """Return what a card does to images, as it is read: "BGR, scale 255, mean 0.485 0.456 0.406, resize 256, crop 224 x 224"."""

    def said(name: str, value: Any) -> str:
        numbers = [f"{one:.4g}" for one in value] if isinstance(value, list) else [f"{value:g}"]
        return f"{name} {(' x ' if name in ('resize', 'crop') else ' ').join(numbers)}"

    return ", ".join(value if isinstance(value, str) else said(name, value) for name, value in card.items())


def measurement(found: Report) -> list[str]:
    """Return what `measure` prints: a table of sizes, one of accuracy, one of latency; ratios refer to the first model."""
    models = found["models"]
    first = models[0]
    metric = first["metric"]
    names = [f"{i} {shortened(model['path'], 26)}" for i, model in enumerate(models, 1)]
    sizes = [["model", "MACs", "parameters", "file bytes", "peak bytes"]]
    times = [["ms", "median", "95 % interval", "least", "CPU", "by round", "95 % interval"]]
    for i, model in enumerate(models):
        latency, paired = model["latency_ms"], model["latency_ratio"]
        peak = UNKNOWN if model["peak_bytes"] is None else f"{model['peak_bytes']:,}"
        sizes.append([names[i], f"{model['macs']:,}", f"{model['params']:,}", f"{model['file_bytes']:,}", peak])
        (low, high), (least, most) = latency["interval"], paired["interval"]
        rest = [ms_text(latency["min"]), ms_text(latency["cpu_p50"]), f"{100 * paired['median']:.1f} %"]
        ratios = f"[{100 * least:.1f}, {100 * most:.1f}]"
        times.append([str(i + 1), ms_text(latency["p50"]), f"[{ms_text(low)}, {ms_text(high)}]", *rest, ratios])
    tables = [*aligned(sizes, ""), ""]
    if metric:
        scored = [[f"{metric_title(metric['name'])} (n = {metric['n']:,})", "", "95 % interval"]]
        for i, model in enumerate(models, 1):
            scored.append([str(i), metric_text(model["metric"]), interval_text(model["metric"])])
        tables += [*aligned(scored, ""), ""]
    tables += aligned(times, "")
    latency, provider = first["latency_ms"], found["environment"]["provider"]
    lines = [
        *tables,
        *sizes_lines(found),
        f"latency: {setting_text(latency)}, {provider}, {latency['n']} interleaved rounds"
        + (
            "; by round: the median of their ratios to 1, which are not the ratios of the medians"
            if len(models) > 1
            else ""
        ),
    ]
    is_busy = shown_ms([model["latency_ms"] for model in models])[0] == CPU
    if len(models) == 1 and is_busy:
        lines.append("the machine was busy: CPU is the time without other work on it")
    if all(model["latency_ratio"]["cpu"] is not None for model in models[1:]) and len(models) > 1:
        shares = ", ".join(f"{100 * model['latency_ratio']['cpu']:.1f} %" for model in models[1:])
        why = "the machine was busy, so go by processor time" if is_busy else "by processor time"
        lines.append(f"{why}, which other work on the machine disturbs less: {shares}")
    return lines if metric else [*lines, "Accuracy was not measured: no --data was given."]


def inspection(found: Report, n_named: int = 4) -> list[str]:
    """Return what `inspect` prints.

    Args:
        found: What `agmc_onnx.inspect` returned.
        n_named: Frozen groups that are named for every reason.
    """
    model = found["model"]
    others = [f"{domain} {version}" for domain, version in model["opsets"].items() if domain != "ai.onnx"]
    facts = [f"opset {model['opset']}", *others, f"IR {model['ir_version']}", f"{model['file_bytes']:,} bytes"]
    lines = [model["path"], "  " + ", ".join(facts + ([model["producer"]] if model["producer"] else []))]
    for what in ("inputs", "outputs"):
        lines.append(f"  {what}: " + ", ".join(value_text(value) for value in found[what]))
    lines.append("  ops: " + ", ".join(f"{n} {op}" for op, n in found["ops"].items()))
    lines.append(f"  {found['macs']:,} MACs, {found['params']:,} parameters")
    lines += [f"  {line}" for line in sizes_lines(found)]
    lines += [
        f"  {one['input']}, dimension {one['dim']} ({one['symbol']}), only seems open: the file runs at {one['size']} and not at"
        " the others tried; where that is not meant, export it with two sizes as examples"
        for one in found["seem_open"]
    ]
    groups, prunable = found["groups"], found["prunable"]
    lines += ["", f"can be pruned: {_groups(len(groups))}; at most {_share(prunable['macs'])} of the MACs"
              f" and {_share(prunable['params'])} of the parameters can go"]  # fmt: skip
    least = [f"{_share(s['macs'])} with --round-to {k}" for k, s in found["smallest"].items()]
    if groups:
        lines.append(f"smallest reachable share of the MACs: {', '.join(least)}")
        table = [["  group", "units", "step", "of MACs", "of parameters"]]
        for g in groups:
            counts = [str(g["units"]), str(g["step"])]
            table.append([f"  {shortened(g['name'], 30)}", *counts, _share(g["macs_share"]), _share(g["params_share"])])
        layers = ["layer", *("" if g["name"].startswith(g["layer"]) else g["layer"] for g in groups)]
        left = aligned(table, "")
        room = max(12, WIDTH - 2 - len(left[0]))
        lines += [f"{line}  {shortened(layer, room)}".rstrip() for line, layer in zip(left, layers, strict=True)]
    if found["layers"]:
        lines += ["", "may go as a whole (unless --keep-layers), judged together:"]
        of = {"macs_share": "of MACs", "time_share": "of time"}
        known = [key for key in of if key in found["layers"][0]]
        table = [["  branch", "nodes", *(of[key] for key in known)]]
        table += [
            [f"  {one['name']}", str(one["nodes"]), *(_share(one[key]) for key in known)] for one in found["layers"]
        ]
        beside = ["with it", *(", ".join(one["groups"][1:]) for one in found["layers"])]
        lines += [f"{line}  {names}".rstrip() for line, names in zip(aligned(table, ""), beside, strict=True)]
    lines += ["", f"stays whole: {_groups(len(found['frozen']))}"]
    for reason in found["reasons"]:
        names = [f"{layer} ({units})" for layer, units in reason["layers"]]
        more = f" and {len(names) - n_named} more" if len(names) > n_named else ""
        is_open = reason["gain"] >= _SMALLEST_GAIN and not reason["why"].startswith("graph output")
        gain = f"; {_share(reason['gain'])} of the MACs could go else" if is_open else ""
        lines.append(f"  {reason['why']}: {', '.join(names[:n_named])}{more}{gain}")
        lines += [f"    {reason['do']}"] if reason["do"] else []
    return [*lines, "", "motifs", *(f"  {line}" for line in found["motifs"])]


def value_text(value: Mapping[str, Any]) -> str:
    """Return a graph input or output with its type and shape."""
    dims = value["shape"]
    shape = "of unknown shape" if dims is None else "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"
    return f"{value['name']} {value['dtype']} {shape}"


def _groups(n: int) -> str:
    return f"{n} group{'s' if n != 1 else ''}"


def _share(share: float) -> str:
    return f"{100 * share:.1f} %"

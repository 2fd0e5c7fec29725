"""The report in sentences and figures: what terminal and HTML file share. Tables are in `agmc_onnx.reporting.tables`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from agmc_onnx.graph.sizes import sizes_text
from agmc_onnx.measuring.agreeing import MEASURES
from agmc_onnx.options import known_options
from agmc_onnx.reporting import verdict
from agmc_onnx.reporting.times import CPU, shown_ms

KINDS = {"flops": "MACs", "params": "parameters", "latency": "latency"}
PERCENT_METRICS = ("top1", "top5", "agreement", "closeness")
NOT_MEASURED = (
    "Accuracy was not measured: without --data the policy worked on synthetic inputs, and 'agreement' says only how often"
    " the two models answer alike on those."
)

NOT_COUNTED = (
    "not counted: {}; the MACs are those of the rest. Export it with plain ops and fixed sizes to have all counted"
)
NOTHING_RECOVERED = (
    "Recovery did not change the metric. Weights that are quantised or computed by other nodes are not refitted: if yours are,"
    " compress the float model, then quantise the result."
)
OTHER_CLOCK = 0.005  # of the original's time, between the share that met a budget and that of the times shown
NO_FASTER = (
    "Zeros make the zipped file smaller, not the model faster: onnxruntime multiplies them like all other numbers."
)

Report = Mapping[str, Any]


def percent(share: float, digits: int = 1) -> str:
    """Return a share of 0..1 in percent with so many digits, or more where these would hide what was asked for."""
    for n in range(digits, 8):
        text = f"{100 * share:.{n}f}"
        if abs(float(text) / 100 - share) < 1e-9:
            break
    else:
        text = f"{100 * share:.{digits}f}"
    return f"{text} %"


def budget_line(kind: str, keep: float) -> str:
    """Return what a budget asks for, said both ways."""
    if kind == "max_drop":
        return f"the smallest model that loses at most {keep:g} points"
    return f"keep at most {percent(keep)} of the {KINDS.get(kind, kind)}, remove at least {percent(1 - keep)}"


def ratio(after: float, before: float) -> str:
    """Return a ratio in percent, one digit."""
    return f"{100 * after / before:.1f} %" if before else "-"


def ms_text(ms: float) -> str:
    """Return milliseconds with three digits behind the point, or as many as make four in all: their ratio is then as printed."""
    return f"{ms:.{3 if ms >= 1 else 4 if ms >= 0.1 else 5}f}"


def reached_text(reached: float, keep: float) -> str:
    """Return what was reached in percent, with as many digits as tell on which side of the budget it is."""
    for digits in range(2, 8):
        text = f"{100 * reached:.{digits}f}"
        if (float(text) <= 100 * keep + 1e-9) == (reached <= keep + 1e-11):
            break
    return f"{text} %" if reached <= keep + 1e-11 else f"{text} %, which is more"


def metric_text(metric: Mapping[str, Any], value: float | None = None) -> str:
    """Return a metric's value with its unit."""
    value, unit = metric["value"] if value is None else value, metric_unit(metric["name"])
    if unit is None:
        return f"{value:.6g}"
    return f"{value / 100:.3f}" if unit == "" else f"{value:.2f} {unit}"


def metric_unit(name: str) -> str | None:
    """Return the unit of a metric: "%", "dB", "" of a share that is printed as 0.71; None of a user's own."""
    return MEASURES[name].unit if name in MEASURES else "%" if name in PERCENT_METRICS else None


def metric_title(name: str) -> str:
    """Return what a metric is called in print."""
    return MEASURES[name].title if name in MEASURES else name


def interval_text(metric: Mapping[str, Any]) -> str:
    """Return the 95 % interval of a metric, or "" where it has none."""
    if not metric.get("interval"):
        return ""
    scale, digits = (100, 3) if metric_unit(metric["name"]) == "" else (1, 2)
    return "[" + ", ".join(f"{end / scale:.{digits}f}" for end in metric["interval"]) + "]"


def setting_text(latency: Mapping[str, Any]) -> str:
    """Return the batch and threads a latency was measured at."""
    threads = latency["threads"]
    return f"batch {latency['batch']}, {threads} thread{'s' if threads != 1 else ''}"


def verified_line(verified: Mapping[str, Any]) -> str:
    """Return the outcome of the verification in one sentence, and what was not compared in another."""
    notes = [verified["note"]] if verified.get("note") else []
    if verified.get("random"):
        notes.append(f"random ops were switched off for it: {_few(verified['random'])}")
    note = f" Note: {'; '.join(notes)}." if notes else ""
    if verified["masked_equivalence"] is None:
        return (
            f"verified: it loads, runs and has the original's inputs and outputs; equality could not be compared.{note}"
        )
    kept = verified.get("statistics")
    over = f", the statistics of {_few(kept)} taken over what is kept" if kept else ""
    refitted = " and the refitted weights" if verified.get("recovered") else ""
    n = verified.get("n_samples")
    on = f" on {n} input{'s' if n != 1 else ''}" if n else ""
    n_sizes = len(verified.get("sizes", ()))
    at = f", at {n_sizes} settings of the open sizes" if n_sizes > 1 else ""
    return (
        f"verified: equals the original with its removed channels set to zero{refitted}{over}{at}; largest difference"
        f" {verified['max_abs_diff']:.3g} of {verified['max_abs_output']:.3g} (allowed {verified['tolerance']:.3g}){on}.{note}"
    )


def _few(names: Sequence[str], most: int = 3) -> str:
    more = len(names) - most
    return f"{', '.join(names[:most])}{f' and {more} more' if more > 0 else ''}"


def target_line(report: Report) -> str:
    """Return the budget and what was reached."""
    target, drop = report["target"], report.get("max_drop")
    if drop:
        known = f"with 95 % confidence at most {drop['most']:.2f}"
        doubt = known if drop["most"] > drop["drop"] else "its uncertainty is not known"
        return (
            f"max drop: at most {drop['limit']:g} points; on {drop['n']:,} reward samples it is {drop['drop']:.2f}, {doubt};"
            f" keeps {100 * target['reached']:.2f} % of the"
            f" {KINDS.get(target['kind'], target['kind'])} after {len(drop['trials'])} trials"
        )
    what = KINDS.get(target["kind"], target["kind"])
    missing = " that could be counted" if report.get("uncounted") and target["kind"] != "params" else ""
    reached = reached_text(target["reached"], target["keep"])
    line = f"budget: at most {percent(target['keep'])} of the {what}{missing}; reached {reached}"
    device = target.get("device")
    if device:
        return f"{line}, as predicted for {device['cpu']}, not measured there"
    if target["kind"] == "latency":
        _, (slow, fast) = shown_ms([report[side]["latency_ms"] for side in ("original", "compressed")])
        if abs(fast / slow - target["reached"]) > OTHER_CLOCK:
            return f"{line}, by what other programs disturb least; the times above divide to {100 * fast / slow:.1f} %"
    return line


def sizes_lines(found: Mapping[str, Any]) -> list[str]:
    """Return at which sizes of the inputs all is counted and measured, where they are open, and what could not be counted."""
    sizes, missing = found.get("sizes"), found.get("uncounted")
    lines = [f"sizes: {sizes_text(sizes['inputs'], sizes['source'])}"] if sizes and sizes["source"] != "fixed" else []
    return lines + ([NOT_COUNTED.format(_few(missing))] if missing else [])


def few_samples(report: Report) -> str | None:
    """Return what is to be done where recovery had few calibration samples, or None."""
    n = ((report.get("data") or {}).get("roles") or {}).get("calibration", verdict.FEW)
    if n >= verdict.FEW or not report["verified"].get("recovered"):
        return None
    return (
        f"Recovery had only {n} calibration samples; it wants some hundreds. Name the roles in the data card and give that"
        " one more, of images without labels if you like."
    )


def precision_lines(report: Report) -> list[str]:
    """Return what a quantised result computes in, beside its float twin; nothing of one in float."""
    found = report.get("precision")
    if not found:
        return []
    nodes, twin, metric = found["nodes"], found["twin"], report["compressed"]["metric"]
    stay = f"; {_few(list(found['why_float']))} stay float, refused by onnxruntime" if found["why_float"] else ""
    times = [report["original"]["latency_ms"], report["compressed"]["latency_ms"], twin["latency_ms"]]
    field = "cpu_p10" if shown_ms(times[:2])[0] == CPU else "p50"  # as in the table
    in_it, in_float = (f"{one[field] / times[0][field]:.3f}" for one in times[1:])
    ranked = found.get("correlation")
    alike = "" if ranked is None else f"; finalists' ranks in float and {found['asked']} correlate by {ranked:.2f}"
    return [
        f"precision: {found['asked']} ({found['target']}), {nodes['int8']:,} of {sum(nodes.values()):,} nodes, ranges by"
        f" {found['ranges']}{stay}{alike}",
        f"in float: {twin['metric']['name']} {metric_text(twin['metric'])} in {in_float} of the original's time;"
        f" {found['asked']}: {metric_text(metric)} in {in_it}",
        *division_lines(found.get("tried") or [], found.get("stays") or {}),
    ]


def division_lines(tried: Sequence[Mapping[str, Any]], stays: Mapping[str, str]) -> list[str]:
    """Return what mixed precision measured before it chose, and why nodes stay float; nothing of other precisions."""
    if not tried:
        return []
    whole = [one for one in tried if one["kind"] == "int8" or one["is_taken"]]
    said = [
        f"{one['kind']}{' (taken)' if one['is_taken'] else ''}, {one['n_float']} nodes in float: {one['time']:.3f} of the float"
        f" model's time, {one['alike']:.1f} % the same answers"
        for one in whole
    ]
    why: dict[str, list[str]] = {}
    for name, reason in stays.items():
        why.setdefault(re.sub(r"[\d.]+ ms", "some ms", reason.partition(":")[0]), []).append(name)
    return [
        "mixed precision, tried on the original: " + "; ".join(said),
        *(f"stays float: {_few(names)}: {reason}" for reason, names in why.items()),
    ]


def gone_lines(report: Report) -> list[str]:
    """Return which layers are gone; nothing where all stayed."""
    found = report.get("gone")
    if not found:
        return []
    names = found["branches"]
    return [
        f"layers: {len(names)} of {found['of']} branches gone ({found['nodes']} of {found['of_nodes']} nodes): {', '.join(names)}"
    ]


def stage_lines(report: Report) -> list[str]:
    """Return the stages in which a budget was reached; nothing where it was one."""
    stages = report.get("stages")
    return ["stages: " + ", ".join(f"{100 * one['reached']:.1f} %" for one in stages)] if stages else []


def sparsity_lines(report: Report) -> list[str]:
    """Return what is to be said of weights that are zero; nothing where none was asked for."""
    found = report.get("sparsity")
    if not found:
        return []
    kind = f"pattern {found['pattern']}, " if found["pattern"] else ""
    n = len(found["layers"])
    stored = {layer["storage"] for layer in found["layers"]}
    zipped = found["zip_bytes"]
    return [
        f"sparsity: {found['weights'] - found['nonzeros']:,} of {found['weights']:,} weights of {n}"
        f" layer{'s' if n != 1 else ''} are zero ({100 * (1 - found['density']):.1f} %; {kind}chosen by {found['method']});"
        f" stored {' and as '.join(sorted(stored))}; zipped {zipped['original']:,} -> {zipped['compressed']:,} bytes"
        f" ({ratio(zipped['compressed'], zipped['original'])})",
        NO_FASTER,
    ]


def command(report: Report) -> list[str]:
    """Return the command line that makes this report's result again, one item an option with its value."""
    settings, defaults = report["settings"], {name: one.default for name, one in known_options().items()}
    is_timed = settings.get("latency") or (settings.get("max_drop") and settings.get("minimise") == "latency")
    defaults["round_to"] = "auto" if is_timed else 4
    words = [["agmc-onnx", "compress", report["model"]["path"]]]
    for name, value in settings.items():
        asked = name in ("flops", "params", "max_drop", "policy", "episodes", "seed", "recover") and value is not None
        if not asked and (name not in defaults or value is None or value == defaults[name]):
            continue
        if name == "batch" and value == settings.get("workers"):
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, list | tuple):  # given once for each; a report that was read has lists
            words += [[flag, str(one)] for one in value]
            continue
        words.append([flag] if value is True else [flag, str(value)])
    data = report.get("data")
    if data:
        words.append(["--data", data["source"]])
    if report.get("output"):
        words.append(["-o", report["output"]])
    return [shlex.join(part) for part in words]


def one_line(report: Report) -> str:
    """Return what was made in a line: cost and metric before and after."""
    before, after = report["original"], report["compressed"]
    words = [f"{before['macs']:,} -> {after['macs']:,} MACs ({ratio(after['macs'], before['macs'])})"]
    words.append(f"{before['params']:,} -> {after['params']:,} parameters")
    if "metric" in before and report.get("accuracy_measured", True):
        words.append(
            f"{metric_title(before['metric']['name'])} {metric_text(before['metric'])} -> {metric_text(after['metric'])}"
        )
    return ", ".join(words)

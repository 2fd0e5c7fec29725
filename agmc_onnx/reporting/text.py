"""The report in words and numbers: what the terminal prints, and the figures and phrases the HTML file shares with it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agmc_onnx.graph.sizes import sizes_text
from agmc_onnx.measuring.agreeing import MEASURES
from agmc_onnx.options import known_options
from agmc_onnx.reporting import verdict

_SMALLEST_GAIN = 5e-4  # of the MACs that is worth a word: 0.1 % when rounded

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
    "Recovery left the metric as it was. Weights that are quantised or computed by other nodes cannot be refitted: compress"
    " the float model, then quantise the result."
)
NOTHING_GAINED = (
    "Nothing was gained: no state was better than the model given, by the metric on the reward role, or the gain does not show on"
    " the test role. Give more samples to learn from, more --steps, or another --learning-rate."
)
NO_FASTER = (
    "Zeros make the zipped file smaller, not the model faster: onnxruntime multiplies them like all other numbers."
)

BUSY = 0.03  # how far the ratio of medians and the median of ratios may differ before the line says so

Report = Mapping[str, Any]
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
    share = fast["p50"] / slow["p50"]  # of the numbers beside it; round by round it may differ on a busy machine
    paired = (report.get("latency_ratio") or {}).get("median", share)
    busy = f" ({100 * paired:.1f} % round by round: a busy machine)" if abs(paired - share) > BUSY * share else ""
    found.append(
        Row(
            f"latency, median ms ({setting_text(slow)})",
            ms_text(slow["p50"]),
            ms_text(fast["p50"]),
            f"{100 * share:.1f} %{busy}",
            _less(paired, 1.0),
        )
    )
    one, other = before.get("peak_bytes"), after.get("peak_bytes")
    if one and other:
        found.append(Row("peak bytes of activations", f"{one:,}", f"{other:,}", ratio(other, one), _less(other, one)))
    return found


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
        doubt = known if drop["most"] > drop["drop"] else "its doubt is not known"
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
    return f"{line}, as predicted for {device['cpu']}, not measured there" if device else line


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
        if cut == metric["value"]:
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
    times = (report.get("latency_ratio") or {}).get("median")
    share = "" if times is None else f" in {times:.3f} of the original's time"
    ranked = found.get("correlation")
    alike = "" if ranked is None else f"; finalists' ranks in float and {found['asked']} correlate by {ranked:.2f}"
    return [
        f"precision: {found['asked']} ({found['target']}), {nodes['int8']:,} of {sum(nodes.values()):,} nodes, ranges by"
        f" {found['ranges']}{stay}{alike}",
        f"in float: {twin['metric']['name']} {metric_text(twin['metric'])} in {twin['latency_ratio']:.3f} of the time;"
        f" {found['asked']}: {metric_text(metric)}{share}",
        *division_lines(found.get("tried") or [], found.get("stays") or {}),
    ]


def division_lines(tried: Sequence[Mapping[str, Any]], stays: Mapping[str, str]) -> list[str]:
    """Return what mixed precision measured before it chose, and why nodes stay float; nothing of other precisions."""
    if not tried:
        return []
    whole = [one for one in tried if one["kind"] == "int8" or one["is_taken"]]
    said = [
        f"{one['kind']}{' (taken)' if one['is_taken'] else ''} {one['n_float']} nodes float, {one['time']:.3f} of the float"
        f" model's time, {one['alike']:.1f} % alike"
        for one in whole
    ]
    why: dict[str, list[str]] = {}
    for name, reason in stays.items():
        why.setdefault(re.sub(r"[\d.]+ ms", "some ms", reason.partition(":")[0]), []).append(name)
    return [
        "mixed, of the original: " + "; ".join(said),
        *(f"float: {_few(names)}: {reason}" for reason, names in why.items()),
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


def command(report: Report) -> list[str]:
    """Return the command line that makes this report's result again, one item an option with its value."""
    settings, defaults = report["settings"], {name: one.default for name, one in known_options().items()}
    is_timed = settings.get("latency") or (settings.get("max_drop") and settings.get("minimise") == "latency")
    defaults["round_to"] = "auto" if is_timed else 4
    words = [["agmc-onnx", "compress", report["model"]["path"]]]
    for name, value in settings.items():
        asked = name in ("flops", "params", "max_drop", "policy", "episodes", "seed", "recover") and value is not None
        if not asked and (name not in defaults or value == defaults[name]):
            continue
        if name == "batch" and value == settings.get("workers"):
            continue
        flag = f"--{name.replace('_', '-')}"
        words.append([flag] if value is True else [flag, str(value)])
    data = report.get("data")
    if data:
        words.append(["--data", data["source"]])
    if report.get("output"):
        words.append(["-o", report["output"]])
    return [shlex.join(part) for part in words]


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
        lines.append(f"by {by}: {tried[0]['score']:.3f}; best in {100 * sure:.0f} % of draws of the images, {certain}")
        lines += [f"  {one['score']:.3f}  {one['card']}" for one in tried[:4]]
    for one in report["answers"]:
        if "classes" in one:
            named = ", ".join(f"class {c} {100 * s:.0f} %" for c, s in zip(one["classes"], one["shares"], strict=True))
        else:
            named = "; ".join(f"class {box[1]:.0f} at {box[2:]}" for box in one["boxes"]) or "no box"
        lines.append(f"answer: {named}")
    return lines


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
        peak = "-" if model["peak_bytes"] is None else f"{model['peak_bytes']:,}"
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
    if all(model["latency_ratio"]["cpu"] is not None for model in models[1:]) and len(models) > 1:
        shares = ", ".join(f"{100 * model['latency_ratio']['cpu']:.1f} %" for model in models[1:])
        lines.append(f"by processor time, which other work on the machine disturbs less: {shares}")
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

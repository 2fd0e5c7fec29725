"""Coverage of the engine over the architectures of torchvision, timm and onnx, and over real models.

    python tools/coverage.py --out runs/coverage.jsonl [--exporter torchscript] [--only NAME ...] [--limit N]
                             [--data FOLDER] [--seconds 240] [--keep FOLDER] [--report docs/coverage.md]

Every model is tried in a process of its own, so that a crash or a time limit costs one row. Rows that are in the file
already are not repeated, but for those that failed. With `--report` the table is written from the file; with
`--limit 0` nothing is run before.

Needs torch, torchvision 0.28 and timm 1.0 (an extra of their own); weights are random, nothing is downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agmc_onnx.channels.groups import Channels, analyse
from agmc_onnx.errors import AgmcError
from agmc_onnx.model.graph import view
from agmc_onnx.model.normalize import normalize
from agmc_onnx.pruning.cost import macs_cost
from agmc_onnx.pruning.importance import choose, l2_norm
from agmc_onnx.pruning.plan import make_plan
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.search.budget import meet_target
from agmc_onnx.verification import norms_of, verify

NAMES = Path(__file__).with_name("architectures.txt")
EXPORTERS = {"torchscript": {"exporter": "torchscript"}, "dynamo": {"exporter": "dynamo", "opset": 18}}
SMALL = "every group is cut; first and last layer, steps or attention products that shrink along one factor weigh much"
Row = dict[str, Any]


def architectures() -> list[str]:
    lines = NAMES.read_text().splitlines()
    return [name for line in lines if not line.startswith("#") for name in line.split()]


def light_models() -> list[Path]:
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    return sorted(folder.glob("light_*.onnx"))


# -- one model --------------------------------------------------------------------------------------------------------


def load(name: str, exporter: str, keep: Path | None) -> onnx.ModelProto:
    """Return one model of the table: `tv:`, `timm:`, `light:` or the path of a file."""
    kind, _, rest = name.partition(":")
    if kind == "light":
        return with_random_weights(onnx.load(next(p for p in light_models() if p.stem == rest)))
    if kind not in ("tv", "timm"):
        return onnx.load(name)
    path = keep / f"{exporter}-{kind}-{rest}.onnx" if keep else None
    if path is not None and path.exists():
        return onnx.load(path)
    model = export(kind, rest, exporter)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path)
    return model


def export(kind: str, name: str, exporter: str) -> onnx.ModelProto:
    import torch

    torch.set_num_threads(1)
    library = torch.library.Library("torchvision", "DEF")  # torchvision's own library is built for CUDA
    for op in ("nms", "qnms"):
        library.define(op + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.backends.mha.set_fastpath_enabled(False)  # else the older exporter meets an op it does not know
    torch.manual_seed(0)
    from models.export import to_onnx

    if kind == "tv":
        import torchvision

        options = {"weights_backbone": None} if name.startswith(("fcn", "deeplab", "lraspp")) else {}
        module = torchvision.models.get_model(name, weights=None, **options)
        video = name in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d") or name.startswith(("mvit", "swin3d"))
        side = 112 if name.endswith("_18") else 299 if name == "inception_v3" else 224
        shape = (1, 3, 16, side, side) if video else (1, 3, side, side)
    else:
        import timm

        module = timm.create_model(name, pretrained=False)
        shape = (1, *module.default_cfg["input_size"])
    module.eval()
    enliven(module, shape)

    class OneOutput(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.net(x)
            while not isinstance(y, torch.Tensor):
                y = next(iter(y.values())) if isinstance(y, dict) else y[0]
            return y

    return to_onnx(OneOutput(), shape, **EXPORTERS[exporter])


def enliven(module: Any, shape: tuple[int, ...]) -> None:
    """Give a network weights that show: no zeros where initialisation leaves them, statistics of its own activations."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if not value.dtype.is_floating_point or not value.numel() or "running_" in name:
            continue
        noise = torch.randn(value.shape, generator=generator)
        if (value == 0).all():
            value.data = noise * 0.02
        elif value.ndim == 1:
            value.data = value.data + noise * 0.05
    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        if norms:
            module(torch.randn(2, *shape[1:], generator=generator))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
        norm.running_var.add_(1e-3)


def with_random_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a light model of the onnx package with He-scaled initializers in place of its constant fillings."""
    rng = np.random.default_rng(0)
    graph = model.graph
    shapes = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    variances = {node.input[4] for node in graph.node if node.op_type == "BatchNormalization"}
    for node in [n for n in graph.node if n.op_type == "ConstantOfShape" and n.input[0] in shapes]:
        dims = shapes[node.input[0]].ravel().tolist()
        scale = (2 / max(int(np.prod(dims[1:])), 1)) ** 0.5 if len(dims) > 1 else 0.1
        values = rng.standard_normal(dims) * scale + (1 if len(dims) == 1 else 0)
        values = np.abs(values) + 0.1 if node.output[0] in variances else values
        graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), node.output[0]))
        graph.node.remove(node)
    model.ir_version = max(model.ir_version, 4)
    return model


def half_of(channels: Channels, plain_only: bool = False) -> list[int]:
    """Return half of every group (`plain_only`: of those no node takes statistics over), in its steps."""
    return [
        g.n_units if plain_only and g.normalised_by else max(g.step, g.n_units // 2 // g.step * g.step)
        for g in channels.groups
    ]


def try_model(name: str, exporter: str, keep: Path | None) -> Row:
    """Return the row of one model."""
    row: Row = {}
    start = time.perf_counter()
    proto = load(name, exporter, keep)
    row["export_seconds"] = round(time.perf_counter() - start, 1)
    row["opset"] = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    start = time.process_time()
    model = normalize(proto)
    graph = view(model)
    channels = analyse(graph)
    row["nodes"], row["seconds"] = len(graph.nodes), round(time.process_time() - start, 2)
    row["groups"], row["frozen"] = len(channels.groups), len(channels.frozen)
    row["reasons"] = Counter((group.why_frozen or "")[:120] for group in channels.frozen).most_common(8)
    cost = macs_cost(channels)
    full = np.array([g.n_units for g in channels.groups], np.int64)
    step = np.array([g.step for g in channels.groups], np.int64)
    total = max(cost(full), 1)
    half = half_of(channels)
    row["macs"], row["macs_left"] = cost(full), round(cost(half) / total, 4)
    if not channels.groups:
        return row | {"valid": True, "equivalent": None, "budget_met": False, "note": "nothing can be cut"}
    met = meet_target(np.full(full.size, 0.7), cost, full, step, step, total // 2)
    row["budget_reached"] = round(met.reached / total, 4)
    row["budget_met"] = bool(0.48 * total < met.reached <= total // 2)
    kept = choose(channels, l2_norm(channels), half)
    start = time.process_time()
    pruned = Surgeon(channels).cut(kept)
    row["seconds"] = round(row["seconds"] + time.process_time() - start, 2)
    norms = norms_of(channels, kept)
    start = time.perf_counter()
    try:
        found = verify(model, pruned, make_plan(channels, kept, "0" * 64), norms=norms)
        row["valid"] = True
        if norms is None:
            counts = half_of(channels, plain_only=True)
            row["plain_macs_left"] = round(cost(counts) / total, 4)
            if counts != full.tolist():
                kept = choose(channels, l2_norm(channels), counts)
                found = verify(model, Surgeon(channels).cut(kept), make_plan(channels, kept, "0" * 64))
        row["equivalent"] = found.masked_equivalence
        row["relative"] = float(f"{found.max_abs_diff / (found.max_abs_output + 1e-30):.2g}")
        row["largest_output"], row["note"] = float(f"{found.max_abs_output:.3g}"), found.note
    except AgmcError as error:
        differs = "differs from the masked" in str(error)
        row |= {"valid": differs or row.get("valid", False), "equivalent": False, "note": str(error)[:300]}
    row["verify_seconds"] = round(time.perf_counter() - start, 1)
    return row


def run_one(args: argparse.Namespace) -> None:
    row: Row = {"name": args.one, "exporter": args.exporter}
    with contextlib.redirect_stdout(sys.stderr):
        try:
            row |= try_model(args.one, args.exporter, args.keep)
        except Exception as error:  # a row says what happened to its model, whatever it was
            row |= {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    print(json.dumps(row))


def run_apart(name: str, args: argparse.Namespace, exporter: str) -> Row:
    """Return the row of one model, made by a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--one", name, "--exporter", exporter]
    if args.keep:
        command += ["--keep", str(args.keep)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=args.seconds, check=False)
        line = done.stdout.strip().splitlines()[-1]
        return json.loads(line)
    except subprocess.TimeoutExpired:
        error = f"no result after {args.seconds} s"
    except (IndexError, json.JSONDecodeError):
        error = f"the process ended with {done.returncode}: {done.stderr.strip()[-200:]}"
    return {"name": name, "exporter": exporter, "error": error}


# -- the table --------------------------------------------------------------------------------------------------------


def summary(rows: list[Row]) -> list[str]:
    """Return the numbers of one list of rows, as lines of text."""
    ran = [r for r in rows if "valid" in r]
    comparable = [r for r in ran if r.get("equivalent") is not None]
    left = [r["macs_left"] for r in ran if r.get("groups")]
    same = [r for r in comparable if r["equivalent"]]
    return [
        f"- models: {len(rows)} tried, {len(ran)} exported and analysed, {len(rows) - len(ran)} not (see the last table)",
        f"- valid (checker, onnxruntime, output shapes): {sum(r['valid'] for r in ran)} of {len(ran)}",
        f"- equal to the masked original where it must hold: {len(same)} of {len(comparable)}; largest relative difference "
        f"{max((r['relative'] for r in same), default=0):.1e}",
        f"- MACs left when every group keeps half: median {statistics.median(left) if left else 1:.3f}, "
        f"at most 0.30 on {sum(x <= 0.3 for x in left)} of {len(ran)}, worst {max(left, default=1):.3f}",
        f"- budget 0.5 met (0.48 to 0.50 of the MACs): {sum(r.get('budget_met', False) for r in ran)} of {len(ran)}",
        f"- analysis and cut: median {statistics.median(r['seconds'] for r in ran) if ran else 0:.2f} s",
    ]


def report(rows: list[Row], note: str) -> str:
    """Return docs/coverage.md; the note says what a reader of these rows must know."""
    lines = [
        "# Coverage",
        "",
        "Written by `tools/coverage.py --report docs/coverage.md` from its rows; do not edit. Weights are random",
        "(zero tensors too), the batch is open, half of every group is cut by L2 norm, nothing is recovered.",
        "Equal: to the original whose removed entries are zero, and whose normalisations take their statistics over the kept",
        "entries; where a normalisation cannot be written that way, with only those groups cut that it does not see.",
        "",
        f"What was run: {len(rows)} rows; {len({r['name'] for r in rows} & set(architectures()))} of the "
        f"{len(architectures())} names in `tools/architectures.txt` are among them. The rest has not been run yet.",
        *([note] if note else []),
    ]
    for exporter in sorted({r["exporter"] for r in rows}):
        own = [r for r in rows if r["exporter"] == exporter]
        lines += ["", f"## {exporter}", "", *summary(own), ""]
        lines += [
            "| model | nodes | groups | MACs left | budget 0.5 | valid | equal | s |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for r in sorted((r for r in own if "valid" in r), key=lambda r: r["name"]):
            label = f"{r['name'].rpartition('/')[2]} | {r['nodes']} | {r['groups']}"
            equal = {True: f"{r.get('relative', 0):.0e}", False: "**no**", None: "-"}[r["equivalent"]]
            lines.append(
                f"| {label} | {r['macs_left']:.3f} | {r.get('budget_reached', 1):.3f} | "
                f"{'yes' if r['valid'] else '**no**'} | {equal} | {r['seconds']:.2f} |"
            )
        short = [
            r for r in own if r.get("macs_left", 0) > 0.3 or r.get("valid") is False or r.get("equivalent") is False
        ]
        if short:
            lines += ["", f"### What falls short ({exporter})", ""]
        for r in sorted(short, key=lambda r: r["name"]):
            reasons = "; ".join(f"{n} x {why}" for why, n in r["reasons"] if "graph output" not in why)
            lines.append(
                f"- **{r['name'].rpartition('/')[2]}** {r['macs_left']:.3f}: {reasons[:400] or r.get('note') or SMALL}"
            )
        failed = [r for r in own if "error" in r]
        if failed:
            lines += ["", f"### Not analysed ({exporter})", ""]
        lines += [
            f"- {r['name']}: {' '.join(r['error'].split())[:160]}" for r in sorted(failed, key=lambda r: r["name"])
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("runs/coverage.jsonl"))
    parser.add_argument("--exporter", choices=[*EXPORTERS, "file"], default="torchscript")
    parser.add_argument(
        "--only", nargs="+", help="names, as in tools/architectures.txt, or light:light_alexnet, or files"
    )
    parser.add_argument("--limit", type=int)
    parser.add_argument("--data", type=Path, help="folder whose .onnx files are tried too")
    parser.add_argument("--seconds", type=int, default=300, help="time limit of one model")
    parser.add_argument("--keep", type=Path, help="folder for exported models, to export each only once")
    parser.add_argument("--again", action="store_true", help="replace rows that are in the file already")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--note", default="", help="a line for the report: what must be known about these rows")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        run_one(args)
        return
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    jobs = [(name, args.exporter) for name in args.only or architectures()]
    if not args.only:
        jobs += [(f"light:{path.stem}", "file") for path in light_models()]
        jobs += [(str(path), "file") for path in sorted(args.data.glob("*.onnx"))] if args.data else []
    jobs = [(n, "file" if n.startswith("light:") or n.endswith(".onnx") else e) for n, e in jobs][: args.limit]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name, exporter in jobs:
        known = any((r["name"], r["exporter"]) == (name, exporter) and "error" not in r for r in rows)
        if known and not args.again:
            continue
        row = run_apart(name, args, exporter)
        rows = [r for r in rows if (r["name"], r["exporter"]) != (name, exporter)] + [row]
        args.out.write_text("".join(json.dumps(r) + "\n" for r in rows))
        facts = ("macs_left", "valid", "equivalent", "relative", "seconds", "error", "note")
        print(name, *(f"{k}={row[k]}" for k in facts if row.get(k) not in (None, "")), flush=True)
    if args.report:
        args.report.write_text(report(rows, args.note))


if __name__ == "__main__":
    main()

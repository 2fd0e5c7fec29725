"""Coverage of the engine over the architectures of torchvision, timm and onnx, and over real models.

    python -m tools.coverage --out rows.jsonl [--exporters torchscript dynamo] [--only NAME ...] [--data FOLDER]
                             [--keep FOLDER] [--part 1/2] [--again] [--open] [--seconds 600]
    python -m tools.coverage_report --rows rows.jsonl [--peers peers.jsonl] [--scaling scaling.jsonl] > docs/coverage.md

With `--open` each is exported with open height and width too, analysed at its usual size, and its cut to half compared with
the masked original, and its MACs with those that a run makes, at that size and at a second one.

With `--depth` what may go as a whole is tried: a random half of it is taken out, with all widths and with half of them.

Every model is tried in a process of its own, so that a crash or a time limit costs one row. Rows that are in the file
already are not repeated; with `--again` those are that failed or that older code made. Seconds are processor time.
"""

from __future__ import annotations

import argparse
import re
import resource
import time
import zlib
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from agmc_onnx.arrays import IntArray
from agmc_onnx.errors import AgmcError
from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.view import graph_of
from agmc_onnx.measuring.sizes import graph_at, second_feeds, settle
from agmc_onnx.ops import analyse
from agmc_onnx.ops.vanish import closer_of
from agmc_onnx.pruning.cost import count_macs, macs_cost
from agmc_onnx.pruning.importance import choose, l2_norm
from agmc_onnx.pruning.plan import make_plan
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.pruning.verification import norms_of, verify
from agmc_onnx.search.budget import meet_target
from agmc_onnx.ties.groups import Channels
from tools import zoo
from tools.apart import Row, fill, run_apart

LAYERS_OF_A_TRUNK = 12  # weights; a head has a matrix, a bias, and what normalises them


def half_of(channels: Channels, plain_only: bool = False) -> list[int]:
    """Return half of every group (`plain_only`: of those no node takes statistics over), in its steps."""
    return [
        g.n_units if plain_only and g.normalised_by else max(g.step, g.n_units // 2 // g.step * g.step)
        for g in channels.groups
    ]


def graph_and_cut(proto: onnx.ModelProto) -> tuple[Channels, list[np.ndarray], onnx.ModelProto | None, float]:
    """Return the analysis, half of every group, the model cut to it, and the processor time of all that, s."""
    start = time.process_time()
    channels = analyse(graph_of(normalize(proto)))
    surgeon = Surgeon(channels)
    kept = choose(channels, l2_norm(channels), half_of(channels))
    pruned = surgeon.cut(kept) if channels.groups else None
    return channels, kept, pruned, time.process_time() - start


def layers_of_outputs(channels: Channels) -> int:
    """Return how many weights share the channels of a graph output: of a network without a head, all along its trunk."""
    shared = [0]
    for group in channels.frozen:
        if "graph output" in (group.why_frozen or ""):
            axes = (
                (value, axis.units) for (value, _), axis in channels.axes.items() if value in channels.graph.tensors
            )
            shared.append(len({value for value, units in axes if np.isin(group.units[0], units)}))
    return max(shared)


def kinds_of(reasons: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return reasons without the names of nodes and values, most frequent first; outputs of the graph are none."""
    counted: Counter[str] = Counter()
    for why, n in reasons:
        if "graph output" not in why:
            text = re.sub(r"\b(of|operand|Conv|[A-Z]\w+) [/\w.]*[/_.]\S*", r"\1", why)
            counted[re.sub(r"(cann?|canno|can)$", "cannot be cut with it", text)] += n
    return counted.most_common()


def try_model(name: str, exporter: str, keep: Path | None) -> Row:
    """Return the row of one model."""
    row: Row = {}
    start = time.process_time()
    proto = zoo.load(name, exporter, keep)
    row["export_seconds"] = round(time.process_time() - start, 1)
    row["opset"] = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    channels, kept, pruned, seconds = graph_and_cut(proto)
    graph = channels.graph
    row["nodes"], row["seconds"] = len(graph.nodes), round(seconds, 3)
    row["groups"], row["frozen"] = len(channels.groups), len(channels.frozen)
    row["reasons"] = kinds_of((group.why_frozen or "", 1) for group in channels.frozen)[:8]
    if (n_layers := layers_of_outputs(channels)) >= LAYERS_OF_A_TRUNK:
        row["reasons"].insert(
            0, (f"the channels of the graph's output run through {n_layers} weights and must stay", 1)
        )
    if pruned is None:
        return row | {"valid": True, "equivalent": None, "budget_met": False, "note": "nothing can be cut"}
    cost = macs_cost(channels)
    full = np.array([g.n_units for g in channels.groups], np.int64)
    step = np.array([g.step for g in channels.groups], np.int64)
    total, half = max(cost(full), 1), half_of(channels)
    row["macs"], row["macs_left"] = cost(full), round(cost(half) / total, 4)
    row["as_predicted"] = sum(count_macs(graph_of(pruned)).values()) == cost(half)
    met = meet_target(np.full(full.size, 0.7), cost, full, step, step, total // 2)
    row["smallest"], row["budget_reached"] = round(met.best_reachable / total, 4), round(met.reached / total, 5)
    row["budget_met"] = bool(0.495 * total <= met.reached <= 0.5 * total)
    verified = time.process_time()
    row |= _checked(channels, kept, pruned, total)
    row["verify_seconds"] = round(time.process_time() - verified, 1)
    row["total_seconds"] = round(time.process_time() - start, 1)
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


def try_open(name: str, exporter: str, keep: Path | None) -> Row:
    """Return the row of one model, with that of its export with open height and width as `open`."""
    row = try_model(name, exporter, keep)
    try:
        return row | {"open": _opened(name, exporter, keep)}
    except Exception as error:  # an exporter's, or the analysis': the fixed row stays
        return row | {"open": {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}}


def _opened(name: str, exporter: str, keep: Path | None) -> Row:
    from tests.independent_counter import count
    from tests.oracle import feed_of

    proto = zoo.load(name, exporter, keep, is_open=True)
    spatial = [d.dim_value or 1 for d in zoo.load(name, exporter, keep).graph.input[0].type.tensor_type.shape.dim]
    start = time.process_time()
    sizes = settle(proto, [",".join(map(str, spatial))]).inputs
    model = normalize(proto)
    channels = analyse(graph_at(model, sizes))
    half, cost = half_of(channels), macs_cost(channels)
    kept = choose(channels, l2_norm(channels), half)
    pruned, seconds = Surgeon(channels).cut(kept), time.process_time() - start
    total = max(cost(np.array([g.n_units for g in channels.groups], np.int64)), 1)
    row: Row = {"macs_left": round(cost(half) / total, 4), "groups": len(channels.groups), "seconds": round(seconds, 3)}
    row["reasons"] = kinds_of((group.why_frozen or "", 1) for group in channels.frozen)[:8]
    feeds = [feed_of(model, sizes), *second_feeds(model, sizes, 0)]
    settings = [{name: x.shape for name, x in feed.items()} for feed in feeds]
    row["sizes"] = [list(next(iter(one.values()))) for one in settings]
    counts = [sum(count(pruned, feed).values()) for feed in feeds]
    row["as_counted"] = counts == [macs_cost(analyse(graph_at(model, one)))(half) for one in settings]
    norms = norms_of(channels, kept)
    found = verify(model, pruned, make_plan(channels, kept, "0" * 64), feeds[:1], norms=norms, others=feeds[1:])
    row["equivalent"], row["note"], row["compared"] = found.masked_equivalence, found.note, found.n_samples
    return row | {"relative": float(f"{found.max_abs_diff / (found.max_abs_output + 1e-30):.2g}")}


def _checked(channels: Channels, kept: list[np.ndarray], pruned: onnx.ModelProto, total: int) -> Row:
    """Return whether the cut model is valid and answers as the masked original."""
    row: Row = {}
    model, norms = channels.graph.model, norms_of(channels, kept)
    try:
        found = verify(model, pruned, make_plan(channels, kept, "0" * 64), norms=norms)
        row["valid"] = True
        if norms is None:  # the same once more without the groups that a normalisation sees
            counts = half_of(channels, plain_only=True)
            row["plain_macs_left"] = round(macs_cost(channels)(counts) / total, 4)
            if counts != [g.n_units for g in channels.groups]:
                kept = choose(channels, l2_norm(channels), counts)
                found = verify(model, Surgeon(channels).cut(kept), make_plan(channels, kept, "0" * 64))
        row["equivalent"] = found.masked_equivalence
        row["relative"] = float(f"{found.max_abs_diff / (found.max_abs_output + 1e-30):.2g}")
        row["largest_output"], row["note"] = float(f"{found.max_abs_output:.3g}"), found.note
    except AgmcError as error:
        differs = "differs from the masked" in str(error)
        row |= {"valid": differs or row.get("valid", False), "equivalent": False, "note": str(error)[:300]}
    return row


def try_depth(name: str, exporter: str, keep: Path | None) -> Row:
    """Return what may go of one model, and whether it is right without a random half of it, widths halved where they are left."""
    channels = analyse(graph_of(normalize(zoo.load(name, exporter, keep))))
    closer, cost = closer_of(channels), macs_cost(channels)
    full = np.array([g.n_units for g in channels.groups], np.int64)
    n = len(closer.branches)
    row: Row = {"groups": len(full), "nodes": len(channels.graph.nodes), "branches": n}
    if not n:
        reasons = [(why, 1) for why in closer.why_not.values()]
        return row | {"reasons": kinds_of(reasons)[:3]}
    drawn = np.random.default_rng(zlib.crc32(name.encode())).permutation(n)[: -(-n // 2)]
    worth = [full_cost - cost(_without(full, closer.of([b]).groups)) for full_cost in [cost(full)] for b in range(n)]
    gone = closer.possible(drawn.tolist(), worth)
    row |= {"drawn": len(drawn), "gone": len(gone), "branches_macs": round(sum(worth) / max(cost(full), 1), 3)}
    for widths, counts in (("whole", full.tolist()), ("halved", half_of(channels))):
        n_kept = _without(np.array(counts, np.int64), closer.of(gone).groups)
        kept = choose(channels, l2_norm(channels), n_kept)
        pruned = Surgeon(channels).cut(kept)
        counted = sum(count_macs(graph_of(pruned)).values())
        found = _checked(channels, kept, pruned, max(cost(full), 1))
        row[widths] = found | {
            "as_counted": counted == cost(n_kept),
            "macs_left": round(counted / max(cost(full), 1), 3),
        }
    return row


def _without(kept: IntArray, groups: Iterable[int]) -> IntArray:
    left = kept.copy()
    left[list(groups)] = 0
    return left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("runs/coverage.jsonl"))
    parser.add_argument("--exporters", nargs="*", choices=[*zoo.EXPORTERS], default=[*zoo.EXPORTERS])
    parser.add_argument(
        "--only", nargs="+", help="names, as in tools/architectures.txt, or light:light_alexnet, or files"
    )
    parser.add_argument("--data", type=Path, help="folder whose .onnx files are tried too")
    parser.add_argument("--seconds", type=int, default=600, help="limit of one model's processor time")
    parser.add_argument("--keep", type=Path, help="folder for exported models, to export each only once")
    parser.add_argument("--part", default="1/1", help="K/N: every N-th model from the K-th, for several processes")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no model later than this")
    parser.add_argument("--open", action="store_true", help="export with open height and width too, and check both")
    parser.add_argument("--depth", action="store_true", help="take out a random half of the branches that may go")
    parser.add_argument("--again", action="store_true", help="repeat rows that failed or that older code made")
    args = parser.parse_args()
    files = [name for name in args.only or () if name.startswith("light:") or name.endswith(".onnx")]
    names = [name for name in args.only or zoo.architectures() if name not in files]
    if not args.only:
        files = [f"light:{path.stem}" for path in zoo.light_models()]
        files += [str(path) for path in sorted(args.data.glob("*.onnx"))] if args.data else []
    jobs = [(name, exporter) for exporter in args.exporters for name in names]
    jobs = [*jobs[: len(names)], *((name, "file") for name in files), *jobs[len(names) :]]
    if any(exporter != "file" for _, exporter in jobs):
        zoo.import_frameworks()

    def make(name: str, exporter: str) -> Row:
        tried = try_depth if args.depth else try_open if args.open and exporter != "file" else try_model
        return run_apart(partial(tried, name, exporter, args.keep), args.seconds)

    fill(args.out, jobs, make, args.part, args.again, args.minutes)


if __name__ == "__main__":
    main()

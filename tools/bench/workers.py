"""Time of a search with several worker processes over that with one, in turns on the same machine; prints one JSON line.

    python -m tools.bench.workers MODEL.onnx --data CARD --workers 2 --episodes 40 --repeats 3

Both evaluate the same candidates (same seed and batch); the line says whether they found the same plan. Times are those of
the episodes alone; the start of the processes falls into the first batch, which is left out. `cpu_seconds` is the processor
time of the whole run and of its processes, start included: on a machine whose other cores are busy it says what a run costs,
and `busy` (processor time over wall time) how many cores it got.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path

from agmc_onnx.verbs.compress import compress


def processor_seconds() -> float:
    """Return the processor time of this process and of those it has started and seen the end of."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--policy", default="random")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--episodes", type=int, default=41)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--recover", default="compensate")
    args = parser.parse_args()
    seconds: dict[int, list[float]] = {1: [], args.workers: []}
    cpu_seconds: dict[int, list[float]] = {1: [], args.workers: []}
    busy: dict[int, list[float]] = {1: [], args.workers: []}
    plans = set()
    load = os.getloadavg()[0]
    for _ in range(args.repeats):
        for n_workers, times in seconds.items():
            cpu, wall = processor_seconds(), time.perf_counter()
            found = compress(
                args.model, data=args.data, flops=args.flops, policy=args.policy, episodes=args.episodes, batch=args.batch,
                workers=n_workers, recover=args.recover, latency_seconds=0.05,
            )  # fmt: skip
            # by then every worker has its evaluator: the first batch behind the lone first episode has woken them all
            times.append(sum(record["wall_s"] for record in found.report["history"][1 + args.batch :]))
            plans.add(found.plan.to_json())
            cpu_seconds[n_workers].append(processor_seconds() - cpu)
            busy[n_workers].append(cpu_seconds[n_workers][-1] / (time.perf_counter() - wall))
    ratios = [b / a for a, b in zip(seconds[1], seconds[args.workers], strict=True)]
    row = {
        "model": args.model.name, "workers": args.workers, "batch": args.batch, "episodes": args.episodes - 1 - args.batch,
        "ratio": statistics.median(ratios), "ratios": ratios, "seconds": seconds, "same_plan": len(plans) == 1,
        "cpu_seconds": cpu_seconds, "busy": busy, "cores": os.cpu_count(), "load_before": load,
    }  # fmt: skip
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

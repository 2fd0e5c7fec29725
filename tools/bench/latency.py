"""Latency of candidates: what the table of op times predicts beside what is measured, and what it is good for.

    python -m tools.bench.latency predict MODEL.onnx ...           # 50 random candidates of each
    python -m tools.bench.latency speed MODEL.onnx OUT.onnx ...    # threads 1 and 2, batch 1 and 32, against the first
    python -m tools.bench.latency aware MODEL.onnx                 # at the same MACs: widths by latency, and not

Models are timed in turns. Beside the fastest wall time stands the fastest processor time, which other work on the machine
disturbs less.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from agmc_onnx.graph.files import read_model
from agmc_onnx.latency.predict import latency_cost, sample_counts
from agmc_onnx.latency.timing import compare, ratio
from agmc_onnx.measuring.roles import Roles
from agmc_onnx.measuring.session import make_session, run_model
from agmc_onnx.options import CompressOptions
from agmc_onnx.run.analysis import analyse_model
from agmc_onnx.run.candidates import environment_of
from agmc_onnx.run.latency import latency_target, table_samples
from agmc_onnx.run.precise import laid_out
from agmc_onnx.search.budget import meet_target

ROUNDS = 25  # at least
BLOCK = 3  # inferences of a model in a row; the first, which finds cold caches, does not count


def timed(models: list[Any], feed: Any, seconds: float) -> npt.NDArray[np.float64]:
    """Return the fastest wall and processor time of each model in ms, (n, 2)."""
    sessions = [make_session(model) for model in models]
    best = np.full((len(models), 2), np.inf)
    start, rounds = perf_counter(), 0
    while rounds < ROUNDS or perf_counter() - start < seconds:
        for i, session in enumerate(sessions):
            for n in range(BLOCK):
                wall, cpu = perf_counter(), thread_time()
                run_model(session, feed)
                now = 1000 * (perf_counter() - wall), 1000 * (thread_time() - cpu)
                best[i] = np.minimum(best[i], now) if n else best[i]
        rounds += 1
    return best


def opened(path: str, round_to: str | int) -> tuple[Any, Any, Roles, CompressOptions]:
    """Return the analysis, environment and options of a model without data."""
    settings = CompressOptions.of(latency=0.6, recover="none", round_to=round_to)
    analysis = analyse_model(path)
    data = Roles(analysis.file.proto, None, settings.data, settings.execution)
    return analysis, environment_of(analysis, data, settings), data, settings


def predict(path: str, n: int, seconds: float, round_to: str | int) -> dict[str, Any]:
    """Return how far predictions are from what is measured, for random candidates that the table has not seen."""
    analysis, environment, data, settings = opened(path, round_to)
    start = perf_counter()
    samples = table_samples(analysis, environment, data, settings, lambda stage, facts: None)
    table_s = perf_counter() - start
    target = latency_target(analysis, environment, data, settings, lambda stage, facts: None)
    cost, miss = latency_cost(analysis.channels, samples), target.miss
    counts = sample_counts(environment.n_units, environment.step, environment.min_keep, n + 2, 7)[2:]
    feed = data.role("test").take(1).feeds(1)[0]
    found = timed(
        [analysis.file.proto, *(laid_out(environment.candidate(kept), "cpu") for kept in counts)], feed, seconds
    )
    ms = np.array([cost.ms(environment.n_units), *(cost.ms(kept) for kept in counts)])
    facts: dict[str, Any] = {
        "model": path,
        "n": n,
        "table_s": round(table_s, 1),
        "miss": round(miss, 3),
        "original_ms": found[0].tolist(),
    }
    for name, measured in zip(("wall", "cpu"), found.T, strict=True):
        error, share = ms / measured - 1, miss * ms / ms[0] / (measured / measured[0]) - 1
        facts[name] = {
            "median_error": float(np.median(np.abs(error[1:]))),
            "p90_error": float(np.percentile(np.abs(error[1:]), 90)),
            "bias": float(np.median(error[1:])),
            "median_share_error": float(np.median(np.abs(share[1:]))),
            "rank_correlation": float(spearmanr(ms[1:], measured[1:])[0]),
            "shares": [float((measured[1:] / measured[0]).min()), float((measured[1:] / measured[0]).max())],
        }
    return facts


def speed(paths: list[str], seconds: float) -> list[dict[str, Any]]:
    """Return the time of models over that of the first, for one and two threads, batch 1 and 32."""
    models = [read_model(path).proto for path in paths]
    settings = CompressOptions.of(latency=0.6)
    samples = Roles(models[0], None, settings.data, settings.execution).role("test")
    rows = []
    for threads in (1, 2):
        for batch in (1, 32):
            feed = samples.take(batch).feeds(batch)[0]
            times = compare(models, feed, threads=threads, seconds=seconds, rounds=400)
            for path, one in zip(paths[1:], times[1:], strict=True):
                got = ratio(one, times[0])
                rows.append({
                    "model": path, "threads": threads, "batch": batch, "ms": one.p50, "original_ms": times[0].p50,
                    "median": got.median, "interval": got.interval, "minimum": got.minimum, "cpu": got.cpu, "n": one.n,
                })  # fmt: skip
    return rows


def aware(path: str, shares: list[float], seconds: float) -> list[dict[str, Any]]:
    """Return the latency of candidates with the same MACs, widths as many as four at a time or by latency.

    Among 300 random proposals, each brought to the same budget, one is the median of its kind in predicted latency (what a
    search that sees MACs alone takes is any of them), and one the fastest.
    """
    rows = []
    analysis, environment, data, settings = opened(path, "auto")
    cost = latency_cost(
        analysis.channels, table_samples(analysis, environment, data, settings, lambda stage, facts: None)
    )
    fine = opened(path, 4)[1]
    feed = data.role("test").take(1).feeds(1)[0]
    rng = np.random.default_rng(0)
    for share in shares:
        models: list[Any] = [analysis.file.proto]
        names, predicted, macs = [], [], []
        for name, of in (("multiples of 4", fine), ("auto", environment)):
            budget = int(share * of.macs(of.n_units))
            if of.macs(of.min_keep) > budget:
                continue
            found = []
            for _ in range(300):
                wish = np.clip(rng.uniform(0.2, 1.0) + rng.normal(0, 0.25, len(of.n_units)), 0.05, 1.0)
                kept = meet_target(wish, of.macs, of.n_units, of.step, of.min_keep, budget).kept
                if of.macs(kept) > (share - 0.02) * of.macs(of.n_units):
                    found.append((cost(kept), kept.tolist()))
            found.sort()
            for what, (_, kept) in (("median", found[len(found) // 2]), ("fastest", found[0])):
                names.append(f"{name}, {what}")
                predicted.append(cost(kept) / cost(of.n_units))
                macs.append(of.macs(kept) / of.macs(of.n_units))
                models.append(laid_out(of.candidate(np.array(kept)), settings.execution.provider))
        got = timed(models, feed, seconds)
        for i, name in enumerate(names):
            rows.append({
                "model": path, "share": share, "widths": name, "macs": macs[i], "predicted": predicted[i],
                "wall": got[i + 1, 0] / got[0, 0], "cpu": got[i + 1, 1] / got[0, 1],
            })  # fmt: skip
    return rows


def main() -> None:
    """Print one line of JSON for each result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("predict", "speed", "aware"))
    parser.add_argument("models", nargs="+", metavar="MODEL.onnx")
    parser.add_argument("--n", type=int, default=50, help="random candidates; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing, for each model; default: %(default)s")
    parser.add_argument("--round-to", default="auto", help="widths of the candidates; default: %(default)s")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.7, 0.5], help="of the MACs, for aware")
    arguments = parser.parse_args()
    rows: Iterable[dict[str, Any]]
    if arguments.what == "speed":
        rows = speed(arguments.models, arguments.seconds)
    elif arguments.what == "aware":
        rows = (row for path in arguments.models for row in aware(path, arguments.shares, arguments.seconds))
    else:
        round_to = arguments.round_to if arguments.round_to == "auto" else int(arguments.round_to)
        rows = (predict(path, arguments.n, arguments.seconds, round_to) for path in arguments.models)
    for row in rows:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

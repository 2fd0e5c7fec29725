"""Compare searches at equal evaluations: best reward after 10, 20, 40 of them, and the processor time a policy thinks for.

    python -m tools.compare_searches MODEL.onnx --data CARD --flops 0.5 --policies agmc bare:agmc solver --seeds 0 1 \
        --episodes 40 --out runs/searches.jsonl

With `--latency R` the budget is time, by this machine's table of op times, which is made once and then read. With `--precision
int8` that table is of quantised models, as a search's is; what a policy ends with is quantised, and its fidelity on the reward
role stands in the last column, behind that of the same candidate in float.

Nothing but the search is run: no finalists, no test role. A candidate's reward depends on model, data and seed alone, so all
policies of a seed share the outcomes, which lie beside `--out` and outlast a kill. Runs that are in the file already are not
repeated. `--table` prints what is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from agmc_onnx.arrays import IntArray
from agmc_onnx.measuring.roles import Roles
from agmc_onnx.options import CompressOptions
from agmc_onnx.policies import make_policy
from agmc_onnx.run.analysis import analyse_model
from agmc_onnx.run.candidates import environment_of, reachable
from agmc_onnx.run.latency import latency_target
from agmc_onnx.run.precise import as_run
from agmc_onnx.run.target import target_of
from agmc_onnx.search.environment import Environment
from agmc_onnx.search.loop import search
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.problem import Outcome, Problem
from agmc_onnx.search.rewards import err

Final = Callable[[IntArray], dict[str, float]]  # what is measured of the candidate that a search ends with

AFTER = (10, 20, 40)  # evaluations
BUDGETS = ("flops", "latency")


class Outcomes:
    """What candidates of one model and seed were measured as; a file that grows."""

    def __init__(self, path: Path, model: str, seed: int) -> None:
        """Read the file."""
        self.path, self.key = path, {"model": model, "seed": seed}
        self.found: dict[tuple[int, ...], Outcome] = {}
        self.cpu_s = 0.0
        for row in read_rows(path):
            if {name: row[name] for name in self.key} == self.key:
                self.found[tuple(row["kept"])] = Outcome(**row["outcome"])

    def of(self, environment: Environment, kept: IntArray) -> Outcome:
        """Return the outcome of a candidate, measured at most once."""
        begun, key = time.process_time(), tuple(kept.tolist())
        if key not in self.found:
            self.found[key] = environment.evaluate(kept)
            with self.path.open("a") as file:
                row = {**self.key, "kept": list(key), "outcome": asdict(self.found[key])}
                file.write(json.dumps(row) + "\n")
        self.cpu_s += time.process_time() - begun
        return self.found[key]


def read_rows(path: Path | None) -> list[dict[str, Any]]:
    """Return the lines of a file; none if it is not there."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(problem: Problem, outcomes: Outcomes, key: Mapping[str, Any], final: Final) -> dict[str, Any]:
    """Search once; return what is noted of it."""
    outcomes.cpu_s, begun = 0.0, time.process_time()
    rng = np.random.default_rng(key["seed"])
    policy = make_policy(problem, SearchOptions(key["policy"], key["episodes"]), rng)
    found = search(problem, policy, err, key["episodes"], rng)
    thinking_s = time.process_time() - begun - outcomes.cpu_s
    rewards = [record["reward"] for record in found.history]
    return {**key, "rewards": rewards, "n_extra": found.n_extra, "thinking_s": thinking_s, **final(found.kept)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the best rewards after so many evaluations, means over the seeds, as lines of Markdown."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["model"], _budget(row), row["policy"]].append(row)
    columns = f"{' | '.join(map(str, AFTER))} | thinking, s | seeds | fidelity: float, quantised"
    lines = [f"| network | budget | policy | {columns} |", "|---" * 9 + "|"]
    for (model, budget, policy), runs in sorted(groups.items()):
        best = [statistics.mean(max(row["rewards"][:n]) for row in runs) for n in AFTER]
        told = [
            f"{value:.2f}" if len(runs[0]["rewards"]) >= n else f"({value:.2f})"
            for value, n in zip(best, AFTER, strict=True)
        ]
        seconds = statistics.mean(row["thinking_s"] for row in runs)
        ends = [
            f"{statistics.mean(row[name] for row in runs):.2f}" for name in ("float", "quantised") if name in runs[0]
        ]
        lines.append(
            f"| {model} | {budget} | {policy} | {' | '.join(told)} | {seconds:.0f} | {len(runs)} | {', '.join(ends)} |"
        )
    return "\n".join(lines) + "\n"


def _budget(row: Mapping[str, Any]) -> str:
    budget = next(f"{kind} {row[kind]}" for kind in BUDGETS if kind in row)
    return f"{budget}, {row['precision']}" if "precision" in row else budget


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--flops", type=float, default=0.5)
    budget.add_argument("--latency", type=float)
    parser.add_argument("--precision", choices=("int8", "mixed"))
    parser.add_argument("--policies", nargs="+", default=["agmc"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--reward-samples", type=int, default=500)
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = read_rows(args.out)
    for seed in [] if args.table else args.seeds:
        asked = {"flops": args.flops} if args.latency is None else {"latency": args.latency}
        asked |= {} if args.precision is None else {"precision": args.precision}
        keys = [
            {"model": args.model.name, **asked, "policy": policy, "seed": seed, "episodes": args.episodes}
            for policy in args.policies
        ]
        missing = [key for key in keys if not any(key.items() <= row.items() for row in rows)]
        if not missing:
            continue
        outcomes = Outcomes(args.out.with_suffix(".outcomes.jsonl"), args.model.name, seed)
        problem, final = problem_of(args, asked, seed, outcomes)
        for key in missing:
            rows.append(run(problem, outcomes, key, final))
            with args.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    sys.stdout.write(table(rows))


def problem_of(
    args: argparse.Namespace, asked: Mapping[str, Any], seed: int, outcomes: Outcomes
) -> tuple[Problem, Final]:
    """Return the problem of one seed, as `compress` makes it, and what is measured in the end."""
    settings = CompressOptions.of(**asked, seed=seed, reward_samples=args.reward_samples).with_data(True)
    analysis = analyse_model(args.model)
    roles = Roles(analysis.file.proto, args.data, settings.data, settings.execution)
    environment = environment_of(analysis, roles, settings)
    if args.latency is None:
        target = target_of(settings.budget, analysis.channels)
    else:
        target = latency_target(analysis, environment, roles, settings, lambda *_: None)
    environment = reachable(environment, target, analysis, roles, settings)
    problem = environment.problem(target.cost, target.budget)

    def final(kept: IntArray) -> dict[str, float]:
        if args.precision is None:
            return {}
        evaluator, model = roles.evaluator("reward", roles.n_most, close=True), environment.recovered(kept)
        told = {"float": evaluator(model), "quantised": evaluator(as_run(model, roles, settings))}
        return {name: one.fidelity for name, one in told.items() if one.fidelity is not None}

    return replace(problem, evaluate=lambda kept: outcomes.of(environment, kept)), final


if __name__ == "__main__":
    main()

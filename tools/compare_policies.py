"""Compare policies on one model: same budget, evaluations, ranking, recovery and seeds; one JSON line a run.

    python -m tools.compare_policies MODEL.onnx --data CARD --flops 0.5 --policies agmc uniform --seeds 0 1 2 \
        --episodes 100 --out runs/compare.jsonl

Runs that are in the file already are not repeated, so a killed comparison goes on where it stopped. Ends with a table of
the mean and the spread of the test metric over the seeds.

With --share the policies of one seed share what does not depend on them: the analysis, the error curves, and the outcome of a
candidate that another policy has measured. Results are the same; seconds are then those of what a policy did first.

With --searches RUNS a search that is in that file, with any number of finalists, is not repeated: its finalists are recovered
in full and measured, as many as --finalists says. So one search tells what a run takes with one finalist and with several.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from agmc_onnx.arrays import IntArray
from agmc_onnx.data.samples import load_card, open_data
from agmc_onnx.graph.files import read_model
from agmc_onnx.measuring.accuracy import Evaluation, Evaluator
from agmc_onnx.measuring.roles import Roles
from agmc_onnx.measuring.session import model_inputs
from agmc_onnx.options import CompressOptions, Search
from agmc_onnx.policies import POLICIES, PolicyFactory, Row, make_policy
from agmc_onnx.run import recovering, stages
from agmc_onnx.run.analysis import Analysis
from agmc_onnx.search.environment import Environment
from agmc_onnx.search.loop import SearchResult
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.policy import Policy
from agmc_onnx.search.problem import Problem
from agmc_onnx.verbs import compress as pipeline

# Ablations of the guided AGMC, as policies of their own: options of its agent, options of its guide.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "agmc-frozen": ({"frozen_encoder": True}, {}),  # encoder and decoder as initialised, as in the published code
    "agmc-linear": ({"n_updates": 0}, {}),  # the guide alone: actor, critic and encoder learn nothing
    "agmc-untaught": (
        {},
        {"generalist": False},
    ),  # the error model starts from a rule instead of what the generalist says
    "agmc-all": ({}, {"n_preferred": 99}),  # measures all of the prior's candidates
    "agmc-single": ({}, {"recombine": False}),  # climbs from the best episode alone
}
# What the agent sees (AGMC, figure 4): columns of AMC's static features, or None for encoder and decoder. All bare.
STATES: dict[str, list[int] | None] = {
    "state-stride": [5],
    "state-stride-n": [5, 1],
    "state-amc": list(range(8)),
    "state-agmc": None,
    "state-frozen": None,
}


def add_variants() -> None:
    """Add the ablations to the table of policies."""

    def guided(own: Mapping[str, Any], guide: Mapping[str, Any]) -> PolicyFactory:
        def policy(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> Policy:
            from agmc_onnx.policies.guide.guided import GuideOptions
            from agmc_onnx.policies.guide.informed import InformedAgmcOptions

            changed = {"own": InformedAgmcOptions(**own), "guide": GuideOptions(**guide)}
            return make_policy(problem, replace(options, policy="agmc", **changed), rng)

        return policy

    def sees(columns: list[int] | None, is_frozen: bool) -> PolicyFactory:
        def policy(problem: Problem, options: SearchOptions, rng: np.random.Generator) -> Policy:
            from agmc_onnx.policies.agmc.options import AgmcOptions
            from agmc_onnx.policies.agmc.policy import AgmcPolicy
            from agmc_onnx.policies.amc import amc_states
            from agmc_onnx.policies.guide.linear_budget import fit_linear_budget

            class Seeing(AgmcPolicy):
                def make_states(self) -> Any:
                    if columns is None:
                        return super().make_states()
                    assert problem.layers is not None
                    seen = replace(problem, layers=problem.layers[:, columns])
                    return amc_states(seen, fit_linear_budget(problem).weight)

            return Seeing(problem, replace(options, own=AgmcOptions(frozen_encoder=is_frozen)), rng)

        return policy

    rows = {name: guided(own, guide) for name, (own, guide) in VARIANTS.items()}
    rows |= {name: sees(columns, name == "state-frozen") for name, columns in STATES.items()}
    POLICIES.update({name: Row(make, batches=True, needs=("torch",)) for name, make in rows.items()})


@contextmanager
def as_found() -> Iterator[None]:
    """Let `compress` keep what a search found under a budget on MACs, fast or not.

    Otherwise a result that is measured to be slower than its original gives way to another candidate: what a user wants, but then
    the accuracy is not that of the policy, and depends on the machine.
    """
    before = pipeline.settled
    pipeline.settled = lambda job, environment, target, found: found
    try:
        yield
    finally:
        pipeline.settled = before


class Remembering:
    """An evaluator that measures no model twice."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._known: dict[bytes, Evaluation] = {}

    def __call__(self, model: onnx.ModelProto, **more: Any) -> Evaluation:
        if more:
            return self._evaluator(model, **more)
        name = hashlib.sha256(model.SerializeToString(deterministic=True)).digest()
        if name not in self._known:
            self._known[name] = self._evaluator(model)
        return self._known[name]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._evaluator, name)


@contextmanager
def shared() -> Iterator[None]:
    """Let runs of one seed share the analysis, the environment with its error curves, recovered finalists, and outcomes.

    All of them depend on model, data, seed and how candidates are measured, not on the policy, the budget or the episodes.
    """
    apart = ("policy", "episodes", "flops", "latency_seconds")
    before = pipeline.analyse_model, pipeline.roles_of, pipeline.environment_of, recovering.recovered
    held: dict[object, Any] = {}

    def once(name: object, make: Callable[[], Any]) -> Any:
        if name not in held:
            held[name] = make()
        return held[name]

    def named(what: str, analysis: Analysis, settings: CompressOptions) -> str:
        told = {name: value for name, value in settings.flat().items() if name not in apart}
        return repr((what, analysis.file.sha256, sorted(told.items())))

    def roles(analysis: Analysis, data: str, settings: CompressOptions) -> Roles:
        def make() -> Roles:
            made = before[1](analysis, data, settings)
            evaluator = made.evaluator
            made.evaluator = cache(lambda *asked, **more: Remembering(evaluator(*asked, **more)))  # type: ignore[method-assign]
            return made

        return once(named("roles", analysis, settings), make)

    def environment(analysis: Analysis, data: Roles, settings: CompressOptions, **more: Any) -> Environment:
        def make() -> Environment:
            made = before[2](analysis, data, settings, **more)
            evaluate = made.evaluate
            measure = cache(lambda kept, *best: evaluate(np.array(kept, np.int64), *best))
            made.evaluate = lambda kept, *best: measure(tuple(kept.tolist()), *best)  # type: ignore[method-assign]
            return made

        return once(named("environment", analysis, settings), make)

    def recovered(analysis: Analysis, kept: list[IntArray], *more: Any) -> onnx.ModelProto:
        units = b"|".join(one.tobytes() for one in kept)
        name = named("recovered", analysis, more[2])
        return once((name, units), lambda: before[3](analysis, kept, *more))

    pipeline.analyse_model, pipeline.roles_of = cache(before[0]), roles
    pipeline.environment_of, recovering.recovered = environment, recovered
    try:
        yield
    finally:
        pipeline.analyse_model, pipeline.roles_of, pipeline.environment_of, recovering.recovered = before


@contextmanager
def searched(row: Mapping[str, Any]) -> Iterator[None]:
    """Let `compress` take the candidates and rewards of a run before, and search no more."""
    before = stages.search_candidates

    def known(analysis: Analysis, environment: Environment, *more: Any) -> SearchResult:
        history = [
            {
                "episode": episode, "reward": reward, "metric": metric, "fidelity": None, "kept": kept,
                "macs": int(environment.macs(kept)), "params": int(environment.params(kept)),
                "inference_s": 0.0, "wall_s": 0.0, "cached": False,
            }
            for episode, (reward, metric, kept) in enumerate(
                zip(row["rewards"], row["metrics"], row["candidates"], strict=True)
            )
        ]  # fmt: skip
        best = max(history, key=lambda record: record["reward"])
        return SearchResult(np.array(best["kept"], np.int64), best["reward"], history)

    stages.search_candidates = known
    try:
        yield
    finally:
        stages.search_candidates = before


def same(row: Mapping[str, Any], key: Mapping[str, Any], but: Sequence[str] = ()) -> bool:
    return all(row.get(name) == value for name, value in key.items() if name not in but)


def read_rows(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    add_variants()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--flops", nargs="+", type=float, default=[0.5])
    parser.add_argument("--policies", nargs="+", default=["agmc", "uniform"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--recover", default="compensate")
    parser.add_argument("--reward-samples", type=int, default=500)
    parser.add_argument("--judge", default="fidelity")
    parser.add_argument("--finalists", type=int, default=Search.finalists)
    parser.add_argument("--share", action="store_true", help="share what does not depend on the policy")
    parser.add_argument("--searches", type=Path, help="runs whose searches are not repeated, but their finalists")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows, known = read_rows(args.out), read_rows(args.searches)
    for seed in args.seeds:
        with as_found(), shared() if args.share else nullcontext():
            for flops, policy in product(args.flops, args.policies):
                key = {
                    "model": args.model.name, "flops": flops, "policy": policy, "seed": seed, "episodes": args.episodes,
                    "recover": args.recover, "reward_samples": args.reward_samples, "judge": args.judge,
                    "finalists": args.finalists,
                }  # fmt: skip
                if any(same(row, key) for row in rows):
                    continue
                before = [row for row in known if same(row, key, but=["finalists"])]
                with searched(before[0]) if before else nullcontext():
                    rows.append(run(args, key))
                with args.out.open("a") as out:
                    out.write(json.dumps(rows[-1]) + "\n")
                sys.stdout.write(
                    f"{flops} {policy} seed {seed}: test {rows[-1]['test']:.2f}, reward {rows[-1]['best_reward']:.2f}\n"
                )
                sys.stdout.flush()
    print_table(rows)


def run(args: argparse.Namespace, key: Mapping[str, Any]) -> dict[str, Any]:
    """Compress once; return what is noted of it."""
    result = pipeline.compress(
        args.model,
        data=args.data,
        latency_seconds=1.0,
        **{name: value for name, value in key.items() if name != "model"},
    )
    report = result.report
    tested = tester(args.model, args.data)(result.model)
    return {
        **key, "evaluations": report["evaluations"], "reached": report["target"]["reached"],
        "best_reward": max(record["reward"] for record in report["history"]),
        "rewards": [record["reward"] for record in report["history"]],
        "metrics": [record["metric"] for record in report["history"]],
        "candidates": [record["kept"] for record in report["history"]],
        "original": report["original"]["metric"]["value"], "test": report["compressed"]["metric"]["value"],
        "test_fidelity": tested.fidelity,
        "as_cut": report["compressed"]["metric_before_recovery"], "wall_s": report["wall_s"],
        "inference_s": report["inference_s"], "kept": [g["kept"] for g in report["groups"]], "shared": args.share,
    }  # fmt: skip


@cache
def tester(model: Path, data: str) -> Evaluator:
    """Return what measures, on the test role, how close a model's outputs are to the original's."""
    original = read_model(model).proto
    dataset = open_data(load_card(data), model_inputs(original))
    return Evaluator(dataset.role("test"), dataset.metric, original=original, reference=original)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the mean and spread of the test metric of every policy, and how close it comes to the original's outputs."""
    table = defaultdict(list)
    for row in rows:
        table[
            row["model"], row["flops"], row["recover"], row["episodes"], row.get("judge", "metric"), row["policy"]
        ].append(row)
    for name, runs in sorted(table.items(), key=str):
        tests = [row["test"] for row in runs]
        spread = statistics.stdev(tests) if len(tests) > 1 else 0.0
        near = [row["test_fidelity"] for row in runs if row.get("test_fidelity") is not None]
        fidelity = f" fidelity {statistics.mean(near):.2f}," if near else ""
        sys.stdout.write(
            f"{name}: test {statistics.mean(tests):.2f} +- {spread:.2f} (n = {len(tests)}),{fidelity} original"
            f" {runs[0]['original']:.2f}, {statistics.mean(row['wall_s'] for row in runs):.0f} s\n"
        )


if __name__ == "__main__":
    main()

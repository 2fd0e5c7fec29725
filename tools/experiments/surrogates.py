"""How well AGMC's error model and its critic order good candidates that a search has not measured yet.

    python tools/experiments/surrogates.py MODEL.onnx --data CARD --runs runs/policies.jsonl --flops 0.5 --after 25 50

Shows a fresh policy the first episodes of a run of AGMC (`tools/compare_policies.py`), and asks it for all candidates of all
policies' runs at that budget and seed that it has not seen and that are at most `--near` points of reward behind the best it has.
Prints, for the error model, the critic and the sum of both in units of their deviations: the rank correlation with the rewards,
and the reward of the five it likes best over the mean.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr

from agmc_onnx.options import CompressOptions
from agmc_onnx.policies.agmc.policy import AgmcPolicy
from agmc_onnx.run.analysis import analyse_model
from agmc_onnx.run.candidates import environment_of
from agmc_onnx.run.samples import roles_of, with_recovery
from agmc_onnx.run.target import target_of
from agmc_onnx.search.problem import Outcome, Problem

Array = npt.NDArray[np.float64]
LIKED, FEWEST = 5, 12  # candidates whose reward is told, and that there must be


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--flops", type=float, nargs="+", default=[0.5])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--after", type=int, nargs="+", default=[25])
    parser.add_argument("--near", type=float, default=2.0)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.runs.read_text().splitlines()]
    for flops in args.flops:
        own = [
            row
            for row in rows
            if (row["model"], row["flops"], row["seed"]) == (args.model.name, flops, args.seed) and "candidates" in row
        ]
        shown = [row for row in own if row["policy"] == "agmc"]
        if not shown:
            sys.exit(f"surrogates: {args.runs} has no run of agmc on {args.model.name} at {flops:g}, seed {args.seed}.")
        problem, settings = problem_of(args.model, args.data, flops, args.seed)
        for n in args.after:
            told = ordered(problem, settings, shown[0], own, n, args.near)
            sys.stdout.write(f"{args.model.name} {flops:g} after {n}: {told}\n")


def problem_of(model: Path, data: str, flops: float, seed: int) -> tuple[Problem, CompressOptions]:
    """Return what a search at this budget would be given."""
    settings = CompressOptions.of(flops=flops, seed=seed)
    analysis = analyse_model(model)
    settings = with_recovery(analysis, data, settings)
    environment = environment_of(analysis, roles_of(analysis, data, settings), settings)
    target = target_of(settings.budget, analysis.channels)
    return environment.problem(target.cost, target.budget), settings


def ordered(
    problem: Problem, settings: CompressOptions, shown: dict[str, Any], rows: list[dict[str, Any]], n: int, near: float
) -> str:
    """Return what is printed of a policy that has seen the first n episodes of a run."""
    policy = AgmcPolicy(problem, settings.of_policies(), np.random.default_rng(settings.execution.seed))
    for kept, reward in list(zip(shown["candidates"], shown["rewards"], strict=True))[:n]:
        policy.observe(np.array(kept) / problem.n_units, reward, Outcome(reward + 100.0, 0.0))
    seen = {tuple(kept) for kept in shown["candidates"][:n]}
    least = max(shown["rewards"][:n]) - near
    new = {
        tuple(kept): reward
        for row in rows
        for kept, reward in zip(row["candidates"], row["rewards"], strict=True)
        if tuple(kept) not in seen and reward > least
    }
    if len(new) < FEWEST or policy.guide is None:
        return f"{len(new)} candidates, too few"
    ratios, rewards = torch.as_tensor(np.array(list(new)) / problem.n_units), np.array(list(new.values()))
    model, critic = policy.guide.model.expected(ratios).numpy(), policy.agent.judge(ratios.float()).double().numpy()
    judged = {"model": model, "critic": critic, "both": standardised(model) + standardised(critic)}
    return f"{len(new)} candidates; " + "; ".join(f"{name} {told(values, rewards)}" for name, values in judged.items())


def told(values: Array, rewards: Array) -> str:
    """Return the rank correlation, and what the best by these values have over the mean."""
    liked = rewards[np.argsort(-values, kind="stable")[:LIKED]].mean() - rewards.mean()
    return f"{spearmanr(values, rewards).statistic:.2f}, {liked:+.2f}"


def standardised(values: Array) -> Array:
    """Return values less their mean, over their deviation."""
    return (values - values.mean()) / max(float(values.std()), 1e-9)


if __name__ == "__main__":
    main()

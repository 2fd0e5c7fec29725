"""The smallest model that loses no more than a number of points: budgets are tried until the loss says which one it is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from agmc_onnx.errors import BudgetError
from agmc_onnx.measuring.paired import Drop, DropMeter
from agmc_onnx.run.candidates import reachable
from agmc_onnx.run.stages import Found, Job, joined, search_once
from agmc_onnx.run.target import Target
from agmc_onnx.search.environment import Environment
from agmc_onnx.search.policies import TAKE_FEW

CLOSE = 0.02  # share of the cost between the smallest model that was accepted and the largest that was not
FIRST = 0.5  # share tried first
SMALLER = 0.92  # a learned policy tries this share of what the quick one has reached, again and again
MOST_SEARCHES = 3  # of a learned policy
ALL = 1 << 40  # samples of the reward role


def by_drop(job: Job, environment: Environment, target: Target) -> Found:
    """Return the smallest model found whose loss on the reward role is at most `max_drop`, with 95 % confidence.

    Budgets are bisected; every one is searched, its best candidate recovered in full and compared with the original on the
    whole reward role, sample by sample. A policy that needs many evaluations is spared most of it: the greedy one finds how
    far one can go, then the policy tries to go further. Nothing here looks at the test role.

    Raises:
        BudgetError: If no smaller model stays within the loss.
    """
    trial = _Trials(job, environment, target)
    quick = job.settings if job.settings.policy in TAKE_FEW else replace(job.settings, policy="greedy", reward="err")
    least = target.cost(environment.min_keep) / target.full
    low, high, share = least, 1.0, max(FIRST, (1 + least) / 2 if least > FIRST else FIRST)
    while high - low > CLOSE and not trial.interrupted:
        reached = trial.run(share, quick)
        low, high = (share, high) if reached is None else (low, min(reached, share))
        share = (low + high) / 2
    if quick is not job.settings:
        for _ in range(MOST_SEARCHES):
            share = max((trial.reached or high) * SMALLER, least)
            if trial.interrupted or share >= (trial.reached or 1.0) or trial.run(share, job.settings) is None:
                break
    return trial.result()


class _Trials:
    """Budgets that were tried, and the best that came of them."""

    def __init__(self, job: Job, environment: Environment, target: Target) -> None:
        assert job.settings.max_drop is not None
        self.job, self.environment, self.target = job, environment, target
        self.limit: float = job.settings.max_drop
        self.meter = DropMeter(job.data.evaluator("reward", ALL), job.analysis.file.proto)
        self.told: list[dict[str, Any]] = []
        self.found: list[Found] = []
        self.best: Found | None = None
        self.reached: float | None = None  # share of the cost that the best has
        self.interrupted = False

    def run(self, share: float, settings: Any) -> float | None:
        """Search within a share of the cost; return the share reached, or None where the model loses too much."""
        start = time.perf_counter()
        aim, job = replace(self.target, share=share), replace(self.job, settings=settings)
        job.tell(f"trying {100 * share:.1f} %", {"share": share})
        environment = reachable(self.environment, aim, job.analysis, job.data, settings)
        found = search_once(job, environment, aim, job.journal)
        if found.search.interrupted:
            self.interrupted = True
            if self.best is None:
                raise KeyboardInterrupt("interrupted before any model was within the drop.")
            return None
        drop = self.meter(found.model)
        reached = aim.cost(found.search.kept) / aim.full
        accepted = drop.most <= self.limit
        self.found.append(found)
        self.told.append(_trial(share, reached, drop, accepted, settings.policy, time.perf_counter() - start))
        if accepted and (self.reached is None or reached < self.reached):
            self.best, self.reached = found, reached
        return reached if accepted else None

    def result(self) -> Found:
        """Return the best model, with the history of all searches."""
        if self.best is None:
            last = max(self.told, key=lambda one: float(one["reached"]))
            unsure = last["most"] - last["drop"]
            samples = f"{last['n']:,} sample{'s' if last['n'] != 1 else ''} of the reward role"
            more = " Most of that is doubt: give the card more reward samples, or" if unsure > self.limit / 2 else ""
            raise BudgetError(
                f"--max-drop: no smaller model stays within {self.limit:g} points; the largest tried keeps"
                f" {last['reached']:.3f} of the {self.target.kind} and loses {last['drop']:.2f}, at most {last['most']:.2f}"
                f" with 95 % confidence on {samples}.{more or ' Try'} --recover distill, or allow a larger drop.",
                1.0,
            )
        history = joined([one.search for one in self.found], "trial")
        search = replace(
            self.best.search, history=history.history, n_extra=history.n_extra, interrupted=self.interrupted
        )
        mine = next(one for one in self.told if one["accepted"] and one["reached"] == self.reached)
        facts = {"max_drop": {"limit": self.limit, **_facts(mine), "trials": self.told}}
        return replace(self.best, search=search, facts=facts)


def _trial(share: float, reached: float, drop: Drop, accepted: bool, policy: str, wall_s: float) -> dict[str, Any]:
    numbers = asdict(drop)
    return {
        "keep": share, "reached": reached, "policy": policy, "drop": numbers["value"], "most": numbers["most"],
        "n": numbers["n"], "original": numbers["original"], "metric": numbers["model"], "accepted": accepted,
        "wall_s": round(wall_s, 3),
    }  # fmt: skip


def _facts(trial: Mapping[str, Any]) -> dict[str, Any]:
    return {name: trial[name] for name in ("keep", "reached", "drop", "most", "n", "original", "metric", "policy")}

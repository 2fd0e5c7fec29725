"""The smallest model that loses no more than a number of points: budgets are tried until the loss says which one it is."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from agmc_onnx.errors import BudgetError
from agmc_onnx.measuring.paired import Drop, DropMeter
from agmc_onnx.options import CompressOptions
from agmc_onnx.policies import POLICIES
from agmc_onnx.run.candidates import reachable, search_candidates
from agmc_onnx.run.precise import as_run
from agmc_onnx.run.stages import Found, Job, joined, recover_best
from agmc_onnx.run.target import Target
from agmc_onnx.search.environment import Environment
from agmc_onnx.search.loop import SearchResult

CLOSE = 0.02  # share of the cost between the smallest model that was accepted and the largest that was not
FIRST = 0.5  # share tried first
SMALLER = 0.92  # a learned policy tries this share of what the quick one has reached, again and again
MOST_SEARCHES = 3  # of a learned policy
ALL = 1 << 40  # samples of the reward role


def by_drop(job: Job, environment: Environment, target: Target) -> Found:
    """Return the smallest model found whose loss on the reward role is at most `max_drop`, with 95 % confidence.

    Budgets are bisected; every one is searched, its best candidate recovered in full and compared with the original on the
    whole reward role, sample by sample. A policy that needs many evaluations is spared most of it: the greedy one finds how
    far one can go, then the policy tries to go further: within ever smaller budgets, or, rewarded by R_FLOPs or R_Param
    (AGMC, eq. 13 and 14), in one search without any budget. Nothing here looks at the test role.

    Raises:
        BudgetError: If no smaller model stays within the loss.
    """
    trial = _Trials(job, environment, target)
    few = POLICIES[job.settings.search.policy].few
    quick = job.settings.but(policy=job.settings.search.policy if few else "greedy", reward="err", finalists=1)
    least = target.share_of(environment.min_keep)
    low, high, share = least, 1.0, max(FIRST, (1 + least) / 2 if least > FIRST else FIRST)
    while high - low > CLOSE and not trial.interrupted:
        reached = trial.run(share, quick)
        low, high = (share, high) if reached is None else (low, min(reached, share))
        share = (low + high) / 2
    if job.settings.search.reward != "err" and not trial.interrupted:
        trial.explore(job.settings)
    elif not few:
        for _ in range(MOST_SEARCHES):
            share = max((trial.reached or high) * SMALLER, least)
            if trial.interrupted or share >= (trial.reached or 1.0) or trial.run(share, job.settings) is None:
                break
    return trial.result()


@dataclass(frozen=True)
class _Trial:
    """A budget that was tried; `found` is None where an interrupted run had measured it, and only `kept` is known."""

    asked: float
    reached: float
    settings: CompressOptions
    environment: Environment
    search: SearchResult
    found: Found | None
    drop: Drop
    wall_s: float

    def facts(self) -> dict[str, Any]:
        """Return the trial as the report has it."""
        drop = self.drop
        return {
            "keep": self.asked, "reached": self.reached, "policy": self.settings.search.policy, "drop": drop.value,
            "most": drop.most, "n": drop.n, "original": drop.original, "metric": drop.model,
        }  # fmt: skip


class _Trials:
    """Budgets that were tried, and the best that came of them."""

    def __init__(self, job: Job, environment: Environment, target: Target) -> None:
        assert job.settings.budget.max_drop is not None
        self.job, self.environment, self.target = job, environment, target
        self.limit: float = job.settings.budget.max_drop
        self.meter = DropMeter(job.data.evaluator("reward", ALL), job.analysis.file.proto)
        self.done: list[_Trial] = []
        self.best: _Trial | None = None
        self.interrupted = False

    @property
    def reached(self) -> float | None:
        """Share of the cost that the best has."""
        return None if self.best is None else self.best.reached

    def run(self, share: float, settings: CompressOptions) -> float | None:
        """Search within a share of the cost; return the share reached, or None where the model loses too much."""
        start = time.perf_counter()
        aim, job = replace(self.target, share=share), replace(self.job, settings=settings)
        job.tell(f"trying {100 * share:.1f} %", {"share": share})
        environment = reachable(self.environment, aim, job.analysis, job.data, settings, tell=job.tell)
        clock = replace(job.clock, searches=MOST_SEARCHES)
        search = search_candidates(
            job.analysis, environment, aim, job.data, settings, job.journal, job.tell, None, clock
        )
        if search.interrupted:
            self.interrupted = True
            if self.best is None:
                raise KeyboardInterrupt("interrupted before any model was within the drop.")
            return None
        return self._measure(f"keep {share!r} by {settings.search.policy}", aim, search, environment, job, start)

    def explore(self, settings: CompressOptions) -> None:
        """Search without a budget, and try the most rewarded candidates that are smaller than what was found so far."""
        job, aim = replace(self.job, settings=settings.but(finalists=1)), replace(self.target, share=1.0)
        job.tell("exploring", {})
        search = search_candidates(
            job.analysis, self.environment, aim, job.data, settings, job.journal, job.tell, None, job.clock
        )
        self.interrupted = search.interrupted
        records = {tuple(one["kept"]): float(one["reward"]) for one in search.history}
        costs = {key: aim.share_of(np.array(key, np.int64)) for key in records}
        smaller = [key for key in records if costs[key] < (self.reached or 1.0)]
        for key in sorted(smaller, key=lambda key: -records[key])[:MOST_SEARCHES]:
            start, chosen = time.perf_counter(), replace(search, kept=np.array(key, np.int64))
            self._measure(f"keep {list(key)} by {settings.search.policy}", aim, chosen, self.environment, job, start)

    def _measure(
        self, name: str, aim: Target, search: SearchResult, environment: Environment, job: Job, start: float
    ) -> float | None:
        """Recover what a search found in full and compare it with the original; return as `run`."""
        share, settings, found = aim.share, job.settings, None
        note = None if job.journal is None else job.journal.notes.get(name)
        if note is None:
            found = recover_best(job, environment, search)
            search, drop = replace(search, kept=found.search.kept), self.meter(as_run(found.model, job.data, settings))
            if job.journal is not None:
                job.journal.note(name, {"kept": search.kept.tolist(), "drop": asdict(drop)})
        else:
            search, drop = replace(search, kept=np.array(note["kept"], np.int64)), Drop(**note["drop"])
        reached = aim.share_of(search.kept)
        trial = _Trial(share, reached, settings, environment, search, found, drop, time.perf_counter() - start)
        self.done.append(trial)
        if drop.most > self.limit:
            return None
        if self.best is None or reached < self.best.reached:
            self.best = trial
        return reached

    def result(self) -> Found:
        """Return the best model, with the history of all searches."""
        best = self.best
        if best is None:
            raise self._nothing()
        found = best.found
        if found is None:  # recovery has no chance in it: this is the model that was measured
            job = replace(self.job, settings=best.settings.but(finalists=1))
            found = recover_best(job, best.environment, best.search)
        searches = {id(one.search.history): one.search for one in self.done}  # one may have given several models
        history = joined(searches.values(), "trial")
        search = replace(found.search, history=history.history, n_extra=history.n_extra, interrupted=self.interrupted)
        trials = [
            {**one.facts(), "accepted": one.drop.most <= self.limit, "wall_s": round(one.wall_s, 3)}
            for one in self.done
        ]
        return replace(
            found, search=search, facts={"max_drop": {"limit": self.limit, **best.facts(), "trials": trials}}
        )

    def _nothing(self) -> BudgetError:
        last = max(self.done, key=lambda one: one.reached)
        drop = last.drop
        doubt = (
            " Most of that is doubt: give the card more reward samples, or"
            if drop.most - drop.value > self.limit / 2
            else " Try"
        )
        return BudgetError(
            f"--max-drop: no smaller model stays within {self.limit:g} points; the largest tried keeps"
            f" {last.reached:.3f} of the {self.target.kind} and loses {drop.value:.2f}, at most {drop.most:.2f} with 95 %"
            f" confidence on {drop.n:,} reward samples.{doubt} --recover distill, or allow a larger drop.",
            1.0,
        )

"""A budget reached in one step or in several, each recovered before the next begins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from agmc_onnx.arrays import FloatArray, IntArray
from agmc_onnx.errors import UsageError
from agmc_onnx.graph.files import read_model, write_model
from agmc_onnx.measuring.roles import Roles
from agmc_onnx.options import CompressOptions
from agmc_onnx.pruning.plan import make_plan
from agmc_onnx.pruning.verification import masked
from agmc_onnx.run.analysis import Analysis, Base
from agmc_onnx.run.candidates import environment_of, reachable, search_candidates
from agmc_onnx.run.clock import Clock
from agmc_onnx.run.progress import Progress
from agmc_onnx.run.recovering import best_finalist, distilled
from agmc_onnx.run.target import Target
from agmc_onnx.search.environment import Environment
from agmc_onnx.search.journal import Journal, Section
from agmc_onnx.search.loop import SearchResult


@dataclass(frozen=True)
class Job:
    """What all searches of a run share.

    Attributes:
        analysis: Of the model.
        data: The roles.
        settings: Of the run.
        output: Where the result goes, or None.
        journal: Of its evaluations, or None.
        tell: Takes progress.
        clock: When it began, and how long it may take.
        begin: Keep ratios that the search proposes first; None: the policy begins.
    """

    analysis: Analysis
    data: Roles
    settings: CompressOptions
    output: str | Path | None
    journal: Journal | None
    tell: Progress
    clock: Clock
    begin: FloatArray | None = None


@dataclass(frozen=True)
class Found:
    """What a search, or several, came to.

    Attributes:
        model: Recovered, not verified yet.
        kept: For each group the kept positions.
        search: The kept counts, and the history of all searches one after the other.
        finalists: What was measured of the last search's best.
        facts: What the report says of stages or of the accuracy that was guaranteed, by the report's keys.
    """

    model: onnx.ModelProto
    kept: list[IntArray]
    search: SearchResult
    finalists: list[dict[str, Any]]
    facts: dict[str, Any]


def search_once(
    job: Job, environment: Environment, target: Target, journal: Journal | Section | None, base: Base | None = None
) -> Found:
    """Search within a budget, and recover the best candidate."""
    found = search_candidates(
        job.analysis, environment, target, job.data, job.settings, journal, job.tell, base, job.clock, job.begin
    )
    return recover_best(job, environment, found)


def recover_best(job: Job, environment: Environment, search: SearchResult) -> Found:
    """Recover the best candidate of a search in full."""
    analysis, data, settings = job.analysis, job.data, job.settings
    job.tell("recovering", {"recover": settings.recovery.recover})
    model, n_kept, finalists = best_finalist(analysis, environment, search, data, settings, job.tell)
    if settings.recovery.recover == "distill":
        model = distilled(analysis, model, data, settings, job.output, job.tell, environment.kept(n_kept))
    if data.real and settings.recovery.recover in ("compensate", "distill"):
        from agmc_onnx.refit.scores import rescored

        model = rescored(model, analysis.model, data.role("reward"), data.answers)
    return Found(model, environment.kept(n_kept), replace(search, kept=n_kept), finalists, {})


def by_stages(job: Job, environment: Environment, target: Target) -> Found:
    """Reach a budget in `stages` steps: share^(1/n) of what is left in each, so that 0.5 in two is 0.71 of 0.71.

    A stage begins with the recovered network of the one before: its ranking, its refit errors and its weights are new, and
    all its recovery is still towards the original (AGMC, section 4.2, has the stages; it does not say what is carried over).
    """
    n = job.settings.budget.stages
    if n == 1:
        return search_once(job, environment, target, job.journal)
    if job.settings.recovery.recover == "none":
        raise UsageError(f"--stages: got {n} without --data; expected 1, since nothing is recovered between them.")
    done: list[Found] = []
    told: list[dict[str, Any]] = []
    base: Base | None = None
    for stage in range(1, n + 1):
        aim = replace(target, share=target.share if stage == n else target.share ** (stage / n))
        job.tell(f"stage {stage} of {n}", {"share": aim.share})
        if base is not None:
            environment = environment_of(job.analysis, job.data, job.settings, base=base, tell=job.tell)
        environment = reachable(environment, aim, job.analysis, job.data, job.settings, base, job.tell)
        journal = None if job.journal is None else Section(job.journal, stage)
        now = replace(job, clock=replace(job.clock, searches=n + 1 - stage))
        found = _known(job, environment, stage) or search_once(now, environment, aim, journal, base)
        if found.search.interrupted and stage < n:
            raise KeyboardInterrupt(f"interrupted in stage {stage} of {n}.")
        done.append(found)
        _note(job, stage, found)
        told.append({"stage": stage, "keep": aim.share, "reached": aim.cost(found.search.kept) / aim.full})
        plan = make_plan(job.analysis.channels, found.kept, job.analysis.file.sha256, job.analysis.file.proto)
        whole = masked(job.analysis.model, plan, found.model)
        base = Base(whole, found.kept, job.analysis.graph.shapes, is_last=stage + 1 == n)
    return replace(done[-1], search=joined([one.search for one in done], "stage"), facts={"stages": told})


def _note(job: Job, stage: int, found: Found) -> None:
    """Put the model of a stage beside the journal, so that a run which is taken up again begins with the next."""
    if job.journal is None or stage == job.settings.budget.stages or found.search.interrupted:
        return
    write_model(found.model, job.journal.model_path(stage))
    facts = {"kept": found.search.kept.tolist(), "reward": found.search.reward, "finalists": found.finalists}
    job.journal.note(f"stage {stage}", {**facts, "history": found.search.history})


def _known(job: Job, environment: Environment, stage: int) -> Found | None:
    """Return a stage that an interrupted run had finished."""
    if job.journal is None or f"stage {stage}" not in job.journal.notes:
        return None
    path, note = job.journal.model_path(stage), job.journal.notes[f"stage {stage}"]
    if not path.is_file():
        return None
    n_kept = np.array(note["kept"], np.int64)
    search = SearchResult(n_kept, note["reward"], note["history"])
    return Found(read_model(path).proto, environment.kept(n_kept), search, note["finalists"], {})


def joined(searches: Iterable[SearchResult], name: str) -> SearchResult:
    """Return the last of several searches with the history of all, whose records say under `name` which one it was."""
    history: list[dict[str, Any]] = []
    seen: set[tuple[int, ...]] = set()
    last, n_extra = None, 0
    for number, last in enumerate(searches, 1):
        for record in last.history:
            key = (number if name == "stage" else 0, *record["kept"])
            is_known = record["cached"] or key in seen
            seen.add(key)
            history.append({**record, "episode": len(history), name: number, "cached": is_known})
        n_extra += last.n_extra
    assert last is not None
    return replace(last, history=history, n_extra=n_extra)

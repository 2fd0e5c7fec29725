"""How long a command takes: what it is expected to, by what was just measured, and how much of --minutes a search may have."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from agmc_onnx.arrays import IntArray
from agmc_onnx.measuring.roles import Roles
from agmc_onnx.options import CompressOptions
from agmc_onnx.refit.options import rows_of_a_step
from agmc_onnx.search.problem import Outcome

WORTH = 8  # episodes from which on a forecast is worth the two candidates that it measures
DISTILL = (
    8.0  # a training step over an inference of onnxruntime on the same images: student forwards, backwards, and teacher
)
BEYOND = (
    32  # candidates of a search of 100 beside its patience of 15 to 30, on the average (docs/decisions/episodes.md)
)
SHARES = (0.01, 0.25)  # of a full refit, that are timed: hardly more than what does not grow, and what does


@dataclass(frozen=True)
class Forecast:
    """Seconds that the stages of a command are expected to take; a candidate's are of one.

    Attributes:
        candidate: Of the search.
        finalist: Recovered in full and measured on more samples.
        distilling: All steps.
        timing: Of the result beside the original, before it is settled.
        verifying: With writing.
        measuring: Accuracy on the test role, and latency.
    """

    candidate: float
    finalist: float
    distilling: float
    timing: float
    verifying: float
    measuring: float


@dataclass(frozen=True)
class Clock:
    """When a command began, and how long it may take.

    Attributes:
        minutes: It may take so many; None: as many as it needs.
        begun: As `time.perf_counter` has it.
        searches: That are to come, the next one among them; they share what is left.
    """

    minutes: float | None = None
    begun: float = field(default_factory=time.perf_counter)
    searches: int = 1

    def for_search(self, forecast: Forecast | None, n_finalists: int) -> float | None:
        """Return the seconds the next search may take, such that what comes behind it ends in time; None: as many as it needs."""
        if self.minutes is None:
            return None
        left = 60 * self.minutes - (time.perf_counter() - self.begun)
        if forecast is None:
            return max(left, 0.0)
        left -= forecast.timing + forecast.verifying + forecast.measuring
        return max(left / self.searches - n_finalists * forecast.finalist - forecast.distilling, 0.0)


def usual(n_episodes: int, patience: int, n_done: int = 0, n_since: int = 0) -> int:
    """Return the candidates that a search is expected to measure yet, at most all of them.

    Args:
        n_episodes: That it may measure.
        patience: Without a better one, after which it ends.
        n_done: That it has measured.
        n_since: That it has measured since the best one: it cannot end before these are `patience`.
    """
    return min(n_episodes - n_done, max(patience + BEYOND - n_done, patience - n_since))


def raced(n: int) -> float:
    """Return the share of n candidates that a race measures on all its samples.

    Each that is the best so far is, which of n in any order are ln n + 0.6, and as many again that are hardly behind.
    """
    return min(2 * (math.log(n) + 0.6) / n, 1.0) if n else 0.0


def timed(run: Callable[[], object]) -> float:
    """Return the seconds that something takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def forecast(
    evaluate: Callable[[IntArray], Outcome],
    kept: IntArray,
    data: Roles,
    settings: CompressOptions,
    n_raced: int,
    refit: Callable[[IntArray, float], object] | None,
) -> Forecast:
    """Measure a candidate twice - at first what all share is computed - and return what all stages take by that.

    Args:
        evaluate: What measures a candidate here.
        kept: A candidate within the budget.
        data: The roles.
        settings: Of the run.
        n_raced: How many candidates race, the best of them on more samples than the others; 0 without a race.
        refit: Recovers a candidate as finalists are, with a share of the samples and positions; None where none is recovered.
    """
    evaluate(kept)
    start = time.perf_counter()
    outcome = evaluate(kept)
    seconds = time.perf_counter() - start
    inference = outcome.inference_s
    n_reward = max(min(settings.data.reward_samples, data.role("reward").n), 1)
    sample = inference / n_reward
    more = raced(n_raced) * sample * (data.n_most - n_reward)
    recovering = 0.0
    if refit is not None:
        least, some = (timed(partial(refit, kept, share)) for share in SHARES)
        recovering = some + max(some - least, 0.0) * (1 - SHARES[1]) / (SHARES[1] - SHARES[0])
    is_distilled = settings.recovery.recover == "distill"
    rows = rows_of_a_step(answer.kind for answer in data.answers)
    budget, to_time = settings.budget, settings.execution.latency_seconds
    is_settled = budget.max_drop is None and budget.stages == 1 and budget.latency_table is None
    return Forecast(
        candidate=(seconds + more) / settings.execution.workers,
        finalist=recovering + sample * data.n_most,
        distilling=settings.recovery.distill_steps * rows * DISTILL * sample if is_distilled else 0.0,
        timing=(2 if budget.is_latency else 1) * to_time if is_settled else 0.0,
        verifying=seconds,
        measuring=3 * sample * data.role("test").n + 2 * to_time,
    )


def told(found: Forecast, n_episodes: int, n_finalists: int, seconds: float | None) -> dict[str, Any]:
    """Return what is told of a forecast before a search: a dict of stage -> (how many, seconds each), in order."""
    n = n_episodes if seconds is None else max(1, min(n_episodes, int(seconds / max(found.candidate, 1e-6))))
    stages = {"candidates": (n, found.candidate), "finalists": (n_finalists, found.finalist)}
    later = {name: (1, getattr(found, name)) for name in ("distilling", "timing", "verifying", "measuring")}
    return {"stages": {**stages, **{name: one for name, one in later.items() if one[1]}}}

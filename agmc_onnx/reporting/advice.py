"""What the verdict on a run needs to name the next step: how much to keep for less loss, and what else there is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agmc_onnx.arrays import IntArray
from agmc_onnx.errors import AgmcError
from agmc_onnx.latency.timing import compare, ratio
from agmc_onnx.policies.guide.prior import greedy_candidates
from agmc_onnx.precision.int8 import OPSET
from agmc_onnx.precision.quantiser import Quantiser, target_here
from agmc_onnx.refit.options import rows_of_a_step
from agmc_onnx.reporting.schema import Report
from agmc_onnx.reporting.verdict import Circumstances, share_for
from agmc_onnx.run.clock import DISTILL
from agmc_onnx.run.stages import Job
from agmc_onnx.run.target import Target
from agmc_onnx.search.environment import Environment

STEP = 0.05  # of the shares to keep that the curves are asked about


def circumstances(job: Job, environment: Environment, target: Target, kept: IntArray, report: Report) -> Circumstances:
    """Return what the next step after a run depends on.

    Args:
        job: The run.
        environment: Its candidates, with the error curves.
        target: Its budget.
        kept: Counts of the result.
        report: Of the run, all else measured.
    """
    data, settings = job.data, job.settings
    times = report.latency_ratio
    has_budget = settings.budget.max_drop is None
    lost = 0.0 if report.loss is None or not data.real else report.loss.points
    is_lost = data.real and report.loss is not None and (report.loss.interval or (lost,))[0] > 0
    return Circumstances(
        recover=settings.recovery.recover or "none",
        n_calibration=data.role("calibration").n if data.real else None,
        n_train=data.lessons.n if data.real else None,
        distil_minutes=_distil_minutes(job, report) if data.real else None,
        keep=target.share if has_budget else None,
        kind=target.kind,
        time=None if times is None else times.median if times.cpu is None else times.cpu,
        keep_more=keep_more(environment, target, kept, lost) if has_budget else None,
        int8=int8_alone(job, report) if is_lost and settings.sparsity.precision == "float" else None,
    )


def int8_alone(job: Job, report: Report) -> tuple[float, float] | None:
    """Return the original's share of the time in int8, and the points it loses so; None where it cannot be quantised."""
    here, data = job.settings.execution, job.data
    if job.analysis.graph.opset < OPSET:  # advice is not worth a conversion
        return None
    try:
        quantiser = Quantiser(data.role("calibration"), target_here(here.provider), here.threads)
        model = quantiser(job.analysis.file.proto).model
        feeds = data.role("test").take(8).feeds(1)
        models = [job.analysis.file.proto, model]
        times = compare(models, feeds, threads=here.threads, seconds=here.latency_seconds, provider=here.provider)
        score = data.evaluator("test")(model).score
    except AgmcError:
        return None
    return ratio(times[1], times[0]).steady, report.original.metric.value - score.value


def _distil_minutes(job: Job, report: Report) -> float:
    """Return what distillation takes, by the time of one inference."""
    rows = rows_of_a_step(answer.kind for answer in job.data.answers)
    return job.settings.recovery.distill_steps * rows * DISTILL * report.compressed.latency_ms.p50 / 60_000


def keep_more(environment: Environment, target: Target, kept: IntArray, lost: float) -> float | None:
    """Return the share to keep at which the error curves expect a loss of one point; None where they cannot say.

    They are asked for the greedy widths of every larger budget, all layers kept.
    """
    if environment.curves is None or len(kept) != len(environment.n_units) or lost <= 1:
        return None
    curves = environment.curves()
    problem = replace(environment.problem(target.cost, target.budget), depth=None)

    def error(counts: IntArray) -> float:
        return float(sum(curves.error(g, int(n)) for g, n in enumerate(counts)))

    shares, errors = [target.share], [error(kept)]
    for share in np.arange(target.share + STEP, 1.0, STEP).tolist():
        wider = replace(problem, budget=replace(target, share=share).budget)
        found = greedy_candidates(wider, curves)
        if found:
            shares.append(share)
            errors.append(error(np.rint(found[-1] * problem.n_units).astype(np.int64)))
    return share_for(errors, shares, lost)

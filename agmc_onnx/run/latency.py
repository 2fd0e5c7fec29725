"""Latency in a run: learned from timed samples, met by the search, settled by measuring; slower results give way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx

from agmc_onnx.arrays import IntArray
from agmc_onnx.errors import UsageError
from agmc_onnx.graph.files import write_atomically
from agmc_onnx.latency import op_times as time_ops
from agmc_onnx.latency.predict import latency_cost, sample_counts
from agmc_onnx.latency.tables import LatencyTable, cache_path, cached_table, read_table, time_sample
from agmc_onnx.latency.timing import MORE_ROUNDS, Ratio, compare, ratio
from agmc_onnx.measuring.roles import Roles
from agmc_onnx.measuring.session import make_session, provider_of
from agmc_onnx.options import Budget, CompressOptions
from agmc_onnx.pruning.widths import AUTO, FINE
from agmc_onnx.run.analysis import Analysis
from agmc_onnx.run.candidates import environment_of
from agmc_onnx.run.precise import as_run, as_timed
from agmc_onnx.run.progress import PREPARING, Progress
from agmc_onnx.run.recovering import distilled, recovered
from agmc_onnx.run.stages import Found, Job
from agmc_onnx.run.target import Target
from agmc_onnx.search.depth import Depth
from agmc_onnx.search.environment import Environment
from agmc_onnx.search.joint import JointEnvironment

SAMPLES = 24  # candidates whose ops are timed: 3 s for ResNet-20, 10 s for MobileNetV2
SHALLOWER = 8  # more of them, with branches gone
AIM = 0.99  # share of the budget that a correction aims at
OVER, UNDER = 1.005, 0.97  # share of the budget within which a measured latency is accepted
AGREE = 0.02  # of the budget: two measurements that differ by more need a third
CORRECTIONS = 4
BESIDE = 8  # samples that are measured beside the original
TRIED = 3  # other candidates that are measured where the best is slower than the original


@dataclass(frozen=True)
class Measured:
    """A result's latency beside its original's.

    Attributes:
        ratio: Of the two.
        predicted: The same from the table, or None where there is none.
    """

    ratio: Ratio
    predicted: float | None = None


def table_samples(
    analysis: Analysis, environment: Environment, data: Roles, settings: CompressOptions, tell: Progress
) -> Sequence[Mapping[str, Any]]:
    """Return the timed samples of a model: from the table given, this machine's, or timed now and put there.

    Raises:
        UsageError: If the table given is not of this model.
    """
    sha256, n_units = table_key(analysis.file.sha256, settings), environment.n_units.tolist()
    if settings.budget.latency_table is not None:
        table = read_table(settings.budget.latency_table)
        samples = table.models.get(sha256, [])
        if not fits(samples, n_units):
            raise UsageError(
                f"{settings.budget.latency_table}: has no times of {analysis.file.path.name}; expected a table filled for this"
                " very file. Make a request with agmc-onnx time-ops and fill it on the device."
            )
        return samples
    original = make_session(analysis.file.proto, settings.execution.threads, settings.execution.provider)
    table = cached_table(settings.execution.threads, provider_of(original), 1)
    samples = table.models.get(sha256, [])
    is_deep = environment.depth is not None
    if not fits(samples, n_units) or (is_deep and all(min(sample["kept"]) for sample in samples)):
        samples = timed_samples(analysis, environment, data, settings, table, tell)
        path = cache_path(table.threads, table.provider, table.batch)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, table.with_model(sha256, samples).to_json().encode())
        samples = read_table(path).models[sha256]
    return samples


def table_key(sha256: str, settings: CompressOptions) -> str:
    """Return the name of a model's samples in a table: its digest, and the precision they were timed in where it is not float."""
    precision = settings.sparsity.precision
    return sha256 if precision == "float" else f"{sha256}-{precision}"


def fits(samples: Sequence[Mapping[str, Any]], n_units: list[int]) -> bool:
    """Whether samples are of a network with these groups: the first is the whole of it."""
    return bool(samples) and list(samples[0]["kept"]) == n_units


def samples_of(environment: Environment, n: int = SAMPLES) -> list[IntArray]:
    """Return the kept counts of the candidates whose ops are timed: in this run's widths, and in finer ones."""
    groups = environment.channels.groups
    fine = np.array([np.lcm(g.step, FINE) if g.n_units >= np.lcm(g.step, FINE) else g.step for g in groups], np.int64)
    n_units = environment.n_units
    coarse = sample_counts(n_units, environment.step, environment.min_keep, n - n // 2, 0)
    others = sample_counts(n_units, fine, np.minimum(fine, n_units), n // 2 + 1, 1)[1:]
    shallower = [] if environment.depth is None else _without_some(environment, environment.depth, [*coarse, *others])
    # the original, which all shares refer to, is timed three times
    return [*coarse, *shallower, n_units, *others, n_units]


def _without_some(environment: Environment, depth: Depth, widths: Sequence[IntArray]) -> list[IntArray]:
    """Return kept counts in which random branches are gone: some of these widths, and all others whole."""
    rng = np.random.default_rng(2)
    found = []
    for i in range(SHALLOWER):
        n = len(depth.groups)
        gone = depth.possible(np.flatnonzero(rng.random(n) < (i + 1) / (SHALLOWER + 1)).tolist())
        kept = (widths[2 + i // 2] if i % 2 and len(widths) > 2 + i // 2 else environment.n_units).copy()
        kept[depth.nothing(gone)] = 0
        found.append(kept)
    return found


def timed_samples(
    analysis: Analysis,
    environment: Environment,
    data: Roles,
    settings: CompressOptions,
    table: LatencyTable,
    tell: Progress,
) -> list[Mapping[str, Any]]:
    """Return sample candidates with the times of their ops on this machine; of some also the share of the original's."""
    feed = data.role("calibration").take(1).feeds(1)[0]
    samples: list[Mapping[str, Any]] = []
    ms = compare([analysis.file.proto], feed, threads=table.threads, provider=table.provider, rounds=3, warmup=1)[0].p50
    counts = samples_of(environment)
    candidates: dict[int, onnx.ModelProto] = {}
    for n_pass in range(time_ops.PASSES):
        for i, kept in enumerate(counts):
            tell(
                PREPARING,
                {"what": "times of ops", "done": n_pass * len(counts) + i, "n": time_ops.PASSES * len(counts)},
            )
            candidate = candidates.get(i) or as_timed(environment.candidate(kept), data, settings)
            if settings.sparsity.precision != "float":  # which are small, and take long to make
                candidates[i] = candidate
            found = {"kept": kept.tolist(), **time_sample(candidate, feed, table.threads, table.provider, ms)}
            samples[i:] = [time_ops.faster(samples[i], found), *samples[i + 1 :]] if n_pass else [found]
    samples = [*time_ops.calmed(samples)]
    deep = [i for i, kept in enumerate(counts) if not kept.all()][: BESIDE // 2]
    wide = [i for i, kept in enumerate(counts) if i > 1 and kept.all()][: BESIDE - len(deep)]
    beside = sorted([*wide, *deep])
    times = compare(
        [
            analysis.file.proto,
            *(candidates.get(i) or as_timed(environment.candidate(counts[i]), data, settings) for i in beside),
        ],
        feed,
        threads=table.threads,
        provider=table.provider,
        rounds=MORE_ROUNDS,
        seconds=settings.execution.latency_seconds,
    )
    for i, latency in zip(beside, times[1:], strict=True):
        samples[i] = {**samples[i], "share": ratio(latency, times[0]).steady}
    return samples


def latency_target(
    analysis: Analysis, environment: Environment, data: Roles, settings: CompressOptions, tell: Progress
) -> Target:
    """Return a budget on latency.

    Some samples were measured beside the original; what they differ from the prediction is taken into account.
    """
    samples = table_samples(analysis, environment, data, settings, tell)
    cost = latency_cost(analysis.channels, samples)
    full = cost(environment.n_units)
    if full <= 0:
        raise UsageError(
            f"--latency: the table of op times predicts {full:g} ms for the whole model; expected more. Time its ops again."
        )
    misses = [sample["share"] * full / cost(sample["kept"]) for sample in samples if "share" in sample]
    table = hashlib.sha256(json.dumps(list(samples), sort_keys=True).encode()).hexdigest()
    share = 1.0 if settings.budget.latency is None else settings.budget.latency  # what --max-drop tries is less
    return Target("latency", share, cost, full, float(np.median(misses)) if misses else 1.0, table)


def is_here(budget: Budget) -> bool:
    """Return whether the latency asked for is that of this machine, so that it can be measured."""
    return budget.latency_table is None or dict(read_table(budget.latency_table).device) == time_ops.device()


def measured(
    analysis: Analysis,
    model: onnx.ModelProto,
    data: Roles,
    settings: CompressOptions,
    target: Target | None = None,
    kept: IntArray | None = None,
) -> Measured:
    """Measure a candidate beside the original, in turns, on samples of the calibration role."""
    feeds, here = data.role("calibration").take(8).feeds(1), settings.execution
    times = compare(
        [analysis.file.proto, as_run(model, data, settings)], feeds, threads=here.threads, seconds=here.latency_seconds,
        rounds=MORE_ROUNDS, provider=here.provider,
    )  # fmt: skip
    predicted = None if target is None or kept is None else target.cost(kept) / target.full
    return Measured(ratio(times[1], times[0]), predicted)


def settled(job: Job, environment: Environment, target: Target, found: Found) -> Found:
    """Return the result with its latency measured, and corrected where that says so.

    A latency budget that is missed, by the measured time, is solved again with what was learned from the miss. A result
    that is slower than its original gives way to another candidate that is not. What was done stands in the facts.
    """
    # Another candidate was not held against the drop, does not come from the stage before, or has densities beside widths.
    budget = job.settings.budget
    is_bound = budget.max_drop is not None or budget.stages > 1 or isinstance(environment, JointEnvironment)
    if found.search.interrupted or is_bound or not is_here(job.settings.budget):
        return found
    job.tell("timing", {})
    if target.kind == "latency":
        return _within(job, environment, target, found)
    return _not_slower(job, environment, target, found)


def _within(job: Job, environment: Environment, target: Target, found: Found) -> Found:
    """Solve a latency budget again until the measured latency meets it.

    What seems to miss it is measured once more, and a third time where the two differ: one measurement on a busy machine is not
    enough to give up what a search found. The median counts, and what the search has evaluated goes before what it has not.
    """
    tried: list[tuple[float, Found]] = []
    told: list[dict[str, Any]] = []
    for _ in range(CORRECTIONS):
        shares: list[float] = []
        while not _is_sure(shares, target.share):
            got = measured(job.analysis, found.model, job.data, job.settings, target, found.search.kept)
            assert got.predicted is not None
            shares.append(got.ratio.steady)
            told.append({"predicted": got.predicted, "measured": asdict(got.ratio), "kept": found.search.kept.tolist()})
            job.tell("latency", {"share": shares[-1], "keep": target.share})
        share = float(np.median(shares))
        tried.append((share, found))
        if UNDER * target.share <= share <= OVER * target.share:
            break
        misses = [one / (target.cost(trial.search.kept) / target.full) for one, trial in tried]
        aim = replace(target, share=AIM * target.share, miss=float(np.mean(misses)))
        kept = _evaluated(aim, found)
        kept = _solved(environment, aim, found.search.kept / environment.n_units) if kept is None else kept
        if any(np.array_equal(kept, one.search.kept) for _, one in tried):
            break
        found = _instead(job, environment, found, kept)
    good = [one for one in tried if one[0] <= OVER * target.share]
    share, found = max(good, key=lambda one: one[0]) if good else min(tried, key=lambda one: one[0])
    facts = {"keep": target.share, "reached": share, "trials": told}
    return replace(found, facts={**found.facts, "latency_budget": facts})


def _is_sure(shares: Sequence[float], asked: float) -> bool:
    """Return whether measured shares are enough: one within the budget, two that agree, or three."""
    if len(shares) == 1:
        return UNDER * asked <= shares[0] <= OVER * asked
    return len(shares) > 2 or (len(shares) == 2 and abs(shares[0] - shares[1]) <= AGREE * asked)


def _evaluated(aim: Target, found: Found) -> IntArray | None:
    """Return the most rewarded candidate of a search that fills a budget without exceeding it, or None."""
    costs = {tuple(record["kept"]): aim.cost(np.array(record["kept"], np.int64)) for record in found.search.history}
    least = UNDER / AIM * aim.budget
    fitting = [one for one in found.search.history if least <= costs[tuple(one["kept"])] <= aim.budget]
    return np.array(max(fitting, key=lambda one: one["reward"])["kept"], np.int64) if fitting else None


def _not_slower(job: Job, environment: Environment, target: Target, found: Found) -> Found:
    """Return another candidate where the measured one is slower than the original."""
    got = measured(job.analysis, found.model, job.data, job.settings)
    if is_slower(got.ratio):  # on a busy machine one measurement is not enough to throw away the best candidate
        got = measured(job.analysis, found.model, job.data, job.settings)
    if not is_slower(got.ratio):
        return found
    job.tell("slower", {"share": got.ratio.steady})
    told = [{"measured": asdict(got.ratio), "kept": found.search.kept.tolist()}]
    best = (got.ratio.steady, found)
    for kept in _faster(job, environment, target, found):
        other = _instead(job, environment, found, kept)
        got = measured(job.analysis, other.model, job.data, job.settings)
        told.append({"measured": asdict(got.ratio), "kept": kept.tolist()})
        best = min(best, (got.ratio.steady, other), key=lambda one: one[0])
        if not is_slower(got.ratio):
            break
    share, chosen = best
    word = "another candidate was taken" if chosen is not found else "no candidate tried is faster"
    facts = {"note": f"the best candidate was slower than the original ({100 * told[0]['measured']['median']:.1f} %); {word}",
             "reached": share, "trials": told}  # fmt: skip
    return replace(chosen, facts={**chosen.facts, "slower": facts})


def measured_share(reached: float, ratio: float, target: Target, budget: Budget) -> dict[str, Any]:
    """Return what the report says of a latency budget: the share that was measured, and what the table predicts.

    Of another device's latency only the prediction is known here, and the device is named.

    Args:
        reached: Share by the cost that was searched with.
        ratio: Measured here: of processor time where that compares, else of the medians.
        target: The budget.
        settings: Of the run.
    """
    predicted = reached * target.miss
    if is_here(budget) or budget.latency_table is None:
        return {"predicted": predicted, "reached": ratio}
    return {"predicted": predicted, "reached": predicted, "device": dict(read_table(budget.latency_table).device)}


def is_slower(found: Ratio) -> bool:
    """Return whether a model is slower than its original, by all that was measured."""
    return found.steady > 1.0 and found.interval[0] > 1.0


def _faster(job: Job, environment: Environment, target: Target, found: Found) -> list[IntArray]:
    """Return candidates within the budget that the table says are faster than the original, best first."""
    samples = table_samples(job.analysis, environment, job.data, job.settings, job.tell)
    cost = latency_cost(job.analysis.channels, samples)
    full = cost(environment.n_units)
    history = sorted(found.search.history, key=lambda record: -record["reward"])
    others = [np.array(record["kept"], np.int64) for record in history]
    wide = environment_of(job.analysis, job.data, job.settings.but(round_to=AUTO))
    if target.cost(wide.min_keep) <= target.budget:
        others.append(_solved(wide, target, found.search.kept / environment.n_units))
    own = tuple(found.search.kept.tolist())
    fast = {tuple(kept.tolist()): kept for kept in others if cost(kept) < full}
    return [kept for key, kept in fast.items() if key != own][:TRIED]


def _solved(environment: Environment, target: Target, keep_ratio: Any) -> IntArray:
    return environment.solved(keep_ratio, target.cost, target.budget)


def _instead(job: Job, environment: Environment, found: Found, kept: IntArray) -> Found:
    """Return what was found with other kept counts, recovered anew."""
    units = environment.kept(kept)
    model = recovered(job.analysis, units, environment.candidate(kept), job.data, job.settings)
    if job.settings.recovery.recover == "distill":
        model = distilled(job.analysis, model, job.data, job.settings, job.output, job.tell, units)
    return replace(found, model=model, kept=units, search=replace(found.search, kept=kept))

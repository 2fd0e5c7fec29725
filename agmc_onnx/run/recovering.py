"""Recovery of what a search found: in full, in closed form, then by distillation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from agmc_onnx.arrays import FloatArray, IntArray
from agmc_onnx.measuring.racing import BEHIND, is_lost
from agmc_onnx.measuring.roles import Roles
from agmc_onnx.measuring.session import processors
from agmc_onnx.options import CompressOptions
from agmc_onnx.pruning.plan import make_plan
from agmc_onnx.pruning.sparsity import sparsity_of, thin_by_magnitude
from agmc_onnx.run.analysis import Analysis
from agmc_onnx.run.precise import quantised
from agmc_onnx.run.progress import Progress
from agmc_onnx.search.environment import Environment
from agmc_onnx.search.joint import JointEnvironment
from agmc_onnx.search.journal import run_folder
from agmc_onnx.search.loop import SearchResult


def best_finalist(
    analysis: Analysis,
    environment: Environment,
    found: SearchResult,
    data: Roles,
    settings: CompressOptions,
    tell: Progress,
) -> tuple[onnx.ModelProto, IntArray, list[dict[str, Any]]]:
    """Recover the candidates with the highest rewards in full, and take the best one by all samples of the reward role.

    Rewards of a search are measured after a quick refit; among the best of many its noise decides. So the first candidate is one
    of the finalists too: of policies that begin with the prior's a mean of greedy ones, or what the generalist likes best. They
    are judged as candidates are: by fidelity unless `judge` says otherwise. What finalists differ by in accuracy is less than
    what some thousand images can tell; half of them choose twice as well by fidelity (docs/decisions/finalists.md). Of those
    that cannot be told from the best one, image by image, the one with the fewest ops is taken: it is the faster one, whatever a
    table of times or a count of MACs says.

    Returns:
        The best finalist's model and kept counts, and what was measured of each.
    """
    rewarded = {tuple(record["kept"]): record["reward"] for record in reversed(found.history)}
    ordered = sorted(rewarded, key=lambda kept: (kept != tuple(found.kept.tolist()), -rewarded[kept]))
    n_finalists = 1 if found.interrupted or settings.recovery.recover == "none" else settings.search.finalists
    chosen = ordered[:n_finalists]
    first = tuple(found.history[0]["kept"])
    if n_finalists > 1 and first not in chosen:
        chosen[-1] = first
    evaluator = data.evaluator("reward", data.n_most, close=True) if n_finalists > 1 else None
    finalists: list[dict[str, Any]] = []
    found_of: list[_Finalist] = []
    for place, kept in enumerate(chosen):
        tell("finalist", {"place": place, "n": len(chosen)})
        n_kept = np.array(kept, np.int64)
        units = environment.kept(n_kept)
        shares = environment.shares(n_kept) if isinstance(environment, JointEnvironment) else {}
        model = recovered(analysis, units, environment.candidate(n_kept), data, settings, shares)
        judged = 0.0, 0.0
        errors: FloatArray | None = None
        if evaluator is not None:
            exact = quantised(model, data, settings)
            told = evaluator(model if exact is None else exact.model, race=True)
            errors = told.errors if settings.data.judge == "fidelity" else None
            close = told.fidelity if settings.data.judge == "fidelity" and told.fidelity is not None else 0.0
            judged = close, told.score.value  # the metric where outputs cannot be compared
            facts = {
                "kept": list(kept),
                "reward": rewarded[kept],
                "metric": told.score.value,
                "fidelity": told.fidelity,
            }
            if exact is not None:
                in_float = evaluator(model)
                facts |= {"float_metric": in_float.score.value, "float_fidelity": in_float.fidelity}
            finalists.append(facts)
        found_of.append(_Finalist(judged, errors, len(model.graph.node), model, n_kept))
    best = _leanest(found_of)
    for finalist in finalists:
        finalist["taken"] = finalist["kept"] == best.n_kept.tolist()
    return best.model, best.n_kept, finalists


@dataclass(frozen=True, eq=False)
class _Finalist:
    """A candidate recovered in full: how it is judged, its error image by image, its ops, and what it is."""

    judged: tuple[float, float]
    errors: FloatArray | None
    n_ops: int
    model: onnx.ModelProto
    n_kept: IntArray


def _leanest(finalists: Sequence[_Finalist]) -> _Finalist:
    """Return the best finalist, or one of those with fewer ops that are not behind it by more than a race allows."""
    best = max(finalists, key=lambda one: one.judged)  # the first of equals
    if best.errors is None:
        return best
    level = [one for one in finalists if one.errors is not None and not is_lost(one.errors, best.errors, BEHIND)]
    return min(level, key=lambda one: (one.n_ops, -one.judged[0], -one.judged[1]))


def distilled(
    analysis: Analysis,
    model: onnx.ModelProto,
    data: Roles,
    settings: CompressOptions,
    output: str | Path | None,
    tell: Progress,
    kept: list[IntArray],
) -> onnx.ModelProto:
    """Let the refitted result learn from the original, with all processors; the reward role decides which state is kept."""
    from agmc_onnx.distill.distillation import distill
    from agmc_onnx.refit.options import RecoverOptions
    from agmc_onnx.torch_view.threads import torch_threads

    evaluator = data.evaluator("reward", data.n_most)
    sparsity = sparsity_of(settings.sparsity, analysis.graph, settings.recovery.is_refit)
    steps = settings.recovery.distill_steps
    with torch_threads(max(settings.execution.threads, processors())):
        return distill(
            model,
            analysis.model,
            data.lessons,
            RecoverOptions(n_steps=steps, seed=settings.execution.seed, evaluate_every=max(1, min(200, steps // 5))),
            lambda step, n, facts: tell("distilling", {"step": step, "n_steps": n, **facts}),
            augment=data.augment,
            reward=lambda candidate: evaluator(candidate).score.value,
            folder=None if output is None else run_folder(output),
            thinned=() if sparsity is None else sparsity.names,
            answers=data.answers,
            cut=make_plan(analysis.channels, kept, analysis.file.sha256).tensors,
        )


def recovered(
    analysis: Analysis,
    kept: list[IntArray],
    as_cut: onnx.ModelProto,
    data: Roles,
    settings: CompressOptions,
    shares: Mapping[str, float] | None = None,
    share: float = 1.0,
) -> onnx.ModelProto:
    """Recover the chosen candidate with all that the calibration role has; candidates were with a part of it.

    With a `share` of its samples and of the positions, in smaller batches, it takes that share of the time but for what does
    not grow with them.
    """
    calibration = data.role("calibration")
    sparsity = sparsity_of(settings.sparsity, analysis.graph, settings.recovery.is_refit)
    if sparsity is not None:
        sparsity = replace(sparsity, shares=shares or {})
    if settings.recovery.recover == "none":
        return as_cut if sparsity is None else thin_by_magnitude(as_cut, sparsity)
    from agmc_onnx.refit.compensation import compensate
    from agmc_onnx.refit.options import RecoverOptions
    from agmc_onnx.refit.thin import Thinner

    options, thin = RecoverOptions(seed=settings.execution.seed), None if sparsity is None else Thinner(sparsity)
    if share < 1:
        n, positions = min(options.n_samples, calibration.n), math.ceil(share * options.n_positions)
        rows = math.ceil(share * options.batch_size)
        options = replace(options, n_samples=math.ceil(share * n), n_positions=positions, batch_size=rows)
    if settings.recovery.recover == "statistics":
        from agmc_onnx.refit.statistics import Restatement

        return Restatement(analysis.channels, calibration, options)(kept, as_cut)
    model = compensate(analysis.channels, kept, as_cut, calibration, options, thin=thin)
    return model if sparsity is None else thin_by_magnitude(model, sparsity)

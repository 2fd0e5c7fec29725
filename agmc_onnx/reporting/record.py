"""The report of a run, measured and put together."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from agmc_onnx.graph.files import ModelFile, model_bytes
from agmc_onnx.graph.naming import layer_name
from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.sizes import InputSizes
from agmc_onnx.graph.view import Graph, graph_of
from agmc_onnx.latency.timing import MORE_ROUNDS, Latency, Ratio, compare, ratio
from agmc_onnx.measuring.accuracy import Evaluator, Score
from agmc_onnx.measuring.memory import peak_bytes
from agmc_onnx.measuring.paired import COUNTS, interval_of
from agmc_onnx.measuring.processor import cpu_name
from agmc_onnx.measuring.roles import Roles
from agmc_onnx.measuring.session import make_session, provider_of
from agmc_onnx.measuring.sizes import Sizes, graph_at
from agmc_onnx.ops.vanish import closer_of
from agmc_onnx.options import CompressOptions
from agmc_onnx.precision.quantiser import Quantised, target_here
from agmc_onnx.pruning.bodies import uncounted
from agmc_onnx.pruning.cost import count_macs, stored_params
from agmc_onnx.pruning.depth import layers_gone
from agmc_onnx.pruning.sparsity import dense
from agmc_onnx.pruning.verification import Verification
from agmc_onnx.reporting.network import network_of
from agmc_onnx.reporting.schema import (
    Compressed,
    DataFacts,
    Division,
    GroupFacts,
    LatencyFacts,
    Metric,
    PrecisionFacts,
    RatioFacts,
    Report,
    Side,
    SizesFacts,
    SourceFacts,
    TargetFacts,
    Twin,
    VerifiedFacts,
)
from agmc_onnx.reporting.verdict import Loss
from agmc_onnx.run.precise import rank_correlation
from agmc_onnx.search.loop import SearchResult
from agmc_onnx.ties.groups import Channels


def compose(
    source: ModelFile,
    channels: Channels,
    as_cut: onnx.ModelProto,
    compressed: onnx.ModelProto,
    data: Roles,
    settings: CompressOptions,
    found: SearchResult,
    checked: Verification,
    target: TargetFacts,
    finalists: list[dict[str, Any]],
    more: Mapping[str, Any],
    sizes: Sizes,
    exact: Quantised | None = None,
) -> Report:
    """Measure the original and the result on the test role, and return the report.

    Args:
        source: The original's file.
        channels: Its analysis.
        as_cut: The chosen candidate before recovery.
        compressed: The result in float.
        data: The roles.
        settings: Of the run.
        found: Of the search.
        checked: How the result was verified.
        target: The budget, and what was reached.
        finalists: What was measured of the best candidates.
        more: Fields that only some runs have.
        sizes: Of the inputs, that all numbers are for.
        exact: The result quantised, where it is.
    """
    evaluator = data.evaluator("test", close=not data.real)
    original, result = source.proto, compressed if exact is None else exact.model
    answered = [evaluator(model, keep_outputs=evaluator.metric in COUNTS) for model in (original, result)]
    before, after = (one.score for one in answered)
    known = interval_of(answered[0], answered[1], evaluator)
    loss = Loss(before.name, before.value, before.value - after.value, before.n, known)
    cut = after if settings.recovery.recover == "none" else evaluator(as_cut).score
    feeds = data.role("test").take(8).feeds(1)
    run = settings.execution
    threads, seconds, provider = run.threads, run.latency_seconds, run.provider
    models = [original, result] if exact is None else [original, result, compressed]
    times = compare(
        models,
        feeds,
        threads=threads,
        seconds=seconds,
        rounds=MORE_ROUNDS,
        provider=provider,
    )
    peaks = [peak_bytes(model, feeds[0]) for model in (original, result)]
    side = _side(compressed, sizes.inputs, after, times[1], peaks[1])
    more = dict(more)
    if exact is not None:
        side |= {"file_bytes": model_bytes(result)}
        more["precision"] = _precision(
            exact, settings, compressed, evaluator, ratio(times[2], times[0]), times[2], finalists
        )
    return Report(
        model=SourceFacts(_name(source.path), source.sha256),
        original=Side(**_side(original, sizes.inputs, before, times[0], peaks[0])),
        compressed=Compressed(
            **side,
            metric_before_recovery=cut.value, weight_density=_density(graph_of(dense(compressed))),
        ),
        latency_ratio=RatioFacts(**asdict(ratio(times[1], times[0]))),
        loss=loss,
        closeness=answered[1].fidelity,
        accuracy_measured=data.real,
        data=DataFacts(str(data.source), data.metric, data.sizes()) if data.real else None,
        target=target,
        policy=settings.search.policy, seed=settings.execution.seed, episodes=len(found.history),
        evaluations=found.n_extra + sum(not record["cached"] for record in found.history),
        interrupted=found.interrupted,
        inference_s=sum(record["inference_s"] for record in found.history if not record["cached"]),
        history=found.history,
        finalists=finalists,
        verified=verified_facts(checked, settings.recovery.recover != "none"),
        groups=_groups(channels, found.kept.tolist()),
        network=network_of(channels.graph, graph_at(compressed, sizes.inputs)),
        sizes=SizesFacts({name: list(dims) for name, dims in sizes.inputs.items()}, sizes.source),
        uncounted=uncounted(channels.graph),
        gone=_gone(channels, found.kept.tolist()),
        settings=settings.flat(),
        environment=environment_versions(provider_of(make_session(result, threads, provider))),
        **more,
    )  # fmt: skip


def _precision(
    exact: Quantised,
    settings: CompressOptions,
    twin: onnx.ModelProto,
    evaluator: Evaluator,
    share: Ratio,
    times: Latency,
    finalists: Sequence[Mapping[str, Any]],
) -> PrecisionFacts:
    """Return what is quantised, and what the twin does."""
    counts = {kind: sum(one == kind for one in exact.precision.values()) for kind in ("int8", "float")}
    facts = Twin(model_bytes(twin), metric_facts(evaluator(twin).score), latency_facts(times), share.steady)
    asked, target = settings.sparsity.precision, target_here(settings.execution.provider)
    correlation = rank_correlation(finalists)
    tried = [Division(**asdict(one)) for one in exact.tried]
    return PrecisionFacts(
        asked, target, counts, exact.ranges, facts, dict(exact.why_float), correlation, dict(exact.stays), tried
    )


def environment_versions(provider: str) -> dict[str, str]:
    """Return the versions a result depends on."""

    def version(*names: str) -> str:
        for name in names:
            try:
                return metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        return "not installed"

    return {
        "agmc_onnx": version("agmc-onnx"), "onnx": version("onnx"), "onnxruntime": version("onnxruntime-gpu", "onnxruntime"),
        "provider": provider, "torch": version("torch"), "python": platform.python_version(), "cpu": cpu_name(),
    }  # fmt: skip


def sizes_of(model: onnx.ModelProto, sizes: InputSizes) -> dict[str, int]:
    """Return the MACs at some sizes of its inputs, the parameters and the bytes of a model."""
    graph = graph_at(normalize(dense(model)), sizes)
    return {"macs": sum(count_macs(graph).values()), "params": stored_params(model), "file_bytes": model_bytes(model)}


def _side(model: onnx.ModelProto, sizes: InputSizes, score: Score, times: Latency, peak: int | None) -> dict[str, Any]:
    return {
        **sizes_of(model, sizes),
        "peak_bytes": peak,
        "metric": metric_facts(score),
        "latency_ms": latency_facts(times),
    }


def latency_facts(times: Latency) -> LatencyFacts:
    """Return the times of a model as the report has them."""
    return LatencyFacts(
        p50=times.p50, p90=times.p90, min=times.minimum, cpu=times.mean_cpu_ms,
        interval=times.interval, cpu_p50=times.cpu_p50, cpu_p10=times.cpu_p10, provider=times.provider,
        batch=times.batch, threads=times.threads, rounds=[round(ms, 4) for ms in times.rounds_ms],
    )  # fmt: skip


def metric_facts(score: Score) -> Metric:
    """Return a score as the report has it."""
    return Metric(score.name, score.value, score.n, score.interval)


def _name(path: Path) -> str:
    """Return a model's path; of one that was given in memory only its name."""
    return path.name if "agmc-given-" in str(path) else str(path)


def _density(graph: Graph) -> float:
    """Return the share of non-zero entries of all weights of two or more dims."""
    total = stay = 0
    for name, tensor in graph.tensors.items():
        if len(tensor.dims) > 1 and graph.is_float(name):
            array = graph.array(name)
            total, stay = total + array.size, stay + int(np.count_nonzero(array))
    return stay / total if total else 1.0


def _gone(channels: Channels, kept: list[int]) -> dict[str, Any] | None:
    """Return which branches are gone, of how many, and how many nodes with them; None where all layers stay."""
    closed = closer_of(channels)(i for i, n in enumerate(kept) if not n)
    if not closed.gone:
        return None
    names, branches = layers_gone(channels, kept), closer_of(channels).branches
    return {
        "branches": names, "of": len(branches), "nodes": len(closed.gone), "of_nodes": len(channels.graph.nodes),
    }  # fmt: skip


def _groups(channels: Channels, kept: list[int]) -> list[GroupFacts]:
    """Return every group with what is kept of it, frozen ones included, in the order of the network."""
    counts = {id(group): n for group, n in zip(channels.groups, kept, strict=True)}
    first: dict[int, int] = {}
    for place, axis in enumerate(channels.axes.values()):
        for unit in np.unique(axis.units).tolist():
            first.setdefault(unit, place)
    ordered = sorted(
        (*channels.groups, *channels.frozen), key=lambda group: min(first[unit] for unit in group.units.tolist())
    )
    return [
        GroupFacts(g.name, g.n_units, counts.get(id(g), g.n_units), g.why_frozen, layer_name(channels.graph, g.name))
        for g in ordered
    ]


def verified_facts(checked: Verification, recovered: bool) -> VerifiedFacts:
    """Return a verification as the report has it."""
    return VerifiedFacts(
        masked_equivalence=checked.masked_equivalence, max_abs_diff=_number(checked.max_abs_diff),
        max_abs_output=_number(checked.max_abs_output), tolerance=_number(checked.tolerance),
        checker=checked.checker, n_samples=checked.n_samples, note=checked.note, recovered=recovered,
        statistics=checked.statistics, random=checked.random, sizes=checked.sizes,
    )  # fmt: skip


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value

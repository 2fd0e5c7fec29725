"""The main job: analyse, search, cut, verify, measure, report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from agmc_onnx.arrays import FloatArray
from agmc_onnx.errors import AgmcError, UsageError, VerificationError
from agmc_onnx.graph.commit import settle
from agmc_onnx.graph.outputs import check_output, stamped, with_id, write_files
from agmc_onnx.measuring.roles import Roles
from agmc_onnx.measuring.session import use_libraries
from agmc_onnx.options import (
    Budget,
    CompressOptions,
    Data,
    Execution,
    Recovery,
    Search,
    Sparsity,
    documented,
    options_in,
)
from agmc_onnx.policies import POLICIES
from agmc_onnx.pruning.cost import stored_params
from agmc_onnx.pruning.plan import Plan, make_plan
from agmc_onnx.pruning.sparsity import facts, smallest, sparse_names, sparse_plan, sparsity_of
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.pruning.verification import Verification
from agmc_onnx.reporting.advice import circumstances
from agmc_onnx.reporting.progress import Episodes, in_notebook
from agmc_onnx.reporting.record import compose, environment_versions
from agmc_onnx.reporting.schema import Report, TargetFacts
from agmc_onnx.reporting.text import one_line
from agmc_onnx.reporting.verdict import Circumstances, judged
from agmc_onnx.run.analysis import Analysis, analyse_model
from agmc_onnx.run.candidates import environment_of, reachable
from agmc_onnx.run.clock import Clock
from agmc_onnx.run.dropping import by_drop
from agmc_onnx.run.inputs import inputs_of
from agmc_onnx.run.latency import latency_target, measured_share, settled
from agmc_onnx.run.precise import laid_out, quantised
from agmc_onnx.run.progress import Progress
from agmc_onnx.run.samples import roles_of, with_recovery
from agmc_onnx.run.stages import Job, by_stages
from agmc_onnx.run.target import Target, target_of
from agmc_onnx.search.environment import Environment
from agmc_onnx.search.joint import JointEnvironment
from agmc_onnx.search.journal import Journal, run_folder
from agmc_onnx.verbs.given import Given, on_files, path_of
from agmc_onnx.verbs.verify import checked

# options that do not change what a search finds, but when or how far
NOT_IN_JOURNAL = ("resume", "workers", "ray", "minutes", "latency_seconds")


class Made:
    """What a verb made: short in print, its first numbers in a notebook, and `save` writes it."""

    model: onnx.ModelProto
    report: Any
    twin: onnx.ModelProto | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {one_line(self.report)}>"

    def _repr_html_(self) -> str:
        from agmc_onnx.reporting.html import cards

        return cards(self.report)

    def _texts(self) -> dict[str, str]:
        return {}

    def save(self, output: str | Path, *, force: bool = False) -> Path:
        """Write the model and the files of its set, and return the model's path.

        Args:
            output: The model's path.
            force: Write over files that are not ours.

        Raises:
            UsageError: If it cannot be written.
        """
        settle(output)
        check_output(output, {}, force, has_twin=self.twin is not None)
        write_files(self.model, self._texts(), output, twin=self.twin)
        return Path(output)


@dataclass(frozen=True, repr=False)
class Result(Made):
    """What `compress` made.

    Attributes:
        model: The compressed model.
        plan: What was kept.
        report: All numbers.
        verification: How it was checked.
        twin: The model in float, where the result is not: what the plan speaks of.
    """

    model: onnx.ModelProto
    plan: Plan
    report: Report
    verification: Verification
    twin: onnx.ModelProto | None = None

    def _texts(self) -> dict[str, str]:
        from agmc_onnx.reporting.html import render

        return {"plan": self.plan.to_json(), "report": self.report.to_json(), "html": render(self.report)}


@on_files
@documented
def compress(
    model: Given,
    *,
    output: str | Path | None = None,
    data: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
    flops: float | None = Budget.flops,
    params: float | None = Budget.params,
    latency: float | None = Budget.latency,
    max_drop: float | None = Budget.max_drop,
    minimise: str = Budget.minimise,
    latency_table: str | Path | None = Budget.latency_table,
    stages: int = Budget.stages,
    judge: str = Data.judge,
    reward_samples: int = Data.reward_samples,
    racing: bool = Data.racing,
    search_samples: int = Data.search_samples,
    input_shape: tuple[str, ...] = Data.input_shape,
    policy: str = Search.policy,
    episodes: int = Search.episodes,
    patience: int = Search.patience,
    reward: str = Search.reward,
    finalists: int = Search.finalists,
    importance: str | None = Search.importance,
    round_to: int | str | None = Search.round_to,
    floor: float = Search.floor,
    exclude: str | None = Search.exclude,
    keep_layers: bool = Search.keep_layers,
    batch: int | None = Search.batch,
    recover: str | None = Recovery.recover,
    search_positions: int = Recovery.search_positions,
    distill_steps: int = Recovery.distill_steps,
    precision: str = Sparsity.precision,
    sparsity: float | None = Sparsity.sparsity,
    sparse_pattern: str | None = Sparsity.sparse_pattern,
    sparse_method: str | None = Sparsity.sparse_method,
    sparse_layers: str = Sparsity.sparse_layers,
    sparse_decide: str = Sparsity.sparse_decide,
    sparse_storage: str = Sparsity.sparse_storage,
    minutes: float | None = Execution.minutes,
    seed: int = Execution.seed,
    resume: bool = Execution.resume,
    workers: int = Execution.workers,
    ray: str | None = Execution.ray,
    threads: int = Execution.threads,
    provider: str = Execution.provider,
    custom_ops: tuple[str, ...] = Execution.custom_ops,
    latency_seconds: float = Execution.latency_seconds,
) -> Result:
    """Compress a model to a budget; the files are written all or none, after the result has been verified.

    Args:
        model: An .onnx file.
        output: Where to write the compressed model; None writes nothing. `X.plan.json`, `X.report.json` and
            `X.report.html` lie beside X.onnx. While it runs, and after an interruption, the folder X.run has the journal
            that `resume` goes on with.
        data: A data card, an .npz, a folder, or "digits"; None works on weights and synthetic inputs.
        force: Write over files at the output that are not ours; inputs are never written over.
        progress: Called with a stage ("analysed", "planned", "episode", "finalist", ...) and its facts; None shows the time
            left in a notebook, and nothing elsewhere.

    Raises:
        UsageError: If an option cannot be used.
        ModelError: If the model cannot.
        DataError: If the data cannot.
        BudgetError: If the budget cannot be reached.
        VerificationError: If the result fails its check; nothing is written then.
    """
    settings = CompressOptions.of(**options_in(locals()))
    if output is not None:
        settle(output)
        given = {"the_table_of_op_times": settings.budget.latency_table}
        check_output(output, inputs_of(model, data, **given), force, has_twin=settings.sparsity.precision != "float")
    with _torch_threads(settings), _shown(progress) as tell:
        return _compress(path_of(model), settings, output, data, tell)


def _shown(progress: Progress | None) -> AbstractContextManager[Progress | None]:
    """Return what takes progress: in a notebook it is shown where nobody takes it."""
    return Episodes() if progress is None and in_notebook() else nullcontext(progress)


def _compress(
    model: str | Path,
    settings: CompressOptions,
    output: str | Path | None,
    data: str | Path | None,
    progress: Progress | None,
) -> Result:
    start = time.perf_counter()
    use_libraries(settings.execution.custom_ops)
    tell: Progress = progress or (lambda stage, facts: None)
    analysis = analyse_model(model, settings.search.excluded, data, settings.data.input_shape)
    settings = with_recovery(analysis, data, settings)
    data_of = roles_of(analysis, data, settings)
    environment = environment_of(analysis, data_of, settings, tell=tell)
    if settings.budget.max_drop is not None and not data_of.real:
        raise UsageError("--max-drop: got no --data; expected samples to measure the loss on. Give a data card.")
    by_latency = settings.budget.is_latency
    target = (
        latency_target(analysis, environment, data_of, settings, tell)
        if by_latency
        else target_of(settings.budget, analysis.channels, stored_params(analysis.file.proto))
    )
    if isinstance(environment, JointEnvironment):
        target = replace(target, cost=environment.of_groups(target.cost))
    facts = {
        "groups": len(analysis.channels.groups),
        "sizes": str(analysis.sizes),
        "macs": environment.macs(environment.n_units),
    }
    tell("analysed", {**facts, "share": target.share, "kind": target.kind})
    environment = reachable(environment, target, analysis, data_of, settings, tell=tell)
    with _journal(analysis, data_of, settings, output, tell, target.table) as journal:
        return _searched(analysis, environment, target, data_of, settings, output, journal, start, tell)


def _searched(
    analysis: Analysis,
    environment: Environment,
    target: Target,
    data_of: Roles,
    settings: CompressOptions,
    output: str | Path | None,
    journal: Journal | None,
    start: float,
    tell: Progress,
    begin: FloatArray | None = None,
    is_settled: bool = True,
) -> Result:
    """Search, then recover, verify, measure and write what was found.

    The search begins at keep ratios `begin`, where there are any; unless `is_settled`, its latency is as it comes.
    """
    job = Job(analysis, data_of, settings, output, journal, tell, Clock(settings.execution.minutes, start), begin)
    reach = by_stages if settings.budget.max_drop is None else by_drop
    result_of = reach(job, environment, target)
    result_of = settled(job, environment, target, result_of) if is_settled else result_of
    compressed, best = laid_out(result_of.model, settings.execution.provider), result_of.kept
    found = replace(result_of.search, kept=result_of.search.kept[: len(best)])  # without densities
    as_cut = Surgeon(analysis.channels).cut(best)
    sparsity = sparsity_of(settings.sparsity, analysis.graph, settings.recovery.is_refit)
    plan = make_plan(analysis.channels, best, analysis.file.sha256, analysis.file.proto)
    plan = plan if sparsity is None else sparse_plan(plan, compressed, sparsity)
    tell("verifying", {})
    verification = checked(
        analysis,
        compressed,
        plan,
        settings.recovery.recover != "none",
        data_of.verification_feeds(),
        settings.execution.seed,
    )
    may_be_sparse = sparse_names(analysis.file.proto)
    if settings.sparsity.sparse_storage == "smallest":
        may_be_sparse |= plan.sparsity.keys()
    compressed = smallest(compressed, may_be_sparse, data_of.verification_feeds())
    exact = quantised(result_of.model, data_of, settings)
    if exact is not None:
        plan = replace(plan, precision=exact.precision)
    final, set_id = stamped(compressed if exact is None else exact.model, plan.to_json())
    compressed = final if exact is None else with_id(compressed, set_id)
    exact = None if exact is None else replace(exact, model=final)
    plan = replace(plan, set_id=set_id)
    tell("measuring", {})
    reached = target.cost(found.kept) / target.full
    asked = result_of.facts.get("max_drop", {}).get("keep", target.share)
    report = compose(
        analysis.file,
        analysis.channels,
        as_cut,
        compressed,
        data_of,
        settings,
        found,
        verification,
        TargetFacts(target.kind, asked, reached, table=target.table),
        result_of.finalists,
        {
            **result_of.facts,
            "set": set_id,
            "sparsity": None if sparsity is None else facts(analysis.file.proto, compressed, sparsity),
            "resumed": 0 if journal is None else journal.n_resumed,
            "output": None if output is None else str(output),
        },
        analysis.sizes,
        exact,
    )
    if target.kind == "latency":
        times = report.latency_ratio
        assert times is not None
        share = measured_share(reached, times.median if times.cpu is None else times.cpu, target, settings.budget)
        report = replace(report, target=replace(report.target, **share))
    report = _with_verdict(report, circumstances(job, environment, target, found.kept, report))
    report = replace(report, wall_s=round(time.perf_counter() - start, 3))
    result = Result(final, plan, report, verification, None if exact is None else compressed)
    if output is not None:
        write_files(result.model, result._texts(), output, twin=result.twin)
    if journal is not None:
        journal.end(finished=not found.interrupted)
    tell("done", report)
    return result


def _with_verdict(report: Report, about: Circumstances) -> Report:
    """Return a report whose verdict knows what the next step depends on."""
    assert report.loss is not None
    return replace(report, verdict=judged(report.loss, report.accuracy_measured, report.closeness, about))


@contextmanager
def _journal(
    analysis: Analysis,
    data: Roles,
    settings: CompressOptions,
    output: str | Path | None,
    tell: Progress,
    table: str | None = None,
) -> Iterator[Journal | None]:
    """Open the journal of a run; whatever ends the run says how it goes on, unless going on would end as it did."""
    if output is None:
        if settings.execution.resume:
            raise UsageError(
                "resume: got no output; expected that of the interrupted run, whose journal lies beside it."
            )
        yield None
        return
    versions = environment_versions(settings.execution.provider)
    identity = {
        "model": {"sha256": analysis.file.sha256},
        "data": {"sha256": data.digest(), "metric": data.metric, **data.sizes()},
        "settings": {name: value for name, value in settings.flat().items() if name not in NOT_IN_JOURNAL},
        "versions": {name: versions[name] for name in ("agmc_onnx", "onnx", "onnxruntime", "torch")},
    }
    if table is not None:
        identity["latency_table"] = {"sha256": table}
    journal = Journal(run_folder(output), identity, settings.execution.resume)
    facts = {"resumed": journal.n_resumed, "set_aside": journal.n_set_aside}
    tell("journal", {"path": str(journal.path), "old": str(journal.old_path), **facts})
    try:
        yield journal
    except VerificationError:
        journal.end(finished=True)
        raise
    except (AgmcError, KeyboardInterrupt) as error:
        error.args = (f"{error} {journal.hint()}".strip(), *error.args[1:])
        raise
    finally:
        journal.end(finished=False)


def _torch_threads(settings: CompressOptions) -> AbstractContextManager[None]:
    """Let torch use as many threads as onnxruntime: more than there are free cores make small steps many times slower."""
    if settings.recovery.recover == "none" and not POLICIES[settings.search.policy].uses_torch:
        return nullcontext()
    from agmc_onnx.torch_view.threads import torch_threads

    return torch_threads(settings.execution.threads)

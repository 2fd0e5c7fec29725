"""The main job: analyse, search, cut, verify, measure, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from agmc_onnx.channels.groups import Channels, analyse
from agmc_onnx.config import CompressOptions
from agmc_onnx.errors import AgmcError, BudgetError, ModelError, UsageError, VerificationError
from agmc_onnx.measuring.roles import Roles
from agmc_onnx.model.files import ModelFile, read_model
from agmc_onnx.model.graph import Graph, view
from agmc_onnx.model.normalize import normalize
from agmc_onnx.output import check_output, output_files, write_files
from agmc_onnx.pruning.cost import Cost, macs_cost, params_cost
from agmc_onnx.pruning.importance import importance_of
from agmc_onnx.pruning.plan import Plan, kept_units, make_plan, read_plan
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.report.record import compose, environment_versions, sizes_of, verified_facts
from agmc_onnx.search.environment import Environment
from agmc_onnx.search.journal import EvaluateAll, Journal, Recorder, run_folder
from agmc_onnx.search.loop import Record, SearchResult, one_by_one, search
from agmc_onnx.search.policies import LEARNED, TAKE_BATCHES, make_policy
from agmc_onnx.search.problem import Curves, Outcome
from agmc_onnx.search.rewards import reward_named
from agmc_onnx.search.workers import Workers
from agmc_onnx.verification import Verification, norms_of, verify

IntArray = npt.NDArray[np.int64]
CURVE_SAMPLES, CURVE_POSITIONS = 256, 8000  # of the calibration role, for error curves: 3 s for ResNet-20
NOT_IN_JOURNAL = ("resume", "workers", "latency_seconds")  # options that do not change what a search finds
Progress = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Analysis:
    """A model, read and analysed.

    Attributes:
        file: As it lies on disk.
        model: Normalised; what plans and surgery refer to.
        channels: Groups, prunable and frozen.
    """

    file: ModelFile
    model: onnx.ModelProto
    channels: Channels

    @property
    def graph(self) -> Graph:
        """The normalised model's graph."""
        return self.channels.graph


@dataclass(frozen=True)
class Result:
    """What `compress` made.

    Attributes:
        model: The compressed model.
        plan: What was kept.
        report: As `agmc-onnx/report@1` in the contract, plus groups and settings.
        verification: How it was checked.
    """

    model: onnx.ModelProto
    plan: Plan
    report: dict[str, Any]
    verification: Verification


def analyse_model(path: str | Path) -> Analysis:
    """Read a model and find its groups.

    Raises:
        ModelError: If it is no ONNX model, or onnxruntime cannot run it.
    """
    file = read_model(path)
    model = normalize(file.proto)
    return Analysis(file, model, analyse(view(model)))


def compress(
    model: str | Path,
    *,
    output: str | Path | None = None,
    data: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Compress a model to a budget; the files are written all or none, after the result has been verified.

    Args:
        model: An .onnx file.
        output: Where to write the compressed model; None writes nothing. `X.plan.json`, `X.report.json` and
            `X.report.html` lie beside X.onnx. While it runs, and after an interruption, the folder X.run has the journal
            that `resume` goes on with.
        data: A data card, an .npz, a folder, or "digits"; None works on weights and synthetic inputs.
        progress: Called with a stage ("analysed", "episode", "measured", ...) and its facts.
        options: Fields of `agmc_onnx.config.CompressOptions`; one of flops and params is needed.

    Raises:
        UsageError: If an option cannot be used.
        ModelError: If the model cannot.
        DataError: If the data cannot.
        BudgetError: If the budget cannot be reached.
        VerificationError: If the result fails its check; nothing is written then.
    """
    settings = CompressOptions.of(**options).with_data(data is not None)
    with _torch_threads(settings):
        return _compress(model, settings, output, data, progress)


def _compress(
    model: str | Path,
    settings: CompressOptions,
    output: str | Path | None,
    data: str | Path | None,
    progress: Progress | None,
) -> Result:
    start = time.perf_counter()
    tell: Progress = progress or (lambda stage, facts: None)
    if output is not None:
        check_output(output, model)
    analysis = analyse_model(model)
    data_of = Roles(analysis.file.proto, data, settings)
    environment = _environment(analysis, data_of, settings)
    kind, share, cost = _budget(analysis, settings)
    full = cost(environment.n_units)
    budget = int(share * full)
    n_macs = environment.macs(environment.n_units)
    tell("analysed", {"groups": len(analysis.channels.groups), "macs": n_macs, "share": share, "kind": kind})
    environment = _lower_floor(environment, cost, budget, kind, analysis, data_of, settings)
    with _journal(analysis, data_of, settings, output, tell) as journal:
        return _searched(
            analysis, environment, data_of, settings, (kind, share, cost, budget), output, journal, start, tell
        )


def _searched(
    analysis: Analysis,
    environment: Environment,
    data_of: Roles,
    settings: CompressOptions,
    target: tuple[str, float, Cost, int],
    output: str | Path | None,
    journal: Journal | None,
    start: float,
    tell: Progress,
) -> Result:
    """Search, then recover, verify, measure and write what was found; `target` is the kind, share, cost and budget."""
    kind, share, cost, budget = target
    found = _search(analysis, environment, cost, budget, settings, data_of, journal, tell)
    tell("recovering", {"recover": settings.recover})
    compressed, n_kept, finalists = _best_finalist(analysis, environment, found, data_of, settings)
    found = replace(found, kept=n_kept)
    if settings.recover == "distill":
        compressed = _distilled(analysis, compressed, data_of, settings, output, tell)
    best, as_cut = environment.kept(n_kept), environment.candidate(n_kept)
    plan = make_plan(analysis.channels, best, analysis.file.sha256)
    tell("verifying", {})
    checked = verify(
        analysis.model,
        compressed,
        plan,
        data_of.verification_feeds(),
        recovered=settings.recover != "none",
        norms=norms_of(analysis.channels, best),
        seed=settings.seed,
    )
    tell("measuring", {})
    report = compose(
        analysis.file,
        analysis.channels,
        as_cut,
        compressed,
        data_of,
        settings,
        found,
        checked,
        kind,
        share,
        cost(found.kept) / cost(environment.n_units),
    )
    report["finalists"] = finalists
    report["resumed"] = 0 if journal is None else journal.n_resumed
    report["output"] = None if output is None else str(output)
    report["wall_s"] = round(time.perf_counter() - start, 3)
    result = Result(compressed, plan, report, checked)
    if output is not None:
        write_result(result, output)
    if journal is not None:
        journal.end(finished=not found.interrupted)
    tell("done", report)
    return result


@contextmanager
def _journal(
    analysis: Analysis, data: Roles, settings: CompressOptions, output: str | Path | None, tell: Progress
) -> Iterator[Journal | None]:
    """Open the journal of a run; whatever ends the run says how it goes on, unless going on would end as it did."""
    if output is None:
        if settings.resume:
            raise UsageError(
                "resume: got no output; expected that of the interrupted run, whose journal lies beside it."
            )
        yield None
        return
    versions = environment_versions(settings.provider)
    identity = {
        "model": {"sha256": analysis.file.sha256},
        "data": {"sha256": data.digest(), "metric": data.metric, **data.sizes()},
        "settings": {name: value for name, value in asdict(settings).items() if name not in NOT_IN_JOURNAL},
        "versions": {name: versions[name] for name in ("agmc_onnx", "onnx", "onnxruntime", "torch")},
    }
    journal = Journal(run_folder(output), identity, settings.resume)
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


@contextmanager
def _torch_threads(settings: CompressOptions) -> Iterator[None]:
    """Let torch use as many threads as onnxruntime: more than there are free cores make small steps many times slower."""
    if settings.recover == "none" and settings.policy not in LEARNED:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def apply(model: str | Path, plan: str | Path, output: str | Path | None = None) -> Result:
    """Rebuild the compressed model of a plan, without data or search.

    Raises:
        ModelError, PlanError, VerificationError: As `compress`.
    """
    if output is not None:
        check_output(output, model)
    analysis = analyse_model(model)
    wanted = read_plan(plan)
    kept = kept_units(analysis.channels, wanted)
    pruned = Surgeon(analysis.channels).cut(kept)
    made = make_plan(analysis.channels, kept, analysis.file.sha256)
    checked = verify(analysis.model, pruned, made, norms=norms_of(analysis.channels, kept))
    report = {
        "original": sizes_of(analysis.file.proto),
        "compressed": sizes_of(pruned),
        "verified": verified_facts(checked, False),
    }
    if output is not None:
        write_files(pruned, {}, output)
    return Result(pruned, made, report, checked)


def verify_files(model: str | Path, compressed: str | Path, plan: str | Path | None = None) -> Verification:
    """Check a compressed file against its original and plan; weights may have been recovered since.

    Args:
        model: The original.
        compressed: What was made of it.
        plan: Default: `X.plan.json` beside X.onnx.

    Raises:
        VerificationError: If it does not hold.
    """
    analysis = analyse_model(model)
    wanted = read_plan(plan if plan is not None else output_files(compressed)["plan"])
    pruned = normalize(read_model(compressed).proto)
    recovered = not _weights_kept(analysis.graph, view(pruned), wanted)
    norms = norms_of(analysis.channels, kept_units(analysis.channels, wanted))
    checked = verify(analysis.model, pruned, wanted, recovered=recovered, norms=norms)
    if not recovered:
        return checked
    notes = [
        text for text in (checked.note, "the weights were refitted, so the original was given the new ones") if text
    ]
    return replace(checked, note="; ".join(notes))


def write_result(result: Result, output: str | Path) -> None:
    """Write the model, plan and reports, all or none."""
    from agmc_onnx.report.html import render

    texts = {
        "plan": result.plan.to_json(),
        "report": json.dumps(result.report, indent=1) + "\n",
        "html": render(result.report),
    }
    write_files(result.model, texts, output)


def _environment(analysis: Analysis, data: Roles, settings: CompressOptions, floor: float | None = None) -> Environment:
    if not analysis.channels.groups:
        reasons = sorted({group.why_frozen or "" for group in analysis.channels.frozen})
        why = reasons[0] if reasons else "no op of it is understood"
        raise ModelError(f"{analysis.file.path}: nothing in this model can be pruned ({why}). See agmc-onnx inspect.")
    evaluator = data.evaluator("reward")

    def evaluate(model: onnx.ModelProto) -> tuple[float, float]:
        evaluation = evaluator(model)
        return evaluation.score.value, evaluation.inference_s

    scores = importance_of(settings.importance)(analysis.channels)
    least = settings.floor if floor is None else floor
    recover = None
    if settings.recover != "none":
        from agmc_onnx.recover.compensate import Compensator
        from agmc_onnx.recover.options import RecoverOptions

        quick = RecoverOptions(
            n_samples=settings.search_samples, n_positions=settings.search_positions, seed=settings.seed
        )
        recover = Compensator(analysis.channels, data.role("calibration"), quick)
    curves = _curves(analysis, scores, data, settings) if data.real else None
    return Environment(analysis.channels, scores, evaluate, recover, settings.round_to, least, curves)


def _curves(
    analysis: Analysis, scores: npt.NDArray[np.float64], data: Roles, settings: CompressOptions
) -> Callable[[], Curves]:
    """Return what makes the refit-error curves, for the policies that ask."""

    def make() -> Curves:
        from agmc_onnx.recover.curves import error_curves
        from agmc_onnx.recover.options import RecoverOptions

        few = RecoverOptions(n_samples=CURVE_SAMPLES, n_curve_positions=CURVE_POSITIONS, seed=settings.seed)
        return error_curves(analysis.channels, scores, data.role("calibration"), few)

    return make


def _best_finalist(
    analysis: Analysis, environment: Environment, found: SearchResult, data: Roles, settings: CompressOptions
) -> tuple[onnx.ModelProto, IntArray, list[dict[str, Any]]]:
    """Recover the candidates with the highest rewards in full and measure them on more of the reward role.

    Rewards of a search are measured on few samples after a quick refit; among the best of many their noise decides.

    Returns:
        The best finalist's model and kept counts, and what was measured of each.
    """
    rewarded = {tuple(record["kept"]): record["reward"] for record in reversed(found.history)}
    ordered = sorted(rewarded, key=lambda kept: (kept != tuple(found.kept.tolist()), -rewarded[kept]))
    n_finalists = 1 if found.interrupted or settings.recover == "none" else settings.finalists
    evaluator = data.evaluator("reward", 4 * settings.reward_samples) if n_finalists > 1 else None
    finalists: list[dict[str, Any]] = []
    best: tuple[float, onnx.ModelProto, IntArray] | None = None
    for kept in ordered[:n_finalists]:
        n_kept = np.array(kept, np.int64)
        units = environment.kept(n_kept)
        model = _recovered(analysis, units, environment.candidate(n_kept), data, settings)
        metric = 0.0 if evaluator is None else evaluator(model).score.value
        finalists.append({"kept": list(kept), "reward": rewarded[kept], "metric": metric})
        if best is None or metric > best[0]:
            best = (metric, model, n_kept)
    assert best is not None
    return best[1], best[2], finalists if evaluator is not None else []


def _distilled(
    analysis: Analysis,
    model: onnx.ModelProto,
    data: Roles,
    settings: CompressOptions,
    output: str | Path | None,
    tell: Progress,
) -> onnx.ModelProto:
    """Let the refitted result learn from the original; the reward role decides which state is kept."""
    from agmc_onnx.recover.finetune import distill
    from agmc_onnx.recover.options import RecoverOptions

    evaluator = data.evaluator("reward")
    steps = settings.distill_steps
    return distill(
        model,
        analysis.model,
        data.lessons,
        RecoverOptions(n_steps=steps, seed=settings.seed, evaluate_every=max(1, min(200, steps // 5))),
        lambda step, n, facts: tell("distilling", {"step": step, "n_steps": n, **facts}),
        augment=data.augment,
        reward=lambda candidate: evaluator(candidate).score.value,
        folder=None if output is None else run_folder(output),
    )


def _recovered(
    analysis: Analysis, kept: list[IntArray], as_cut: onnx.ModelProto, data: Roles, settings: CompressOptions
) -> onnx.ModelProto:
    """Recover the chosen candidate with all that the calibration role has; candidates were recovered with a part of it."""
    if settings.recover == "none":
        return as_cut
    from agmc_onnx.recover.compensate import compensate
    from agmc_onnx.recover.options import RecoverOptions

    return compensate(analysis.channels, kept, as_cut, data.role("calibration"), RecoverOptions(seed=settings.seed))


def _lower_floor(
    environment: Environment,
    cost: Cost,
    budget: int,
    kind: str,
    analysis: Analysis,
    data: Roles,
    settings: CompressOptions,
) -> Environment:
    """Give up the floor of every group where the budget needs it."""
    if cost(environment.min_keep) <= budget:
        return environment
    bare = _environment(analysis, data, settings, floor=0.0)
    if cost(bare.min_keep) <= budget:
        return bare
    best = cost(bare.min_keep) / cost(bare.n_units)
    raise BudgetError(
        f"--{kind}: cannot keep only {budget / cost(bare.n_units):.4f} of the original, since channels tied to inputs and outputs"
        f" stay; the best reachable value is {best:.4f}. Ask for at least {np.ceil(best * 1e4) / 1e4:.4f}.",
        best,
    )


def _budget(analysis: Analysis, settings: CompressOptions) -> tuple[str, float, Cost]:
    for kind, share, make in (("flops", settings.flops, macs_cost), ("params", settings.params, params_cost)):
        if share is not None:
            return kind, share, make(analysis.channels)
    raise UsageError("budget: none given; expected --flops R or --params R, with 0 < R < 1. Say how much to keep.")


def _search(
    analysis: Analysis,
    environment: Environment,
    cost: Cost,
    budget: int,
    settings: CompressOptions,
    data: Roles,
    journal: Journal | None,
    tell: Progress,
) -> SearchResult:
    options = replace(settings.search(), n_episodes=settings.episodes)
    reward = reward_named(options.reward)

    def reward_of(kept: IntArray, outcome: Outcome) -> float:
        return float(reward(outcome.metric, int(environment.macs(kept)), int(environment.params(kept))))

    with _evaluators(analysis, environment, data, settings) as evaluate_all:
        recorder = Recorder(evaluate_all, reward_of, journal)
        problem = replace(environment.problem(cost, budget), evaluate=recorder)
        rng = np.random.default_rng(settings.seed)
        policy = make_policy(problem, options, rng)
        n_episodes = min(settings.episodes, policy.n_episodes)
        batch = settings.batch or 1
        if batch > 1 and n_episodes > 1 and settings.policy not in TAKE_BATCHES:
            raise UsageError(
                f"--batch: policy {settings.policy} learns from every candidate before it proposes the next, got {batch};"
                f" expected 1. Leave out --batch and --workers, or take a policy of {', '.join(sorted(TAKE_BATCHES))}."
            )

        def on_episode(record: Record) -> None:
            tell("episode", {**record, "n_episodes": n_episodes})

        return search(problem, policy, reward, n_episodes, rng, on_episode, batch=batch, evaluate_all=recorder.all)


@contextmanager
def _evaluators(
    analysis: Analysis, environment: Environment, data: Roles, settings: CompressOptions
) -> Iterator[EvaluateAll]:
    """Give what evaluates candidates: this process, or several others."""
    if settings.workers == 1:
        yield one_by_one(environment.evaluate)
        return
    file = analysis.file
    workers = Workers(
        settings.workers, partial(_worker_evaluator, file.path.absolute(), file.sha256, data.source, settings)
    )
    try:
        yield workers
    finally:
        workers.close()


def _worker_evaluator(
    path: Path, sha256: str, data: str | None, settings: CompressOptions
) -> Callable[[IntArray], Outcome]:
    """Return the evaluator of candidates in a worker process, the same as that of the process which asks."""
    if settings.recover != "none":
        import torch

        torch.set_num_threads(settings.threads)
    analysis = analyse_model(path)
    if analysis.file.sha256 != sha256:
        raise ModelError(f"{path}: changed while it was being compressed. Start again.")
    return _environment(analysis, Roles(analysis.file.proto, data, settings), settings).evaluate


def _weights_kept(original: Graph, pruned: Graph, plan: Plan) -> bool:
    """Whether every floating tensor of a pruned model is the planned part of the original's."""
    from agmc_onnx.verification import kept_region

    for name in pruned.tensors:
        if not pruned.is_float(name):
            continue
        if name not in original.tensors:
            return False
        array: npt.NDArray[Any] = original.array(name)
        wanted = array[kept_region(array.shape, plan.tensors[name], name)] if name in plan.tensors else array
        if not np.array_equal(pruned.array(name), wanted):
            return False
    return True

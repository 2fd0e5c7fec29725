"""Candidates of a run: how one is cut, recovered and measured, here or in other processes, and the search among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from agmc_onnx.arrays import FloatArray, IntArray
from agmc_onnx.data.samples import Samples
from agmc_onnx.errors import BudgetError, ModelError, UsageError
from agmc_onnx.measuring.roles import Roles
from agmc_onnx.ops.table import op_of
from agmc_onnx.ops.vanish import closer_of
from agmc_onnx.options import CompressOptions
from agmc_onnx.policies import POLICIES, make_policy
from agmc_onnx.pruning.importance import NEED_DATA, importance_of
from agmc_onnx.pruning.sparsity import Sparsity, sparsity_of, thin_by_magnitude
from agmc_onnx.pruning.widths import AUTO, FINE, rounding
from agmc_onnx.run.analysis import Analysis, Base, analyse_model
from agmc_onnx.run.clock import WORTH, Clock, forecast, told, usual
from agmc_onnx.run.progress import PREPARING, Progress, counting, silent
from agmc_onnx.run.samples import roles_of
from agmc_onnx.run.target import Target
from agmc_onnx.search.budget import met, rounded
from agmc_onnx.search.cluster import RayWorkers
from agmc_onnx.search.environment import Environment, Recover
from agmc_onnx.search.joint import JointEnvironment, Thin
from agmc_onnx.search.journal import Errors, EvaluateAll, Journal, Recorder, Section
from agmc_onnx.search.loop import Record, SearchResult, one_by_one, search
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.policy import Beginning
from agmc_onnx.search.problem import Curves, Outcome
from agmc_onnx.search.rewards import reward_named
from agmc_onnx.search.workers import Workers
from agmc_onnx.ties.groups import Channels

if TYPE_CHECKING:
    from agmc_onnx.refit.compensation import Compensator
    from agmc_onnx.refit.importance import Measurements
    from agmc_onnx.refit.options import Counting, RecoverOptions

QUICK_RIDGE = 0.1  # of a candidate's refit: as good on few samples as the choice among four, in two thirds of the time
QUICK_ROUNDS = 1  # of a candidate's refit behind activations
LOSS_SAMPLES, LOSS_POSITIONS = 64, 2000  # that networks without some layers are refitted with
CURVE_SAMPLES, CURVE_POSITIONS = 256, 8000  # of the calibration role, for error curves: 3 s for ResNet-20


def environment_of(
    analysis: Analysis,
    data: Roles,
    settings: CompressOptions,
    floor: float | None = None,
    base: Base | None = None,
    tell: Progress = silent,
) -> Environment:
    """Return what candidates of a run are measured by.

    Args:
        analysis: Of the model.
        data: The roles.
        settings: Of the run.
        floor: Smallest share kept of any group; default: as set.
        base: What a stage starts from; default: the model itself.
        tell: Is told how far what the search needs is measured, when it first asks for it.

    Raises:
        ModelError: If nothing can be pruned.
    """
    if not analysis.channels.groups:
        raise ModelError(_nothing(analysis))
    tell(PREPARING, {"what": "the original", "done": 0, "n": None})
    evaluator = data.race() if settings.data.judge == "fidelity" else data.evaluator("reward")

    def evaluate(model: onnx.ModelProto, *best: Errors) -> Outcome:
        rival = np.array(best[0]) if best and best[0] else None
        found = evaluator(model, race=bool(best), best=rival)
        errors = None if found.errors is None else tuple(float(f"{error:.9g}") for error in found.errors)
        score = found.score.value
        return Outcome(score, found.inference_s, fidelity=found.fidelity, errors=errors, n_images=found.n_images)

    channels = analysis.channels if base is None else base.channels(settings.search.excluded)
    measured = _measurements(channels, data, settings, counting(tell))
    scores = _scores(channels, measured, settings)
    if base is not None:
        for group, kept in zip(channels.groups, base.kept, strict=True):
            scores[np.delete(group.units, kept)] = -1.0  # gone already: they are the last to be kept
    least = settings.search.floor if floor is None else floor
    recover = _recovery(analysis, data, settings)
    sparsity = sparsity_of(settings.sparsity, analysis.graph, settings.recovery.is_refit)
    losses = None
    # made-up inputs mislead (docs/decisions/depth.md); a stage takes up widths that are left, and what is gone has none
    may_go = data.real and not settings.search.keep_layers
    if may_go and (settings.budget.stages == 1 if base is None else base.is_last):
        losses = _losses(channels, analysis, data, settings, tell)
    curves = None if measured is None else lambda: measured().curves(scores, least=1 if losses is None else 0)
    limit = None if base is None else base.n_units
    rounds = rounding(channels, settings.search.round_to, settings.execution.provider)
    divergence = None
    if data.real and base is None and settings.recovery.recover != "none":
        divergence = partial(_divergence, channels, scores, data, settings, counting(tell))
    if sparsity is not None and settings.sparsity.sparse_decide == "policy" and len(sparsity.names) > 1:
        thin = _thinning(analysis, data, settings, sparsity)
        given = (scores, evaluate, None, rounds, least, curves, limit, divergence, losses)
        return JointEnvironment(channels, *given, names=sparsity.names, share=sparsity.share, thin=thin)
    return Environment(channels, scores, evaluate, recover, rounds, least, curves, limit, divergence, losses)


def _nothing(analysis: Analysis) -> str:
    """Return why nothing of a model can be pruned: the nodes that hold most channels, or those of ops without a rule."""
    graph = analysis.graph
    reasons = [
        group.why_frozen or ""
        for group in sorted(analysis.channels.frozen, key=lambda group: -group.n_units)
        if group.why_frozen and not group.why_frozen.startswith("graph ")
    ] + [
        f"{node.label}: no rule for this op"
        for node in graph.nodes
        if op_of(node).ties is None and not graph.weights.issuperset(node.outputs)
    ]
    first, *others = dict.fromkeys(reasons or ["all its channels are those of its inputs and outputs"])
    more = f", and {len(others)} more" if others else ""
    todo = f"Export it {'in float and plain ops' if analysis.sizes.source == 'fixed' else 'with fixed sizes'}"
    where = f"{analysis.file.path}: nothing in this model can be pruned"
    return f"{where} ({first}{more}). {todo}; agmc-onnx inspect names all that stays."


def _losses(
    channels: Channels, analysis: Analysis, data: Roles, settings: CompressOptions, tell: Progress
) -> Callable[[list[IntArray]], float]:
    """Return what measures what the answers lose at kept positions, recovered as candidates are."""

    def refit(samples: Samples) -> Recover:
        from agmc_onnx.refit.compensation import Compensator
        from agmc_onnx.refit.statistics import Restatement

        few = replace(_quick(settings), n_samples=LOSS_SAMPLES, n_positions=LOSS_POSITIONS)
        if settings.recovery.recover == "statistics":
            return Restatement(analysis.channels, samples, few)
        return Compensator(analysis.channels, samples, few)

    @cache
    def make() -> Callable[[list[IntArray]], float]:
        from agmc_onnx.refit.divergence import losses

        recovery = None if settings.recovery.recover == "none" else refit
        return losses(channels, data.role("calibration"), recovery, settings.execution.threads, analysis.graph)

    n_branches, done = len(closer_of(channels).branches), count()

    def loss(kept: list[IntArray]) -> float:
        at = next(done)  # each branch alone comes first, and then as many together as the budget asks for
        tell(PREPARING, {"what": "losses without layers", "done": at, "n": n_branches if at < n_branches else None})
        return make()(kept)

    return loss


def _recovery(analysis: Analysis, data: Roles, settings: CompressOptions) -> Recover | None:
    """Return what a freshly cut candidate goes through before it is measured, or None for nothing."""
    sparsity = sparsity_of(settings.sparsity, analysis.graph, settings.recovery.is_refit)
    if sparsity is not None:
        thin = _thinning(analysis, data, settings, sparsity)
        return lambda kept, model: thin(kept, model, {})
    if settings.recovery.recover == "statistics":
        from agmc_onnx.refit.options import RecoverOptions
        from agmc_onnx.refit.statistics import Restatement

        few = RecoverOptions(n_samples=settings.data.search_samples, seed=settings.execution.seed)
        return Restatement(analysis.channels, data.role("calibration"), few)
    return None if settings.recovery.recover == "none" else _compensator(analysis, data, settings)


def _compensator(analysis: Analysis, data: Roles, settings: CompressOptions) -> Compensator:
    from agmc_onnx.refit.compensation import Compensator

    return Compensator(analysis.channels, data.role("calibration"), _quick(settings))


def _quick(settings: CompressOptions) -> RecoverOptions:
    """Return the options of a candidate's refit."""
    from agmc_onnx.refit.options import RecoverOptions

    return RecoverOptions(
        n_samples=settings.data.search_samples,
        n_positions=settings.recovery.search_positions,
        ridges=(QUICK_RIDGE,),
        n_rounds=QUICK_ROUNDS,
        seed=settings.execution.seed,
    )


def _thinning(analysis: Analysis, data: Roles, settings: CompressOptions, sparsity: Sparsity) -> Thin:
    """Return what recovers a freshly cut candidate and sets single weights to zero, as many of each tensor as it is told."""
    if settings.recovery.recover == "none":
        return lambda kept, model, shares: thin_by_magnitude(model, replace(sparsity, shares=shares))
    from agmc_onnx.refit.thin import Thinner

    refit = _compensator(analysis, data, settings)

    def thin(kept: list[IntArray], model: onnx.ModelProto, shares: Mapping[str, float]) -> onnx.ModelProto:
        asked = replace(sparsity, shares=shares)
        refit.thin = Thinner(asked)
        return thin_by_magnitude(refit(kept, model), asked)

    return thin


def _measurements(
    channels: Channels, data: Roles, settings: CompressOptions, told: Counting
) -> Callable[[], Measurements] | None:
    """Return what measures the original's activations when a ranking or a policy first asks; None without data."""

    @cache
    def make() -> Measurements:
        from agmc_onnx.refit.importance import Measurements
        from agmc_onnx.refit.options import RecoverOptions

        few = RecoverOptions(n_samples=CURVE_SAMPLES, n_curve_positions=CURVE_POSITIONS, seed=settings.execution.seed)
        return Measurements(channels, data.role("calibration"), few, told)

    return make if data.real else None


def _divergence(
    channels: Channels, scores: FloatArray, data: Roles, settings: CompressOptions, told: Counting, step: IntArray
) -> Curves:
    from agmc_onnx.refit.divergence import divergence_curves
    from agmc_onnx.refit.options import RecoverOptions

    few = RecoverOptions(n_samples=CURVE_SAMPLES, n_positions=CURVE_POSITIONS, seed=settings.execution.seed)
    threads, each = settings.execution.threads, told("errors at the outputs")
    return divergence_curves(channels, scores, step, data.role("calibration"), few, threads, each)


def _scores(channels: Channels, measured: Callable[[], Measurements] | None, settings: CompressOptions) -> FloatArray:
    name = settings.search.importance or "l2"
    if name in NEED_DATA and measured is not None:
        return measured().scores(name)
    return importance_of(name)(channels)


def reachable(
    environment: Environment,
    target: Target,
    analysis: Analysis,
    data: Roles,
    settings: CompressOptions,
    base: Base | None = None,
    tell: Progress = silent,
) -> Environment:
    """Return the environment, without the floor of the groups, or in finer widths too, where the budget needs that.

    Raises:
        BudgetError: If even the smallest candidate costs more.
    """
    if target.cost(environment.min_keep) <= target.budget:
        return environment
    bare = environment_of(analysis, data, settings, floor=0.0, base=base, tell=tell)
    if bare.smallest(target.cost) > target.budget and settings.search.round_to == AUTO:
        bare = environment_of(analysis, data, settings.but(round_to=FINE), floor=0.0, base=base, tell=tell)
    least = bare.smallest(target.cost)
    if least <= target.budget:
        return bare
    best = _up(least / target.full)
    finer = "" if settings.search.round_to == 1 else _with_all_widths(analysis, target, data, settings, base, best)
    left = " and what --exclude names" if settings.search.exclude else ""
    raise BudgetError(
        f"--{target.kind}: cannot keep only {target.share:.4f} of the original, since channels tied to inputs"
        f" and outputs{left} stay; the best reachable value is {best:.4f}{finer}. Ask for at least {best:.4f}.",
        best,
    )


def _with_all_widths(
    analysis: Analysis, target: Target, data: Roles, settings: CompressOptions, base: Base | None, best: float
) -> str:
    """Return what could be reached in widths that are no multiples, where that is less; else ""."""
    finest = environment_of(analysis, data, settings.but(round_to=1), floor=0.0, base=base)
    reached = _up(finest.smallest(target.cost) / target.full)
    return f", with --round-to 1 it is {reached:.4f}" if reached < best else ""


def _up(share: float) -> float:
    """Return a share with four digits that may be asked for: rounded up."""
    return float(np.ceil(share * 1e4 - 1e-9) / 1e4)


def search_candidates(
    analysis: Analysis,
    environment: Environment,
    target: Target,
    data: Roles,
    settings: CompressOptions,
    journal: Journal | Section | None,
    tell: Progress,
    base: Base | None = None,
    clock: Clock | None = None,
    begin: FloatArray | None = None,
) -> SearchResult:
    """Search for the best candidate within the target; evaluations go to the journal and come from it.

    Where keep ratios `begin` are given, they are proposed first.
    """
    clock = clock or Clock(settings.execution.minutes)
    asked = settings.search
    reward = reward_named(asked.reward)

    def reward_of(kept: IntArray, outcome: Outcome) -> float:
        return float(reward(outcome.judged, int(environment.macs(kept)), int(environment.params(kept))))

    if environment.depth is not None and journal is not None:
        environment.depth.loss.kept_in(journal)
    with _evaluators(analysis, environment, data, settings, base) as evaluate_all:
        recorder = Recorder(evaluate_all, reward_of, journal)
        problem = replace(environment.problem(target.cost, target.budget), evaluate=recorder)
        if settings.budget.max_drop is not None and asked.reward != "err":  # the reward weighs cost and error
            problem = replace(problem, meet=partial(rounded, problem), has_budget=False)
        rng = np.random.default_rng(settings.execution.seed)
        policy = make_policy(problem, SearchOptions(asked.policy, asked.episodes, asked.finalists), rng)
        policy = policy if begin is None else Beginning(policy, begin)
        n_episodes = min(asked.episodes or asked.finalists, policy.n_episodes)
        batch = asked.batch or 1
        if batch > 1 and asked.episodes > 1 and n_episodes > 1 and not POLICIES[asked.policy].batches:
            takers = ", ".join(sorted(name for name, row in POLICIES.items() if row.batches))
            raise UsageError(
                f"--batch: policy {asked.policy} learns from every candidate before it proposes the next, got {batch};"
                f" expected 1. Leave out --batch and --workers, or take a policy of {takers}."
            )

        rewards: list[float] = []

        def on_episode(record: Record) -> None:
            rewards.append(record["reward"])
            n_since = len(rewards) - 1 - rewards.index(max(rewards))
            n_left = usual(n_episodes, asked.patience, len(rewards), n_since)
            tell("episode", {**record, "n_episodes": n_episodes, "n_left": n_left})

        # By other rewards the smaller may win, if worse.
        race = settings.data.judge == "fidelity" and asked.reward == "err"
        n_finalists = asked.finalists if settings.recovery.is_refit else 1
        expected = None
        if n_episodes >= WORTH:
            kept = met(problem, np.ones(len(problem.n_units))).kept
            refit = partial(_refitted, analysis, environment, data, settings) if settings.recovery.is_refit else None
            tell(PREPARING, {"what": "how long a candidate takes", "done": 0, "n": None})
            expected = forecast(environment.evaluate, kept, data, settings, n_episodes if race else 0, refit)
        seconds = clock.for_search(expected, n_finalists)
        if expected is not None:
            tell("planned", told(expected, usual(n_episodes, asked.patience), n_finalists, seconds))
        found = search(
            problem,
            policy,
            reward,
            n_episodes,
            rng,
            on_episode,
            None,
            batch,
            recorder.all,
            race,
            seconds,
            asked.patience,
        )
        for text in getattr(policy, "notes", ()):
            tell(text, {})
        return found


def _refitted(
    analysis: Analysis, environment: Environment, data: Roles, settings: CompressOptions, kept: IntArray, share: float
) -> onnx.ModelProto:
    """Recover a candidate as finalists are, with a share of the samples and positions."""
    from agmc_onnx.run.recovering import recovered

    model = environment.candidate(kept)
    return recovered(analysis, environment.kept(kept), model, data, settings, share=share)


@contextmanager
def _evaluators(
    analysis: Analysis, environment: Environment, data: Roles, settings: CompressOptions, base: Base | None = None
) -> Iterator[EvaluateAll]:
    """Give what evaluates candidates: this process, several others, or a cluster."""
    if settings.execution.workers == 1 and settings.execution.ray is None:
        yield one_by_one(environment.evaluate)
        return
    file = analysis.file
    prepare = partial(_worker_evaluator, file.path.absolute(), file.sha256, data.absolute_source, settings, base)
    workers: Workers | RayWorkers
    if settings.execution.ray is None:
        workers = Workers(settings.execution.workers, prepare)
    else:
        workers = RayWorkers(settings.execution.ray, settings.execution.workers, settings.execution.threads, prepare)
    try:
        yield workers
    finally:
        workers.close()


def _worker_evaluator(
    path: Path, sha256: str, data: str | None, settings: CompressOptions, base: Base | None = None
) -> Callable[[IntArray], Outcome]:
    """Return the evaluator of candidates in a worker process, the same as that of the process which asks."""
    if settings.recovery.recover != "none":
        from agmc_onnx.torch_view.threads import use_threads

        use_threads(settings.execution.threads)
    analysis = analyse_model(path, settings.search.excluded, data, settings.data.input_shape)
    if analysis.file.sha256 != sha256:
        raise ModelError(f"{path}: changed while it was being compressed. Start again.")
    return environment_of(analysis, roles_of(analysis, data, settings), settings, base=base).evaluate

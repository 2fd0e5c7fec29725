"""How well cheap judgements of good candidates say what their accuracy will be, and what a race over them costs.

    python tools/experiments/judges.py MODEL.onnx --data CARD --runs runs/policies.jsonl --flops 0.3 --candidates 16

Takes the best candidates of the runs (`tools/compare_policies.py`) at that budget and seed 0, every fourth of them, and those of
`greedy`. Each is refitted as in a search and in full. Prints, for several errors of the outputs, the correlation of what the
quickly refitted models have on few images of the reward role and on all of it with the top-1 that the fully refitted ones have
on all of it; then, for several margins, the images a candidate that a race takes and what its winner is behind the best. At last,
of four fully refitted candidates: what a choice by half of the images gains in top-1 on the other half, over their mean.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, softmax

from agmc_onnx.measuring.accuracy import Evaluator
from agmc_onnx.measuring.closeness import are_probabilities, class_scores
from agmc_onnx.measuring.racing import is_lost, looks
from agmc_onnx.options import CompressOptions
from agmc_onnx.run.analysis import analyse_model
from agmc_onnx.run.candidates import environment_of
from agmc_onnx.run.recovering import recovered
from agmc_onnx.run.samples import roles_of, with_recovery

Array = npt.NDArray[np.float64]
N_FEW, N_DRAWS = 500, 100
N_FINALISTS, N_CHOICES = 4, 1000


def squared(a: Array, b: Array) -> Array:
    """Return the squared error of the scores, (n,)."""
    return np.mean((a - b) ** 2, axis=1)


def brier(temperature: float) -> Callable[[Array, Array], Array]:
    """Return the squared error of softened probabilities."""
    return lambda a, b: squared(softmax(a / temperature, 1), softmax(b / temperature, 1))


def divergence(temperature: float) -> Callable[[Array, Array], Array]:
    """Return the divergence from the softened probabilities of the original, b."""

    def kl(a: Array, b: Array) -> Array:
        gone = log_softmax(b / temperature, 1) - log_softmax(a / temperature, 1)
        return np.asarray((softmax(b / temperature, 1) * gone).sum(1))

    return kl


ERRORS: dict[str, Callable[[Array, Array], Array]] = {
    "squared error of the scores": squared,
    **{f"squared error of probabilities, T = {t:g}": brier(t) for t in (1.0, 2.0, 4.0)},
    **{f"divergence, T = {t:g}": divergence(t) for t in (1.0, 2.0, 4.0)},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--flops", type=float, default=0.3)
    parser.add_argument("--candidates", type=int, default=16)
    args = parser.parse_args()
    candidates = chosen(args.runs, args.model.name, args.flops, args.candidates)
    if len(candidates) < 3:
        sys.exit(
            f"judges: {args.runs} has {len(candidates)} candidates of {args.model.name} at {args.flops:g}; expected 3."
        )
    settings = CompressOptions.of(flops=args.flops)
    analysis = analyse_model(args.model)
    settings = with_recovery(analysis, args.data, settings)
    roles = roles_of(analysis, args.data, settings)
    environment = environment_of(analysis, roles, settings)
    evaluate: Evaluator = roles.evaluator("reward", roles.n_most)

    def scores_of(model: object) -> Array:
        outputs = evaluate(model, keep_outputs=True).outputs  # type: ignore[arg-type]
        found = None if not outputs else class_scores(outputs[0])
        if found is None:
            sys.exit(f"judges: {args.model} has no class scores; expected a classifier.")
        x = found.astype(np.float64)
        return np.log(np.maximum(x, 1e-9)) if are_probabilities(x) else x

    original = scores_of(analysis.file.proto)
    quick, full, top1 = [], [], []
    for place, kept in enumerate(candidates):
        quick.append(scores_of(environment.recovered(kept)))
        model = recovered(analysis, environment.kept(kept), environment.candidate(kept), roles, settings)
        full.append(scores_of(model))
        top1.append(evaluate(model).score.value)
        sys.stderr.write(f"\r{place + 1} of {len(candidates)}")
    sys.stderr.write("\n")
    report(original, quick, full, np.array(top1))
    labels = evaluate.samples.labels
    if labels is not None:
        choices(original, np.array(full), np.asarray(labels).ravel())


def chosen(runs: Path, model: str, flops: float, n: int) -> list[npt.NDArray[np.int64]]:
    """Return kept counts: every fourth of the best candidates of the runs, and those of `greedy`."""
    rewards: dict[tuple[int, ...], float] = {}
    greedy: list[tuple[int, ...]] = []
    for line in runs.read_text().splitlines():
        row = json.loads(line)
        if (row["model"], row["flops"], row["seed"]) != (model, flops, 0):
            continue
        keys = [tuple(kept) for kept in row["candidates"]]
        rewards.update(zip(keys, row["rewards"], strict=True))
        greedy += keys if row["policy"] == "greedy" else []
    best = sorted(rewards, key=lambda kept: -rewards[kept])[: 4 * n : 4]
    return [np.array(kept, np.int64) for kept in dict.fromkeys([*best, *greedy])]


def report(original: Array, quick: list[Array], full: list[Array], top1: Array) -> None:
    """Print both tables."""
    rng = np.random.default_rng(0)
    n = len(original)
    few = [rng.choice(n, min(N_FEW, n), replace=False) for _ in range(N_DRAWS)]
    say = sys.stdout.write
    say(f"{len(quick)} candidates, {n} images, top-1 {top1.mean():.2f} in the mean, {top1.max():.2f} at most\n")
    say(
        f"| judged by | {N_FEW} with all | {N_FEW} with top-1 | all with top-1 | in full | choice of {N_FEW} | of all |\n"
    )
    for name, error in ERRORS.items():
        errors = np.array([error(one, original) for one in quick])
        whole = errors.mean(1)
        part = [errors[:, rows].mean(1) for rows in few]
        in_full = np.array([error(one, original).mean() for one in full])
        say(
            f"| {name} | {mean_correlation(part, whole):.2f} | {mean_correlation(part, -top1):.2f}"
            f" | {mean_correlation([whole], -top1):.2f} | {mean_correlation([in_full], -top1):.2f}"
            f" | {np.mean([top1[one.argmin()] for one in part]):.2f} | {top1[whole.argmin()]:.2f} |\n"
        )
    errors = np.array([brier(4.0)(one, original) for one in quick])
    whole = errors.mean(1)
    say("| margin | images a candidate | errors of the winner, over the best |\n")
    for margin in (0.0, 0.5, 1.0, 2.0):
        raced = [race(errors, margin, rng) for _ in range(N_DRAWS)]
        images, winners = zip(*raced, strict=True)
        say(f"| {margin:g} | {np.mean(images):.0f} | {np.mean(whole[list(winners)]) / whole.min():.4f} |\n")


def choices(original: Array, full: Array, labels: npt.NDArray[np.int64]) -> None:
    """Print how well finalists are chosen: scores (n_candidates, n, classes) of them, (n, classes) of the original."""
    rng = np.random.default_rng(0)
    right = 100.0 * (full.argmax(2) == labels)
    near = -np.array([brier(4.0)(one, original) for one in full])
    gained: dict[str, list[float]] = {"top-1": [], "fidelity": []}
    for _ in range(N_CHOICES):
        one, other = np.array_split(rng.permutation(len(labels)), 2)
        four = rng.choice(len(full), min(N_FINALISTS, len(full)), replace=False)
        on_other = right[np.ix_(four, other)].mean(1)
        for judged, by_image in zip(gained.values(), (right, near), strict=True):
            judged.append(float(on_other[by_image[np.ix_(four, one)].mean(1).argmax()] - on_other.mean()))
    for name, gains in gained.items():
        sys.stdout.write(
            f"| finalist chosen by {name} of half the images | gains {np.mean(gains):.2f} on the other half |\n"
        )


def mean_correlation(found: list[Array], wanted: Array) -> float:
    """Return the mean over the rows of `found` of their correlation with `wanted`."""
    return float(np.mean([np.corrcoef(one, wanted)[0, 1] for one in found]))


def race(errors: Array, margin: float, rng: np.random.Generator) -> tuple[float, int]:
    """Race all in random order on images in random order; return the images each took in the mean, and the winner."""
    order, n = rng.permutation(len(errors)), errors.shape[1]
    errors = errors[:, rng.permutation(n)]
    best, used = int(order[0]), n
    for one in order[1:].tolist():
        stops = [m for m, _ in looks(N_FEW, n, early=False)]
        at = next((m for m in stops if is_lost(errors[one, :m], errors[best], margin)), n)
        used += at
        if at == n and errors[one].mean() < errors[best].mean():
            best = one
    return used / len(errors), best


if __name__ == "__main__":
    main()

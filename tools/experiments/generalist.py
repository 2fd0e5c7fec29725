"""Train the generalist (`policies.guide.generalist`) over many networks.

    python -m tools.experiments.generalist zoo runs/zoo                      # small networks, trained on the digits
    python -m tools.experiments.generalist collect MODEL.onnx --data CARD --out runs/generalist.jsonl
    python -m tools.experiments.generalist train runs/generalist.jsonl [--leave-out NAME ...] [--folds 5] [--out FILE.safetensors]

`collect` measures candidates at three budgets (the greedy ones, the uniform one, and noise around them) as a search does: quick
refit, fidelity; with --generalist what that one would choose, for the next one to learn from. `train` fits an ensemble to all of
them but those of networks that are left out, and prints how it ranks the candidates of these, beside the sum of their refit
errors. With --folds it first does that for every part of the rest. For comparison it leaves the encoder as initialised, or out
(--encoder), or says more or less than what ships (--shrunk).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from agmc_onnx.measuring.roles import Roles
from agmc_onnx.options import CompressOptions
from agmc_onnx.policies.guide import generalist
from agmc_onnx.policies.guide.error_model import normalised
from agmc_onnx.policies.guide.guide import Guide, error_tables
from agmc_onnx.policies.guide.linear_budget import fit_linear_budget
from agmc_onnx.policies.guide.prior import prior_candidates
from agmc_onnx.run.analysis import analyse_model
from agmc_onnx.run.candidates import environment_of
from agmc_onnx.run.target import target_of
from agmc_onnx.search.budget import meet_target
from agmc_onnx.search.problem import Problem

BUDGETS = (0.3, 0.5, 0.7)
REACHES = (0.1, 0.2, 0.3)  # of climbs
ENCODERS = ("trained", "frozen", "none")  # frozen: as initialised; none: its embeddings are zero, the graph is not seen


KINDS = ("residual", "plain", "separable", "inverted")


def random_network(kind: str, rng: np.random.Generator) -> tuple[torch.nn.Module, str]:
    """Return a small untrained network for the digits, of random depth and widths, and what it is called."""
    from torch import nn

    from models.layers import conv_norm
    from models.mobilenet import InvertedResidual
    from models.resnet import BasicResNet

    blocks = rng.integers(1, 5, 3).tolist()
    widths = np.sort(rng.integers(2, 17, 3) * 4).tolist()
    shortcut, strides = str(rng.choice(["A", "B"])), [(1, 1, 2), (1, 2, 1), (1, 2, 2)][rng.integers(3)]
    named = f"{'-'.join(map(str, blocks))}_{'-'.join(map(str, widths))}"
    if kind == "residual":
        made = BasicResNet(blocks, widths, strides, shortcut=shortcut, n_classes=10, n_input_channels=1)
        return made, f"{shortcut}_{named}"
    layers, n_in = [*conv_norm(1, widths[0], 3), nn.ReLU()], widths[0]
    for n_blocks, n_out, first in zip(blocks, widths, strides, strict=True):
        for stride in (first, *[1] * (n_blocks - 1)):
            if kind == "plain":
                layers += [*conv_norm(n_in, n_out, 3, stride), nn.ReLU()]
            elif kind == "separable":
                layers += [*conv_norm(n_in, n_in, 3, stride, groups=n_in), nn.ReLU()]
                layers += [*conv_norm(n_in, n_out, 1), nn.ReLU()]
            else:
                layers.append(InvertedResidual(n_in, n_out, stride, int(rng.integers(2, 7))))
            n_in = n_out
    if kind == "inverted":
        layers += [*conv_norm(n_in, 4 * n_in, 1), nn.ReLU6()]
        n_in *= 4
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if kind == "plain":
        layers += [nn.Linear(n_in, 2 * n_in), nn.ReLU()]
        n_in *= 2
    return nn.Sequential(*layers, nn.Linear(n_in, 10)), f"{kind}_{named}"


def make_zoo(folder: Path, n: int, seed: int) -> None:
    """Train n networks on the digits, residual ones and others in turn."""
    from models.digits.train import IMAGES, INPUT_SHAPE, TRAIN, read_images, train
    from models.export import to_onnx

    folder.mkdir(parents=True, exist_ok=True)
    images, labels = read_images(IMAGES, TRAIN)
    for number in range(n):
        kind = "residual" if number % 2 == 0 else KINDS[1 + number // 2 % 3]
        torch.manual_seed(seed + number)
        network, name = random_network(kind, np.random.default_rng([seed, number]))
        path = folder / f"digits{number}_{name}.onnx"
        if path.exists():
            continue
        train(network, images, labels, torch.Generator().manual_seed(number))
        to_onnx(network.eval(), INPUT_SHAPE, path)
        sys.stdout.write(f"{path.name}\n")
        sys.stdout.flush()


def problems_of(model: Path, data: str, shares: Sequence[float]) -> Iterator[tuple[float, Problem]]:
    """Return the problem of every share of the MACs; their error curves are made once."""
    settings = CompressOptions.of(flops=shares[0]).with_data(True)
    analysis = analyse_model(model)
    roles = Roles(analysis.file.proto, data, settings.data, settings.execution)
    environment = environment_of(analysis, roles, settings)
    for share in shares:
        target = target_of(replace(settings.budget, flops=share), analysis.channels)
        yield share, environment.problem(target.cost, target.budget)


def collect(args: argparse.Namespace) -> None:
    """Measure candidates and write one line each."""
    rng = np.random.default_rng(args.seed)
    for share, problem in problems_of(args.model, args.data, BUDGETS):
        wanted = climbed(problem, args) if args.generalist else scattered(problem, args.candidates, rng)
        n_prior = 0 if args.generalist else len(prior_candidates(problem))
        for number, one in enumerate(wanted):
            met = meet_target(one, problem.cost, problem.n_units, problem.step, problem.min_keep, problem.budget)
            if not met.feasible:
                break
            outcome = problem.evaluate(met.kept)
            row = {"model": str(args.model.resolve()), "data": args.data, "share": share, "kept": met.kept.tolist(),
                   "metric": outcome.metric, "fidelity": outcome.fidelity, "prior": number < n_prior}  # fmt: skip
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        sys.stdout.write(f"{args.model.name} {share}: {len(wanted)} candidates\n")
        sys.stdout.flush()


def scattered(problem: Problem, n: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the prior's candidates, and noise around them."""
    centres: list[np.ndarray] = list(prior_candidates(problem))
    found = centres[:n]
    while len(found) < n:
        noise = rng.normal(0, rng.choice([0.05, 0.1, 0.2]), problem.n_groups)
        found.append(np.clip(centres[rng.integers(len(centres))] + noise, 0.05, 1))
    return found


def climbed(problem: Problem, args: argparse.Namespace) -> list[np.ndarray]:
    """Return where a generalist would go from the prior's candidates, by its weights and by others near them."""
    generalist.FILE = args.generalist
    guide = Guide(problem, args.candidates, torch.Generator().manual_seed(args.seed))
    starts = torch.as_tensor(np.array(prior_candidates(problem)), dtype=torch.float32)
    starts = starts[torch.arange(args.candidates) % len(starts)]
    parts = zip(starts.split(-(-len(starts) // len(REACHES))), REACHES, strict=False)
    found = torch.cat([guide.climb(part, reach) for part, reach in parts])
    return list(np.clip(found.double().numpy(), 0.02, 1))


@dataclass(frozen=True)
class Lesson:
    """Candidates of one network and budget.

    Attributes:
        network: Its file's stem.
        share: Of the MACs.
        sight: What the generalist sees.
        errors: float32 (n, N_KINDS, n_groups), of the candidates.
        plain: float32 (n,), minus the sum of their refit errors: what is known without a generalist.
        rewards: float32 (n,), normalised.
        fidelity: float32 (n,), what the rewards are of.
        prior: bool (n,), which are the prior's own candidates, those that `--episodes 0` chooses from.
    """

    network: str
    share: float
    sight: generalist.Sight
    errors: torch.Tensor
    plain: torch.Tensor
    rewards: torch.Tensor
    fidelity: torch.Tensor
    prior: torch.Tensor


def lessons_of(rows: list[dict[str, Any]]) -> list[Lesson]:
    """Return a lesson for every network and budget."""
    found = []
    shares: dict[tuple[str, str], list[float]] = defaultdict(list)
    for model, data, share in sorted({(row["model"], row["data"], row["share"]) for row in rows}):
        shares[model, data].append(share)
    problems = ((model, *one) for (model, data), own in shares.items() for one in problems_of(Path(model), data, own))
    for model, share, problem in problems:
        own = [row for row in rows if (row["model"], row["share"]) == (model, share)]
        budget = fit_linear_budget(problem)
        tables = error_tables(problem, budget.keep_ratio)
        seen = generalist.sight(problem, tables.errors, budget.weight, budget.keep_ratio)
        errors = tables.at(torch.tensor(np.array([row["kept"] for row in own]) / problem.n_units)).float()
        fidelity = torch.tensor([row["fidelity"] for row in own], dtype=torch.float32)
        prior = torch.tensor([row.get("prior", False) for row in own])
        plain = -errors[:, 0].sum(1)
        found.append(Lesson(Path(model).stem, share, seen, errors, plain, normalised(fidelity), fidelity, prior))
        sys.stdout.write(f"read {found[-1].network} {share}: {len(own)} candidates\n")
        sys.stdout.flush()
    return found


def values(lesson: Lesson, weights: torch.Tensor) -> torch.Tensor:
    """Return what candidates are worth (n,) by weights (N_KINDS, n_groups)."""
    return -(lesson.errors * weights.to(lesson.errors.dtype)).sum((1, 2))


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / (a.norm() * b.norm() + 1e-6)


def taught(lessons: list[Lesson], steps: int, seed: int, encoder: str = "trained") -> generalist.Generalist:
    """Return one member: on every step it sees half of the lessons; their order is what counts, so correlations.

    Args:
        lessons: What it learns from.
        steps: Of the optimizer.
        seed: Of the first weights and the order of the lessons.
        encoder: One of ENCODERS.
    """
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    graph, features = lessons[0].sight.graph, lessons[0].sight.features
    made = generalist.Generalist(graph.x.shape[1], graph.n_edge_types, features.shape[1])
    made.encoder.requires_grad_(encoder == "trained")
    if encoder == "none":
        for weight in made.encoder.parameters():
            weight.zero_()
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=3e-3, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for _ in range(steps):
        chosen = [lessons[i] for i in order.permutation(len(lessons))[: -(-len(lessons) // 2)]]
        weights = made([lesson.sight for lesson in chosen])
        pairs = zip(chosen, weights, strict=True)
        loss = torch.stack([1 - correlation(values(lesson, w), lesson.rewards) for lesson, w in pairs]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return made.eval()


def ensemble(lessons: list[Lesson], args: argparse.Namespace) -> list[generalist.Generalist]:
    return [taught(lessons, args.steps, args.seed + member, args.encoder) for member in range(args.members)]


def fit(args: argparse.Namespace) -> None:
    """Train an ensemble on all networks but those left out, and say how it ranks the candidates of these."""
    generalist.SHRUNK = args.shrunk
    lessons = lessons_of([json.loads(line) for path in args.rows for line in path.read_text().splitlines()])
    left_out = [lesson for lesson in lessons if any(part in lesson.network for part in args.leave_out)]
    networks = sorted({lesson.network for lesson in lessons if lesson not in left_out})
    judged = []
    for fold in range(args.folds):
        outside = networks[fold :: args.folds]
        members = ensemble([one for one in lessons if one not in left_out and one.network not in outside], args)
        judged += [_ranked(members, one) for one in lessons if one.network in outside]
    _say_mean(f"{args.folds} folds", judged)
    members = ensemble([lesson for lesson in lessons if lesson not in left_out], args)
    _say_mean("left out", [_ranked(members, lesson) for lesson in left_out])
    generalist.save(members, args.out)


def _ranked(members: list[generalist.Generalist], lesson: Lesson) -> tuple[float, ...]:
    """Write and return how an ensemble orders candidates.

    Returns:
        Rank correlations with the rewards, of the ensemble and of the refit errors; then, in points of fidelity above the mean of
        the prior's candidates, which one of these the ensemble chooses, the refit errors choose, and the best. NaN where no
        candidate is the prior's.
    """
    valued = [values(lesson, generalist.consensus(members, lesson.sight)), lesson.plain]
    own = lesson.fidelity[lesson.prior]
    gains = [float("nan")] * 3
    if len(own):
        chosen = [int(v[lesson.prior].argmax()) for v in valued] + [int(own.argmax())]
        gains = [float(own[one] - own.mean()) for one in chosen]
    found = (*(float(spearmanr(v, lesson.rewards)[0]) for v in valued), *gains)
    _say(f"{lesson.network} {lesson.share}", found)
    return found


def _say_mean(what: str, judged: list[tuple[float, ...]]) -> None:
    if judged:
        _say(f"{what}, mean of {len(judged)}", tuple(np.nanmean(judged, axis=0)))


def _say(what: str, found: tuple[float, ...]) -> None:
    sys.stdout.write(
        "{}: rank correlation {:.3f}, refit errors alone {:.3f}; chosen of the prior's {:+.2f}, by refit errors alone {:+.2f},"
        " best {:+.2f}\n".format(what, *found)
    )
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("zoo")
    one.add_argument("folder", type=Path)
    one.add_argument("--networks", type=int, default=16)
    one.set_defaults(run=lambda args: make_zoo(args.folder, args.networks, args.seed))
    one = verbs.add_parser("collect")
    one.add_argument("model", type=Path)
    one.add_argument("--data", required=True)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--candidates", type=int, default=30, help="at each of the three budgets")
    one.add_argument("--generalist", type=Path, metavar="FILE", help="measure what this one would choose")
    one.set_defaults(run=collect)
    one = verbs.add_parser("train")
    one.add_argument("rows", type=Path, nargs="+")
    one.add_argument("--leave-out", nargs="*", default=[])
    one.add_argument("--steps", type=int, default=400)
    one.add_argument("--members", type=int, default=3)
    one.add_argument("--folds", type=int, default=0)
    one.add_argument("--shrunk", type=float, default=generalist.SHRUNK, help="how far towards plain refit errors, 0..1")
    one.add_argument(
        "--encoder", choices=ENCODERS, default="trained", help="what of the encoder learns, for comparison"
    )
    one.add_argument("--out", type=Path, default=generalist.FILE)
    one.set_defaults(run=fit)
    for one in verbs.choices.values():
        one.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.run(args)


if __name__ == "__main__":
    main()

"""Train the generalist agent: encoder, decoder, actor and critic over many networks.

    python tools/experiments/generalist.py zoo runs/zoo                      # small residual networks, trained on digits
    python tools/experiments/generalist.py collect MODEL.onnx --data CARD --out runs/generalist.jsonl
    python tools/experiments/generalist.py train runs/generalist.jsonl [--leave-out NAME ...] [--out FILE.safetensors]

`collect` measures candidates at three budgets (the greedy ones, the uniform one, and noise around them) as a search does:
quick refit, fidelity. `train` fits one agent to all of them, as if it had searched every network at once, and prints how
its critic ranks the candidates of networks that were left out, beside the refit-error curves alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from agmc_onnx.config import AgmcOptions, CompressOptions, SearchOptions
from agmc_onnx.measuring.roles import Roles
from agmc_onnx.run.analysis import analyse_model
from agmc_onnx.run.candidates import environment_of
from agmc_onnx.run.target import target_of
from agmc_onnx.search.budget import meet_target
from agmc_onnx.search.policies import generalist
from agmc_onnx.search.policies.agmc import AgmcPolicy
from agmc_onnx.search.prior import prior_candidates
from agmc_onnx.search.problem import Problem

BUDGETS = (0.3, 0.5, 0.7)


def make_zoo(folder: Path, n: int, seed: int) -> None:
    """Train n residual networks of random depth, widths and shortcuts on the digits."""
    from models.digits.train import IMAGES, INPUT_SHAPE, TRAIN, read_images, train
    from models.export import to_onnx
    from models.resnet import BasicResNet

    folder.mkdir(parents=True, exist_ok=True)
    images, labels = read_images(IMAGES, TRAIN)
    rng = np.random.default_rng(seed)
    for number in range(n):
        blocks = rng.integers(1, 5, 3).tolist()
        widths = np.sort(rng.integers(2, 17, 3) * 4).tolist()
        shortcut, strides = str(rng.choice(["A", "B"])), [(1, 1, 2), (1, 2, 1), (1, 2, 2)][rng.integers(3)]
        path = folder / f"digits{number}_{shortcut}_{'-'.join(map(str, blocks))}_{'-'.join(map(str, widths))}.onnx"
        if path.exists():
            continue
        torch.manual_seed(seed + number)
        network = BasicResNet(blocks, widths, strides, shortcut=shortcut, n_classes=10, n_input_channels=1)
        train(network, images, labels, torch.Generator().manual_seed(number))
        to_onnx(network.eval(), INPUT_SHAPE, path)
        sys.stdout.write(f"{path.name}\n")
        sys.stdout.flush()


def problem_of(model: Path, data: str, share: float) -> Problem:
    settings = CompressOptions.of(flops=share).with_data(True)
    analysis = analyse_model(model)
    roles = Roles(analysis.file.proto, data, settings)
    environment = environment_of(analysis, roles, settings)
    target = target_of(settings, analysis.channels)
    return environment.problem(target.cost, target.budget)


def collect(args: argparse.Namespace) -> None:
    """Measure candidates and write one line each."""
    rng = np.random.default_rng(args.seed)
    for share in BUDGETS:
        problem = problem_of(args.model, args.data, share)
        centres = prior_candidates(problem)
        for number in range(args.candidates):
            wanted = centres[number] if number < len(centres) else centres[rng.integers(len(centres))]
            if number >= len(centres):
                wanted = np.clip(wanted + rng.normal(0, rng.choice([0.05, 0.1, 0.2]), problem.n_groups), 0.05, 1)
            met = meet_target(wanted, problem.cost, problem.n_units, problem.step, problem.min_keep, problem.budget)
            if not met.feasible:
                break
            outcome = problem.evaluate(met.kept)
            row = {"model": str(args.model.resolve()), "data": args.data, "share": share, "kept": met.kept.tolist(),
                   "metric": outcome.metric, "fidelity": outcome.fidelity}  # fmt: skip
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
        sys.stdout.write(f"{args.model.name} {share}: {args.candidates} candidates\n")
        sys.stdout.flush()


def policies_of(rows: list[dict[str, Any]], seed: int) -> list[tuple[str, AgmcPolicy, torch.Tensor, torch.Tensor]]:
    """Return for every network and budget its name, a policy, the candidates (n, n_groups) and their fidelity (n,)."""
    found = []
    for model, data, share in sorted({(row["model"], row["data"], row["share"]) for row in rows}):
        own = [row for row in rows if (row["model"], row["share"]) == (model, share)]
        problem = problem_of(Path(model), data, share)
        policy = AgmcPolicy(
            problem, SearchOptions(n_episodes=400, agmc=AgmcOptions(generalist=False)), np.random.default_rng(seed)
        )
        ratios = torch.tensor(np.array([row["kept"] for row in own]) / problem.n_units, dtype=torch.float32)
        found.append((f"{Path(model).stem} {share}", policy, ratios, torch.tensor([row["fidelity"] for row in own])))
    return found


def fit(args: argparse.Namespace) -> None:
    """Train one agent over all rows, but those left out."""
    rows = [json.loads(line) for path in args.rows for line in path.read_text().splitlines()]
    torch.manual_seed(args.seed)
    everything = policies_of(rows, args.seed)
    first = everything[0][1].agent
    learning = []
    for name, policy, ratios, fidelity in everything:
        agent = policy.agent
        if agent is not first:
            generalist.share(agent.networks, first.networks)
            agent.optimizer = first.optimizer
        agent.networks.represent.identity.weight.data.zero_()
        agent.networks.represent.identity.weight.requires_grad_(False)
        for actions, value in zip(ratios, fidelity.tolist(), strict=True):
            agent.remember(actions, value)
        if not any(part in name for part in args.leave_out):
            learning.append(agent)
    order = np.random.default_rng(args.seed)
    for step in range(args.steps):
        learning[order.integers(len(learning))].update()
        if (step + 1) % 500 == 0:
            sys.stdout.write(f"step {step + 1} of {args.steps}\n")
            sys.stdout.flush()
    for name, policy, ratios, fidelity in everything:
        known = -policy.agent.known.error(policy.agent.budget.rescale(ratios)).sum(dim=1)
        judged = policy.agent.judge(ratios)
        left_out = "left out" if policy.agent not in learning else "learned"
        sys.stdout.write(
            f"{name} ({left_out}): rank correlation {spearmanr(judged, fidelity)[0]:.3f}, curves alone"
            f" {spearmanr(known, fidelity)[0]:.3f}\n"
        )
    generalist.save(first.networks, args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("zoo")
    one.add_argument("folder", type=Path)
    one.add_argument("--networks", type=int, default=10)
    one.set_defaults(run=lambda args: make_zoo(args.folder, args.networks, args.seed))
    one = verbs.add_parser("collect")
    one.add_argument("model", type=Path)
    one.add_argument("--data", required=True)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--candidates", type=int, default=30, help="at each of the three budgets")
    one.set_defaults(run=collect)
    one = verbs.add_parser("train")
    one.add_argument("rows", type=Path, nargs="+")
    one.add_argument("--leave-out", nargs="*", default=[])
    one.add_argument("--steps", type=int, default=4000)
    one.add_argument("--out", type=Path, default=generalist.FILE)
    one.set_defaults(run=fit)
    for one in verbs.choices.values():
        one.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.run(args)


if __name__ == "__main__":
    main()

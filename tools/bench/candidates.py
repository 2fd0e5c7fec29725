"""Candidates a minute, in turns on the same machine: ours, and three other ways to measure one; prints one JSON line.

    python -m tools.bench.candidates MODEL.onnx --data CARD --images 500 --candidates 6 [--torch-pruning resnet20]

Every way gets the same random candidates of the same budget, and answers each with its metric on the same images in the same
batches, on one thread, without recovery:

- ours: cut the graph, make a session, run it in onnxruntime;
- torch: the same cut graph, run by PyTorch in eager mode (through `torch_view.module`), convolutions with BatchNorm as stored;
- masks: the whole graph with zeros in place of what is removed, in onnxruntime;
- Torch-Pruning (with --torch-pruning NAME, a network of models/zoo.py of the same shape; pip install --no-deps
  torch-pruning): the module copied, cut to the same ratio everywhere, run by PyTorch; CIFAR ResNets have convolutions as
  shortcuts there.

Seconds are wall time; on a busy machine processor time (`cpu_seconds`) compares better. With --episodes N it also runs a
whole search, as `compress` does it, and says which share of the episodes' time is inference.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agmc_onnx.graph.view import graph_of
from agmc_onnx.measuring.roles import Roles
from agmc_onnx.options import CompressOptions
from agmc_onnx.pruning.plan import make_plan
from agmc_onnx.pruning.verification import masked
from agmc_onnx.run.analysis import analyse_model
from agmc_onnx.run.candidates import environment_of, search_candidates
from agmc_onnx.run.target import target_of
from agmc_onnx.search.budget import meet_target
from agmc_onnx.torch_view.module import TorchGraph


def torch_answers(run: Callable[[torch.Tensor], torch.Tensor], feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    with torch.inference_mode():
        return np.concatenate([run(torch.from_numpy(next(iter(feed.values())))).numpy() for feed in feeds])


def torch_pruned(module: torch.nn.Module, ratio: float, example: torch.Tensor) -> torch.nn.Module:
    """Return a copy of the module that keeps `ratio` of every group Torch-Pruning finds."""
    import torch_pruning

    made = copy.deepcopy(module)
    last = [m for m in made.modules() if isinstance(m, torch.nn.Linear)][-1:]
    importance = torch_pruning.importance.MagnitudeImportance(p=2)
    torch_pruning.pruner.MagnitudePruner(
        made, example, importance=importance, pruning_ratio=1 - ratio, ignored_layers=last
    ).step()
    return made.eval()


def share_of_inference(args: argparse.Namespace) -> dict[str, Any]:
    """Return what part of the episodes of a search is inference; what is made once (the first episode) is left out."""
    settings = CompressOptions.of(
        flops=args.flops, policy=args.policy, episodes=args.episodes, recover=args.recover, reward_samples=args.images
    )
    analysis = analyse_model(args.model)
    data = Roles(analysis.file.proto, args.data, settings.data, settings.execution)
    environment, target = environment_of(analysis, data, settings), target_of(settings.budget, analysis.channels)
    cpu: list[float] = []
    found = search_candidates(
        analysis, environment, target, data, settings, None, lambda *_: cpu.append(time.process_time())
    )
    history = [record for record in found.history[1:] if not record["cached"]]
    wall, inference = sum(r["wall_s"] for r in history), sum(r["inference_s"] for r in history)
    return {
        "episodes": len(history), "recover": args.recover, "inference_share": inference / wall, "wall_s": wall,
        "episodes_a_minute": 60 * len(history) / wall, "cpu_s_an_episode": float(np.median(np.diff(cpu))),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--candidates", type=int, default=6)
    parser.add_argument("--torch-pruning", metavar="NAME")
    parser.add_argument("--episodes", type=int, default=0)
    parser.add_argument("--policy", default="agmc")
    parser.add_argument("--recover", default="compensate")
    args = parser.parse_args()
    if args.torch_pruning and importlib.util.find_spec("torch_pruning") is None:
        parser.error(
            "--torch-pruning: Torch-Pruning is not installed; pip install --no-deps torch-pruning, or leave it out"
        )
    torch.set_num_threads(1)
    settings = CompressOptions.of(flops=args.flops, recover="none", reward_samples=args.images, judge="metric")
    analysis = analyse_model(args.model)
    data = Roles(analysis.file.proto, args.data, settings.data, settings.execution)
    environment = environment_of(analysis, data, settings)
    target = target_of(settings.budget, analysis.channels)
    evaluator = data.evaluator("reward")
    feeds = data.role("reward").feeds(evaluator.batch_size)
    rng = np.random.default_rng(0)
    groups = environment.n_units, environment.step, environment.min_keep
    ways: dict[str, Callable[[Any], float]] = {}

    def ours(met: Any) -> float:
        return environment.evaluate(met.kept).metric

    def eager(met: Any) -> float:
        module = TorchGraph(environment.candidate(met.kept))
        answers = torch_answers(lambda x: module(x)[0], feeds)
        return float(np.mean(answers.argmax(1) == data.role("reward").labels)) * 100

    def masks(met: Any) -> float:
        plan = make_plan(analysis.channels, environment.kept(met.kept), analysis.file.sha256)
        return evaluator(masked(analysis.model, plan)).score.value

    ways |= {"ours": ours, "torch": eager, "masks": masks}
    if args.torch_pruning:
        from models.zoo import BUILDERS, build

        options = (
            {"shortcut": "B"}
            if BUILDERS[args.torch_pruning].input_shape[-1] == 32 and "resnet" in args.torch_pruning
            else {}
        )
        module = build(args.torch_pruning, **options)  # Torch-Pruning does not follow shortcuts of Slice and Pad
        example = torch.zeros(1, *BUILDERS[args.torch_pruning].input_shape[1:])

        def peer(met: Any) -> float:
            made = torch_pruned(module, float(np.sqrt(args.flops)), example)
            torch_answers(made, feeds)
            return float("nan")

        ways["torch-pruning"] = peer
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in ways}
    same = []
    for number in range(args.candidates + 1):
        met = meet_target(rng.uniform(0.3, 1, len(groups[0])), target.cost, *groups, target.budget)
        metrics = {}
        for name, way in ways.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            metrics[name] = way(met)
            if number:  # the first warms everything up
                seconds[name].append(time.perf_counter() - start)
                cpu_seconds[name].append(time.process_time() - cpu_start)
        same.append(abs(metrics["ours"] - metrics["torch"]) < 0.5 and abs(metrics["ours"] - metrics["masks"]) < 0.5)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    cpu = {name: statistics.median(times) for name, times in cpu_seconds.items()}
    row: dict[str, Any] = {
        "model": args.model.name, "images": args.images, "seconds": middle, "same_metric": all(same),
        "times_ours": {name: value / middle["ours"] for name, value in middle.items()},
        "cpu_seconds": cpu, "cpu_times_ours": {name: value / cpu["ours"] for name, value in cpu.items()},
        "macs": {"original": int(environment.macs(groups[0])), "nodes": len(graph_of(analysis.model).nodes)},
    }  # fmt: skip
    if args.episodes:
        row["search"] = share_of_inference(args)
    sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

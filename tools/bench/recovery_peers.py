"""Recovery beside peers, without fine-tuning: one network, one budget of true MACs, the same calibration images.

    python -m tools.bench.recovery_peers cifar10_resnet56_bn.onnx --data cifar10.toml --out recovery.jsonl [--only NAME ...]

Needs `pip install --no-deps torch-pruning==1.6.1 onnxsim==0.8.1`. The model is a CIFAR ResNet with unfolded BatchNormalization;
Torch-Pruning gets it as a module of `models.resnet` with the model's weights, checked equal to it in onnxruntime.

- `torch-pruning *`: the inner widths of all blocks (its graph does not follow the padded shortcuts of option A), every block by
  the same share or by one global ranking, the pruning ratio bisected until the exported model is within the budget; then
  BatchNorm re-estimated on the calibration images (running means of all of them). Taylor takes the classes that the original
  says. Both variants are tried and the better one on the reward role is kept.
- `onnxsim *`: `apply_structured_pruning` of the model that `onnxsim.simplify` gives (with BatchNormalization it cuts nothing),
  sparsity bisected likewise; then `recover_batch_norm` towards the original. Wanda ranks on the first 100 images.
- `ours *`: `agmc_onnx.compress` with that policy.

Columns: MACs kept, top-1 on the first images of the test role as cut and recovered, processor seconds.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

import agmc_onnx
from agmc_onnx.data.samples import Samples, load_card, open_data
from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.view import graph_of
from agmc_onnx.measuring.accuracy import Evaluator
from agmc_onnx.measuring.session import make_session, model_inputs, run_model
from agmc_onnx.pruning.cost import count_macs
from models.export import to_onnx
from models.resnet import BasicResNet, cifar_resnet

STEPS = 8  # of a bisection
Row = dict[str, Any]


class Bench:
    """A network, its budget and its data."""

    def __init__(self, path: Path, data: Path, share: float, n_test: int) -> None:
        self.path, self.data, self.share = path, data, share
        self.model = onnx.load(path)
        dataset = open_data(load_card(data), model_inputs(self.model))
        self.calibration: Samples = dataset.role("calibration")
        self.reward = Evaluator(dataset.role("reward").take(1000), dataset.metric)
        self.test = Evaluator(dataset.role("test").take(n_test), dataset.metric)
        self.full = macs_of(self.model)
        self.feeds = self.calibration.feeds(100)

    def within(self, cut: Callable[[float], Any], as_model: Callable[[Any], onnx.ModelProto]) -> tuple[Any, float]:
        """Return the largest result within the budget, by bisection over the ratio that is removed, and its share."""
        low, high, best = 0.0, 1.0, None
        for _ in range(STEPS):
            ratio = (low + high) / 2
            made = cut(ratio)
            kept = macs_of(as_model(made)) / self.full
            if kept <= self.share:
                high = ratio
                best = (made, kept) if best is None or kept > best[1] else best
            else:
                low = ratio
        if best is None:
            raise RuntimeError("no ratio reaches the budget")
        return best

    def module(self) -> BasicResNet:
        """Return the network as a module; the same numbers, checked."""
        tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in self.model.graph.initializer}
        depth = sum(name.endswith("weight") and t.dim() == 4 for name, t in tensors.items()) + 1
        net = cifar_resnet(depth).eval()
        ours = [name for name in net.state_dict() if not name.endswith("num_batches_tracked")]
        theirs = [name for name in tensors if name.split(".")[-1] in ("weight", "bias", "running_mean", "running_var")]
        net.load_state_dict(dict(zip(ours, (tensors[name] for name in theirs), strict=True)), strict=False)
        (x,) = self.feeds[0].values()
        want = run_model(make_session(self.model, 1), self.feeds[0])[0]
        with torch.no_grad():
            got = net(torch.from_numpy(x)).numpy()
        assert np.abs(got - want).max() < 1e-3 * np.abs(want).max(), "the module is not the model"
        return net


def macs_of(model: onnx.ModelProto) -> int:
    return sum(count_macs(graph_of(normalize(model))).values())


def exported(net: torch.nn.Module) -> onnx.ModelProto:
    net.zero_grad()
    return to_onnx(net, (1, 3, 32, 32), keep_batchnorm=True)


def torch_pruning(bench: Bench, kind: str) -> Row:
    import torch_pruning as tp

    importances = {
        "L1": partial(tp.importance.MagnitudeImportance, p=1),
        "L2": partial(tp.importance.MagnitudeImportance, p=2),
        "Taylor": tp.importance.TaylorImportance,
    }
    net = bench.module()
    images = torch.from_numpy(np.concatenate([next(iter(feed.values())) for feed in bench.feeds]))
    if kind == "Taylor":
        for x in images.split(100):
            answers = net(x)
            torch.nn.functional.cross_entropy(answers, answers.argmax(1), reduction="sum").backward()
    inner = [block.conv1 for stage in net.stages for block in stage]

    def cut(is_global: bool, ratio: float) -> BasicResNet:
        made = copy.deepcopy(net)
        for ours, theirs in zip(made.parameters(), net.parameters(), strict=True):
            ours.grad = None if theirs.grad is None else theirs.grad.clone()
        kept = {id(b.conv1) for stage in made.stages for b in stage}
        ignored = [m for m in made.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear) and id(m) not in kept]
        pruner = tp.pruner.MagnitudePruner(
            made,
            images[:1],
            importance=importances[kind](),
            pruning_ratio=ratio,
            global_pruning=is_global,
            ignored_layers=ignored,
        )
        pruner.step()
        return made.eval()

    rows = []
    for is_global in (False, True):
        start = time.process_time()
        net_cut, kept = bench.within(partial(cut, is_global), exported)
        as_cut = exported(net_cut)
        reestimate(net_cut, images)
        recovered = exported(net_cut)
        row = scored(bench, kept, as_cut, recovered, time.process_time() - start)
        rows.append(row | {"variant": "global" if is_global else "uniform", "blocks": len(inner)})
    return max(rows, key=lambda row: row["reward"])


def reestimate(net: torch.nn.Module, images: torch.Tensor) -> None:
    """Let BatchNorm take the mean over all batches of calibration images."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    net.train()
    with torch.no_grad():
        for x in images.split(100):
            net(x)
    net.eval()


def onnxsim(bench: Bench, kind: str) -> Row:
    import onnxsim as tool
    from onnxsim.bn_recovery import recover_batch_norm
    from onnxsim.pruning import apply_structured_pruning, apply_structured_wanda_pruning

    start = time.process_time()
    simple, _ = tool.simplify(bench.model)

    def cut(ratio: float) -> onnx.ModelProto:
        if kind == "Wanda":
            return apply_structured_wanda_pruning(simple, bench.feeds[:1], sparsity=ratio)
        return apply_structured_pruning(simple, ratio, importance_norm=kind.lower())

    model, kept = bench.within(cut, lambda made: made)
    try:
        recovered, note = recover_batch_norm(model, calibration_data=bench.feeds, target_model=simple), ""
    except Exception as error:  # what it cannot recover stays as cut, and the row says so
        recovered, note = model, f"{type(error).__name__}: {str(error)[:200]}"
    row = scored(bench, kept, model, recovered, time.process_time() - start)
    return row | ({"note": note} if note else {})


def ours(bench: Bench, policy: str) -> Row:
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        options: Row = {"flops": bench.share, "policy": policy, "latency_seconds": 0.2}
        report = agmc_onnx.compress(bench.path, output=out, data=bench.data, **options).report
        seconds = time.process_time() - start
        recovered = onnx.load(out)
        agmc_onnx.apply(bench.path, out.with_suffix(".plan.json"), output=Path(folder) / "cut.onnx")
        as_cut = onnx.load(Path(folder) / "cut.onnx")
    kept = report["compressed"]["macs"] / report["original"]["macs"]
    return scored(bench, kept, as_cut, recovered, seconds)


def scored(bench: Bench, kept: float, as_cut: onnx.ModelProto, recovered: onnx.ModelProto, seconds: float) -> Row:
    return {
        "macs_kept": round(kept, 4),
        "reward": bench.reward(recovered).score.value,
        "as_cut": bench.test(as_cut).score.value,
        "recovered": bench.test(recovered).score.value,
        "seconds": round(seconds, 1),
    }


TOOLS: dict[str, Callable[[Bench], Row]] = {
    **{f"torch-pruning {kind}": partial(torch_pruning, kind=kind) for kind in ("L1", "L2", "Taylor")},
    **{f"onnxsim {kind}": partial(onnxsim, kind=kind) for kind in ("L1", "L2", "Wanda")},
    **{f"ours {policy}": partial(ours, policy=policy) for policy in ("uniform", "greedy")},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--n-test", type=int, default=2000)
    parser.add_argument("--only", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--out", type=Path, default=Path("runs/recovery_peers.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args.model, args.data, args.flops, args.n_test)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    base = bench.test(bench.model).score.value
    print(f"{args.model.name}: {base} on {args.n_test} test images, budget {args.flops} of {bench.full:,} MACs")
    for name in args.only:
        row = {"model": args.model.name, "tool": name, "base": base, **TOOLS[name](bench)}
        with args.out.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

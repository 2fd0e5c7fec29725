"""The models of the coverage table through this project, Torch-Pruning and onnxsim, one after the other on each model.

    python -m tools.bench.peers --out peers.jsonl [--keep FOLDER] [--only NAME ...] [--part 1/2] [--seconds 300]

Needs `pip install --no-deps torch-pruning==1.6.1 onnxsim==0.8.1` beside what tools/coverage.py needs. All three cut half of
every group they find, by L2 norm, one thread:

- this project and onnxsim (`apply_structured_pruning`, sparsity 0.5) start from the same ONNX model in memory;
- Torch-Pruning (`MagnitudePruner`, pruning_ratio 0.5) starts from the module that this model was exported from, with its
  classifier as the only ignored layer and nothing said about heads: as a user has it who knows nothing of the network.

Seconds are processor time of graph and cut: dependency graph, importance, surgery; the best of three runs where the first
took less than five. Valid: onnx's checker accepts, onnxruntime runs, shapes of the outputs are the original's (a module is
exported first, by the TorchScript exporter). MACs are counted in the ONNX graphs, by one counter.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.view import graph_of
from agmc_onnx.measuring.random_inputs import runnable
from agmc_onnx.measuring.session import make_session, run_model
from agmc_onnx.pruning.cost import count_macs
from tools import zoo
from tools.apart import Row, fill, run_apart
from tools.coverage import graph_and_cut

RATIO, AGAIN_BELOW = 0.5, 5.0  # seconds


def macs_of(model: onnx.ModelProto) -> int:
    return sum(count_macs(graph_of(normalize(model))).values())


def judged(original: onnx.ModelProto, pruned: onnx.ModelProto, seconds: float) -> Row:
    """Return whether a pruned model is valid, and its share of the MACs."""
    row: Row = {"seconds": round(seconds, 3)}
    onnx.checker.check_model(pruned, full_check=True)
    feed = runnable(original, 1, 0).feeds(1)[0]
    want, got = ([np.shape(v) for v in run_model(make_session(model), feed)] for model in (original, pruned))
    return row | {"valid": want == got, "macs_left": round(macs_of(pruned) / macs_of(original), 4)}


def timed(run: Callable[[], tuple[Any, float]]) -> tuple[Any, float]:
    """Return what a run made and its seconds, of the best of three where it is short."""
    made, seconds = run()
    for _ in range(2 if seconds < AGAIN_BELOW else 0):
        made, again = run()
        seconds = min(seconds, again)
    return made, seconds


def ours(name: str, exporter: str, keep: Path | None) -> Row:
    model = zoo.load(name, exporter, keep)

    def run() -> tuple[onnx.ModelProto, float]:
        _, _, pruned, seconds = graph_and_cut(model)
        assert pruned is not None
        return pruned, seconds

    return judged(model, *timed(run))


def onnxsim(name: str, exporter: str, keep: Path | None) -> Row:
    from onnxsim.pruning import apply_structured_pruning

    model = zoo.load(name, exporter, keep)

    def run() -> tuple[onnx.ModelProto, float]:
        start = time.process_time()
        pruned = apply_structured_pruning(model, RATIO)
        return pruned, time.process_time() - start

    return judged(model, *timed(run))


def torch_pruning(name: str, exporter: str, keep: Path | None) -> Row:
    import torch
    import torch_pruning as tp

    model = zoo.load(name, exporter, keep)
    net, shape = zoo.build(name)
    sample = torch.randn(1, *shape[1:])
    with torch.no_grad():
        n_classes = net(sample).shape[1]
    layers = (torch.nn.Linear, torch.nn.Conv2d)

    def run() -> tuple[Any, float]:
        pruned = copy.deepcopy(net)
        widths = [(m, m.weight.shape[0]) for m in pruned.modules() if isinstance(m, layers)]
        start = time.process_time()
        pruner = tp.pruner.MagnitudePruner(
            pruned,
            sample,
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=RATIO,
            ignored_layers=[m for m, width in widths if width == n_classes],
        )
        pruner.step()
        return pruned, time.process_time() - start

    pruned, seconds = timed(run)
    pruned.zero_grad()
    return judged(model, zoo.export(pruned.eval(), shape, "torchscript"), seconds)


TOOLS = {"ours": ours, "torch_pruning": torch_pruning, "onnxsim": onnxsim}


def compare(name: str, keep: Path | None, seconds: int) -> Row:
    """Return the row of one model: what each of the tools made of it, in turns of order from model to model."""
    exporter = next(
        (e for e in zoo.EXPORTERS if keep and (keep / f"{e}-{name.replace(':', '-')}.onnx").exists()), "torchscript"
    )
    order = list(TOOLS) if sum(name.encode()) % 2 else list(TOOLS)[::-1]
    return {"model": exporter} | {
        tool: run_apart(partial(TOOLS[tool], name, exporter, keep), seconds) for tool in order
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("runs/peers.jsonl"))
    parser.add_argument("--only", nargs="+", help="names, as in tools/architectures.txt")
    parser.add_argument("--seconds", type=int, default=120, help="limit of one tool's processor time on one model")
    parser.add_argument("--keep", type=Path, help="folder for exported models, to export each only once")
    parser.add_argument("--part", default="1/1", help="K/N: every N-th model from the K-th, for several processes")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no model later than this")
    parser.add_argument("--again", action="store_true", help="repeat rows that older code of this project made")
    args = parser.parse_args()
    zoo.import_frameworks()
    import onnxsim.pruning  # noqa: F401
    import torch_pruning  # noqa: F401

    jobs = [(name, "all") for name in args.only or zoo.architectures()]
    fill(args.out, jobs, lambda name, _: compare(name, args.keep, args.seconds), args.part, args.again, args.minutes)


if __name__ == "__main__":
    main()

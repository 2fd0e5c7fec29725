"""Compare the differentiable view of a graph (`torch_view.module`) with onnxruntime, network by network.

    python -m tools.check_torch_view [MODEL.onnx ...] [--exporters torchscript dynamo] [--only NAME ...]

Without --only nor models: every network of `models/`, with random weights, as exported by both PyTorch exporters. Two random
samples each, float32, one thread. One line a network: the largest difference over the largest entry, of the worst output, or
why the view does not cover it. Exit code 1 if a difference is above 1e-5.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
import torch

from agmc_onnx.errors import AgmcError
from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.view import graph_of
from agmc_onnx.measuring.random_inputs import runnable
from agmc_onnx.measuring.session import make_session, run_model
from agmc_onnx.torch_view.module import TorchGraph, to_tensor
from models.export import to_onnx
from models.zoo import BUILDERS, build

LIMIT = 1e-5


def difference(model: onnx.ModelProto) -> float:
    """Return the largest difference of any output over its largest entry.

    Raises:
        ModelError: If the view does not cover the model.
    """
    graph = graph_of(normalize(model))
    module = TorchGraph(graph).eval()
    worst = 0.0
    for feed in runnable(model, 2, 0).feeds(2):
        wanted = run_model(make_session(model, 1), feed)
        with torch.no_grad():
            found = module.run({name: to_tensor(array) for name, array in feed.items()}, graph.outputs)
        for name, want in zip(graph.outputs, wanted, strict=True):
            gap = np.abs(found[name].double().numpy() - np.asarray(want, np.float64)).max()
            worst = max(worst, float(gap / max(np.abs(want).max(), 1e-30)))
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--exporters", nargs="+", default=["torchscript", "dynamo"])
    parser.add_argument("--only", nargs="+", choices=list(BUILDERS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    jobs = [(path.name, "file", lambda path=path: onnx.load(path)) for path in args.models]
    for name in args.only or ([] if args.models else BUILDERS):
        for exporter in args.exporters:
            opset = 18 if exporter == "dynamo" else 17
            jobs.append(
                (
                    name,
                    exporter,
                    lambda n=name, e=exporter, o=opset: to_onnx(build(n), BUILDERS[n].input_shape, exporter=e, opset=o),
                )
            )
    bad = 0
    print("| network | from | difference / largest output |\n| --- | --- | ---: |")
    for name, source, load in jobs:
        try:
            found = difference(load())
            bad += found > LIMIT
            told = f"{found:.1e}"
        except AgmcError as error:
            told = str(error)
        print(f"| {name} | {source} | {told} |", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())

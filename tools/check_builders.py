"""Prune every network of `models/` to half its multiply-adds, as exported by both PyTorch exporters, and check it.

    python tools/check_builders.py [--flops 0.5] [--exporters torchscript dynamo] [--only NAME ...]

Weights and BatchNorm statistics are random. One line a network: share of the MACs that groups change, smallest reachable
share, share reached, whether the counted cost is the predicted one, and the largest difference to the masked original.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from agmc_onnx.graph.normalize import normalize
from agmc_onnx.graph.view import view
from agmc_onnx.ops import analyse
from agmc_onnx.pruning.cost import count_macs, macs_cost
from agmc_onnx.pruning.importance import choose, l2_norm
from agmc_onnx.pruning.plan import make_plan
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.pruning.verify import verify
from agmc_onnx.search.budget import meet_target
from models.export import to_onnx
from models.zoo import BUILDERS, build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--exporters", nargs="+", default=["torchscript", "dynamo"])
    parser.add_argument("--only", nargs="+", default=list(BUILDERS))
    args = parser.parse_args()
    sys.stdout.write(
        "| network | exporter | groups | prunable | smallest | reached | as predicted | largest difference |\n"
    )
    sys.stdout.write("| --- | --- | ---: | ---: | ---: | ---: | --- | ---: |\n")
    for name in args.only:
        for exporter in args.exporters:
            opset = 18 if exporter == "dynamo" else 17
            exported = to_onnx(build(name), BUILDERS[name].input_shape, exporter=exporter, opset=opset)
            model = normalize(exported)
            channels = analyse(view(model))
            cost = macs_cost(channels)
            full = np.array([g.n_units for g in channels.groups])
            step = np.array([g.step for g in channels.groups])
            met = meet_target(np.full(full.size, 0.7), cost, full, step, step, int(args.flops * cost(full)))
            kept = choose(channels, l2_norm(channels), met.kept)
            pruned = Surgeon(channels).cut(kept)
            checked = verify(model, pruned, make_plan(channels, kept, "0" * 64))
            counted = sum(count_macs(view(pruned)).values())
            sys.stdout.write(
                f"| {name} | {exporter} | {full.size} | {cost.prunable_share(full):.3f} | {cost(step) / cost(full):.4f}"
                f" | {counted / cost(full):.4f} | {counted == cost(met.kept)} | {checked.max_abs_diff:.1e} of"
                f" {checked.max_abs_output:.2g} {checked.note} |\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()

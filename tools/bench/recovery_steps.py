"""One plan, recovered in every way that has no training: as cut, statistics alone, refit in closed form.

    python -m tools.bench.recovery_steps MODEL.onnx --data CARD [--flops 0.5] [--importance l2]

Widths are those of `greedy_widths` on refit errors, in fours; the metric is the card's, on the test role; where that is agreement
with the original, it is measured as `compress` does. Seconds are processor seconds on one thread.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch

from agmc_onnx.data.samples import load_card, open_data
from agmc_onnx.measuring.accuracy import Evaluator
from agmc_onnx.measuring.session import model_inputs
from agmc_onnx.pruning.cost import macs_cost
from agmc_onnx.pruning.importance import IMPORTANCE, choose
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.refit.compensation import compensate
from agmc_onnx.refit.curves import greedy_widths
from agmc_onnx.refit.importance import MEASURED, Measurements
from agmc_onnx.refit.options import RecoverOptions
from agmc_onnx.refit.statistics import Restatement
from agmc_onnx.run.analysis import analyse_model
from agmc_onnx.ties.groups import Group


def steps_of(groups: Sequence[Group]) -> tuple[list[int], list[int]]:
    """Return what kept counts are multiples of, and the least ones: fours, where a group has so many units."""
    step = [four if (four := math.lcm(g.step, 4)) < g.n_units else g.step for g in groups]
    return step, [max(s, s * (g.n_units // (5 * s))) for s, g in zip(step, groups, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--importance", default="l2", choices=[*IMPORTANCE, *MEASURED])
    parser.add_argument("--n-test", type=int, default=2000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    analysis = analyse_model(args.model)
    channels = analysis.channels
    dataset = open_data(load_card(args.data), model_inputs(analysis.file.proto))
    calibration, test = dataset.role("calibration"), dataset.role("test").take(args.n_test)
    reference = analysis.file.proto if dataset.metric == "agreement" else None
    judge = Evaluator(test, dataset.metric, reference=reference)

    measured = Measurements(channels, calibration, RecoverOptions(n_samples=256, n_curve_positions=8000))
    scores = measured.scores(args.importance) if args.importance in MEASURED else IMPORTANCE[args.importance](channels)
    full = np.array([group.n_units for group in channels.groups], np.int64)
    cost = macs_cost(channels)
    widths = greedy_widths(
        measured.curves(scores), cost, full, *steps_of(channels.groups), int(args.flops * cost(full))
    )
    kept = choose(channels, scores, widths)
    as_cut = Surgeon(channels).cut(kept)
    print(f"{args.model.name}: {dataset.metric} {judge(analysis.file.proto).score.value:.2f}, {test.n} test samples;")
    print(f"{cost(widths) / cost(full):.4f} of the MACs, {calibration.n} calibration samples")
    steps: dict[str, Callable[[], onnx.ModelProto]] = {
        "as cut": lambda: as_cut,
        "statistics": lambda: Restatement(channels, calibration)(kept, as_cut),
        "compensate": lambda: compensate(channels, kept, as_cut, calibration),
    }
    for name, recover in steps.items():
        start = time.process_time()
        model = recover()
        seconds = time.process_time() - start
        print(f"{name}: {judge(model).score.value:.2f}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()

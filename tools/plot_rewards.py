"""Draw the best reward so far against evaluations (AGMC, figures 5 and 6).

    python -m tools.plot_rewards runs/compare.jsonl --out docs/figures/rewards.svg

The runs are those of `tools/compare_policies.py` or `tools/experiments/papers.py`; only runs with the same images and judge
belong into one figure.

A panel for each model and budget; a line for each policy that searches, the mean over its seeds, with the span from the worst to
the best seed; what takes no more than a handful of evaluations is a level line, if it is not far below. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = 4
FEW = 10  # evaluations, up to which a policy is drawn as a level
COLOURS = {
    "agmc": "#0072b2", "gnn-rl": "#d55e00", "amc": "#cc79a7", "local": "#009e73", "random": "#999999", "tpe": "#e69f00",
    "cmaes": "#56b4e9", "agmc-frozen": "#004466", "agmc-linear": "#66bbee", "agmc-unfitted": "#aa4400",
    "greedy": "#000000", "uniform": "#777777", "sensitivity": "#7b4fa3", "shallow": "#8c6d31", "deep": "#c49c94",
}  # fmt: skip


def main() -> None:
    """Read the runs and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path, help="an .svg, .png or .pdf")
    args = parser.parse_args()
    try:
        import matplotlib
    except ImportError:
        sys.exit("plot_rewards: matplotlib is not installed; expected it. Run pip install matplotlib.")
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "agmc", "svg.fonttype": "none", "font.size": 9})
    import matplotlib.pyplot as plt

    panels: dict[tuple[str, float], dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for path in args.runs:
        for line in path.read_text().splitlines():
            row: dict[str, Any] = json.loads(line)
            if "rewards" in row and row.get("weights") != "random" and row.get("episodes") != 0:
                panels[row["model"], row["flops"]][row["policy"]].append(row["rewards"])
    n_columns = min(COLUMNS, len(panels))
    n_rows = -(-len(panels) // n_columns)
    size = (4.6 * n_columns, 3.6 * n_rows)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for ax, ((model, share), policies) in zip(axes.flat, sorted(panels.items()), strict=False):
        searches = [r for policy, runs in policies.items() for r in runs if len(r) > FEW and policy != "random"]
        low = min((float(max(r[:5])) for r in searches), default=-np.inf)
        low -= 0.4 * (max((float(max(r)) for r in searches), default=0.0) - low)  # room for the legend
        for policy, runs in policies.items():
            best = [np.maximum.accumulate(rewards) for rewards in runs]
            colour = COLOURS.get(policy)
            if len(best[0]) <= FEW:
                level = float(np.mean([b[-1] for b in best]))
                if level >= low:
                    ax.axhline(level, color=colour, ls=":", lw=1.2, label=policy)
                continue
            rows = np.array([b[: min(map(len, best))] for b in best])
            steps = np.flatnonzero(np.r_[True, (np.diff(rows) > 0).any(0)[:-1], True])  # nothing is new between them
            x, rows = steps + 1, rows[:, steps]
            ax.plot(x, rows.mean(0), color=colour, lw=1.4, label=policy, drawstyle="steps-post")
            ax.fill_between(x, rows.min(0), rows.max(0), color=colour, alpha=0.12, lw=0, step="post")
        ax.set_title(f"{model.removesuffix('.onnx')}, {share:g} of the MACs", fontsize=9)
        ax.set_xlabel("evaluations")
        ax.set_ylabel("best reward so far")
        if np.isfinite(low):
            ax.set_ylim(bottom=low)
        ax.legend(fontsize=7, ncols=2, loc="lower right", frameon=False)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, metadata={"Date": None} if args.out.suffix == ".svg" else None)
    sys.stdout.write(f"wrote {args.out}\n")


if __name__ == "__main__":
    main()

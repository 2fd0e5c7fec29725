"""Tables of policies from runs of `tools/compare_policies.py`, and the file of runs that the tables of the documentation are of.

    python -m tools.policy_tables docs/measured/policies.jsonl --episodes 100 --finalists 1 4
    python -m tools.policy_tables docs/measured/policies.jsonl --episodes 100 --finalists 1 4 --after 30
    python -m tools.policy_tables runs/*.jsonl --keep docs/measured/policies.jsonl

Writes two tables in Markdown, a column for each model and budget and a row for each policy: the best reward of the search, and
the metric on the test role with the fidelity there; means and, over several seeds, their deviation, with the number of seeds.
Policies that need no more than a handful of evaluations are in the tables of every number of episodes that others were run with.
With --after the first table is that of the best reward so far after so many evaluations, and the only one.

With --keep the runs are put into a file instead, without their candidates and with rewards of two digits: enough for these
tables and for `tools/plot_rewards.py`. A run of the same setting that is there already gives way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SETTING = ("model", "flops", "policy", "seed", "episodes", "recover", "reward_samples", "judge", "finalists")
MEASURED = ("recover", "reward_samples", "judge")  # runs that differ in these cannot be compared
KEPT = (*SETTING, "evaluations", "reached", "original", "test", "test_fidelity", "as_cut", "rewards", "kept")
# need few evaluations, whatever --episodes says
FEW = ("greedy", "uniform", "shallow", "deep", "sensitivity", "global")
ORDER = (
    "agmc", "gnn-rl", "amc", "agmc-frozen", "tpe", "cmaes", "local", "greedy", "random", "sensitivity", "uniform",
    "shallow", "deep", "global",
)  # fmt: skip
Row = Mapping[str, Any]


def read(paths: Sequence[Path]) -> list[Row]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def setting(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in SETTING)


def shortened(row: Row) -> dict[str, Any]:
    """Return what tables and figures need of a run."""
    short = {name: row[name] for name in KEPT if name in row}
    short["rewards"] = [round(reward, 2) for reward in row["rewards"]]
    for name in ("reached", "test", "test_fidelity", "as_cut", "original"):
        if isinstance(short.get(name), float):
            short[name] = round(short[name], 4)
    return short


def keep(rows: Sequence[Row], path: Path) -> None:
    """Write these runs into a file, beside those that are there."""
    known = {setting(row): row for row in (read([path]) if path.exists() else [])}
    known.update({setting(row): shortened(row) for row in rows})
    lines = [json.dumps(known[name]) for name in sorted(known, key=str)]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(line + "\n" for line in lines))
    partial.replace(path)


def told(values: Sequence[float], digits: int = 2) -> str:
    """Return mean, deviation and number, as far as there are several."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f} ({len(values)})"


def reward_of(runs: Sequence[Row], after: int | None = None) -> str:
    return told([max(row["rewards"][:after]) for row in runs])


def test_of(runs: Sequence[Row]) -> str:
    near = [row["test_fidelity"] for row in runs if row.get("test_fidelity") is not None]
    return told([row["test"] for row in runs]) + (f"; {statistics.mean(near):.2f}" if near else "")


def table(rows: Sequence[Row], cell: Any) -> str:
    """Return a table in Markdown of runs of one number of episodes and finalists."""
    columns = sorted({(row["model"], -row["flops"]) for row in rows})
    names = sorted({row["policy"] for row in rows}, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    lines = [
        ["policy", *(f"{Path(model).stem} {-flops:g}" for model, flops in columns)],
        ["---", *("---:" for _ in columns)],
    ]
    for name in names:
        cells = []
        for model, flops in columns:
            runs = [row for row in rows if (row["model"], -row["flops"], row["policy"]) == (model, flops, name)]
            cells.append(cell(runs) if runs else "")
        lines.append([name, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Keep the runs, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument(
        "--finalists", nargs="+", type=int, default=[4], help="of several, a run with the most is shown"
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="default: all that are there")
    parser.add_argument(
        "--after", type=int, metavar="N", help="best reward after N of the evaluations; default: after all"
    )
    parser.add_argument("--keep", type=Path, metavar="FILE", help="put the runs into this file, and write no tables")
    args = parser.parse_args()
    rows = read(args.runs)
    if args.keep is not None:
        keep(rows, args.keep)
        return
    unique = {
        (row["model"], row["flops"], row["policy"], row["seed"]): row
        for row in sorted(rows, key=lambda row: (row["episodes"] == args.episodes, row["finalists"]))
        if (row["episodes"] == args.episodes or row["policy"] in FEW)
        and row["finalists"] in args.finalists
        and (args.seeds is None or row["seed"] in args.seeds)
    }
    searched = {(row["model"], row["flops"]) for row in unique.values() if row["policy"] not in FEW}
    chosen = [row for row in unique.values() if (row["model"], row["flops"]) in searched]
    finalists = " or ".join(map(str, args.finalists))
    if not chosen:
        sys.exit(f"policy_tables: no run has {args.episodes} episodes and {finalists} finalists.")
    for model in {row["model"] for row in chosen}:
        measured = {tuple(row.get(name) for name in MEASURED) for row in chosen if row["model"] == model}
        if len(measured) > 1:
            sys.exit(f"policy_tables: runs of {model} differ in {', '.join(MEASURED)}; expected one setting a model.")
    if args.after is not None:
        so_far = table(chosen, lambda runs: reward_of(runs, args.after))
        sys.stdout.write(f"Best reward after {args.after} of {args.episodes} evaluations\n\n{so_far}")
        return
    sys.stdout.write(f"Best reward, {args.episodes} evaluations\n\n{table(chosen, reward_of)}\n")
    sys.stdout.write(f"Test; fidelity, {finalists} finalists\n\n{table(chosen, test_of)}")


if __name__ == "__main__":
    main()

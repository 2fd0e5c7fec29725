"""The experiments of the AGMC and GNN-RL papers: every row of their tables and figures, and what repeats it.

    python -m tools.experiments.papers list [--table agmc-table1]
    python -m tools.experiments.papers run t1-r20-deep 'f4-*' --models MODELS --data cifar10.toml --out runs/papers.jsonl
    python -m tools.experiments.papers run agmc-table3 --out runs/papers.jsonl        # random weights: no accuracy
    python -m tools.experiments.papers run t1-r20-deep --demo --out runs/papers.jsonl  # on the digits example
    python -m tools.experiments.papers train resnet44 --data cifar10.toml --models MODELS
    python -m tools.experiments.papers table runs/papers.jsonl

The rows are in papers.toml. `run` takes ids and names of tables, with * and ?, looks for the networks in --models, and builds
those that are not there with random weights: their latency, memory and sizes mean something, their accuracy nothing. What is in
the file already is not run again, and a killed search goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from agmc_onnx.errors import AgmcError, UsageError
from tools.experiments.paper_rows import Row, chosen, commands, read_rows
from tools.experiments.paper_runs import RANDOM, Place, key_of, measure_row, network_file, read_runs
from tools.experiments.paper_table import here_text, markdown, paper_text

NEEDS = {"cifar10": "a card of CIFAR-10", "imagenet": "a card of ImageNet images", "none": "no data"}


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show(args: argparse.Namespace) -> None:
    """List rows with the paper's numbers, what they need, and the commands that repeat them."""
    for row in chosen(read_rows(), args.table or ["*"]):
        needed = " and ".join(" or ".join(network.files) for network in (row.source, row.network) if network)
        needs = NEEDS[row.network.data] + ("" if row.kind == "nodes" else f", {needed}")
        say(f"{row.id} ({row.table}): {row.network.name}, {row.setting}, {row.policy}")
        say(f"  paper: {paper_text(row)}" + (f"; differs: {row.differs}" if row.differs else ""))
        say(f"  needs: {needs}")
        for command in commands(row):
            say(f"  {command}")


def run(args: argparse.Namespace) -> None:
    """Measure rows that are not in the file yet, one after the other."""
    place = Place(
        work=args.out.with_suffix(".models"), models=args.models, data=args.data, demo=args.demo,
        finetune=args.finetune, batch=args.batch, seconds=args.seconds,
    )  # fmt: skip
    rows = _with_network(chosen(read_rows(), args.rows), place)
    _check_data(rows, place)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    done = read_runs(args.out)
    for row in rows:
        for seed in args.seeds:
            episodes = row.episodes if args.episodes is None else args.episodes
            key = key_of(row, place, seed, episodes)
            if any(all(one.get(name) == value for name, value in key.items()) for one in done):
                continue
            if key.get("weights") == RANDOM:
                say(f"{row.id}: {row.network.name} has random weights: sizes and latency only, uniform widths")
            done.append(measure_row(row, place, seed, episodes))
            _append(args.out, json.dumps(done[-1]))
            say(f"{row.id} seed {seed}: {here_text(row, done[-1:])}")


def _with_network(rows: Sequence[Row], place: Place) -> list[Row]:
    """Return the rows whose network is there or can be built; the others are named, and an error where there are none else."""
    found, missing = [], []
    for row in rows:
        try:
            if row.kind != "nodes":
                network_file(row.network, place)
            found.append(row)
        except UsageError as error:
            missing.append(error)
            if len(rows) > 1:
                say(f"{row.id}: left out, {error}")
    if not found:
        raise missing[0]
    return found


def _check_data(rows: Sequence[Row], place: Place) -> None:
    """Raise if one data card would have to do for images of two kinds."""
    if place.data is None or place.demo:
        return
    kinds = {row.network.data for row in rows if row.kind != "nodes" and network_file(row.network, place)[1] != RANDOM}
    if len(kinds) > 1:
        raise UsageError(
            f"run: rows of different images, got {' and '.join(sorted(kinds))}; expected one kind. Run them apart."
        )


def _append(path: Path, line: str) -> None:
    """Write a line after those that are whole, and see it on the disk."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    with path.open("w" if text and not text.endswith("\n") else "a", encoding="utf-8") as out:
        if text and not text.endswith("\n"):
            out.write(text[: text.rfind("\n") + 1])
        out.write(line + "\n")
        out.flush()
        os.fsync(out.fileno())


def table(args: argparse.Namespace) -> None:
    """Print the paper's numbers beside ours."""
    runs = [one for path in args.runs for one in read_runs(path)]
    say(markdown(chosen(read_rows(), args.table or ["*"]), runs))


def train(args: argparse.Namespace) -> None:
    """Train a network of models/zoo.py on the card's [train] images, so that `run` finds it in the folder of models."""
    import numpy as np
    import torch

    from agmc_onnx.data.samples import load_card, open_data
    from agmc_onnx.measuring.session import model_inputs
    from models.digits.train import train as fit
    from models.export import to_onnx
    from models.zoo import BUILDERS

    networks = {row.network.name: row.network for row in read_rows() if row.network.data == "cifar10"}
    if args.network not in networks:
        raise UsageError(
            f"train: no such network, got {args.network!r}; expected one of {', '.join(networks)}. ImageNet's take weights from"
            " elsewhere: put them into --models."
        )
    network = networks[args.network]
    assert network.zoo is not None
    builder, path = BUILDERS[network.zoo], args.models / network.files[0]
    shape = tuple(network.input_shape or builder.input_shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        module = builder.make(**network.zoo_options)
    samples = open_data(load_card(args.data), model_inputs(to_onnx(module, shape))).role("train")
    if samples.labels is None:
        raise UsageError(f"train: {args.data} has images without labels; expected labelled ones. Name them in [train].")
    (images,) = samples.read(np.arange(samples.n)).values()
    labels = torch.from_numpy(np.asarray(samples.labels, np.int64))
    torch.set_num_threads(args.threads)
    fit(module, torch.from_numpy(images), labels, torch.Generator().manual_seed(args.seed), epochs=args.epochs)
    args.models.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    to_onnx(module.eval(), shape, partial)
    os.replace(partial, path)
    say(f"wrote {path}; agmc-onnx measure {path} --data {args.data} says how good it is")


def main(words: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("list", help="the rows, the paper's numbers, and commands")
    one.add_argument("--table", nargs="+", help="ids or tables, with * and ?")
    one.set_defaults(run=show)
    one = verbs.add_parser("run", help="measure rows")
    one.add_argument("rows", nargs="+", help="ids or tables, with * and ?")
    one.add_argument("--models", type=Path, help="folder of networks with weights")
    one.add_argument("--data", help="data card of what they were trained on")
    one.add_argument("--demo", action="store_true", help="take the digits example for every network")
    one.add_argument("--episodes", type=int, help="default: the row's")
    one.add_argument("--seeds", type=int, nargs="+", default=[0])
    one.add_argument("--finetune", type=int, default=0, metavar="STEPS", help="of distillation; default: none")
    one.add_argument("--batch", type=int, help="samples of a timed inference; default: the row's")
    one.add_argument("--seconds", type=float, default=5.0, help="given to latency; default: 5")
    one.add_argument("--out", type=Path, required=True)
    one.set_defaults(run=run)
    one = verbs.add_parser("table", help="print what was measured as markdown")
    one.add_argument("runs", type=Path, nargs="+")
    one.add_argument("--table", nargs="+", help="ids or tables, with * and ?")
    one.set_defaults(run=table)
    one = verbs.add_parser("train", help="train a CIFAR network that has no weights")
    one.add_argument("network")
    one.add_argument("--data", required=True, help="a data card with [train]")
    one.add_argument("--models", type=Path, required=True)
    one.add_argument("--epochs", type=int, default=40)
    one.add_argument("--threads", type=int, default=1)
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=train)
    args = parser.parse_args(words)
    try:
        args.run(args)
    except AgmcError as error:
        sys.stderr.write(f"papers: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

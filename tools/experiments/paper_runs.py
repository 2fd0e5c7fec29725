"""One row of the papers' tables measured: a network found or built, compressed, and what its row needs noted."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

import agmc_onnx
from agmc_onnx.errors import UsageError
from agmc_onnx.graph.files import read_model
from agmc_onnx.graph.view import graph_of
from agmc_onnx.pruning.cost import count_macs
from agmc_onnx.pruning.sparsity import dense
from agmc_onnx.verbs import compress as pipeline
from tools.compare_policies import add_variants, as_found
from tools.experiments.paper_rows import DEMO, Network, Row
from tools.experiments.transfer import DECODER, SCRATCH, add_transfer, save_agent

TRAINED, RANDOM, DEMONSTRATION = "trained", "random", "demo"
UNUSED_WITHOUT_DATA = ("judge", "reward")  # options of a search that random weights do not have


@dataclass(frozen=True)
class Place:
    """Where a run finds its networks and images, and leaves what it makes.

    Attributes:
        work: Folder for networks that are built, models that are written, journals and agents.
        models: Folder of networks with weights, or None.
        data: A data card or what else `--data` of the command line takes, or None.
        demo: Whether the digits example stands for every network.
        finetune: Optimiser steps of distillation; 0 for none.
        batch: Samples of a timed inference; None takes the row's.
        seconds: Time given to latency.
    """

    work: Path
    models: Path | None = None
    data: str | None = None
    demo: bool = False
    finetune: int = 0
    batch: int | None = None
    seconds: float = 5.0

    @property
    def images(self) -> str | None:
        """What is given as `--data`."""
        return "digits" if self.demo else self.data


def network_file(network: Network, place: Place) -> tuple[Path, str]:
    """Return the file of a network, and whether its weights are trained, random, or those of the digits example.

    Raises:
        UsageError: If it is not in the folder of models and nothing here builds it.
    """
    if place.demo:
        return DEMO, DEMONSTRATION
    for name in network.files:
        if place.models is not None and (place.models / name).is_file():
            return place.models / name, TRAINED
    if network.zoo is None:
        raise UsageError(
            f"{network.name}: no file, got --models {place.models}; expected a folder with {' or '.join(network.files)}."
            " Import or export it there."
        )
    path = place.work / f"{network.name}.random.onnx"
    if not path.is_file():
        from models.export import to_onnx
        from models.zoo import BUILDERS, build

        place.work.mkdir(parents=True, exist_ok=True)
        shape = network.input_shape or BUILDERS[network.zoo].input_shape
        partial = path.with_suffix(".tmp")
        to_onnx(build(network.zoo, **network.zoo_options), tuple(shape), partial)
        os.replace(partial, path)
    return path, RANDOM


def key_of(row: Row, place: Place, seed: int, episodes: int) -> dict[str, Any]:
    """Return what tells a run from every other: equal keys need not be measured again."""
    if row.kind == "nodes":
        return {"row": row.id, "seed": seed}
    path, weights = network_file(row.network, place)
    return {
        "row": row.id, "network": path.name, "weights": weights, "seed": seed, "episodes": episodes,
        "data": None if place.images is None or weights == RANDOM else Path(place.images).name,
        "finetune": place.finetune, "batch": place.batch or row.batch,
    }  # fmt: skip


def measure_row(row: Row, place: Place, seed: int, episodes: int) -> dict[str, Any]:
    """Return what was measured, with its setting, ready for JSON.

    A killed run goes on where it stopped, from the journal in `place.work`. What a policy found is kept, be it slower than the
    original.

    Raises:
        AgmcError: As `agmc_onnx.compress`.
    """
    start = time.perf_counter(), time.process_time()
    with as_found():
        if row.kind == "nodes":
            found = _nodes(row, seed)
        elif row.kind == "transfer":
            found = _transferred(row, place, seed, episodes)
        else:
            add_variants()
            found = _compressed(row, place, seed, episodes)
    return {
        **key_of(row, place, seed, episodes),
        "policy": row.policy, "options": dict(row.options), **found,
        "wall_s": round(time.perf_counter() - start[0], 1), "processor_s": round(time.process_time() - start[1], 1),
    }  # fmt: skip


def _compressed(row: Row, place: Place, seed: int, episodes: int) -> dict[str, Any]:
    """Compress, fine-tune where that is wanted, and measure both models side by side."""
    path, weights = network_file(row.network, place)
    if weights == TRAINED and place.data is None:
        raise UsageError(f"{row.id}: got no --data; expected images for {path.name}. Give a data card.")
    place.work.mkdir(parents=True, exist_ok=True)
    output = place.work / f"{row.id}-{path.stem}-s{seed}-e{episodes}.onnx"
    options: dict[str, Any] = {**row.options, "policy": row.policy, "episodes": episodes}
    data = place.images
    if weights == RANDOM:  # what a search would learn from means nothing then, and a refit has nothing to go by
        options = {name: value for name, value in options.items() if name not in UNUSED_WITHOUT_DATA}
        options.update(policy="uniform", recover="none", sparse_decide="uniform")
        data = None
    result = pipeline.compress(
        path, output=output, data=data, seed=seed, resume=True, latency_seconds=min(place.seconds, 1.0), **options
    )
    report = result.report
    tuned = None
    if place.finetune and data is not None:
        given = {"teacher": path, "data": data, "output": output.with_suffix(".tuned.onnx")}
        tuned = agmc_onnx.finetune(output, steps=place.finetune, seed=seed, **given).report["after"]["value"]
    batch = place.batch or row.batch
    sizes, metric = _measured((path, output), batch, place.seconds), report["original"]["metric"]
    return {
        "policy_used": options["policy"],
        "reached": report["target"]["reached"],
        "evaluations": report["evaluations"],
        "metric": {
            "name": metric["name"], "n": metric["n"], "original": metric["value"],
            "as_cut": report["compressed"]["metric_before_recovery"],
            "refitted": report["compressed"]["metric"]["value"], "finetuned": tuned,
        } if report["accuracy_measured"] else None,
        "validation": _validation(row, report) if report["accuracy_measured"] else None,
        "model": path.name,
        "flops": row.options["flops"],
        "rewards": [record["reward"] for record in report["history"]],
        "original": sizes[0], "compressed": sizes[1],
        "latency": {"batch": batch, "threads": 1, "ratio": sizes[1]["latency_ratio"]},
        "environment": report["environment"],
    }  # fmt: skip


def _validation(row: Row, report: Mapping[str, Any]) -> dict[str, float]:
    """Return the best accuracy among the candidates so far, on the images that steer the search, by evaluations."""
    metrics = [record["metric"] for record in report["history"]]
    at = [n for n in row.checkpoints if n < len(metrics)]
    return {str(n): max(metrics[:n]) for n in [*at, len(metrics)]}


def _measured(paths: tuple[Path, Path], batch: int, seconds: float) -> list[dict[str, Any]]:
    """Return sizes, latency and peak memory of models, measured side by side on random inputs."""
    timed = agmc_onnx.measure(*paths, threads=1, seconds=seconds, batch=batch)["models"]
    return [
        {
            **weights_of(read_model(path).proto), "file_bytes": one["file_bytes"],
            "latency_ms": one["latency_ms"]["p50"], "latency_ratio": one["latency_ratio"]["median"],
            "peak_bytes": one["peak_bytes"],
        }
        for path, one in zip(paths, timed, strict=True)
    ]  # fmt: skip


def weights_of(model: onnx.ModelProto) -> dict[str, int]:
    """Return the MACs, those of convolutions alone, and the weights: how many, how many not zero, in bytes."""
    graph = graph_of(dense(model))
    macs = count_macs(graph)
    convolutions = {node.outputs[0] for node in graph.nodes if node.op_type == "Conv"}
    arrays = [graph.array(name) for name in graph.tensors if graph.is_parameter(name)]
    return {
        "macs": sum(macs.values()),
        "conv_macs": sum(n for name, n in macs.items() if name in convolutions),
        "weights": sum(array.size for array in arrays),
        "nonzero": sum(int((array != 0).sum()) for array in arrays),
        "weight_bytes": sum(array.nbytes for array in arrays),
    }


class _Searched(Exception):
    """A search is over; what `compress` does with its result is not wanted."""


def _search_for_agent(path: Path, row: Row, place: Place, seed: int, episodes: int, agent: Path) -> None:
    """Search a network and write the agent that came of it."""
    made = add_transfer()

    def stop(stage: str, facts: Mapping[str, Any]) -> None:
        if stage == "recovering":
            raise _Searched

    with suppress(_Searched):
        pipeline.compress(
            path, output=place.work / f"{agent.stem}.onnx", data=place.images, policy=SCRATCH, seed=seed, episodes=episodes,
            resume=True, progress=stop, **row.options,
        )  # fmt: skip
    if made[SCRATCH].episode < episodes:
        raise KeyboardInterrupt
    partial = agent.with_suffix(".tmp")
    save_agent(made[SCRATCH].agent.networks, partial)
    os.replace(partial, agent)


def _transferred(row: Row, place: Place, seed: int, episodes: int) -> dict[str, Any]:
    """Search the source network, where there is one, and then the row's with the agent that came of it."""
    agent = None
    if row.source is not None and row.policy == DECODER:
        path, weights = network_file(row.source, place)
        if weights == RANDOM:
            raise UsageError(f"{row.id}: {row.source.name} has random weights; expected trained ones. Give --models.")
        place.work.mkdir(parents=True, exist_ok=True)
        agent = place.work / f"{path.stem}-s{seed}-e{episodes}.agent.safetensors"
        if not agent.is_file():
            _search_for_agent(path, row, place, seed, episodes, agent)
    add_transfer(agent)
    return {"source": None if agent is None else agent.name, **_compressed(row, place, seed, episodes)}


def _nodes(row: Row, seed: int) -> dict[str, Any]:
    """Tell which layer each filter of the channel view is of, with edges and without."""
    from agmc_onnx.motifs.encoding import channel_view
    from models.export import to_onnx
    from models.zoo import BUILDERS, build
    from tools.experiments.node_classification import accuracy

    assert row.network.zoo is not None
    proto = to_onnx(build(row.network.zoo), BUILDERS[row.network.zoo].input_shape)
    found = channel_view(graph_of(proto))
    args = argparse.Namespace(**row.options)
    told = {
        f"{kind}, {'edges' if sees_edges else 'no edges'}": accuracy(found, args, kind, sees_edges, seed)
        for kind in ("names", "shape")
        for sees_edges in (True, False)
    }
    return {"nodes": found.n_nodes, "edges": int(found.edge_index.shape[1]), "accuracy": told}


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Return the runs of a file, none where it does not exist; a last line that was cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number + 1 < len(lines):
                raise UsageError(
                    f"{path}: line {number + 1} is not JSON, got {line[:40]!r}; expected a run. Mend it."
                ) from error
    return found

"""What a model is and what could be pruned of it, and how models compare side by side; nothing is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from agmc_onnx.data.card import InputSpec
from agmc_onnx.data.samples import load_card, open_data
from agmc_onnx.errors import UsageError
from agmc_onnx.graph.files import ModelFile, read_model
from agmc_onnx.graph.normalize import normalize
from agmc_onnx.latency.timing import MORE_ROUNDS, compare, ratio
from agmc_onnx.measuring.accuracy import Evaluator
from agmc_onnx.measuring.memory import peak_bytes
from agmc_onnx.measuring.session import model_inputs
from agmc_onnx.measuring.sizes import graph_at, samples_at, settle
from agmc_onnx.motifs import build, describe
from agmc_onnx.options import Execution
from agmc_onnx.pruning.bodies import uncounted
from agmc_onnx.pruning.cost import count_macs, count_params, macs_cost, params_cost
from agmc_onnx.pruning.depth import closer_of, layers_that_may_go
from agmc_onnx.pruning.sparsity import dense
from agmc_onnx.pruning.widths import FINE
from agmc_onnx.reporting.record import environment_versions
from agmc_onnx.run.analysis import analyse_model
from agmc_onnx.search.environment import Environment
from agmc_onnx.search.problem import Outcome
from agmc_onnx.ties.groups import Channels
from agmc_onnx.verbs.given import Given, on_files, path_of

INSPECT_FORMAT = "agmc-onnx/inspect@1"
MEASURE_FORMAT = "agmc-onnx/measure@1"


@on_files
def inspect(model: Given, *, input_shape: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a model is and what could be pruned of it, ready for JSON (`agmc-onnx/inspect@1`).

    Args:
        model: An .onnx file.
        input_shape: Texts NAME=1,3,H,W: sizes of the open dims; what they do not say is guessed.

    Returns:
        "model" (path, sha256, bytes, opset), "inputs" and "outputs", "ops" (counts by type, most frequent first), "macs",
        "params", "sizes" (of the inputs, that the MACs are for),
        "uncounted" (nodes whose MACs are not known),
        "prunable" (shares of the multiply-adds and parameters that some group changes), "smallest" (shares of them
        that remain when every group keeps the least, by --round-to), "groups" (name, units, step, shares it changes,
        nodes that make its channels), "layers" (what may go as a whole: name, groups, nodes, share of the multiply-adds),
        "layers_stay" (why the first layer of others may not, by group), "frozen" (name, units, why) and "motifs" (lines).

    Raises:
        ModelError: If it is no ONNX model.
    """
    analysis = analyse_model(path_of(model), input_shape=input_shape)
    channels, proto = analysis.channels, analysis.file.proto
    costs = {"macs": macs_cost(channels), "params": params_cost(channels)}
    n_units = np.array([group.n_units for group in channels.groups], np.int64)
    shares = {name: cost.share_of(n_units) for name, cost in costs.items()}
    opsets = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
    ops = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in proto.graph.node)
    return {
        "format": INSPECT_FORMAT,
        "model": {
            "path": str(analysis.file.path),
            "sha256": analysis.file.sha256,
            "file_bytes": analysis.file.file_bytes,
            "ir_version": proto.ir_version,
            "opset": opsets.get("ai.onnx"),
            "opsets": opsets,
            "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
        },
        "inputs": _values(proto.graph.input, {tensor.name for tensor in proto.graph.initializer}),
        "outputs": _values(proto.graph.output, set()),
        "ops": dict(ops.most_common()),
        "macs": costs["macs"](n_units),
        "params": costs["params"](n_units),
        "sizes": asdict(analysis.sizes),
        "uncounted": uncounted(analysis.graph),
        "prunable": {name: cost.prunable_share(n_units) for name, cost in costs.items()},
        "smallest": {str(k): _smallest(channels, k) for k in (1, FINE)},
        "groups": [
            {
                "name": group.name,
                "units": group.n_units,
                "step": group.step,
                "macs_share": float(shares["macs"][i]),
                "params_share": float(shares["params"][i]),
                "nodes": [
                    node.proto.name for weight in channels.makers[i] for node, _ in channels.graph.consumers[weight]
                ],
                "normalised_by": list(group.normalised_by),
            }
            for i, group in enumerate(channels.groups)
        ],
        "layers": layers_that_may_go(channels, costs["macs"]),
        "layers_stay": closer_of(channels).why_not,
        "frozen": [{"name": group.name, "units": group.n_units, "why": group.why_frozen} for group in channels.frozen],
        "motifs": describe(build(analysis.graph)),
    }


@on_files
def measure(
    *models: Given,
    data: str | Path | None = None,
    threads: int = Execution.threads,
    seconds: float = Execution.latency_seconds,
    provider: str = Execution.provider,
    batch: int = 1,
    input_shape: Sequence[str] = (),
) -> dict[str, Any]:
    """Return size, accuracy and latency of models that take the same inputs, ready for JSON (`agmc-onnx/measure@1`).

    Latency is measured in turns, so that a busy machine slows all of them alike. Accuracy is that of the card's test role.

    Args:
        models: .onnx files; ratios refer to the first, and so does the metric "agreement".
        data: A data card, an .npz, a folder, or "digits"; None measures no accuracy, and latency on random inputs.
        threads: Of onnxruntime.
        seconds: Time given to latency, for all models together.
        provider: "cpu", "cuda" or "auto".
        batch: Samples per timed inference, where the model leaves it open.
        input_shape: As `inspect`; the data say the sizes where there are any.

    Raises:
        UsageError: If there is no model, or the models take different inputs.
        ModelError: If a model cannot be read or run.
        DataError: If the data cannot be used.
    """
    if not models:
        raise UsageError("measure: no model given; expected at least one .onnx file. Name the models to measure.")
    files = [read_model(path_of(model)) for model in models]
    inputs = model_inputs(files[0].proto)
    for file in files[1:]:
        _check_same_inputs(files[0], file, inputs)
    dataset = open_data(load_card(data), inputs) if data is not None else None
    sizes = settle(files[0].proto, input_shape, None if dataset is None else lambda: dataset.role("test"))
    samples = dataset.role("test") if dataset else samples_at(files[0].proto, sizes.inputs, max(8, batch), 0)
    metric = dataset.metric if dataset else None
    paths = [file.path for file in files]
    scores: list[Any] = [None] * len(files)
    if metric is not None:
        reference = paths[0] if metric == "agreement" else None
        evaluator = Evaluator(samples, metric, reference=reference, threads=threads, provider=provider)
        scores = [evaluator(path).score for path in paths]
    feeds = samples.take(8 * batch).feeds(batch)
    feeds = feeds[:-1] if len(feeds) > 1 and samples.n % batch else feeds  # only batches of one size are comparable
    times = compare(paths, feeds, threads=threads, seconds=seconds, rounds=MORE_ROUNDS, provider=provider)
    found = []
    for file, score, latency in zip(files, scores, times, strict=True):
        graph = graph_at(normalize(dense(file.proto)), sizes.inputs)
        paired = ratio(latency, times[0])
        found.append(
            {
                "path": str(file.path),
                "macs": sum(count_macs(graph).values()),
                "params": count_params(graph),
                "file_bytes": file.file_bytes,
                "metric": score
                and {"name": score.name, "value": score.value, "n": score.n, "interval": score.interval},
                "latency_ms": {
                    "p50": latency.p50,
                    "p90": latency.p90,
                    "min": latency.minimum,
                    "cpu": latency.mean_cpu_ms,
                    "batch": latency.batch,
                    "threads": latency.threads,
                    "n": latency.n,
                    "interval": list(latency.interval),
                    "cpu_p50": latency.cpu_p50,
                    "provider": latency.provider,
                },
                "latency_ratio": asdict(paired),
                "peak_bytes": peak_bytes(file.proto, feeds[0]),
            }
        )
    return {
        "format": MEASURE_FORMAT,
        "models": found,
        "sizes": asdict(sizes),
        "environment": environment_versions(times[0].provider),
    }


def _values(values: Sequence[onnx.ValueInfoProto], skip: set[str]) -> list[dict[str, Any]]:
    """Return name, element type and shape (numbers, names, or None where unknown) of graph inputs or outputs."""
    found = []
    for value in values:
        if value.name in skip:
            continue
        kind = value.type.WhichOneof("value")
        tensor = value.type.tensor_type
        is_known = kind == "tensor_type" and tensor.elem_type
        dims = tensor.shape.dim if is_known and tensor.HasField("shape") else None
        found.append(
            {
                "name": value.name,
                "dtype": onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if is_known else kind,
                "shape": None
                if dims is None
                else [d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in dims],
            }
        )
    return found


def _smallest(channels: Channels, round_to: int) -> dict[str, float]:
    """Return the share of multiply-adds and parameters that remains when every group keeps the least it may."""
    if not channels.groups:
        return {"macs": 1.0, "params": 1.0}
    bare = Environment(channels, np.zeros(channels.n_units), lambda _: Outcome(0.0), None, round_to, 0.0)
    return {
        name: cost(bare.min_keep) / max(cost(bare.n_units), 1)
        for name, cost in (("macs", bare.macs), ("params", bare.params))
    }


def _check_same_inputs(first: ModelFile, other: ModelFile, inputs: Sequence[InputSpec]) -> None:
    wanted = [(spec.name, str(spec.dtype)) for spec in inputs]
    got = [(spec.name, str(spec.dtype)) for spec in model_inputs(other.proto)]
    if got != wanted:
        raise UsageError(
            f"{other.path}: takes other inputs than {first.path}, got {_named(got)}; expected {_named(wanted)}."
            " Measure them apart."
        )


def _named(inputs: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in inputs) or "none"

"""What a model is and what could be pruned of it, and how models compare side by side; nothing is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from agmc_onnx.arrays import IntArray
from agmc_onnx.graph.naming import layer_name
from agmc_onnx.graph.sizes import input_dims, only_seem_open
from agmc_onnx.latency.tables import cached_table
from agmc_onnx.measuring.session import use_libraries
from agmc_onnx.motifs import build, describe
from agmc_onnx.ops.vanish import closer_of
from agmc_onnx.pruning.bodies import uncounted
from agmc_onnx.pruning.cost import macs_cost, params_cost, stored_params
from agmc_onnx.pruning.depth import layers_that_may_go
from agmc_onnx.pruning.widths import FINE
from agmc_onnx.reporting.reasons import find_reasons
from agmc_onnx.run.analysis import Analysis, analyse_model
from agmc_onnx.search.environment import Environment
from agmc_onnx.search.problem import Outcome
from agmc_onnx.ties.groups import Channels
from agmc_onnx.verbs.given import Given, on_files, path_of

if TYPE_CHECKING:
    from agmc_onnx.latency.predict import LatencyCost

INSPECT_FORMAT = "agmc-onnx/inspect@1"


@on_files
def inspect(model: Given, *, input_shape: Sequence[str] = (), custom_ops: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a model is and what could be pruned of it, ready for JSON (`agmc-onnx/inspect@1`).

    Args:
        model: An .onnx file.
        input_shape: Texts NAME=1,3,H,W: sizes of the open dims; what they do not say is guessed.
        custom_ops: Libraries of ops for onnxruntime, whose code is run.

    Returns:
        "model" (path, sha256, bytes, opset), "inputs" and "outputs", "ops" (counts by type, most frequent first), "macs",
        "params", "sizes" (of the inputs, that the MACs are for),
        "uncounted" (nodes whose MACs are not known), "seem_open" (dims that are declared open, where the file runs at one size),
        "prunable" (shares of the MACs and parameters that can go at most while every layer stays), "smallest" (shares of them
        that remain when every group keeps the least, by --round-to), "groups" (name, layer, units, step, shares it changes,
        nodes that make its channels), "layers" (what may go as a whole: name, groups, nodes, share of the MACs, and of the time
        where this machine has timed the model for `--latency` before),
        "layers_stay" (why the first layer of others may not, by group), "frozen" (name, units, why) and "motifs" (lines).

    Raises:
        ModelError: If it is no ONNX model.
    """
    use_libraries(custom_ops)
    analysis = analyse_model(path_of(model), input_shape=input_shape)
    channels, proto = analysis.channels, analysis.file.proto
    makers = channels.makers
    costs = {"macs": macs_cost(channels), "params": params_cost(channels)}
    n_units = np.array([group.n_units for group in channels.groups], np.int64)
    shares = {name: cost.share_of(n_units) for name, cost in costs.items()}
    smallest = {str(k): _smallest(channels, k) for k in (1, FINE)}
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
        "params": stored_params(proto),
        "sizes": asdict(analysis.sizes),
        "uncounted": uncounted(analysis.graph),
        "seem_open": [
            {"input": name, "dim": at, "symbol": symbol, "size": analysis.sizes.inputs[name][at]}
            for name, at, symbol in only_seem_open(input_dims(analysis.model), analysis.graph.is_fixed)
        ],
        "prunable": {name: 1 - share for name, share in smallest["1"].items()},
        "smallest": smallest,
        "groups": [
            {
                "name": group.name,
                "layer": layer_name(channels.graph, group.name),
                "units": group.n_units,
                "step": group.step,
                "macs_share": float(shares["macs"][i]),
                "params_share": float(shares["params"][i]),
                "nodes": [
                    node.proto.name for weight in makers[i] for node, _ in channels.graph.consumers.get(weight, ())
                ],
                "normalised_by": list(group.normalised_by),
            }
            for i, group in enumerate(channels.groups)
        ],
        "layers": layers_that_may_go(channels, {"macs_share": costs["macs"], **_times(analysis, n_units)}),
        "layers_stay": closer_of(channels).why_not,
        "frozen": [
            {
                "name": group.name,
                "layer": layer_name(channels.graph, group.name),
                "units": group.n_units,
                "why": group.why_frozen,
            }
            for group in channels.frozen
        ],
        "reasons": [asdict(reason) for reason in find_reasons(channels)],
        "motifs": describe(build(analysis.graph)),
    }


def _times(analysis: Analysis, n_units: IntArray) -> dict[str, LatencyCost]:
    """Return the time as a cost, where this machine's table has times of this very model; nothing is timed here."""
    samples = cached_table(threads=1, provider="cpu", batch=1).models.get(analysis.file.sha256, [])
    if not samples:
        return {}
    from agmc_onnx.latency.predict import latency_cost
    from agmc_onnx.run.latency import fits

    is_timed = fits(samples, n_units.tolist()) and any(0 in sample["kept"] for sample in samples)
    return {"time_share": latency_cost(analysis.channels, samples)} if is_timed else {}


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
    """Return the share of MACs and parameters that remains when every group keeps the least it may."""
    if not channels.groups:
        return {"macs": 1.0, "params": 1.0}
    bare = Environment(channels, np.zeros(channels.n_units), lambda _: Outcome(0.0), None, round_to, 0.0)
    return {
        name: cost(bare.min_keep) / max(cost(bare.n_units), 1)
        for name, cost in (("macs", bare.macs), ("params", bare.params))
    }

"""Normalisations over cut channels: how the masked original takes their statistics over kept entries only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from agmc_onnx.arrays import IntArray, Mask
from agmc_onnx.graph.edit import Change, Input, Made, Output, edited
from agmc_onnx.graph.view import Graph, Node, graph_of
from agmc_onnx.ops.table import Statistics, op_of
from agmc_onnx.ops.vanish import closer_of
from agmc_onnx.ties.cut import Cut
from agmc_onnx.ties.groups import Channels

_UNKNOWN = Statistics(lambda graph, node: None)
_LOW_SCORE = -3e4  # its exponential is 0, in float16 too


@dataclass(frozen=True)
class Norm:
    """A node that takes statistics over a cut dim.

    Attributes:
        output: Its first output.
        dim: The dim of its input.
        kept: Indices that stay, ascending; or (Softmax, norms of groups, sums over rows that keep other entries) bool, true
            where an entry stays, an array that fits the input, or its channels as (1, groups, channels of a group, 1).
        size: How many there were.
        is_weight: Whether it is the result, a weight made of constants, that is 0 wherever an entry goes.
        is_run: Whether every entry is a run of places, in an input (batch, groups, all the rest).
    """

    output: str
    dim: int
    kept: IntArray | Mask
    size: int
    is_weight: bool = False
    is_run: bool = False


def norms_of(channels: Channels, kept: Sequence[IntArray]) -> list[Norm] | None:
    """Return the nodes whose statistics run over channels that a plan cuts.

    Args:
        channels: The analysis.
        kept: For each prunable group the kept positions.

    Returns:
        None where the statistics of a node cannot be written that way here.
    """
    labels = {label for group in channels.groups for label in group.normalised_by}
    if not labels:
        return []
    cut = Cut(channels, kept)
    gone = closer_of(channels)(i for i, positions in enumerate(kept) if not len(positions)).gone
    found = []
    for node in channels.graph.nodes:
        if node.label not in labels or node.index in gone:
            continue
        x = node.inputs[0]
        runs = cut.runs(x, 2)
        if runs is not None:
            found.append(Norm(node.outputs[0], 2, runs[None, :, :, None], runs.shape[1], is_run=True))
            continue
        shape = channels.graph.shape(x)
        assert shape is not None
        statistics = op_of(node).statistics or _UNKNOWN
        dims = statistics.dims(channels.graph, node)
        for dim in range(shape.rank):
            mask = cut.mask(x, dim)
            if mask is None or (dims is not None and dim not in dims):
                continue  # this dim passes
            if statistics.masked and (statistics.always or mask.ndim > 1):
                stays = _stays_in(channels, node, dim, mask)
                if stays is None:
                    return None
                found.append(Norm(node.outputs[0], dim, stays, mask.shape[-1]))
                continue
            if dims is None or mask.ndim != 1:
                return None
            found.append(Norm(node.outputs[0], dim, np.flatnonzero(mask), mask.size))
    return found + _computed_weights(channels, cut)


def _computed_weights(channels: Channels, cut: Cut) -> list[Norm]:
    """Return where weights made of constants are cut: after statistics their removed entries need not be 0."""
    graph, found = channels.graph, []
    for value, dim in channels.axes:
        users = graph.consumers.get(value, ()) if value in graph.weights and value in graph.producer else ()
        mask = cut.mask(value, dim) if any(user.outputs[0] not in graph.weights for user, _ in users) else None
        stays = _spread_mask(channels, value, dim, mask) if mask is not None else None
        if stays is not None and graph.producer[value].outputs[0] == value:
            found.append(Norm(value, dim, stays, stays.shape[dim], is_weight=True))
    return found


def _stays_in(channels: Channels, node: Node, dim: int, mask: Mask) -> Mask | None:
    """Return which entries a Softmax or a norm of groups sees; see `Norm.kept`."""
    if node.op_type == "GroupNormalization":
        groups: int = node.attribute("num_groups")
        return mask.reshape(1, groups, -1, 1) if dim == 1 and mask.ndim == 1 else None
    return _spread_mask(channels, node.inputs[0], dim, mask)


def _spread_mask(channels: Channels, value: str, dim: int, mask: Mask) -> Mask | None:
    """Return what stays of an axis as an array that fits the value, or None where its rows lie along an open dim."""
    axis, shape = channels.axes[value, dim], channels.graph.shape(value)
    assert shape is not None
    sizes = [1] * shape.rank
    sizes[dim] = mask.shape[-1]
    for row, period in zip(axis.rows, axis.periods, strict=True):
        if not shape.is_fixed(row) or period != shape.other[row]:
            return None
        sizes[row] = period
    order = np.argsort([*axis.rows, dim])
    return mask.reshape(*axis.periods, -1).transpose(order.tolist()).reshape(sizes)


Edit = tuple[list[Change], dict[str, np.ndarray]]  # what changes, and the numbers of new constants


def over_kept(model: onnx.ModelProto, norms: Sequence[Norm]) -> onnx.ModelProto:
    """Return a masked model whose normalising nodes see kept entries only; LayerNormalization's result is scattered back."""
    pending = list(enumerate(norms))
    while pending:  # a node with several norms takes one after the other
        now = {norm.output: number for number, norm in reversed(pending)}
        graph, changes, arrays = graph_of(model), list[Change](), dict[str, np.ndarray]()
        for number in now.values():
            more, numbers = _edit_of(graph, norms[number], f"{norms[number].output}__kept_{number}")
            changes += more
            arrays |= numbers
        model = edited(model, changes, arrays)
        pending = [(number, norm) for number, norm in pending if number not in now.values()]
    return model


def _edit_of(graph: Graph, norm: Norm, name: str) -> Edit:
    """Return what lets the node of a norm see kept entries only, with names for new values."""
    y, node = norm.output, graph.producer[norm.output]
    if norm.is_weight:  # 0 wherever an entry goes
        return [Output(y, f"{name}_raw"), Made("Mul", (f"{name}_raw", name), (y,), behind=y)], {
            name: norm.kept.astype(np.float32)
        }
    statistics = op_of(node).statistics
    assert statistics is not None
    if norm.kept.dtype == bool:
        return MASKS[statistics.masked](graph, node, norm, name)
    changes: list[Change] = []
    arrays = {name: norm.kept}
    for i in range(len(node.inputs)) if statistics.outputs and statistics.follow else range(1):
        if node.inputs[i]:
            axis = norm.dim if i == 0 else -1
            changes.append(Made("Gather", (node.inputs[i], name), (f"{name}_{i}",), (("axis", axis),)))
            changes.append(Input(y, i, f"{name}_{i}"))
    if statistics.outputs:
        arrays[f"{name}_back"] = _spreading(graph, norm, node.inputs[-1])
    for i in statistics.outputs:
        if i < len(node.outputs) and (output := node.outputs[i]):
            changes.append(Output(output, f"{name}_out{i}"))
            changes.append(Made("MatMul", (f"{name}_out{i}", f"{name}_back"), (output,), behind=output))
    return changes, arrays


def _weigh(graph: Graph, node: Node, norm: Norm, name: str) -> Edit:
    """Let a sum or mean see 0 wherever an entry goes, and a mean count only those that stay."""
    weights = norm.kept.astype(np.float32)
    if node.op_type in ("GlobalAveragePool", "ReduceMean"):
        weights *= norm.size / norm.kept.sum(axis=norm.dim, keepdims=True, dtype=np.float32)
    made, arrays = [Made("Mul", (node.inputs[0], name), (f"{name}_weighed",))], {name: weights}
    if norm.is_run:
        apart, whole, together = (f"{name}_{part}" for part in ("apart", "whole", "together"))
        arrays |= {apart: np.array([0, *weights.shape[1:3], -1]), together: np.array([0, weights.shape[1], -1])}
        made = [
            Made("Reshape", (node.inputs[0], apart), (f"{name}_runs",)),
            Made("Mul", (f"{name}_runs", name), (whole,)),
            Made("Reshape", (whole, together), (f"{name}_weighed",)),
        ]
    return [*made, Input(norm.output, 0, f"{name}_weighed")], arrays


def _silence(graph: Graph, node: Node, norm: Norm, name: str) -> Edit:
    """Let a Softmax see a very low score wherever an entry goes: it gives 0 there."""
    made = Made("Add", (node.inputs[0], name), (f"{name}_scores",))
    low = np.where(norm.kept, 0, _LOW_SCORE).astype(np.float32)
    return [made, Input(norm.output, 0, f"{name}_scores")], {name: low}


def _write_out(graph: Graph, node: Node, norm: Norm, name: str) -> Edit:
    """Write an InstanceNormalization or GroupNormalization out, its statistics taken over what stays.

    A mean over all entries, removed ones being 0, times all by kept entries is the mean over the kept ones.
    """
    x, scale, bias = node.inputs
    stays = norm.kept.astype(np.float32)
    dims = tuple(range(2, stays.ndim))
    share = stays.mean(axis=dims, keepdims=True, dtype=np.float64)
    epsilon = np.array(node.attribute("epsilon", 1e-5), np.float32)
    constants = {".m": stays, ".r": (1 / share).astype(np.float32), ".e": epsilon}
    nodes: list[tuple[str, list[str], str]] = []
    grouped = norm.is_run or node.op_type == "GroupNormalization"
    if grouped:
        constants[".g"] = np.array([0, *stays.shape[1:3], -1], np.int64)
        nodes += [("Shape", [x], ".s"), ("Reshape", [x, ".g"], ".x")]
    else:
        nodes += [("Identity", [x], ".x")]
    nodes += [
        ("Mul", [".x", ".m"], ".xm"), ("GlobalAveragePool", [".xm"], ".p"), ("Mul", [".p", ".r"], ".mean"),
        ("Sub", [".xm", ".mean"], ".d"), ("Mul", [".d", ".m"], ".dm"), ("Mul", [".dm", ".dm"], ".q"),
        ("GlobalAveragePool", [".q"], ".v"), ("Mul", [".v", ".r"], ".var"), ("Add", [".var", ".e"], ".ve"),
        ("Sqrt", [".ve"], ".sd"), ("Div", [".dm", ".sd"], ".n"),
    ]  # fmt: skip
    size = graph.tensors[scale].dims[0] if scale in graph.tensors else 0
    per_channel = grouped and size != stays.shape[1]  # since opset 21; before, one a group
    constants[".t"] = np.array([1, *stays.shape[1:3], 1] if per_channel else [1, -1, *[1] * len(dims)], np.int64)
    nodes += [("Reshape", [scale, ".t"], ".a"), ("Reshape", [bias, ".t"], ".b")]
    nodes += [("Mul", [".n", ".a"], ".na"), ("Add", [".na", ".b"], ".nb")]
    nodes += [("Mul", [".nb", ".m"], ".nm" if grouped else norm.output)]
    nodes += [("Reshape", [".nm", ".s"], norm.output)] if grouped else []

    def full(value: str) -> str:  # a dot marks names of its own
        return name + value if value.startswith(".") else value

    made = [Made(op, tuple(full(source) for source in sources), (full(target),)) for op, sources, target in nodes]
    return list(made), {full(key): np.asarray(value) for key, value in constants.items()}


def _spreading(graph: Graph, norm: Norm, like: str) -> np.ndarray:
    """Return the matrix (kept, size) that puts kept entries back in their places, of the type of a constant."""
    places = np.zeros((norm.kept.size, norm.size), np.float32)
    places[np.arange(norm.kept.size), norm.kept] = 1
    return (
        places.astype(onnx.helper.tensor_dtype_to_np_dtype(graph.tensors[like].data_type))
        if like in graph.tensors
        else places
    )


MASKS: dict[str, Callable[[Graph, Node, Norm, str], Edit]] = {
    "silence": _silence, "weigh": _weigh, "write out": _write_out,
}  # fmt: skip

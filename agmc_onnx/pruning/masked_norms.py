"""Normalisations over cut channels: how the masked original takes their statistics over kept entries only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from agmc_onnx.arrays import IntArray, Mask
from agmc_onnx.graph.view import Node
from agmc_onnx.ops.table import TABLE, Statistics, op_of
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
    """

    output: str
    dim: int
    kept: IntArray | Mask
    size: int
    is_weight: bool = False


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


def over_kept(model: onnx.ModelProto, norms: Sequence[Norm]) -> onnx.ModelProto:
    """Let normalising nodes of a masked model see kept entries only; LayerNormalization's result is scattered back."""
    graph = model.graph
    for number, norm in enumerate(norms):
        at = next(i for i, p in enumerate(graph.node) if p.output and p.output[0] == norm.output)
        proto = onnx.NodeProto()
        proto.CopyFrom(graph.node[at])
        name = f"{norm.output}__kept_{number}"
        if norm.is_weight:
            _clear(graph, at, norm, name)
            continue
        statistics = TABLE[proto.domain, proto.op_type].statistics
        assert statistics is not None
        if norm.kept.dtype == bool:
            MASKS[statistics.masked](graph, at, norm, name)
            continue
        graph.initializer.append(numpy_helper.from_array(norm.kept, name))
        made = []
        outputs = statistics.outputs
        for i in range(len(proto.input)) if outputs and statistics.follow else range(1):
            if proto.input[i]:
                axis = norm.dim if i == 0 else -1
                made.append(onnx.helper.make_node("Gather", [proto.input[i], name], [f"{name}_{i}"], axis=axis))
                proto.input[i] = f"{name}_{i}"
        made.append(proto)
        if outputs:
            graph.initializer.append(_spreading(model, norm, f"{name}_back", graph.node[at].input[-1]))
        for i in outputs:
            if i < len(proto.output) and proto.output[i]:
                made.append(onnx.helper.make_node("MatMul", [f"{name}_out{i}", f"{name}_back"], [proto.output[i]]))
                proto.output[i] = f"{name}_out{i}"
        del graph.node[at]
        for offset, node in enumerate(made):
            graph.node.insert(at + offset, node)
    return model


def _clear(graph: onnx.GraphProto, at: int, norm: Norm, name: str) -> None:
    """Let the first output of a node be 0 wherever an entry goes."""
    graph.initializer.append(numpy_helper.from_array(norm.kept.astype(np.float32), name))
    graph.node[at].output[0] = f"{name}_raw"
    graph.node.insert(at + 1, onnx.helper.make_node("Mul", [f"{name}_raw", name], [norm.output]))


def _weigh(graph: onnx.GraphProto, at: int, norm: Norm, name: str) -> None:
    """Let the sum or mean at a position see 0 wherever an entry goes, and a mean count only those that stay."""
    proto = graph.node[at]
    weights = norm.kept.astype(np.float32)
    if proto.op_type == "ReduceMean":
        weights *= norm.size / norm.kept.sum(axis=norm.dim, keepdims=True)
    graph.initializer.append(numpy_helper.from_array(weights, name))
    node = onnx.helper.make_node("Mul", [proto.input[0], name], [f"{name}_weighed"])
    proto.input[0] = f"{name}_weighed"
    graph.node.insert(at, node)


def _silence(graph: onnx.GraphProto, at: int, norm: Norm, name: str) -> None:
    """Let the Softmax at a position see a very low score wherever an entry goes: it gives 0 there."""
    low = np.where(norm.kept, 0, _LOW_SCORE).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(low, name))
    proto = graph.node[at]
    node = onnx.helper.make_node("Add", [proto.input[0], name], [f"{name}_scores"])
    proto.input[0] = f"{name}_scores"
    graph.node.insert(at, node)


def _write_out(graph: onnx.GraphProto, at: int, norm: Norm, name: str) -> None:
    """Write the InstanceNormalization or GroupNormalization at a position out, its statistics taken over what stays.

    A mean over all entries, removed ones being 0, times all by kept entries is the mean over the kept ones.
    """
    proto = graph.node[at]
    x, scale, bias = proto.input
    epsilon = next((a.f for a in proto.attribute if a.name == "epsilon"), 1e-5)
    stays = norm.kept.astype(np.float32)
    dims = tuple(range(2, stays.ndim))
    share = stays.mean(axis=dims, keepdims=True, dtype=np.float64)
    constants = {".m": stays, ".r": (1 / share).astype(np.float32), ".e": np.array(epsilon, np.float32)}
    nodes: list[tuple[str, list[str], str]] = []
    if proto.op_type == "GroupNormalization":
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
    size = next((t.dims[0] for t in graph.initializer if t.name == scale), 0)
    grouped = proto.op_type == "GroupNormalization"
    per_channel = grouped and size != stays.shape[1]  # since opset 21; before, one a group
    constants[".t"] = np.array([1, *stays.shape[1:3], 1] if per_channel else [1, -1, *[1] * len(dims)], np.int64)
    nodes += [("Reshape", [scale, ".t"], ".a"), ("Reshape", [bias, ".t"], ".b")]
    nodes += [("Mul", [".n", ".a"], ".na"), ("Add", [".na", ".b"], ".nb")]
    nodes += [("Mul", [".nb", ".m"], ".nm" if grouped else "")]
    nodes += [("Reshape", [".nm", ".s"], "")] if grouped else []

    def full(value: str) -> str:  # a dot marks names of its own
        return name + value if value.startswith(".") else value

    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), full(k)) for k, v in constants.items())
    made = [
        onnx.helper.make_node(op, [full(source) for source in sources], [full(target) or norm.output])
        for op, sources, target in nodes
    ]
    del graph.node[at]
    for offset, node in enumerate(made):
        graph.node.insert(at + offset, node)


def _spreading(model: onnx.ModelProto, norm: Norm, name: str, like: str) -> onnx.TensorProto:
    """Return the matrix (kept, size) that puts kept entries back in their places, of the type of a constant."""
    kind = next((t.data_type for t in model.graph.initializer if t.name == like), onnx.TensorProto.FLOAT)
    places = np.zeros((norm.kept.size, norm.size), np.float32)
    places[np.arange(norm.kept.size), norm.kept] = 1
    return numpy_helper.from_array(places.astype(onnx.helper.tensor_dtype_to_np_dtype(kind)), name)


MASKS = {"silence": _silence, "weigh": _weigh, "write out": _write_out}

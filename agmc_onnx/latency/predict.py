"""Latency as a function of kept counts, learned from the times of the ops of a few sample candidates.

onnxruntime runs other nodes than the model has: fused, in a blocked layout, with reorderings between. Each of them works
for one node of the model (`latency.op_times`), and its time depends on the sizes of that node's axes alone. So the
latency of a candidate is a sum over nodes of a function of their sizes: looked up where a sample had these sizes, else
from a fit among nodes of the same kind. Sizes matter in steps; the fit has them rounded up to blocks too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from agmc_onnx.arrays import FloatArray, IntArray
from agmc_onnx.errors import UsageError
from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ops.table import op_of
from agmc_onnx.ops.vanish import closer_of
from agmc_onnx.ties.groups import Channels
from agmc_onnx.ties.sizes import Sizes, axis_sizes

BLOCKS = (8, 16)  # channels that vector kernels take at once: AVX2 and NEON, AVX-512
NS = 1_000_000  # in a millisecond
SMALLEST_MS = 1e-4
IRLS_ROUNDS = 20

_ROUNDED = re.compile(r"_(QuantizeLinear|DequantizeLinear)_(Input|Output)$")  # what quantising adds to a value's name
Sample = Mapping[str, Any]  # "kept", "ops" of [owner, key, ms], "ms": as `time_ops` returns it
Kind = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class LatencyCost:
    """Predicted latency; callable like `pruning.cost.Cost`.

    Attributes:
        sizes: Axis sizes as functions of kept counts.
        node_sizes: For every node that takes time and changes, the sizes it depends on.
        kinds: Of these nodes.
        known: For each kind, ms by sizes, as timed.
        fits: For each kind, weights of `_features`, for other sizes.
        constant_ms: Of all that does not change.
        nodes: Numbers of the nodes that take time and change.
        constant_of: Of `constant_ms`, what belongs to nodes that may be gone, by their number.
        channels: The analysis, which says what is gone where groups keep nothing.
    """

    sizes: Sizes
    node_sizes: tuple[IntArray, ...]
    kinds: tuple[Kind, ...]
    known: Mapping[Kind, dict[tuple[int, ...], float]]
    fits: Mapping[Kind, FloatArray]
    constant_ms: float
    nodes: tuple[int, ...]
    constant_of: Mapping[int, float]
    channels: Channels
    _cache: dict[tuple[Kind, tuple[int, ...]], float] = field(default_factory=dict)

    def ms(self, kept: npt.ArrayLike) -> float:
        """Return the predicted milliseconds of one inference at kept counts (n_groups,)."""
        sizes = self.sizes(kept)
        gone = gone_at(self.channels, kept)
        total = self.constant_ms - sum(self.constant_of.get(node, 0.0) for node in gone)
        for node, kind, index in zip(self.nodes, self.kinds, self.node_sizes, strict=True):
            if node in gone:
                continue
            at = tuple(sizes[index].tolist())
            ms = self._cache.get((kind, at))
            if ms is None:
                ms = self._cache[kind, at] = self._of(kind, at)
            total += ms
        return total

    def __call__(self, kept: npt.ArrayLike) -> int:
        """Return the predicted latency in nanoseconds."""
        return round(self.ms(kept) * NS)

    def _of(self, kind: Kind, at: tuple[int, ...]) -> float:
        known = self.known[kind]
        if at in known:
            return known[at]
        return max(float(_features(np.array([at]))[0] @ self.fits[kind]), 0.0)


def sample_counts(n_units: IntArray, step: IntArray, min_keep: IntArray, n: int, seed: int) -> list[IntArray]:
    """Return kept counts to learn from: the original, the smallest, and random ones between.

    Args:
        n_units: (n_groups,), units.
        step: (n_groups,), counts are multiples of it, or `n_units`.
        min_keep: (n_groups,), smallest counts.
        n: Number of samples.
        seed: Of the random generator.
    """
    rng = np.random.default_rng(seed)
    found = [n_units.copy(), min_keep.copy()]
    while len(found) < n:
        ratio = rng.uniform(0.1, 1.0) + rng.normal(0, 0.3, len(n_units))
        kept = np.round(np.clip(ratio, 0, 1) * n_units / step).astype(np.int64) * step
        kept = np.where(kept > n_units - step, np.where(ratio > 0.9, n_units, kept), kept)
        found.append(np.clip(kept, min_keep, n_units))
    return found[:n]


def latency_cost(channels: Channels, samples: Sequence[Sample]) -> LatencyCost:
    """Return the latency learned from samples of one device and setting.

    Args:
        channels: Analysis of the model.
        samples: Timed candidates, one of them the original.
    """
    graph = channels.graph
    nodes = list(graph.nodes)
    axes = [_axes(graph, node) for node in nodes]
    sizes, of_node = axis_sizes(channels, axes)
    place = _Places(nodes)
    key_ms = _corrected(samples, _pooled(samples))
    owned = [_owned(sample, place) for sample in samples]
    full = max(range(len(samples)), key=lambda i: sum(samples[i]["kept"]))
    kinds = [_kind(graph, node, owned[full].get(i, ())) for i, node in enumerate(nodes)]
    seen: dict[Kind, dict[tuple[int, ...], list[float]]] = {}
    constant = 0.0
    constants: dict[int, list[float]] = {}
    for sample, ops in zip(samples, owned, strict=True):
        at = sizes(sample["kept"])
        gone = gone_at(channels, sample["kept"])
        for i in range(len(nodes)):
            ms = sum(key_ms[key] for key in ops.get(i, ()))
            if i in gone:
                continue
            if len(of_node[i]):
                seen.setdefault(kinds[i], {}).setdefault(tuple(at[of_node[i]].tolist()), []).append(ms)
            else:
                constants.setdefault(i, []).append(ms)
        constant += sum(key_ms[key] for key in ops.get(-1, ())) / len(samples)
    constant_of = {i: float(np.mean(ms)) for i, ms in constants.items()}
    constant += sum(constant_of.values())
    known = {kind: {at: float(np.mean(ms)) for at, ms in by.items()} for kind, by in seen.items()}
    changing = [i for i in range(len(nodes)) if len(of_node[i]) and any(known[kinds[i]].values())]
    made = LatencyCost(
        sizes=sizes,
        node_sizes=tuple(of_node[i] for i in changing),
        kinds=tuple(kinds[i] for i in changing),
        known=known,
        fits={kind: _fit(known[kind]) for kind in {kinds[i] for i in changing}},
        constant_ms=constant,
        nodes=tuple(changing),
        constant_of=constant_of,
        channels=channels,
    )
    return made


def gone_at(channels: Channels, kept: npt.ArrayLike) -> frozenset[int]:
    """Return the numbers of the nodes that are gone at kept counts (n_groups,)."""
    nothing = np.flatnonzero(np.asarray(kept)[: len(channels.groups)] == 0)
    return closer_of(channels)(nothing.tolist()).gone if nothing.size else frozenset()


def _axes(graph: Graph, node: Node) -> list[tuple[str, int]]:
    """Return all axes of a node's inputs and outputs."""
    shapes = [(name, graph.shape(name)) for name in (*node.inputs, *node.outputs) if name]
    return [(name, dim) for name, shape in shapes if shape is not None for dim in range(len(shape.dims))]


def _kind(graph: Graph, node: Node, keys: Sequence[str]) -> Kind:
    """Return what nodes have in common whose times are one function of their sizes."""
    shapes = [graph.shape(name) for name in (*node.inputs, *node.outputs) if name]
    return (node.op_type, tuple(shape.dims if shape else None for shape in shapes), tuple(sorted(keys)))


class _Places:
    """Finds the node of the model that a node which runs works for."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._maker = {name: i for i, node in enumerate(nodes) for name in node.outputs if name}
        self._named = {node.proto.name: i for i, node in enumerate(nodes) if node.proto.name}

    def __call__(self, owner: str | None, key: str) -> int | None:
        """Return the place of the node that makes the value `owner`, whose value that rounds, or whose name it is.

        A Conv that was fused with the Relu behind it goes by the Relu's value; its time depends on the sizes of the Conv. None
        for what has no owner.
        """
        if owner is None:
            return None
        op_type = key.partition(" ")[0].rpartition(".")[2].removeprefix("Fused").removeprefix("QLinear")
        first = at = self._maker.get(owner, self._maker.get(_ROUNDED.sub("", owner), self._named.get(owner)))
        while at is not None and self._nodes[at].op_type != op_type:
            at = next((self._maker[name] for name in self._nodes[at].inputs if name in self._maker), None)
            if at is not None and op_of(self._nodes[at]).macs is not None and self._nodes[at].op_type != op_type:
                return first
        return first if at is None else at


def _owned(sample: Sample, place: _Places) -> dict[int, list[str]]:
    """Return the keys of what runs for each node, by its place; -1 where that is not known."""
    found: dict[int, list[str]] = {}
    last = -1
    for owner, key, _ in sample["ops"]:
        at = place(owner, key)
        last = last if at is None else at
        found.setdefault(last, []).append(key)
    return found


def _pooled(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the ms of every kind of op: the lower quartile over all places where it ran, since load only adds."""
    times: dict[str, list[float]] = {}
    for sample in samples:
        for _, key, ms in sample["ops"]:
            times.setdefault(key, []).append(ms)
    return {key: float(np.percentile(ms, 25)) for key, ms in times.items()}


def _corrected(samples: Sequence[Sample], key_ms: Mapping[str, float]) -> dict[str, float]:
    """Return the ms of every kind of op as it is without the profiler, which takes some microseconds of each.

    Whole inferences without it are fitted as a factor times the sum of their ops, plus as much for each op; by least
    absolute relative error (reweighted least squares), so that a sample which met a busy moment does not count.
    """
    ms = np.array([sample["ms"] for sample in samples])
    total = np.array([sum(key_ms[key] for _, key, _ in sample["ops"]) for sample in samples])
    n_ops = np.array([len(sample["ops"]) for sample in samples], np.float64)
    with np.errstate(all="ignore"):  # times of a table that somebody changed
        terms = np.stack([total, n_ops], axis=1) / ms[:, None]
        is_known = np.isfinite(terms * terms).all()
    if not is_known:
        raise UsageError(
            f"table of op times: its times are too far apart, got samples of {ms.min():.3g} to {ms.max():.3g} ms with ops of"
            f" {total.min():.3g} to {total.max():.3g} ms; expected those of one device. Make it again with time-ops."
        )
    weight = np.ones(len(ms))
    factor, each = 1.0, 0.0
    for _ in range(IRLS_ROUNDS):
        root = np.sqrt(weight)
        factor, each = np.linalg.lstsq(terms * root[:, None], root, rcond=None)[0]
        weight = 1 / np.maximum(np.abs(terms @ np.array([factor, each]) - 1), 1e-3)
    if factor <= 0:  # too little to learn from
        factor, each = float(np.median(ms / np.maximum(total, SMALLEST_MS))), 0.0
    return {key: max(float(factor * one + each), SMALLEST_MS) for key, one in key_ms.items()}


def _fit(known: Mapping[tuple[int, ...], float]) -> FloatArray:
    """Return non-negative weights of the features, fitted to relative errors."""
    features = _features(np.array(list(known), np.int64))
    ms = np.array(list(known.values()))
    weight = 1 / np.maximum(ms, ms.max() / 20 + 1e-9)
    scale = np.maximum(np.abs(features).max(axis=0), 1e-12)
    from scipy.optimize import nnls  # takes longer to import than most models to analyse

    found, _ = nnls(features / scale * weight[:, None], ms * weight, maxiter=50 * features.shape[1])
    return np.asarray(found / scale)


def _features(sizes: IntArray) -> FloatArray:
    """Return what a time may be a sum of, (n, n_features): sizes as they are and in whole blocks, and their products."""
    n, width = sizes.shape
    columns: list[FloatArray] = [np.ones(n)]
    forms: list[list[FloatArray]] = []
    for i in range(width):
        size = sizes[:, i].astype(np.float64)
        blocked = [np.ceil(size / block) * block for block in BLOCKS]
        narrow = [(size < block) * 1.0 for block in BLOCKS]
        uneven = [(size % step != 0) * 1.0 for step in (4, *BLOCKS)]
        forms.append([size, *blocked])
        columns += [size, *blocked, *narrow, *(flag * size for flag in narrow), *uneven, *(u * size for u in uneven)]
    for i in range(width):
        for j in range(i + 1, width):
            columns += [a * b for a in forms[i] for b in forms[j]]
            columns += [(sizes[:, i] < block) * b for block in BLOCKS for b in forms[j]]
            columns += [(sizes[:, j] < block) * a for block in BLOCKS for a in forms[i]]
    return np.stack(columns, axis=1)

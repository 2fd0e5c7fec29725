"""MACs and parameters as exact functions of kept counts, without cutting anything.

The size of an axis is linear in the kept counts of its groups; a cost is a sum of products of sizes. Both are numpy
arrays, so that thousands of candidates can be costed in a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from scipy.sparse import csr_array

from agmc_onnx.arrays import FloatArray, IntArray, Mask
from agmc_onnx.graph.bodies import passes
from agmc_onnx.graph.inline import unwrapped
from agmc_onnx.graph.view import Graph, graph_of
from agmc_onnx.ops.table import macs_of, node_macs
from agmc_onnx.ops.vanish import closer_of
from agmc_onnx.pruning.bodies import body_macs, body_params
from agmc_onnx.ties.bodies import Body
from agmc_onnx.ties.groups import Channels
from agmc_onnx.ties.ledger import Axis
from agmc_onnx.ties.sizes import SizeBook

_LARGEST = 1 << 20  # sizes looked up at once


@dataclass(frozen=True, eq=False)
class Cost:
    """A sum of products of axis sizes.

    Attributes:
        base: int (n_sizes,), entries of each distinct size that always stay; size 0 is the constant 1.
        slope: Sparse int (n_sizes, n_groups), entries for every kept unit of a group.
        rows: int (n_sizes,), what `base` and `slope` are divided by: the rows of an axis whose entries differ from row to row
            (all its rows keep equally many), times a factor that makes slopes whole numbers.
        coefficient: int (n_terms,), the factor that no group changes.
        factors: int (n_terms, width), sizes multiplied in every term.
        owner: Name of the node or tensor that each term counts, (n_terms,).
        choices: For every If, the terms of each branch: the branch that costs most counts.
        channels: The analysis: where groups keep nothing, what goes with them costs nothing either. None where all keep some.
    """

    base: IntArray
    slope: csr_array
    rows: IntArray
    coefficient: IntArray
    factors: IntArray
    owner: tuple[str, ...]
    channels: Channels | None = None
    choices: tuple[tuple[IntArray, ...], ...] = ()
    _without: dict[bytes, Mask] = field(default_factory=dict, repr=False)

    def __call__(self, kept: npt.ArrayLike) -> int:
        """Return the cost at kept counts (n_groups,)."""
        return int(self.terms(kept).sum())

    def of_each(self, kept: IntArray) -> IntArray:
        """Return the costs (n,) at several kept counts (n, n_groups); far quicker than one after the other."""
        at_once = max(_LARGEST // max(self.factors.size, 1), 1)
        parts = [self._of_few(kept[start : start + at_once]) for start in range(0, len(kept), at_once)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _of_few(self, kept: IntArray) -> IntArray:
        sizes = (self.base + (self.slope @ kept.T).T) // self.rows
        terms = sizes[:, self.factors].prod(axis=2)
        for pattern in np.unique(kept == 0, axis=0) if self.channels is not None and not kept.all() else ():
            terms[np.ix_(((kept == 0) == pattern).all(1), self._gone(pattern))] = 0
        return np.asarray(self._chosen(terms * self.coefficient).sum(1) if self.choices else terms @ self.coefficient)

    def _chosen(self, costs: IntArray) -> IntArray:
        """Return costs (..., n_terms) with 0 for the branches of an If that cost less than another."""
        for branches in self.choices:
            most = np.stack([costs[..., terms].sum(-1) for terms in branches], -1).argmax(-1)
            for number, terms in enumerate(branches):
                costs[..., terms] *= (most == number)[..., None]
        return costs

    def _gone(self, is_zero: Mask) -> Mask:
        """Return which terms are of nodes or tensors that are gone, where some groups keep nothing, (n_terms,)."""
        key = is_zero.tobytes()
        if key not in self._without:
            names: set[str] = set()
            if self.channels is not None and is_zero.any():
                closed, nodes = closer_of(self.channels)(np.flatnonzero(is_zero).tolist()), self.channels.graph.nodes
                names = {nodes[i].outputs[0] or nodes[i].label for i in closed.gone} | closed.tensors
            self._without[key] = np.array([name in names for name in self.owner], bool)
        return self._without[key]

    def terms(self, kept: npt.ArrayLike) -> IntArray:
        """Return every term's cost at kept counts (n_groups,)."""
        kept = np.asarray(kept, np.int64)
        sizes = (self.base + self.slope @ kept) // self.rows
        return self._chosen(self.coefficient * sizes[self.factors].prod(axis=1) * ~self._gone(kept == 0))

    def share_of(self, n_units: npt.ArrayLike) -> FloatArray:
        """Return, for every group, the share of the whole cost that lies in terms it changes, (n_groups,)."""
        terms = self.terms(n_units)
        n_terms, width = self.factors.shape
        index = (np.repeat(np.arange(n_terms), width), self.factors.ravel())
        uses = csr_array((np.ones(n_terms * width), index), shape=(n_terms, self.base.size))
        touched = ((uses @ (self.slope != 0).astype(float)) > 0).astype(float)
        return np.asarray(terms @ touched) / max(int(terms.sum()), 1)

    def prunable_share(self, n_units: npt.ArrayLike) -> float:
        """Return the share of the whole cost that lies in terms some group changes, 0..1."""
        terms = self.terms(n_units)
        changed = (np.diff(self.slope.indptr) > 0)[self.factors].any(axis=1)
        return float(terms[changed].sum() / max(int(terms.sum()), 1))


class _Builder(SizeBook):
    """Collects the terms of a cost and the distinct sizes they are made of."""

    def __init__(self, channels: Channels) -> None:
        super().__init__(channels)
        self.terms: list[tuple[int, list[int], str]] = []
        self.choices: list[tuple[IntArray, ...]] = []

    def add(self, owner: str, dims: tuple[int, ...], axes: Sequence[Axis | None]) -> None:
        """Add a product of sizes; each dim comes with the axis that may change it."""
        numbers = [None if axis is None else self.number(axis) for axis in axes]
        constant = math.prod(size for size, number in zip(dims, numbers, strict=True) if number is None)
        self.terms.append((constant, [number for number in numbers if number is not None], owner))

    def build(self) -> Cost:
        width = max((len(factors) for _, factors, _ in self.terms), default=1) or 1
        factors = np.zeros((len(self.terms), width), np.int64)
        for i, (_, numbers, _) in enumerate(self.terms):
            factors[i, : len(numbers)] = numbers
        sizes = self.sizes()
        return Cost(
            base=sizes.base,
            slope=sizes.slope,
            rows=sizes.rows,
            coefficient=np.array([t[0] for t in self.terms], np.int64),
            factors=factors,
            owner=tuple(t[2] for t in self.terms),
            channels=self.channels,
            choices=tuple(self.choices),
        )


def macs_cost(channels: Channels) -> Cost:
    """Return MACs, at batch 1 and the sizes of the graph's shapes, as a function of kept counts.

    Nodes whose op has a rule for it in the table of ops count (convolutions, products, recurrent nodes, fused attention), those
    in branches and bodies too (`body_macs`); element-by-element work does not, as in the papers' tables.
    """
    builder, graph = _Builder(channels), channels.graph
    held: dict[str, list[Body]] = {}
    for body in channels.bodies:
        held.setdefault(body.holder, []).append(body)
    for node in graph.nodes:
        owner = node.outputs[0] or node.label
        for dims, axes in macs_of(graph, node):
            builder.add(owner, dims, axes)
        if owner in held:
            times = passes(graph, node)
            builder.choices.append(tuple(_add_body(builder, owner, body, 1 if times is None else times)
                                         for body in held[owner]))  # fmt: skip
        elif inside := body_macs(graph, node):
            builder.add(owner, (inside,), [None])
    return builder.build()


def _add_body(builder: _Builder, owner: str, body: Body, times: int) -> IntArray:
    """Add the MACs of a graph inside of a node; return which terms they are."""
    start, outer = len(builder.terms), builder.channels.graph
    for node in body.graph.nodes:
        for dims, axes in macs_of(body.graph, node):
            named = [None if axis is None else body.axis(axis, outer) for axis in axes]
            builder.add(owner, (times, *dims), [None, *named])
        if inside := body_macs(body.graph, node):
            builder.add(owner, (times, inside), [None, None])
    return np.arange(start, len(builder.terms))


def params_cost(channels: Channels) -> Cost:
    """Return the number of floating and quantised elements of all constants as a function of kept counts."""
    builder = _Builder(channels)
    for name, tensor in channels.graph.tensors.items():
        if channels.graph.is_parameter(name):
            builder.add(name, tuple(tensor.dims), [(name, dim) for dim in range(len(tensor.dims))])
    for node in channels.graph.nodes:
        if inside := body_params(node.proto):
            builder.add(node.outputs[0] or node.label, (inside,), [None])
    return builder.build()


def count_macs(graph: Graph) -> dict[str, int]:
    """Return the MACs of every node of a graph that has some, by the name of its first output."""
    counted: dict[str, int] = {}
    for node in graph.nodes:
        n_macs = node_macs(graph, node) + body_macs(graph, node)
        if n_macs:
            counted[node.outputs[0] or node.label] = n_macs
    return counted


def count_params(graph: Graph) -> int:
    """Return the number of floating and quantised elements of a graph's constants, those in branches and bodies too."""
    own = sum(math.prod(tensor.dims) for name, tensor in graph.tensors.items() if graph.is_parameter(name))
    return own + sum(body_params(node.proto) for node in graph.nodes)


def stored_params(model: onnx.ModelProto) -> int:
    """Return the number of floating and quantised elements of a model's constants, each as often as it is stored.

    Local functions are inlined, as everywhere. What `normalize` makes of constants (copies, statistics) counts in a model that
    has it, and not in the one that it is made of.
    """
    sparse = sum(math.prod(one.dims) for one in model.graph.sparse_initializer)
    return sparse + count_params(graph_of(unwrapped(model)))

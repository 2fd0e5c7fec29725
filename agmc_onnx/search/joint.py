"""Structured and unstructured pruning decided in one episode: after the groups, how dense every thinned layer is.

The AGMC paper (section 4.2, table 2) prunes filters of convolutions and single weights of dense layers in a single shot.
Its budget counts the convolutions' FLOPs, and the dense layers keep a share of their weights: two budgets, met apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from scipy.sparse import csr_array

from agmc_onnx.arrays import FloatArray, IntArray
from agmc_onnx.motifs import arrays, build
from agmc_onnx.pruning.cost import Cost
from agmc_onnx.search.budget import Rescaled, meet_target, met
from agmc_onnx.search.environment import Environment
from agmc_onnx.search.problem import Curves, Problem
from agmc_onnx.ties.groups import Channels

LEVELS = 40  # steps of a density: 2.5 % of a layer's weights
LEAST = 2  # steps that every layer keeps

Thin = Callable[[list[IntArray], onnx.ModelProto, Mapping[str, float]], onnx.ModelProto]


@dataclass(frozen=True, eq=False)
class JointCurves:
    """Error curves of groups and, after them, of layers; see `agmc_onnx.search.problem.Curves`."""

    counts: tuple[IntArray, ...]
    errors: tuple[FloatArray, ...]

    def error(self, group: int, n_kept: int) -> float:
        """Return a decision's error at any count, interpolated."""
        return float(np.interp(n_kept, self.counts[group], self.errors[group]))


class JointEnvironment(Environment):
    """Candidates whose last counts are densities: of a layer `count / LEVELS` of the weights stay.

    Attributes:
        names: Weights of the layers, in the order of their counts.
        share: Share of zeros of all of them together.
    """

    def __init__(
        self, channels: Channels, *given: Any, names: Sequence[str], share: float, thin: Thin, **options: Any
    ) -> None:
        """Prepare what does not change between candidates.

        Args:
            channels: The analysis.
            given: As for `Environment`; its `recover` is not used.
            names: Weights of the thinned layers.
            share: Share of zeros of all of them together, 0..1.
            thin: Recovers a freshly cut model with these shares of zeros, by tensor.
            options: As for `Environment`.
        """
        super().__init__(channels, *given, **options)
        self._inner = Environment(channels, *given, **options)
        self.names, self.share, self._thin = tuple(names), share, thin
        n = len(self.names)
        self.n_units = np.concatenate([self.n_units, np.full(n, LEVELS)])
        self.step = np.concatenate([self.step, np.ones(n, np.int64)])
        self.min_keep = np.concatenate([self.min_keep, np.full(n, LEAST)])
        self._owners = np.array(self.params.owner)
        self.macs, self.params = widened(self.macs, n), widened(self.params, n)

    @property
    def n_groups(self) -> int:
        """Counts of a candidate that are units of groups."""
        return len(self.channels.groups)

    def kept(self, n_kept: IntArray) -> list[IntArray]:
        """Return the kept positions of every group."""
        return super().kept(n_kept[: self.n_groups])

    def of_groups(self, cost: Callable[[npt.ArrayLike], int]) -> Callable[[npt.ArrayLike], int]:
        """Return a cost of the groups' counts as one of a candidate's."""
        return lambda kept: cost(np.asarray(kept)[: self.n_groups])

    def shares(self, n_kept: IntArray) -> dict[str, float]:
        """Return the share of zeros of every layer."""
        return dict(zip(self.names, (1 - np.asarray(n_kept[self.n_groups :]) / LEVELS).tolist(), strict=True))

    def recovered(self, n_kept: IntArray) -> onnx.ModelProto:
        """Return the model cut, thinned and recovered as candidates are."""
        return self._thin(self.kept(n_kept), self.candidate(n_kept), self.shares(n_kept))

    def sizes(self, n_kept: IntArray) -> IntArray:
        """Return the weights that every layer has at these counts, zeros included, (n_layers,)."""
        terms = self.params.terms(n_kept)
        return np.array([terms[self._owners == name].sum() for name in self.names], np.int64)

    def nonzeros(self, n_kept: IntArray) -> int:
        """Return the parameters that are not zero at these counts."""
        gone = self.sizes(n_kept) @ (1 - np.asarray(n_kept[self.n_groups :]) / LEVELS)
        return int(self.params(n_kept) - gone)

    def problem(self, cost: Callable[[npt.ArrayLike], int], budget: int) -> Problem:
        """Return the search problem of keeping `cost` of a candidate at most `budget`, and `share` of the weights zero."""
        whole = self.n_units[self.n_groups :]
        base = self._inner.problem(lambda kept: cost(np.concatenate([kept, whole])), budget)
        n, graph = len(self.names), self.channels.graph
        outputs = [graph.consumers[name][0][0].outputs[0] for name in self.names]
        nodes = arrays(build(graph), graph, [frozenset({output}) for output in outputs]).group_nodes
        weights = [np.abs(graph.array(name).astype(np.float64)).ravel() for name in self.names]
        power = [np.array([part @ part for part in np.array_split(np.sort(w)[::-1], LEVELS)]) for w in weights]
        size, all_params = self.sizes(self.n_units), max(int(self.params(self.n_units)), 1)
        features = np.zeros((n, base.features.shape[1]), np.float32)
        features[:, 0], features[:, 1], features[:, 3] = 1.0, np.log2(LEVELS) / 12, size / all_params
        features[:, 4] = 1 / LEVELS
        is_density = np.repeat([0.0, 1.0], [self.n_groups, n]).astype(np.float32)
        curves, divergence = self.curves, self.divergence
        return replace(
            base,
            n_units=self.n_units,
            step=self.step,
            min_keep=self.min_keep,
            cost=cost,
            macs=self.macs,
            params=self.nonzeros,
            features=np.concatenate([np.concatenate([base.features, features]), is_density[:, None]], axis=1),
            group_nodes=(*base.group_nodes, *nodes),
            evaluate=self.evaluate,
            is_joined=None if base.is_joined is None else np.concatenate([base.is_joined, np.zeros(n, bool)]),
            layers=None if base.layers is None else np.concatenate([base.layers, np.zeros((n, 8), np.float32)]),
            scores=None if base.scores is None else [*base.scores, *(np.sqrt(p) for p in power)],
            curves=None if curves is None else lambda: _joined_curves(curves(), power),
            divergence=None if divergence is None else lambda: _joined_curves(divergence(), power),
            meet=lambda ratio: self._met(ratio, base),
            depth=self.depth,
            density_weight=size.astype(np.float64),
        )

    def _met(self, ratio: FloatArray, base: Problem) -> Rescaled:
        """Bring the groups to their budget, then the densities to theirs in the model that is left."""
        n = self.n_groups
        groups = met(base, ratio[:n])
        full = np.concatenate([groups.kept, self.n_units[n:]])
        size = self.sizes(full)
        most = int((1 - self.share) * LEVELS * size.sum() + 1e-6)
        layers = meet_target(
            ratio[n:], lambda kept: int(size @ kept), self.n_units[n:], self.step[n:], self.min_keep[n:], most
        )
        kept = np.concatenate([groups.kept, layers.kept])
        return replace(groups, kept=kept, keep_ratio=kept / self.n_units, feasible=groups.feasible and layers.feasible)


def widened(cost: Cost, n: int) -> Cost:
    """Return a cost that takes n more counts, which change nothing."""
    slope = cost.slope
    wider = csr_array((slope.data, slope.indices, slope.indptr), shape=(slope.shape[0], slope.shape[1] + n))
    return replace(cost, slope=wider)


def _joined_curves(groups: Curves, power: Sequence[FloatArray]) -> JointCurves:
    """Return the curves of the groups, and for every layer the share of its weights' power that goes."""
    counts = tuple(np.arange(1, LEVELS + 1) for _ in power)
    errors = tuple(np.maximum(1 - np.cumsum(p) / max(float(p.sum()), 1e-30), 0.0) for p in power)
    return JointCurves((*groups.counts, *counts), (*groups.errors, *errors))

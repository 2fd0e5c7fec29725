"""From an analysed network to a `Problem`: candidates that are really cut, budgets, features."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import onnx

from agmc_onnx.arrays import FloatArray, IntArray
from agmc_onnx.motifs import arrays, build
from agmc_onnx.ops.conv import kernel_shape
from agmc_onnx.ops.table import node_macs, op_of
from agmc_onnx.ops.vanish import closer_of
from agmc_onnx.pruning.cost import macs_cost, params_cost
from agmc_onnx.pruning.importance import choose, is_read
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.search.budget import meet_target, met
from agmc_onnx.search.depth import Depth, Losses
from agmc_onnx.search.journal import Errors
from agmc_onnx.search.problem import Curves, Outcome, Problem
from agmc_onnx.ties.groups import Channels

Evaluate = Callable[..., Outcome]  # of a model and, in a race, the errors of the best
Recover = Callable[[list[IntArray], onnx.ModelProto], onnx.ModelProto]


class Environment:
    """One network, one ranking, one way to recover and to evaluate: everything a candidate is measured by.

    Attributes:
        channels: The analysis.
        scores: Importance of every unit, float (channels.n_units,).
        macs, params: Costs as functions of kept counts.
        n_units, step, min_keep: int (n_groups,) each; see `Problem`. Of a group that nothing reads, one step is the most.
    """

    def __init__(
        self,
        channels: Channels,
        scores: FloatArray,
        evaluate: Evaluate,
        recover: Recover | None = None,
        round_to: npt.ArrayLike = 1,
        floor: float = 0.0,
        curves: Callable[[], Curves] | None = None,
        limit: IntArray | None = None,
        divergence: Callable[[IntArray], Curves] | None = None,
        losses: Callable[[list[IntArray]], float] | None = None,
    ) -> None:
        """Prepare what does not change between candidates.

        Args:
            channels: The analysis.
            scores: Importance of every unit.
            evaluate: Measures a model.
            recover: Recovers a freshly cut model before it is measured; None measures it as cut.
            round_to: Kept counts are multiples of this where a group has that many units; one number, or (n_groups,).
            floor: Smallest share of any group that is kept, 0..1.
            curves: Makes the refit-error curves of these scores; called when a policy asks, at most once. None where
                there is no data to make them of.
            limit: Most units that any candidate keeps of every group, (n_groups,); default: all.
            divergence: Makes, from the groups' steps, curves of what each group alone costs at the outputs; called as
                `curves` is.
            losses: Measures what the answers lose at kept positions; then layers may go too, and `curves` begins at 0. None where
                all of them stay.
        """
        self.channels = channels
        reads = is_read(channels)
        self.scores = np.where(reads, scores, -1.0)  # what nothing reads goes first
        self.macs = macs_cost(channels)
        self.params = params_cost(channels)
        self._surgeon = Surgeon(channels)
        self._evaluate = evaluate
        self._recover = recover
        self.curves = None if curves is None else cache(curves)
        self.divergence = None if divergence is None else cache(lambda: divergence(self.step))
        sizes = np.array([g.n_units for g in channels.groups], np.int64)
        self.n_units = sizes if limit is None else limit
        rounds = np.broadcast_to(np.asarray(round_to, np.int64), len(channels.groups))
        steps = [int(np.lcm(g.step, r)) for g, r in zip(channels.groups, rounds.tolist(), strict=True)]
        self.step = np.array(
            [s if s <= g.n_units else g.step for g, s in zip(channels.groups, steps, strict=True)], np.int64
        )
        unread = np.array([not reads[group.units].any() for group in channels.groups], bool)
        self.n_units = np.where(unread, np.minimum(self.step, self.n_units), self.n_units)
        lowest = np.maximum(np.ceil(sizes * floor / self.step), 1).astype(np.int64) * self.step
        self.min_keep = np.minimum(lowest, self.n_units)
        self.depth = None if losses is None else self._depth(losses)

    def _depth(self, losses: Callable[[list[IntArray]], float]) -> Depth | None:
        """Return what may go, or None where nothing may."""
        closer = closer_of(self.channels)
        if not closer.branches:
            return None

        def whole_but(branches: Iterable[int]) -> IntArray:
            kept = self.n_units.copy()
            kept[sorted(closer.of(branches).groups)] = 0
            return kept

        full = self.macs(self.n_units)
        worth = np.array([full - self.macs(whole_but([b])) for b in range(len(closer.branches))], np.float64)
        found = Depth(closer, worth, Losses(lambda branches: losses(self.kept(whole_but(branches)))))
        plain, outputs = self.curves, self.divergence
        self.curves = None if plain is None else cache(lambda: found.with_nothing(plain()))
        self.divergence = None if outputs is None else cache(lambda: found.with_losses(outputs()))
        return found

    def solved(self, keep_ratio: FloatArray, cost: Callable[[npt.ArrayLike], int], budget: int) -> IntArray:
        """Return the kept counts that keep ratios (n_groups,) are brought to within a budget."""
        if self.depth is not None:
            return met(self.problem(cost, budget), keep_ratio).kept
        return meet_target(keep_ratio, cost, self.n_units, self.step, self.min_keep, budget).kept

    def smallest(self, cost: Callable[[npt.ArrayLike], int]) -> int:
        """Return the smallest cost of a candidate: at the least widths, where layers may go also without as many as may."""
        least = cost(self.min_keep)
        if self.depth is None:
            return least
        every = self.depth.possible(range(len(self.depth.groups)))
        return min(least, cost(self.depth.without(self.min_keep, every)))

    def kept(self, n_kept: IntArray) -> list[IntArray]:
        """Return the kept positions of every group at kept counts (n_groups,)."""
        return choose(self.channels, self.scores, n_kept)

    def candidate(self, n_kept: IntArray) -> onnx.ModelProto:
        """Return the model cut to these counts, not recovered."""
        return self._surgeon.cut(self.kept(n_kept))

    def recovered(self, n_kept: IntArray) -> onnx.ModelProto:
        """Return the model cut to these counts and recovered as candidates are."""
        kept = self.kept(n_kept)
        model = self._surgeon.cut(kept)
        return model if self._recover is None else self._recover(kept, model)

    def evaluate(self, n_kept: IntArray, *best: Errors) -> Outcome:
        """Measure a candidate; in a race against the errors of the best one so far."""
        start = time.perf_counter()
        outcome = self._evaluate(self.recovered(n_kept), *best)
        return replace(outcome, wall_s=time.perf_counter() - start)

    def problem(self, cost: Callable[[npt.ArrayLike], int], budget: int) -> Problem:
        """Return the search problem of keeping `cost` at most `budget`."""
        members: list[set[str]] = [set() for _ in self.channels.groups]
        for value, groups in self._groups_of_values():
            for index in groups:
                members[index].add(value)
        graph = self.channels.graph
        encoded = arrays(build(graph), graph, [frozenset(m) for m in members])
        return Problem(
            n_units=self.n_units,
            step=self.step,
            min_keep=self.min_keep,
            cost=cost,
            cost_full=cost(self.n_units),
            budget=budget,
            macs=self.macs,
            params=self.params,
            graph=encoded,
            features=self._features(),
            group_nodes=encoded.group_nodes,
            evaluate=self.evaluate,
            is_joined=self.channels.joined,
            layers=self._layers(members),
            scores=[
                np.sort(self.scores[group.units])[::-1][:n].astype(np.float64)
                for group, n in zip(self.channels.groups, self.n_units.tolist(), strict=True)
            ],
            curves=self.curves,
            divergence=self.divergence,
            depth=self.depth,
        )

    def _groups_of_values(self) -> list[tuple[str, list[int]]]:
        """Return every axis' value with the prunable groups that stand on the axis."""
        group_of = np.full(self.channels.n_units, -1, np.int64)
        for index, group in enumerate(self.channels.groups):
            group_of[group.units] = index
        found = []
        for (value, _), axis in self.channels.axes.items():
            groups = np.unique(group_of[axis.units])
            found.append((value, groups[groups >= 0].tolist()))
        return found

    def _layers(self, members: list[set[str]]) -> npt.NDArray[np.float32]:
        """Return AMC's static features (n_groups, 8) of the first node with weights that makes a value of each group.

        t, n and c (channels out and in), h, w (of the output), stride, k, MACs; He et al. 2018, arXiv:1802.03494, eq. 1.
        """
        graph = self.channels.graph
        found = np.zeros((len(members), 8), np.float32)
        for t, values in enumerate(members):
            found[t, 0] = t
            makers = [node for node in graph.nodes if op_of(node).refit and not values.isdisjoint(node.outputs)]
            if not makers:
                continue
            node = makers[0]
            outer, inner = graph.shape(node.outputs[0]), graph.shape(node.inputs[0])
            if outer is None or inner is None:
                continue
            is_conv = op_of(node).kernel
            dim = 1 if is_conv else -1
            size = [*outer.dims[2:], 1, 1][:2] if is_conv else [1, 1]
            kernel = kernel_shape(graph, node) if is_conv else (1,)
            stride = node.attribute("strides") or [1]
            n, c, k = outer.dims[dim], inner.dims[dim], kernel[0] if kernel else 1
            found[t, 1:] = (n, c, *size, stride[0], k, node_macs(graph, node))
        return found

    def _features(self) -> npt.NDArray[np.float32]:
        """Return what a group is, in numbers of comparable size: (n_groups, 6).

        Columns: place in the network 0..1, log2 of the units / 12, share of the MACs and of the parameters it changes,
        step / units, share of the MACs that halving it saves.
        """
        n_groups = len(self.channels.groups)
        halved = []
        for index in range(n_groups):
            kept = self.n_units.copy()
            kept[index] = max(int(self.min_keep[index]), kept[index] // 2)
            halved.append(1 - self.macs(kept) / max(self.macs(self.n_units), 1))
        columns = [
            np.arange(n_groups) / max(n_groups - 1, 1),
            np.log2(self.n_units) / 12,
            self.macs.share_of(self.n_units),
            self.params.share_of(self.n_units),
            self.step / self.n_units,
            np.array(halved),
        ]
        return np.stack(columns, axis=1).astype(np.float32).reshape(n_groups, len(columns))

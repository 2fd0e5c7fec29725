"""Layers that go, beside widths that shrink: one decision a branch (`ties.closed`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from agmc_onnx.arrays import FloatArray, IntArray
from agmc_onnx.search.budget import ManyCosts, Rescaled, meet_target
from agmc_onnx.search.journal import Journal, Section
from agmc_onnx.search.problem import Curves, KnownCurves, Problem
from agmc_onnx.ties.closed import Closer

GONE = 0.1  # a branch goes where less than this share of every group of it is proposed; half the usual floor
_NOTE = "loss without "  # before the numbers of branches, in a journal
LOOKED_AT = 2  # branches whose loss together with those that are gone is measured before one of them goes


Measure = Callable[[frozenset[int]], float]


@dataclass(eq=False)
class Losses:
    """What the answers lose without some branches, all else whole; each set is measured once in the life of a run.

    Attributes:
        measure: Measures a set that is not empty.
        known: What was measured.
        on_new: Called with what is measured from now on.
    """

    measure: Measure
    known: dict[frozenset[int], float] = field(default_factory=lambda: {frozenset(): 0.0})
    on_new: Callable[[frozenset[int], float], None] | None = None

    def __call__(self, branches: frozenset[int]) -> float:
        """Return the loss without some branches, by number."""
        if branches not in self.known:
            self.known[branches] = self.measure(branches)
            if self.on_new is not None:
                self.on_new(branches, self.known[branches])
        return self.known[branches]

    def kept_in(self, journal: Journal | Section) -> None:
        """Take from a journal what an interrupted run has measured, and write down there what is measured from now on."""
        for name, value in journal.notes.items():
            if name.startswith(_NOTE):
                self.known[frozenset(map(int, name.removeprefix(_NOTE).split(",")))] = float(value)
        self.on_new = lambda branches, loss: journal.note(_NOTE + ",".join(map(str, sorted(branches))), loss)


@dataclass(frozen=True, eq=False)
class Depth:
    """What may go.

    Attributes:
        closer: Closes choices; knows the branches.
        worth: Of every branch, what is saved without it, (n_branches,).
        loss: What the answers lose without some branches, all else whole and recovered as candidates are: nats of the
            Kullback-Leibler divergence, or squared error over the variance.
    """

    closer: Closer
    worth: FloatArray
    loss: Losses
    _chains: dict[int, list[frozenset[int]]] = field(default_factory=dict)

    @property
    def groups(self) -> list[list[int]]:
        """Numbers of the groups of every branch."""
        return [list(branch.groups) for branch in self.closer.branches]

    @property
    def atoms(self) -> list[list[int]]:
        """Groups of the branches that go as one: with any group of it all others go, and nothing else does."""
        return [groups for groups in self.groups if all(self.closer({g}).groups == frozenset(groups) for g in groups)]

    def nothing(self, branches: Iterable[int]) -> IntArray:
        """Return the numbers of the groups that keep nothing without some branches, ascending."""
        return np.array(sorted(self.closer.of(branches).groups), np.int64)

    def possible(self, branches: Iterable[int]) -> frozenset[int]:
        """Return these branches, less the cheapest ones of those that cannot go together."""
        return self.closer.possible(branches, self.worth.tolist())

    def proposed(self, keep_ratio: FloatArray) -> frozenset[int]:
        """Return the branches that keep ratios (n_groups,) propose to go."""
        asked = [b for b, groups in enumerate(self.groups) if keep_ratio[groups].max() < GONE]
        return self.possible(asked) if asked else frozenset()

    def met(self, problem: Problem, keep_ratio: FloatArray) -> Rescaled:
        """Return kept counts in the proportions proposed, within the budget; those of branches proposed to go are 0.

        Where more is proposed to go than the budget asks for, branches stay, those of the largest ratios first; where the least
        widths of what is left cost more than the budget, branches go, those of the smallest ratios first.
        """
        ratio = np.asarray(keep_ratio, np.float64).copy()
        gone = self.proposed(ratio)
        while gone and problem.cost(self.whole_but(problem, gone)) <= problem.budget:
            back = max(gone, key=lambda b: (ratio[self.groups[b]].max(), -self.worth[b], b))
            ratio[self.groups[back]] = 1.0
            gone = gone - {back}
        gone = self.enough(problem, gone, ratio)
        rest, left = rest_of(problem, gone)
        found = meet_target(ratio[left], rest.cost, rest.n_units, rest.step, rest.min_keep, rest.budget)
        kept = np.zeros_like(problem.n_units)
        kept[left] = found.kept
        return replace(found, kept=kept, keep_ratio=kept / problem.n_units)

    def enough(self, problem: Problem, gone: frozenset[int], ratio: FloatArray) -> frozenset[int]:
        """Return these branches, and more where without them even the least widths of the rest cost more than the budget.

        Args:
            problem: The problem.
            gone: Branches that are gone.
            ratio: (n_groups,); the smaller those of a branch, the sooner it goes.
        """
        order = sorted(range(len(self.groups)), key=lambda b: (-ratio[self.groups[b]].max(), self.worth[b], -b))
        while order and problem.cost(self.without(problem.min_keep, gone)) > problem.budget:
            more = gone | {order.pop()}
            gone = more if self.possible(more) == more else gone
        return gone

    def without(self, kept: IntArray, branches: Iterable[int]) -> IntArray:
        """Return kept counts (n_groups,) with those of some branches 0."""
        left = kept.copy()
        left[self.nothing(branches)] = 0
        return left

    def chain(self, problem: Problem) -> list[frozenset[int]]:
        """Return sets of branches, each with one more gone: the one whose loss, measured together, is least for what it saves.

        The losses of several branches do not add up: of MobileNetV2's ten, three may cost what each alone does not. The last set
        is the first with which the rest meets the budget whole.
        """
        if problem.budget not in self._chains:
            self._chains[problem.budget] = self._chain(problem)
        return self._chains[problem.budget]

    def _chain(self, problem: Problem) -> list[frozenset[int]]:
        loss = self.loss
        sets, gone, now = [frozenset[int]()], frozenset[int](), problem.cost_full
        while now > problem.budget:
            saved = {}
            for b in range(len(self.closer.branches)):
                more = gone | {b}
                if b not in gone and self.possible(more) == more:
                    saved[b] = now - problem.cost(self.whole_but(problem, more))
            saved = {b: cost for b, cost in saved.items() if cost > 0}
            if not saved:
                break
            looked_at = sorted(saved, key=lambda b: (loss(frozenset({b})) / saved[b], b))[:LOOKED_AT]
            before = loss(gone)
            best = min(looked_at, key=lambda b: ((loss(gone | {b}) - before) / saved[b], b))
            gone, now = gone | {best}, now - saved[best]
            sets.append(gone)
        return sets

    def whole_but(self, problem: Problem, branches: Iterable[int]) -> IntArray:
        """Return the kept counts of all but some branches, whole."""
        return self.without(problem.n_units, branches)

    def with_nothing(self, curves: Curves) -> KnownCurves:
        """Return curves that know what it costs that a branch is gone: shared by its groups.

        Args:
            curves: Whose counts begin with 0 where that is known: the error of the group's own consumers then, of which the
                smallest of a branch is that of its end.
        """
        counts, errors = list(curves.counts), list(curves.errors)
        found: dict[int, float] = {}
        for groups in self.groups:
            known = [float(errors[g][0]) for g in groups if counts[g][0] == 0]
            for g in groups if known else ():
                found.setdefault(g, min(known) / len(groups))
        for g in range(len(counts)):
            if counts[g][0] == 0:
                start = 0 if g in found else 1
                counts[g], errors[g] = counts[g][start:], errors[g][start:].copy()
                if g in found:
                    errors[g][0] = found[g]
        return KnownCurves(tuple(counts), tuple(errors))

    def with_losses(self, curves: Curves) -> KnownCurves:
        """Return curves of what the answers lose with the measured loss of every branch at 0."""
        counts, errors = list(curves.counts), list(curves.errors)
        for b, groups in enumerate(self.groups):
            loss = self.loss(frozenset({b})) / len(groups)
            for g in groups:
                if counts[g][0] != 0:
                    counts[g] = np.concatenate([[0], counts[g]])
                    errors[g] = np.concatenate([[loss], np.minimum(errors[g], loss)])
        return KnownCurves(tuple(counts), tuple(errors))


@dataclass(frozen=True, eq=False)
class CostOfRest:
    """The cost of a network as a function of the groups that are left.

    Attributes:
        cost: Of all groups.
        kept: Counts of all groups, of which those of `left` are given.
        left: Numbers of the groups that are left.
    """

    cost: Callable[[IntArray], int]
    kept: IntArray
    left: IntArray

    def full(self, some: IntArray) -> IntArray:
        """Return counts (..., n_groups) of all groups at counts (..., n_left)."""
        some = np.asarray(some, np.int64)
        found = np.broadcast_to(self.kept, (*some.shape[:-1], self.kept.size)).copy()
        found[..., self.left] = some
        return found

    def __call__(self, some: IntArray) -> int:
        """Return the cost at counts (n_left,)."""
        return int(self.cost(self.full(some)))

    def of_each(self, some: IntArray) -> IntArray:
        """Return the costs (n,) at counts (n, n_left)."""
        many = self.full(some)
        return (
            self.cost.of_each(many)
            if isinstance(self.cost, ManyCosts)
            else np.array([int(self.cost(one)) for one in many])
        )


def rest_of(problem: Problem, branches: Iterable[int]) -> tuple[Problem, IntArray]:
    """Return the problem of the widths that are left without some branches, and the numbers of its groups.

    What belongs to the whole graph (`graph`, `features`, `layers`) is not cut.
    """
    assert problem.depth is not None
    nothing = problem.depth.nothing(branches)
    left = np.setdiff1d(np.arange(problem.n_groups), nothing)
    kept = problem.n_units.copy()
    kept[nothing] = 0
    cost = CostOfRest(problem.cost, kept, left)

    def some(curves: Callable[[], Curves] | None) -> Callable[[], Curves] | None:
        return None if curves is None else lambda: _some(curves(), left)

    rest = replace(
        problem,
        n_units=problem.n_units[left],
        step=np.broadcast_to(problem.step, problem.n_units.shape)[left],
        min_keep=problem.min_keep[left],
        cost=cost,
        cost_full=cost(problem.n_units[left]),
        is_joined=None if problem.is_joined is None else problem.is_joined[left],
        scores=None if problem.scores is None else [problem.scores[i] for i in left.tolist()],
        curves=some(problem.curves),
        divergence=some(problem.divergence),
        depth=None,
    )
    return rest, left


def _some(curves: Curves, left: Sequence[int] | IntArray) -> KnownCurves:
    return KnownCurves(tuple(curves.counts[i] for i in left), tuple(curves.errors[i] for i in left))

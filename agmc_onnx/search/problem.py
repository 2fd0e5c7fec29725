"""What a policy may know of the network it compresses, as arrays and functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from agmc_onnx.arrays import FloatArray, GraphArrays, IntArray, Mask


@dataclass(frozen=True)
class Outcome:
    """What the evaluation of one candidate gave.

    Attributes:
        metric: 0..100, higher is better.
        inference_s: Seconds spent in inference alone.
        wall_s: Seconds of the whole evaluation.
        fidelity: Closeness of the outputs to the original's, 0..100, where candidates are judged by it; else None.
        errors: In a race, what other candidates are held against, one number an image; None where this one lost.
        n_images: In a race, how many images it was measured on where it lost; else None.
    """

    metric: float
    inference_s: float = 0.0
    wall_s: float = 0.0
    fidelity: float | None = None
    errors: tuple[float, ...] | None = None
    n_images: int | None = None

    @property
    def judged(self) -> float:
        """What rewards are made of, 0..100: the fidelity where there is one, else the metric."""
        return self.metric if self.fidelity is None else self.fidelity


class Curves(Protocol):
    """Error of every group by its number of kept units, each group alone; `agmc_onnx.refit.curves.Curves` is one.

    Attributes:
        counts: For each group the kept counts, ascending, ending with all units.
        errors: For each group the error at these counts, a share of what is there without error; 0 at the last.
    """

    @property
    def counts(self) -> tuple[IntArray, ...]: ...  # noqa: D102

    @property
    def errors(self) -> tuple[FloatArray, ...]: ...  # noqa: D102

    def error(self, group: int, n_kept: int) -> float:
        """Return a group's error at any count."""
        ...


@dataclass(frozen=True, eq=False)
class KnownCurves:
    """Curves as they are given; see `Curves`."""

    counts: tuple[IntArray, ...]
    errors: tuple[FloatArray, ...]

    def error(self, group: int, n_kept: int) -> float:
        """Return a group's error at any count, interpolated between the known ones."""
        return float(np.interp(n_kept, self.counts[group], self.errors[group]))


class Branches(Protocol):
    """What may go beside widths; `agmc_onnx.search.depth.Depth` is one, which says what each of these gives."""

    @property
    def groups(self) -> list[list[int]]: ...  # noqa: D102

    @property
    def atoms(self) -> list[list[int]]: ...  # noqa: D102

    def nothing(self, branches: Iterable[int]) -> IntArray: ...  # noqa: D102

    def possible(self, branches: Iterable[int]) -> frozenset[int]: ...  # noqa: D102

    def met(self, problem: Problem, keep_ratio: FloatArray) -> Any: ...  # noqa: D102

    def chain(self, problem: Problem) -> list[frozenset[int]]: ...  # noqa: D102


@dataclass(frozen=True)
class Problem:
    """Everything a policy may know. All groups listed are prunable, in the order of the network.

    Attributes:
        n_units: int (n_groups,), units of every group.
        step: int (n_groups,), a kept count is a multiple of it, or `n_units` itself.
        min_keep: int (n_groups,), smallest kept count; a multiple of `step`, at least 1.
        cost: True coupled integer cost (MACs or parameters) of a kept vector; never falls when a count grows.
        cost_full: Cost of `n_units`.
        budget: Largest cost allowed.
        macs: MACs of a kept vector.
        params: Parameters of a kept vector.
        graph: The graph.
        features: float32 (n_groups, n_features), static hand-made features of every group (as AMC's).
        group_nodes: Graph nodes that belong to each group, int arrays, possibly empty.
        evaluate: Measures the candidate with these kept counts.
        is_joined: bool (n_groups,), whether a sum (a shortcut) joins the units of the group; None where not known.
        layers: float32 (n_groups, 8), AMC's static features: t, n, c, h, w, stride, k, MACs of the node that makes the group;
            None where not known.
        scores: For each group the importance of its units, descending; None where not known.
        meet: Brings keep ratios to the budget, as a `search.budget.Rescaled`; None: `meet_target` on `cost` does.
        density_weight: Where the last decisions are densities of thinned layers: the weights of each, (n_layers,); they have a
            budget of their own. None where all decisions are widths of groups.
        has_budget: False: candidates are taken in the proportions proposed, whatever they cost, and the reward weighs the cost.
        depth: What may go beside widths: keep ratios below `search.depth.GONE` of a whole branch propose that it goes, and
            kept counts are then 0. None where all layers stay.
        curves: Makes the refit-error curves, prior knowledge that costs no evaluation; None without data. It is costly
            once, and cached.
        divergence: Makes curves of the same form that say what each group alone costs at the outputs; None where nothing is
            refitted. Costly once, and cached.
    """

    n_units: IntArray
    step: IntArray
    min_keep: IntArray
    cost: Callable[[IntArray], int]
    cost_full: int
    budget: int
    macs: Callable[[IntArray], int]
    params: Callable[[IntArray], int]
    graph: GraphArrays
    features: npt.NDArray[np.float32]
    group_nodes: Sequence[IntArray]
    evaluate: Callable[[IntArray], Outcome]
    is_joined: Mask | None = None
    layers: npt.NDArray[np.float32] | None = None
    scores: Sequence[FloatArray] | None = None
    curves: Callable[[], Curves] | None = None
    divergence: Callable[[], Curves] | None = None
    meet: Callable[[FloatArray], Any] | None = None
    density_weight: FloatArray | None = None
    has_budget: bool = True
    depth: Branches | None = None

    @property
    def n_groups(self) -> int:
        """Number of decisions of one episode."""
        return len(self.n_units)

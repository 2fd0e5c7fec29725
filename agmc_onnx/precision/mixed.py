"""Mixed precision: int8 where the time that it saves is worth the answers that it changes, kernel by kernel.

Times come from a profile of the model in float and one in int8. Errors are measured: each kernel is rounded alone, and the
squared errors of few kernels add up, since roundings are independent (Lin et al. 2016, arXiv:1511.06393, sec. 3). What goes
between float and int8 costs a change of form. At a rate of so much time for so much error, the best division of the
kernels is a minimum cut: int8 on one side, float on the other, changes of form between (Greig et al. 1989, J. R. Stat.
Soc. B 51). The rates between which the cut changes give a few models; those are built, run and timed, and one is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import networkx as nx
import onnx

from agmc_onnx.data.samples import Samples
from agmc_onnx.latency.op_times import faster, time_ops
from agmc_onnx.latency.timing import compare, ratio
from agmc_onnx.measuring.accuracy import Evaluator
from agmc_onnx.measuring.agreeing import MEASURES
from agmc_onnx.precision.int8 import precision_of
from agmc_onnx.precision.kernels import Crossing, Kernel, kernels_of, times_of
from agmc_onnx.precision.quantiser import KINDS, SAMPLES, Kind, Prepared, Quantised, Quantiser, Tried

FEW = 8  # samples that the error of one kernel is measured on
PROFILES = 2  # of each precision, in turns; the faster time counts
MOST = 6  # divisions that are built and measured
SECONDS = 6.0  # given to timing them in turns
SCALE = 1 << 40  # of the largest capacity: cuts of whole numbers are exact


@dataclass(frozen=True)
class Trade:
    """What each kernel costs in float and in int8.

    Attributes:
        float_ms, int8_ms: Of each kernel; the latter is infinite where there is no integer kernel.
        error: Relative squared error of the answers where it alone is int8.
        changes: (kernel or `OUTSIDE`, kernel or `OUTSIDE`, ms where they differ).
    """

    float_ms: Sequence[float]
    int8_ms: Sequence[float]
    error: Sequence[float]
    changes: Sequence[tuple[int, int, float]]

    def best(self, rate: float) -> frozenset[int]:
        """Return the kernels in int8 of the division with the least time + rate * error."""
        finite = [i for i, ms in enumerate(self.int8_ms) if ms < float("inf")]
        costs = {i: self.int8_ms[i] + rate * self.error[i] for i in finite}
        largest = max([*costs.values(), *self.float_ms, *(ms for _, _, ms in self.changes), 1e-9])
        flow = nx.DiGraph()
        flow.add_nodes_from(("int8", "float"))

        def add(a: int | str, b: int | str, ms: float) -> None:
            before = flow[a][b]["capacity"] if flow.has_edge(a, b) else 0
            flow.add_edge(a, b, capacity=before + round(SCALE * ms / largest))

        for i, cost in costs.items():
            add("int8", i, self.float_ms[i])
            add(i, "float", cost)
        for a, b, ms in self.changes:
            ends = [i if i in costs else "float" for i in (a, b)]
            for one, other in (ends, ends[::-1]):
                if one not in ("float", other):
                    add(one, other, ms)
        _, (side, _) = nx.minimum_cut(flow, "int8", "float")
        return frozenset(side) - {"int8"}

    def ms(self, chosen: frozenset[int]) -> float:
        """Return the time of a division."""
        own = sum(self.int8_ms[i] if i in chosen else ms for i, ms in enumerate(self.float_ms))
        return own + sum(ms for a, b, ms in self.changes if (a in chosen) != (b in chosen))

    def lost(self, chosen: frozenset[int]) -> float:
        """Return the error of a division."""
        return sum(self.error[i] for i in chosen)

    def hull(self, most: int = MOST) -> dict[frozenset[int], float]:
        """Return the divisions that some rate prefers, with it: the fastest first, all-float last, at most about so many.

        Between two of them the one that is best at the rate where both cost the same lies below their line, or there is none
        (Eisner and Severance 1976, J. ACM 23).
        """
        fastest, nothing = self.best(0.0), frozenset[int]()
        found = {nothing: float("inf"), fastest: 0.0}
        gaps = [(fastest, nothing)]
        while gaps and len(found) < most:
            a, b = gaps.pop(0)
            error = self.lost(a) - self.lost(b)
            if error <= 0 or self.ms(b) <= self.ms(a):
                continue
            rate = (self.ms(b) - self.ms(a)) / error
            between = self.best(rate)
            if between not in found and self.ms(between) + rate * self.lost(between) < self.ms(a) + rate * self.lost(a):
                found[between] = rate
                gaps += [(a, between), (between, b)]
        return dict(sorted(found.items(), key=lambda one: one[1]))


class MixedQuantiser(Quantiser):
    """Quantises kernel by kernel.

    The first model, the original, says what rounding each kernel costs and which price of errors its times and answers are
    worth; what is cut from it is divided at that price by times of its own.
    """

    def __init__(
        self, samples: Samples, target: str, threads: int = 1, kinds: Mapping[str, Kind] = KINDS, n: int = SAMPLES
    ) -> None:
        """Take some of the calibration role; arguments as of `Quantiser`."""
        super().__init__(samples, target, threads, kinds, n)
        self._few = samples.take(min(samples.n, FEW))
        self._errors: dict[str, float] = {}
        self._first: Quantised | None = None
        self._rate: float | None = None  # that its division is the best one at; None where that is int8 alone

    def for_timing(self, model: onnx.ModelProto, stay_float: Sequence[str] = ()) -> onnx.ModelProto:
        """Return a model divided as the first one was, which this is where there was none."""
        first = self._first or self(model)
        return super().for_timing(model, [*stay_float, *first.stays])

    def _quantised(self, model: onnx.ModelProto, stay_float: Sequence[str]) -> Quantised:
        given = self._prepared(model)
        whole = self._best(given, stay_float)
        kernels, crossings = kernels_of(given.plain)
        trade = self._trade(given, whole, kernels, crossings)
        every = frozenset(i for i, ms in enumerate(trade.int8_ms) if ms < float("inf"))
        found = {
            frozenset[int](): Quantised(model, precision_of(model, given.plain, given.plain), whole.ranges),
        }
        if every:
            found[every] = whole

        def made(chosen: frozenset[int]) -> Quantised:
            if chosen not in found:
                stays = [name for i, kernel in enumerate(kernels) if i not in chosen for name in kernel.nodes]
                found[chosen] = self._made(given, whole.ranges, [*stay_float, *stays])
            return found[chosen]

        def told(chosen: frozenset[int], tried: tuple[Tried, ...]) -> Quantised:
            fastest = trade.best(0.0)
            stays = {n: _why(i, trade, fastest) for i, k in enumerate(kernels) if i not in chosen for n in k.nodes}
            return replace(made(chosen), stays=stays, tried=tried)

        if self._first is not None:
            chosen = (
                every if self._rate is None else frozenset() if self._rate == float("inf") else trade.best(self._rate)
            )
            return told(chosen, self._first.tried)
        rates = trade.hull()
        for one in rates:
            made(one)
        tried, best = self._measured(given, found, every)
        self._rate = None if best and best == every else rates[best]
        self._first = told(best, tried)
        return self._first

    def _trade(
        self, given: Prepared, whole: Quantised, kernels: Sequence[Kernel], crossings: Sequence[Crossing]
    ) -> Trade:
        """Return times and errors; the latter only of kernels that are int8 where time alone counts, as no rate takes others."""
        feed = self._one.feeds(1)[0]
        models = [one.SerializeToString() for one in (given.plain, whole.model)]
        timed = [[time_ops(one, feed, self._threads) for one in models] for _ in range(PROFILES)]
        profiles = list(zip(*timed, strict=True))
        exact, rounded = (times_of(kernels, given.plain, reduce(faster, side)["ops"]) for side in profiles)
        change = {**exact.change_ms, **rounded.change_ms}
        each = (change.get("QuantizeLinear", 0.0) + change.get("DequantizeLinear", 0.0)) / 2
        each += change.get("Transpose", 0.0) + change.get("ReorderInput", 0.0)
        int8 = [
            ms if is_integer else float("inf") for ms, is_integer in zip(rounded.ms, rounded.is_integer, strict=True)
        ]
        trade = Trade(exact.ms, int8, [0.0] * len(kernels), [(c.source, c.reader, each * c.entries) for c in crossings])
        judge = Evaluator(self._few, "agreement", reference=given.model, original=given.model, threads=self._threads)
        for i in sorted(trade.best(0.0)):
            if kernels[i].name not in self._errors:
                others = [name for k, kernel in enumerate(kernels) if k != i for name in kernel.nodes]
                closeness = judge(self._made(given, whole.ranges, others).model).fidelity or 1e-6
                self._errors[kernels[i].name] = (100 / closeness - 1) ** 2
        return replace(trade, error=[self._errors.get(kernel.name, 0.0) for kernel in kernels])

    def _measured(
        self, given: Prepared, found: Mapping[frozenset[int], Quantised], every: frozenset[int]
    ) -> tuple[tuple[Tried, ...], frozenset[int]]:
        """Return what was measured of models, and which takes the least time for what it answers as the float model does."""
        models = [one.model for one in found.values()]
        times = compare(models, self._one.feeds(1), threads=self._threads, seconds=SECONDS)
        tried = []
        for one, ms in zip(found, times, strict=True):
            told = given.judge(found[one].model)
            alike = [told.fidelity or 0.0, *([] if _is_db(told.score.name) else [told.score.value])]
            what = "mixed" if one and one != every else "int8" if one else "float"
            n_float = sum(kind == "float" for kind in found[one].precision.values())
            tried.append(
                Tried(what, n_float, ratio(ms, times[0]).steady, min(alike), told.score.name, told.score.value)
            )
        best = min(range(len(tried)), key=lambda i: tried[i].time / max(tried[i].alike, 1e-6))
        return tuple(replace(one, is_taken=i == best) for i, one in enumerate(tried)), list(found)[best]


def _is_db(name: str) -> bool:
    return name in MEASURES and MEASURES[name].unit == "dB"


def _why(i: int, trade: Trade, fastest: frozenset[int]) -> str:
    """Return why a kernel stays float."""
    exact, rounded = trade.float_ms[i], trade.int8_ms[i]
    if rounded == float("inf"):
        return "has no integer kernel"
    if i in fastest:
        return f"int8 saves {exact - rounded:.3f} ms there and changes the answers more than that is worth"
    if rounded >= exact:
        return f"int8 is slower there: {rounded:.3f} ms for {exact:.3f}"
    return f"int8 saves {exact - rounded:.3f} ms there, less than changing to it and back takes"

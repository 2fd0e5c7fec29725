"""Sizes of axes as exact functions of kept counts: linear in those of their groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from agmc_onnx.arrays import IntArray
from agmc_onnx.ties.balance import numbered
from agmc_onnx.ties.groups import Channels
from agmc_onnx.ties.ledger import Axis


@dataclass(frozen=True, eq=False)
class Sizes:
    """The distinct sizes of some axes.

    Attributes:
        base: int (n_sizes,), entries of each that always stay; size 0 is the constant 1.
        slope: Sparse int (n_sizes, n_groups), entries for every kept unit of a group.
        rows: int (n_sizes,), what `base` and `slope` are divided by: the rows of an axis whose entries differ from row to row
            (all its rows keep equally many), times a factor that makes slopes whole numbers.
    """

    base: IntArray
    slope: csr_array
    rows: IntArray

    def __call__(self, kept: npt.ArrayLike) -> IntArray:
        """Return every size at kept counts (n_groups,), (n_sizes,)."""
        return np.asarray((self.base + self.slope @ np.asarray(kept, np.int64)) // self.rows)


class _Size(NamedTuple):
    base: int
    rows: int
    slope: tuple[tuple[int, int], ...]  # (group, entries per unit)


class SizeBook:
    """Collects the distinct sizes that axes have."""

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self._group_of = numbered([group.units for group in channels.groups], channels.n_units)
        self._numbers = {_Size(1, 1, ()): 0}
        self._known: dict[Axis, int | None] = {}

    def number(self, axis: Axis) -> int | None:
        """Return the number of a size that some group changes, or None for a constant one."""
        if axis not in self._known:
            self._known[axis] = None
            found = self.channels.axes.get(axis)
            if found is not None:
                groups, counts = np.unique(self._group_of[found.units], return_counts=True)
                pairs = [(g, n) for g, n in zip(groups.tolist(), counts.tolist(), strict=True) if g >= 0]
                if pairs:
                    # A group of several blocks of unlike units may have a fraction of an entry per unit here.
                    sizes = [self.channels.groups[g].n_units for g, _ in pairs]
                    whole = math.lcm(*(size // math.gcd(size, n) for size, (_, n) in zip(sizes, pairs, strict=True)))
                    slope = tuple((g, n * whole // size) for size, (g, n) in zip(sizes, pairs, strict=True))
                    base = int(counts[groups == -1].sum()) * whole
                    rows = (found.units.shape[0] if found.units.ndim == 2 else 1) * whole
                    self._known[axis] = self._numbers.setdefault(_Size(base, rows, slope), len(self._numbers))
        return self._known[axis]

    def sizes(self) -> Sizes:
        """Return the sizes found so far."""
        slopes = [(number, *pair) for key, number in self._numbers.items() for pair in key.slope]
        size, group, entries = np.array(slopes, np.int64).reshape(-1, 3).T
        return Sizes(
            base=np.array([key.base for key in self._numbers], np.int64),
            slope=csr_array((entries, (size, group)), shape=(len(self._numbers), len(self.channels.groups))),
            rows=np.array([key.rows for key in self._numbers], np.int64),
        )


def axis_sizes(channels: Channels, axes: Sequence[Sequence[Axis]]) -> tuple[Sizes, tuple[IntArray, ...]]:
    """Return the sizes that groups change, and for every list of axes which of them stand there, each once, in order."""
    book = SizeBook(channels)
    numbers = []
    for some in axes:
        found = [number for number in map(book.number, some) if number is not None]
        numbers.append(np.array(list(dict.fromkeys(found)), np.int64))
    return book.sizes(), tuple(numbers)

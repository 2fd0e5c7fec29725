"""What stays of every axis for one choice of units."""

from __future__ import annotations

from collections.abc import Sequence

from agmc_onnx.arrays import IntArray, Mask
from agmc_onnx.graph.view import Graph
from agmc_onnx.ties.groups import Channels


class Cut:
    """What stays of every axis for one choice of units.

    Attributes:
        channels: The analysis.
        gone: bool (n_units,), true where a unit goes.
    """

    def __init__(self, channels: Channels, kept: Sequence[IntArray]) -> None:
        self.channels = channels
        self.gone = channels.removed(list(kept))

    @property
    def graph(self) -> Graph:
        """The graph that is cut."""
        return self.channels.graph

    def mask(self, value: str, dim: int) -> Mask | None:
        """Return which entries of an axis stay: bool (size,) or (rows, size); None where all of them do."""
        axis = self.channels.axes.get((value, dim))
        if axis is None:
            return None
        gone = self.gone[axis.units]
        return ~gone if gone.any() else None

    def row(self, value: str, dim: int) -> Mask | None:
        """Return which entries of an axis stay in its first row: bool (size,); None where all of them do."""
        mask = self.mask(value, dim)
        return mask if mask is None or mask.ndim == 1 else mask[0]

    def runs(self, value: str, dim: int) -> Mask | None:
        """Return which runs of places of an axis stay: bool (groups, size); None where all do or it has none."""
        units = self.channels.runs.get((value, dim))
        return None if units is None or not self.gone[units].any() else ~self.gone[units]

    def size(self, value: str, dim: int) -> int:
        """Return the size of an axis after the cut."""
        row = self.row(value, dim)
        if row is not None:
            return int(row.sum())
        shape = self.graph.shape(value)
        assert shape is not None
        return shape.other[dim]

    def is_cut(self, value: str) -> bool:
        """Whether any axis of a value is cut."""
        shape = self.graph.shape(value)
        return shape is not None and any(self.mask(value, dim) is not None for dim in range(shape.rank))

    def tensor_axes(self) -> dict[str, dict[int, Mask]]:
        """Return the masks of every cut tensor, by name and dim."""
        found: dict[str, dict[int, Mask]] = {}
        for value, dim in self.channels.axes:
            if value in self.graph.tensors:
                mask = self.mask(value, dim)
                if mask is not None:
                    found.setdefault(value, {})[dim] = mask
        return found

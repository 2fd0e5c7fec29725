"""Importance of units, and the choice of the ones to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from agmc_onnx.arrays import FloatArray, IntArray, Mask
from agmc_onnx.errors import UsageError
from agmc_onnx.ops.table import Vanishing, op_of
from agmc_onnx.ties.groups import Channels, Group

Importance = Callable[[Channels], FloatArray]
_CHUNK = 65_536  # elements: their squares stay in the cache, and no copy of a large weight is made


def l1_norm(channels: Channels) -> FloatArray:
    """Return, for every unit, the L1 norm of all weights that go with it. Li et al. 2017, arXiv:1608.08710, sec. 3.1."""
    return _norms(channels, 1)


def l2_norm(channels: Channels) -> FloatArray:
    """Return, for every unit, the L2 norm of all weights that go with it (what the AGMC code ranks by)."""
    return np.sqrt(_norms(channels, 2))


def _norms(channels: Channels, order: int) -> FloatArray:
    """Sum |w|^order over all matrices and kernels of each unit: coupled tensors decide together, by their sum."""
    total = np.zeros(channels.n_units)
    axes: dict[str, list[tuple[int, IntArray]]] = {}
    for (value, dim), axis in channels.axes.items():
        if value in channels.graph.tensors and len(channels.graph.tensors[value].dims) > 1:
            axes.setdefault(value, []).append((dim, axis.units))  # biases and BatchNorm have another scale than kernels
    for value, own in axes.items():
        array = channels.graph.real_array(value)
        rows = max((units.shape[0] for _, units in own if units.ndim == 2), default=1)  # groups of a grouped Conv
        first, others = _sums(array, order, rows)  # (size of dim 0,), (rows, *sizes of the other dims)
        for dim, units in own:
            if dim == 0:
                scores = first
            else:
                scores = others if units.ndim == 2 else others.sum(axis=0, keepdims=True)
                scores = scores.sum(axis=tuple(i for i in range(1, array.ndim) if i != dim))
            np.add.at(total, units.ravel(), scores.ravel())
    return total


def _sums(array: np.ndarray, order: int, rows: int) -> tuple[FloatArray, FloatArray]:
    """Return the sums of |w|^order over all but dim 0, and over dim 0 in each of its `rows` equal blocks."""
    if array.size <= _CHUNK and rows == 1:
        power = array.reshape(array.shape[0], -1).astype(np.float64)
        power = np.abs(power, out=power) if order == 1 else np.square(power, out=power)
        return power.sum(axis=1), power.sum(axis=0).reshape(1, *array.shape[1:])
    first = np.empty(array.shape[0])
    others = np.zeros((rows, array.size // array.shape[0]))
    block = array.shape[0] // rows
    for at in _chunks(array, rows):
        power = array[at].astype(np.float64).reshape(at.stop - at.start, -1)
        power = np.abs(power, out=power) if order == 1 else np.square(power, out=power)
        first[at] = power.sum(axis=1)
        if rows > 1:
            others[at.start // block : at.stop // block] = power.reshape(-1, block, power.shape[1]).sum(axis=1)
        else:
            others[0] += power.sum(axis=0)
    return first, others.reshape(rows, *array.shape[1:])


def _chunks(array: np.ndarray, rows: int) -> Iterator[slice]:
    """Yield slices of dim 0, of about 64 thousand elements and of whole ones of `rows` equal blocks where there are many."""
    block = array.shape[0] // rows if rows > 1 else 1
    step = max(1, _CHUNK // max(array.size // array.shape[0] * block, 1)) * block
    for start in range(0, array.shape[0], step):
        yield slice(start, min(start + step, array.shape[0]))


def median_distance(channels: Channels) -> FloatArray:
    """Return, for every unit, the sum of its weights' distances from those of the group's other units.

    What lies near the geometric median of its group is the easiest to replace by the others. He et al. 2019,
    arXiv:1811.00250, eq. 4; here with all weights that go with a unit. Units that stand in no plain axis of a weight score 0.
    """
    total = np.zeros(channels.n_units)
    axes = [
        (value, dim, axis.units)
        for (value, dim), axis in channels.axes.items()
        if axis.units.ndim == 1 and value in channels.graph.tensors and len(channels.graph.tensors[value].dims) > 1
    ]
    position = np.full(channels.n_units, -1, np.int64)
    for group in channels.groups:
        position[group.units] = np.arange(group.n_units)
        squared = np.zeros((group.n_units, group.n_units))
        for value, dim, units in axes:
            mine = np.flatnonzero(position[units] >= 0)
            if not mine.size:
                continue
            array = np.moveaxis(channels.graph.array(value), dim, 0)[mine]
            rows = array.reshape(mine.size, -1).astype(np.float64)
            at = position[units[mine]]
            repeats = mine.size // group.n_units
            if (
                repeats > 1 and mine.size == repeats * group.n_units
            ):  # every unit in several places: one long vector each
                rows = rows[np.argsort(at, kind="stable")].reshape(group.n_units, -1)
            elif mine.size == group.n_units:
                rows = rows[np.argsort(at)]
            else:
                continue
            length = (rows**2).sum(1)
            squared += length[:, None] + length[None, :] - 2 * rows @ rows.T
        total[group.units] = np.sqrt(np.maximum(squared, 0)).sum(1)
        position[group.units] = -1
    return total


def is_read(channels: Channels) -> Mask:
    """Return which units something reads, (channels.n_units,): the others may go before all of these, at no loss.

    A unit is read by a node that has it on an input and on no output (a product that sums over it, a mean), or that takes
    statistics over it; not by one that passes it on, nor by one that leaves it out (a Slice), nor where only its size is
    asked for.
    """
    found = np.zeros(channels.n_units, bool)
    units: dict[str, list[IntArray]] = {}
    for (value, _), axis in channels.axes.items():
        units.setdefault(value, []).append(np.unique(axis.units))
    for node in channels.graph.nodes:
        op = op_of(node)
        if isinstance(op.when_empty, Vanishing) and op.when_empty.kind == "size":
            continue
        passed = np.zeros(channels.n_units, bool)
        if op.statistics is None:
            for name in node.outputs:
                passed[np.concatenate(units.get(name, [np.empty(0, np.int64)]))] = True
        for name in dict.fromkeys(node.inputs[1 if op.selects else 0 :]):
            for some in units.get(name, []):
                found[some[~passed[some]]] = True
    for name in (*channels.graph.outputs, *channels.graph.captured):
        for some in units.get(name, []):
            found[some] = True
    return found


IMPORTANCE: dict[str, Importance] = {"l2": l2_norm, "l1": l1_norm, "median": median_distance}
NEED_DATA = ("moments", "activations", "taylor")  # rows of `agmc_onnx.refit.importance.MEASURED`


def importance_of(name: str) -> Importance:
    """Return an importance by name, of those that look at weights alone.

    Raises:
        UsageError: If the name is unknown, or it needs data.
    """
    if name in NEED_DATA:
        raise UsageError(
            f"importance: {name} looks at activations, got no data; expected one of {', '.join(IMPORTANCE)}, or --data."
        )
    if name not in IMPORTANCE:
        choices = ", ".join((*IMPORTANCE, *NEED_DATA))
        raise UsageError(f"importance: unknown name, got {name!r}; expected one of {choices}.")
    return IMPORTANCE[name]


def select(group: Group, scores: FloatArray, n_kept: int) -> IntArray:
    """Return the positions to keep: the most important that keep all blocks of the group equal.

    Args:
        group: The group.
        scores: float (n_units,) of this group's units; higher is kept; ties go to the lower position.
        n_kept: In 0..n_units, a multiple of `group.step` (or all).

    Returns:
        Ascending positions, (n_kept,).
    """
    assert 0 <= n_kept <= group.n_units and (n_kept % group.step == 0 or n_kept == group.n_units), (group.name, n_kept)
    if n_kept == group.n_units:
        return np.arange(group.n_units)
    if not n_kept:
        return np.empty(0, np.int64)
    order = np.argsort(-scores, kind="stable")
    if not group.partitions:
        return np.sort(order[:n_kept])
    if len(group.partitions) == 1:
        block = group.partitions[0][order]
        per_block = np.bincount(block) * n_kept // group.n_units  # the same share of each
        return np.sort(np.concatenate([order[block == b][:n] for b, n in enumerate(per_block.tolist())]))
    # Two divisions into blocks: choose units so that every block of both keeps its number. The matrix of such a transport
    # problem is totally unimodular, so the linear programme has a solution of zeros and ones.
    rows = [partition == b for partition in group.partitions for b in range(int(partition.max()) + 1)]
    wanted = [
        n_kept // (int(partition.max()) + 1) for partition in group.partitions for _ in range(int(partition.max()) + 1)
    ]
    scale = np.abs(scores).max() or 1.0
    gain = scores / scale - 1e-9 * np.arange(group.n_units) / group.n_units
    from scipy.optimize import linprog  # takes longer to import than most models to analyse

    found = linprog(-gain, A_eq=np.stack(rows).astype(float), b_eq=wanted, bounds=(0, 1), method="highs-ds")
    assert found.status == 0, (group.name, n_kept, found.message)
    chosen = np.flatnonzero(found.x > 0.5)
    assert chosen.size == n_kept, (group.name, n_kept, chosen.size)
    return chosen


def choose(channels: Channels, scores: FloatArray, n_kept: Sequence[int] | IntArray) -> list[IntArray]:
    """Return the kept positions of every prunable group.

    Args:
        channels: The analysis.
        scores: float (channels.n_units,).
        n_kept: int (n_groups,).
    """
    return [select(g, scores[g.units], int(n)) for g, n in zip(channels.groups, n_kept, strict=True)]

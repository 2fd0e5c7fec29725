"""Importance of units, and the choice of the ones to keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog

from agmc_onnx.channels.groups import Channels, Group
from agmc_onnx.errors import UsageError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Importance = Callable[[Channels], FloatArray]


def l1_norm(channels: Channels) -> FloatArray:
    """Return, for every unit, the L1 norm of all weights that go with it. Li et al. 2017, arXiv:1608.08710, sec. 3.1."""
    return _norms(channels, 1)


def l2_norm(channels: Channels) -> FloatArray:
    """Return, for every unit, the L2 norm of all weights that go with it (what the AGMC code ranks by)."""
    return np.sqrt(_norms(channels, 2))


def _norms(channels: Channels, order: int) -> FloatArray:
    """Sum |w|^order over all matrices and kernels of each unit: coupled tensors decide together, by their sum."""
    total = np.zeros(channels.n_units)
    tensors: dict[str, np.ndarray] = {}
    for (value, dim), axis in channels.axes.items():
        if value not in channels.graph.tensors or len(channels.graph.tensors[value].dims) < 2:
            continue  # biases and BatchNorm parameters have another scale than kernels
        if value not in tensors:
            tensors[value] = np.abs(channels.graph.array(value).astype(np.float64)) ** order
        power = tensors[value]
        if axis.units.ndim == 2:  # dim 1 of a grouped Conv's weight: one row a group of filters
            power = power.reshape(axis.units.shape[0], -1, *power.shape[1:])
            scores = power.sum(axis=tuple(i for i in range(power.ndim) if i not in (0, 2)))
        else:
            scores = power.sum(axis=tuple(i for i in range(power.ndim) if i != dim))
        np.add.at(total, axis.units.ravel(), scores.ravel())
    return total


IMPORTANCE: dict[str, Importance] = {"l2": l2_norm, "l1": l1_norm}


def importance_of(name: str) -> Importance:
    """Return an importance by name.

    Raises:
        UsageError: If the name is unknown.
    """
    if name not in IMPORTANCE:
        raise UsageError(f"importance: unknown name, got {name!r}; expected one of {', '.join(IMPORTANCE)}.")
    return IMPORTANCE[name]


def select(group: Group, scores: FloatArray, n_kept: int) -> IntArray:
    """Return the positions to keep: the most important that keep all blocks of the group equal.

    Args:
        group: The group.
        scores: float (n_units,) of this group's units; higher is kept; ties go to the lower position.
        n_kept: In 1..n_units, a multiple of `group.step` (or all).

    Returns:
        Ascending positions, (n_kept,).
    """
    assert 0 < n_kept <= group.n_units and (n_kept % group.step == 0 or n_kept == group.n_units), (group.name, n_kept)
    if n_kept == group.n_units:
        return np.arange(group.n_units)
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

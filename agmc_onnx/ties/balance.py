"""Rows that must keep equally many: which groups they join, and the blocks they put a group's units into."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from agmc_onnx.arrays import IntArray
from agmc_onnx.ties.bundles import find_bundles
from agmc_onnx.ties.ledger import Ledger


def merge(
    ledger: Ledger, unit_of: IntArray, ordered: list[IntArray], group_of: IntArray
) -> tuple[list[IntArray], IntArray]:
    """Join groups that only together keep the rows of a balance equal: one decision for all of them.

    The queries, keys and values of an attention that come from one product are such rows: where a query goes its key goes,
    and as many values of another group.
    """
    links: list[tuple[IntArray, IntArray]] = []
    for ids in ledger.balances:
        grid = unit_of[ids]
        present = np.unique(group_of[grid]).tolist()
        uneven = [g for g in present if _blocks(grid, ordered[g]) is None]
        if len(uneven) < 2:
            continue
        union = np.concatenate([ordered[g] for g in uneven])
        blocks = _blocks(grid, union)
        if blocks is None or blocks.max() == 0:
            continue
        owner = np.repeat(np.arange(len(uneven)), [ordered[g].size for g in uneven])
        if np.unique(np.stack([blocks, owner]), axis=1).shape[1] == blocks.max() + 1:  # no block holds two groups
            links.append((np.full(len(uneven), uneven[0]), np.array(uneven)))
    members: dict[int, list[IntArray]] = {}
    for label, units in zip(components(len(ordered), links)[0].tolist(), ordered, strict=True):
        members.setdefault(label, []).append(units)
    merged = [np.concatenate(units) for units in members.values()]
    return merged, numbered(merged, group_of.size)


def numbered(groups: Sequence[IntArray], n_units: int) -> IntArray:
    """Return the number of the group that every unit is in, -1 where it is in none (n_units,)."""
    found = np.full(n_units, -1, np.int64)
    for number, units in enumerate(groups):
        found[units] = number
    return found


def components(n: int, links: Sequence[tuple[IntArray, IntArray]]) -> tuple[IntArray, int]:
    """Return the component of each of n things that pairs link, numbered by their first things, and how many there are."""
    if not links:
        return np.arange(n), n
    one, other = (np.concatenate([np.empty(0, np.int64), *(pair[side] for pair in links)]) for side in (0, 1))
    n_found, found = connected_components(coo_array((np.ones(one.size), (one, other)), shape=(n, n)), directed=False)
    return found.astype(np.int64), int(n_found)


def _blocks(grid: IntArray, units: IntArray) -> IntArray | None:
    """Return the blocks of units that must keep equally many so that every row of a balance does, or None.

    Units in the same rows are a block. Blocks of equal size that share no row and leave none out work.

    -1 marks units that stand in no row.

    Args:
        grid: Units (rows, size) of the balance.
        units: The units that are decided together.

    Returns:
        Block of every unit, (n_units,); all zero where every unit stands in every row equally often.
    """
    rows = grid.shape[0]
    if grid.size == units.size and np.unique(grid).size == grid.size and np.isin(grid, units).all():
        found = np.empty(int(units.max()) + 1, np.int64)
        found[grid] = np.arange(rows)[:, None]
        return found[units]
    position = np.full(int(max(grid.max(), units.max())) + 1, -1, np.int64)
    position[units] = np.arange(units.size)
    at = position[grid]
    row_of = np.broadcast_to(np.arange(rows)[:, None], grid.shape)[at >= 0]
    counts = np.zeros((rows, units.size), np.int64)
    np.add.at(counts, (row_of, at[at >= 0]), 1)
    if (counts == counts[0]).all():
        return np.zeros(units.size, np.int64)
    present = counts.any(axis=0)
    patterns, block = _distinct_columns(counts[:, present])
    used = patterns > 0
    disjoint = (used.sum(axis=1) == 1).all()
    sizes = np.bincount(block)
    if not disjoint or (sizes != sizes[0]).any() or np.unique(patterns[used]).size > 1:
        return None
    found = np.full(units.size, -1, np.int64)
    found[present] = block
    return found


def _distinct_columns(counts: IntArray) -> tuple[IntArray, IntArray]:
    """Return the distinct columns of a matrix in lexicographic order, and which of them every column is.

    The same as np.unique along dim 1, which sorts all columns; here only the distinct ones are compared in full.
    """
    marks = np.random.default_rng(0).integers(0, 1 << 62, counts.shape[0])
    _, first, alike = np.unique(marks @ counts, return_index=True, return_inverse=True)  # wraps around: a hash
    patterns, place = np.unique(counts[:, first], axis=1, return_inverse=True)
    return patterns, place.ravel()[alike.ravel()]


def find_partitions(
    ledger: Ledger, unit_of: IntArray, ordered: list[IntArray], group_of: IntArray
) -> tuple[dict[int, list[IntArray]], dict[int, str]]:
    """Turn balances into blocks of the units of each group.

    Returns:
        Partitions by group, and by group why what cannot be balanced group by group cannot.
    """
    found: dict[int, list[IntArray]] = {}
    uneven: dict[int, str] = {}
    for ids in ledger.balances:
        grid = unit_of[ids]
        for index in np.unique(group_of[grid]).tolist():
            blocks = _blocks(grid, ordered[index])
            if blocks is None:
                uneven.setdefault(
                    index, f"{grid.shape[0]} heads or groups must keep equally many, and its units lie unevenly in them"
                )
            elif blocks.max() > 0:
                found[index] = _add_partition(found.get(index, []), blocks)
    for index, partitions in found.items():
        odd = any((np.bincount(p[p >= 0]) != (p == 0).sum()).any() or (p < 0).any() for p in partitions)
        if odd or len(partitions) > 2:
            uneven.setdefault(
                index, f"{len(partitions)} divisions into heads or groups meet here, which cannot all stay even"
            )
    return found, uneven


def join_uneven(
    ledger: Ledger, unit_of: IntArray, ordered: list[IntArray], group_of: IntArray, why: dict[int, str]
) -> tuple[list[IntArray], IntArray, dict[int, list[IntArray]]]:
    """Regroup what is even only together, as `agmc_onnx.ties.bundles` divides it; freeze what no bundle takes.

    A cell is a set of units of one group that stand in the same rows everywhere. (A grouped convolution over a Concat has
    rows of several groups, and several cells of each.)

    Args:
        ledger: Holds the balances.
        unit_of: Unit of every id.
        ordered: Units of every group.
        group_of: Group of every unit, -1 where it is in none.
        why: Reasons of frozen units; reasons are added.

    Returns:
        Groups, group of every unit, and partitions by group.
    """
    found, uneven = find_partitions(ledger, unit_of, ordered, group_of)
    if not uneven:
        return ordered, group_of, found
    links: list[tuple[IntArray, IntArray]] = []
    for ids in ledger.balances:
        joined = [g for g in np.unique(group_of[unit_of[ids]]).tolist() if g in uneven]
        links.append((np.array(joined[:1] * len(joined), np.int64), np.array(joined, np.int64)))
    label_of = components(len(ordered), links)[0].tolist()
    members: dict[int, list[int]] = {}
    for g in sorted(uneven):
        members.setdefault(label_of[g], []).append(g)
    made = {groups[0]: _regroup(ledger, unit_of, [ordered[g] for g in groups], why) for groups in members.values()}
    result: list[IntArray] = []
    partitions: dict[int, list[IntArray]] = {}
    for g, units in enumerate(ordered):
        for bundle, cells in made.get(g, ()):
            partitions[len(result)] = [cells]
            result.append(bundle)
        if g in uneven:
            taken = np.concatenate([bundle for pieces in made.values() for bundle, _ in pieces] or [units[:0]])
            units = units[~np.isin(units, taken)]
            for unit in units.tolist():
                why.setdefault(unit, uneven[g])
        elif g in found:
            partitions[len(result)] = found[g]
        if units.size:
            result.append(units)
    return result, numbered(result, group_of.size), partitions


def _regroup(
    ledger: Ledger, unit_of: IntArray, groups: list[IntArray], why: dict[int, str]
) -> list[tuple[IntArray, IntArray]]:
    """Return new groups of the units of some groups, each with the cell of every unit."""
    groups = [np.array([unit for unit in units.tolist() if unit not in why], np.int64) for units in groups]
    units = np.concatenate(groups)
    if not units.size:
        return []
    owner = np.repeat(np.arange(len(groups)), [g.size for g in groups])
    position = np.full(int(unit_of.max()) + 1, -1, np.int64)
    position[units] = np.arange(units.size)
    rng = np.random.default_rng(0)
    signature: npt.NDArray[np.uint64] = owner.astype(np.uint64)
    grids = [grid for ids in ledger.balances if ((grid := position[unit_of[ids]]) >= 0).any()]
    for grid in grids:
        marks = rng.integers(0, 1 << 63, (grid.shape[0], 1), dtype=np.uint64)
        with np.errstate(over="ignore"):
            np.add.at(signature, grid[grid >= 0], np.broadcast_to(marks, grid.shape)[grid >= 0])
    _, first, cell = np.unique(signature, return_index=True, return_inverse=True)
    cell = np.argsort(np.argsort(first))[cell.ravel()]  # cells in the order of their first units
    first = np.sort(first)
    cell_of_first = np.full(units.size + 1, -1, np.int64)  # what is no member has position -1: the last entry
    cell_of_first[first] = np.arange(first.size)
    equations = []
    for grid in grids:
        at = cell_of_first[grid]
        counts = np.zeros((grid.shape[0], first.size), np.int64)
        np.add.at(counts, (np.nonzero(at >= 0)[0], at[at >= 0]), 1)
        equations.append(counts - counts[0])
    pieces = find_bundles(np.bincount(cell), np.concatenate(equations))
    result = []
    used = np.zeros(first.size, np.int64)
    rank = np.zeros(units.size, np.int64)  # of a unit within its cell
    for c in range(first.size):
        rank[cell == c] = np.arange((cell == c).sum())
    for sizes in pieces:
        chosen = (rank >= used[cell]) & (rank < (used + sizes)[cell])
        _, own = np.unique(cell[chosen], return_inverse=True)
        result.append((units[chosen], own.ravel().astype(np.int64)))
        used += sizes
    return result


def step_of(partitions: Sequence[IntArray]) -> int:
    """Return what a kept count must be a multiple of so that every block keeps the same share of its units."""
    steps = [p.size // int(np.gcd.reduce(np.bincount(p))) for p in partitions if (p >= 0).all()]
    return int(np.lcm.reduce(steps)) if steps else 1


def _add_partition(known: list[IntArray], blocks: IntArray) -> list[IntArray]:
    """Return partitions that also keep `blocks` equal, as few as possible.

    Blocks inside the blocks of a known partition refine it; a partition that is implied by a known one adds nothing; any
    other stands beside.
    """
    for at, other in enumerate(known):
        pairs, joined = np.unique(np.stack([other, blocks]), axis=1, return_inverse=True)
        n_other, n_blocks = np.unique(other).size, np.unique(blocks).size
        if pairs.shape[1] == n_other and (blocks >= 0).all():
            return known
        inside = all(np.unique(pairs[0, pairs[1] == b]).size == 1 for b in np.unique(blocks) if b >= 0)
        whole = all(
            (pairs[1, pairs[0] == o] >= 0).all() or (pairs[1, pairs[0] == o] < 0).all() for o in np.unique(other)
        )
        if (inside and whole) or pairs.shape[1] == n_blocks:
            return [*known[:at], joined.ravel(), *known[at + 1 :]]
    return [*known, blocks]

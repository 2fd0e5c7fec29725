"""Rows that must keep equally many: which groups they join, and the blocks they put a group's units into."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from agmc_onnx.channels.axes import Ledger

IntArray = npt.NDArray[np.int64]
_FEWEST_SHARES = 4  # joint groups of less choice stay whole: half of a network in one step leaves no way to a budget


def merge(
    ledger: Ledger, unit_of: IntArray, ordered: list[IntArray], group_of: IntArray
) -> tuple[list[IntArray], IntArray]:
    """Join groups that only together keep the rows of a balance equal: one decision for all of them.

    The queries, keys and values of an attention that come from one product are such rows: where a query goes its key goes,
    and as many values of another group.
    """
    parent = list(range(len(ordered)))
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
            for g in uneven[1:]:
                parent[_root(parent, g)] = _root(parent, uneven[0])
    members: dict[int, list[IntArray]] = {}
    for index, units in enumerate(ordered):
        members.setdefault(_root(parent, index), []).append(units)
    merged = [np.concatenate(units) for units in members.values()]
    group_of = np.full(group_of.size, -1, np.int64)
    for index, units in enumerate(merged):
        group_of[units] = index
    return merged, group_of


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        index = parent[index]
    return index


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
    position = np.full(int(max(grid.max(), units.max())) + 1, -1, np.int64)
    position[units] = np.arange(units.size)
    at = position[grid]
    row_of = np.broadcast_to(np.arange(rows)[:, None], grid.shape)[at >= 0]
    counts = np.zeros((rows, units.size), np.int64)
    np.add.at(counts, (row_of, at[at >= 0]), 1)
    if (counts == counts[0]).all():
        return np.zeros(units.size, np.int64)
    present = counts.any(axis=0)
    patterns, block = np.unique(counts[:, present], axis=1, return_inverse=True)
    block = block.ravel()
    used = patterns > 0
    disjoint = (used.sum(axis=1) == 1).all()
    sizes = np.bincount(block)
    if not disjoint or (sizes != sizes[0]).any() or np.unique(patterns[used]).size > 1:
        return None
    found = np.full(units.size, -1, np.int64)
    found[present] = block
    return found


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
                    index, f"its units lie unevenly in {grid.shape[0]} blocks that must keep equally many"
                )
            elif blocks.max() > 0:
                found[index] = _add_partition(found.get(index, []), blocks)
    for index, partitions in found.items():
        odd = any((np.bincount(p[p >= 0]) != (p == 0).sum()).any() or (p < 0).any() for p in partitions)
        if odd or len(partitions) > 2:
            uneven.setdefault(index, f"{len(partitions)} divisions into blocks meet here that cannot all be balanced")
    return found, uneven


def join_uneven(
    ledger: Ledger, unit_of: IntArray, ordered: list[IntArray], group_of: IntArray, why: dict[int, str]
) -> tuple[list[IntArray], IntArray, dict[int, list[IntArray]]]:
    """Join groups whose rows are even only together, each of its cells keeping the same share; freeze the rest.

    A cell is a set of units of one group that stand in the same rows everywhere. Where all cells keep the same share every
    row does, and its size stays linear in the kept count. (A grouped convolution over a Concat has rows of several groups.)

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
    parent = list(range(len(ordered)))
    for ids in ledger.balances:
        first, *others = np.unique(group_of[unit_of[ids]]).tolist()
        joined = [g for g in (first, *others) if g in uneven]
        for g in joined[1:]:
            parent[_root(parent, g)] = _root(parent, joined[0])
    cells: dict[int, IntArray] = {}
    for root in {_root(parent, g) for g in uneven}:
        members = [g for g in uneven if _root(parent, g) == root]
        units = np.concatenate([ordered[g] for g in sorted(members)])
        blocks = None if any(unit in why for unit in units.tolist()) else _cells(ledger, unit_of, units, group_of)
        if blocks is None or step_of([blocks]) * _FEWEST_SHARES > units.size:
            for g in members:
                parent[g] = g
                for unit in ordered[g].tolist():
                    why.setdefault(unit, uneven[g])
        else:
            cells[sorted(members)[0]] = blocks
    result: list[IntArray] = []
    partitions: dict[int, list[IntArray]] = {}
    for g, units in enumerate(ordered):
        if g in uneven and g not in cells and _root(parent, g) in {_root(parent, c) for c in cells}:
            continue
        if g in cells:
            partitions[len(result)] = [cells[g]]
            members = [m for m in uneven if _root(parent, m) == _root(parent, g)]
            units = np.concatenate([ordered[m] for m in sorted(members)])
        elif g in found and g not in uneven:
            partitions[len(result)] = found[g]
        result.append(units)
    group_of = np.full(group_of.size, -1, np.int64)
    for index, units in enumerate(result):
        group_of[units] = index
    return result, group_of, partitions


def _cells(ledger: Ledger, unit_of: IntArray, units: IntArray, group_of: IntArray) -> IntArray | None:
    """Return the cell of every unit, (n_units,), or None where some rows are uneven whatever share is kept."""
    rng = np.random.default_rng(0)
    is_member = np.zeros(group_of.size, bool)
    is_member[units] = True
    signature: npt.NDArray[np.uint64] = group_of.astype(np.uint64)
    for ids in ledger.balances:
        grid = unit_of[ids]
        touched = is_member[grid]
        totals = touched.sum(axis=1)
        if (totals != totals[0]).any():
            return None
        if totals[0]:
            marks = rng.integers(0, 1 << 63, (grid.shape[0], 1), dtype=np.uint64)
            with np.errstate(over="ignore"):
                np.add.at(signature, grid[touched], np.broadcast_to(marks, grid.shape)[touched])
    _, cell = np.unique(signature[units], return_inverse=True)
    return cell.ravel().astype(np.int64)


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

"""Units that keep rows even only together: their cells divided into groups of fine steps.

Cells (sets of alike units) have sizes n, and rows that must stay even are equations A c = 0 on the counts c taken of each
cell. A bundle is a vector of whole numbers with A v = 0: it may go, and every row loses equally many. A group of T equal
bundles takes T v of the cells and is cut in T steps; groups of different bundles are independent decisions.
"""

from __future__ import annotations

import math

import numpy as np

from agmc_onnx.arrays import IntArray

_FINE = 32  # bundles of a group that are enough: a step is then 3 % of it
_NODES = 200  # of a search for one bundle; what was found by then is taken


def find_bundles(sizes: IntArray, rows: IntArray) -> list[IntArray]:
    """Return how many units of each cell every group takes, groups of many units and fine steps first.

    Nothing that could be cut is left over where the sizes are even themselves. All the cells are one group where that alone
    has fine steps.

    Args:
        sizes: int (n_cells,), units of each cell.
        rows: int (n_equations, n_cells), A: every group's sizes, divided by their greatest common divisor, solve A v = 0.

    Returns:
        Arrays (n_cells,), whose sum is at most `sizes`.
    """
    equations = np.unique(rows[rows.any(axis=1)], axis=0)
    left = sizes.astype(np.int64)
    even = not (equations @ left).any()
    unit = math.gcd(*left.tolist()) if even else 1  # with `unit` of each, what is left over is even again
    count = max(-(-_FINE // unit), 1)
    found: list[IntArray] = []
    while count * unit > 1 and left.any():
        step = count * unit
        bundle = left // step if even and count == 1 else _largest(left // step, equations)
        if bundle.any():
            share = int((left[bundle > 0] // bundle[bundle > 0]).min()) // unit * unit
            found.append(bundle * share)
            left = left - found[-1]
        else:
            count //= 2
    return found


def _largest(limit: IntArray, equations: IntArray) -> IntArray:
    """Return the bundle of most units within `limit`, zeros where there is none."""
    if not limit.any() or not len(equations):
        return limit
    from scipy.optimize import Bounds, LinearConstraint, milp  # takes longer to import than most graphs to analyse

    solved = milp(
        -np.ones(limit.size),
        constraints=LinearConstraint(equations.astype(float), 0, 0),
        integrality=np.ones(limit.size),
        bounds=Bounds(0, limit.astype(float)),
        options={"node_limit": _NODES},
    )
    if solved.x is None:
        return np.zeros_like(limit)
    bundle = np.rint(solved.x).astype(np.int64)
    return bundle if not (equations @ bundle).any() else np.zeros_like(limit)

"""Constants of transforms: weights that nobody trained, told by their numbers where these leave no doubt."""

from __future__ import annotations

import numpy as np

from agmc_onnx.arrays import FloatArray
from agmc_onnx.graph.view import Graph, Node
from agmc_onnx.ties.ledger import Ledger

_FEWEST = 16  # bins, below which numbers could be so by chance
_EXACT = 1e-3  # of the largest


def keep_transform(ledger: Ledger, node: Node, weight: str, dim: int) -> None:
    """Let the outputs of a transform stay: a Fourier transform written as a Conv, a bank of triangular filters as a MatMul."""
    entries = ledger.entries.get((weight, dim))
    name = _transform(ledger.graph, weight) if entries is not None else ""
    if entries is not None and name:
        ledger.freeze(entries.ids, f"{node.label}: {weight} is {name}, no layer")


def _transform(graph: Graph, weight: str) -> str:
    """Return what transform a constant is, or "". Most are ruled out by their sizes alone."""
    tensor = graph.tensors.get(weight)
    dims = () if tensor is None or not graph.is_float(weight) else tuple(tensor.dims)
    if len(dims) == 3 and dims[1] == 1 and dims[0] == 2 * (dims[2] // 2 + 1) and dims[2] >= _FEWEST:
        return "a Fourier transform" if _is_fourier(graph.array(weight)[:, 0].astype(np.float64)) else ""
    if len(dims) == 2 and dims[0] % 2 == 1 and _FEWEST <= dims[1] < dims[0]:
        return "a bank of filters" if _are_triangles(graph.array(weight).astype(np.float64)) else ""
    return ""


def _is_fourier(rows: FloatArray) -> bool:
    """Whether rows are a window times cosines of every frequency, then sines: their squares add up to that of the window."""
    real, imaginary = np.split(rows, 2)
    n = rows.shape[1]
    angle = 2 * np.pi * np.outer(np.arange(n // 2 + 1), np.arange(n)) / n
    window = real[0]  # of frequency 0
    bound = _EXACT * max(float(np.abs(rows).max()), 1e-30)
    return bool(
        np.abs(real - window * np.cos(angle)).max() <= bound
        and min(np.abs(imaginary - sign * window * np.sin(angle)).max() for sign in (1, -1)) <= bound
    )


def _are_triangles(bank: FloatArray) -> bool:
    """Whether every row (a frequency) has at most two columns, side by side, and every column rises and falls."""
    used = bank > 0
    if (bank < 0).any() or not used.any(0).all() or used.sum(1).max() > 2:
        return False
    two = np.flatnonzero(used.sum(1) == 2)
    tops = bank.argmax(0)
    slopes = [np.diff(column[column > 0]) for column in bank.T]
    turns = [np.count_nonzero(np.diff(np.sign(slope[slope != 0]))) for slope in slopes]
    return bool(used[two].argmax(1).size and (used[two, used[two].argmax(1) + 1]).all() and (np.diff(tops) >= 0).all()
                and max(turns) <= 1)  # fmt: skip

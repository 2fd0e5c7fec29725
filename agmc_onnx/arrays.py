"""The kinds of arrays that go from function to function; shapes stand in the docstrings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.floating[Any]]  # float64 unless a docstring says float32
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class GraphArrays:
    """The graph of the network, as the encoder reads it.

    Attributes:
        x: float32 (n_nodes, n_features), features of the nodes (feature maps).
        edge_index: int64 (2, n_edges), source and target node of every edge.
        edge_type: int64 (n_edges,), the operation an edge stands for, in 0..n_edge_types-1.
        n_edge_types: Size of the vocabulary of operations.
    """

    x: npt.NDArray[np.float32]
    edge_index: IntArray
    edge_type: IntArray
    n_edge_types: int

"""The kinds of arrays that go from function to function; shapes stand in the docstrings."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.floating[Any]]  # float64 unless a docstring says float32
Mask = npt.NDArray[np.bool_]

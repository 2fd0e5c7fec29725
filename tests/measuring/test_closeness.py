"""What outputs are compared by: a grid is never taken for class scores."""

from __future__ import annotations

import numpy as np

from agmc_onnx.measuring.closeness import MAX_ENTRIES, class_scores, thinned
from tests.measuring.agreement import agree


def test_a_large_grid_stays_one_when_it_is_thinned() -> None:
    grid = np.random.default_rng(0).standard_normal((3, 84, 8400)).astype(np.float32)
    (thin,) = thinned([grid])
    assert thin.ndim == 3 and thin[0].size <= MAX_ENTRIES
    assert class_scores(thin) is None
    other = grid + 0.5 * np.random.default_rng(1).standard_normal(grid.shape)
    assert abs(agree(thinned([other]), [thin]) - agree([other], [grid])) < 1


def test_class_scores_are_not_thinned() -> None:
    scores = np.zeros((2, 1, MAX_ENTRIES + 1), np.float32)
    assert thinned([scores])[0] is scores

"""What a forecast assumes of a search."""

from __future__ import annotations

import numpy as np
import pytest

from agmc_onnx.run.clock import raced


@pytest.mark.parametrize("n", [20, 100, 400])
def test_as_many_race_to_the_end_as_are_the_best_so_far_and_again(n: int) -> None:
    """In a random order the best so far changes ln n + 0.58 times."""
    drawn = np.random.default_rng(0).random((4000, n))
    records = (drawn == np.maximum.accumulate(drawn, axis=1)).sum(axis=1).mean()
    assert raced(n) * n == pytest.approx(2 * records, rel=0.03)


def test_few_candidates_race_to_the_end_all() -> None:
    assert raced(0) == 0.0
    assert raced(1) == raced(2) == 1.0

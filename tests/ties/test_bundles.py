"""Cells that are even only together, divided into groups of fine steps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agmc_onnx.ties.bundles import find_bundles

# Two rows of three cells each; a ShuffleNet trunk of three groups with widths that share a factor of 8 only.
TWO_ROWS = np.array([[1, 1, 1, -1, -1, -1]])
THREE_ROWS = np.array([[1, 1, 1, -1, -1, -1, 0, 0, 0], [1, 1, 1, 0, 0, 0, -1, -1, -1]])


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [
        ([64, 160, 80, 80, 16, 208], TWO_ROWS),
        ([24, 160, 72, 8, 80, 168, 128, 64, 64], THREE_ROWS),
        ([7, 9, 11, 13, 5, 9], TWO_ROWS),
    ],
)
def test_every_group_is_even_and_fine(sizes: list[int], rows: np.ndarray) -> None:
    found = find_bundles(np.array(sizes), rows)
    for part in found:
        assert not (rows @ part).any()
        assert math.gcd(*part.tolist()) > 1
    assert max(math.gcd(*part.tolist()) for part in found) >= 4
    left = np.array(sizes) - sum(found)
    assert (left >= 0).all() and left.sum() <= 0.2 * sum(sizes)


def test_nothing_is_left_of_even_sizes_with_a_common_factor() -> None:
    found = find_bundles(np.array([24, 160, 72, 8, 80, 168, 128, 64, 64]), THREE_ROWS)
    assert sum(found).tolist() == [24, 160, 72, 8, 80, 168, 128, 64, 64]


def test_one_group_where_its_steps_are_fine() -> None:
    assert [part.tolist() for part in find_bundles(np.array([64, 128, 192]), np.array([[1, 1, -1]]))] == [
        [64, 128, 192]
    ]


def test_what_has_no_partner_is_left() -> None:
    assert [part.tolist() for part in find_bundles(np.array([40, 10]), np.array([[1, -1]]))] == [[10, 10]]


def test_nothing_where_only_all_of_it_could_go() -> None:
    assert find_bundles(np.array([5, 7]), np.array([[7, -5]])) == []
    assert find_bundles(np.array([0, 4]), np.array([[1, -1]])) == []

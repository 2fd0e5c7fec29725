from __future__ import annotations

import numpy as np

from tools.text_data import lines, sentences


def test_lines_carry_their_texts_and_follow_the_seed() -> None:
    one, same, other = lines(6, 0), lines(6, 0), lines(6, 1)
    assert one["x"].shape == (6, 48, 320, 3) and one["x"].dtype == np.uint8
    assert (one["x"] == same["x"]).all() and list(one["y"]) == list(same["y"]) != list(other["y"])
    ground = one["x"][:, :, :8].mean(axis=(1, 2, 3))
    assert (one["x"].min(axis=(1, 2, 3)) < ground - 80).all()  # something is written on each


def test_sentences_differ() -> None:
    found = sentences(50, 0)
    assert len(set(found)) == 50 and all(20 <= len(text) <= 150 for text in found)
    assert found == sentences(50, 0)

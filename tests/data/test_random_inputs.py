"""Random inputs that a model runs on."""

from __future__ import annotations

import numpy as np
import pytest

from agmc_onnx.data.random_inputs import runnable
from agmc_onnx.errors import DataError
from tests.nets import model


def test_a_size_is_found_that_the_model_accepts() -> None:
    net = model(
        'g (float[N, T] x) => (float[N, U] y) { y = Pad<mode = "reflect">(x, p) }',
        {"p": np.array([0, 40, 0, 40], np.int64)},
    )
    samples = runnable(net, 3, 0)
    assert samples.n == 3
    assert samples.feeds(1)[0]["x"].shape == (1, 64)


def test_a_model_that_runs_on_no_size_asks_for_data() -> None:
    net = model("g (float[N, T] x) => (float[N, 3] y) { y = MatMul(x, w) }", {"w": (7, 3)})
    with pytest.raises(
        DataError, match=r"runs on none of the sizes tried, got .* Give real inputs with --data FILE.npz"
    ):
        runnable(net, 1, 0)


def test_the_same_seed_gives_the_same_samples() -> None:
    net = model("g (float[N, 7] x) => (float[N, 3] y) { y = MatMul(x, w) }", {"w": (7, 3)})
    one, other = (runnable(net, 2, 5).feeds(2)[0]["x"] for _ in range(2))
    assert (one == other).all()

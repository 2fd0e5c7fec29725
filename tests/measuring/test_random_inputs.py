"""Random inputs that a model runs on."""

from __future__ import annotations

import numpy as np
import pytest

from agmc_onnx.data.samples import InputSpec, synthetic
from agmc_onnx.errors import DataError
from agmc_onnx.measuring.random_inputs import runnable
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
        DataError,
        match=r"runs on none of the sizes tried, last x=1,\d+, got .* or give real inputs with --data FILE.npz",
    ):
        runnable(net, 1, 0)


def test_random_samples_are_not_larger_than_a_gigabyte() -> None:
    """A cache of (layers, heads, past tokens, size) at 16,000 of each would be 10^18 bytes."""
    net = model("g (float[N, L, H, T, D] x) => (float[N, A, B, C, 3] y) { y = MatMul(x, w) }", {"w": (7, 3)})
    with pytest.raises(DataError, match=r"^synthetic inputs: the model runs on none of the sizes tried"):
        runnable(net, 64, 0)
    with pytest.raises(DataError) as error:
        synthetic([InputSpec("x", np.dtype(np.float32), (None, 3, 2**12, 2**12))], 64, 0)
    assert str(error.value) == (
        "input 'x': random samples of over 1 GiB, got [64, 3, 4096, 4096]; expected smaller ones. Give real data with --data."
    )


def test_the_same_seed_gives_the_same_samples() -> None:
    net = model("g (float[N, 7] x) => (float[N, 3] y) { y = MatMul(x, w) }", {"w": (7, 3)})
    one, other = (runnable(net, 2, 5).feeds(2)[0]["x"] for _ in range(2))
    assert (one == other).all()

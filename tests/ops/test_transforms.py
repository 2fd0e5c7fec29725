"""Constants of transforms are no layers; what only looks like them is one."""

from __future__ import annotations

import numpy as np
import pytest

from agmc_onnx.graph.view import graph_of
from agmc_onnx.measuring.sizes import graph_at
from agmc_onnx.ops import analyse
from tests.nets import model as net

N, MELS = 64, 20
ANGLES = 2 * np.pi * np.outer(np.arange(N // 2 + 1), np.arange(N)) / N
WINDOW = np.hanning(N)
FOURIER = np.concatenate([WINDOW * np.cos(ANGLES), -WINDOW * np.sin(ANGLES)])[:, None].astype(np.float32)


def filters(n_bins: int, n_filters: int) -> np.ndarray:
    """Return triangles (bins, filters) between points that lie the further apart the higher they are."""
    points = np.linspace(1, (n_bins - 1) ** 0.7, n_filters + 2) ** (1 / 0.7)
    bins = np.arange(n_bins)[:, None]
    rise, fall = (bins - points[:-2]) / np.diff(points)[:-1], (points[2:] - bins) / np.diff(points)[1:]
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)


def groups(basis: np.ndarray, bank: np.ndarray) -> tuple[list[str], dict[str, str]]:
    """Return the groups of a front end and two layers, and why others stay whole."""
    text = """g (float[N, 1, 256] x) => (float[N, 7, 2] y) {
        s = Conv<strides = [32]>(x, basis) re, im = Split<axis = 1>(s, halves) a = Mul(re, re) b = Mul(im, im) p = Add(a, b)
        t = Transpose<perm = [0, 2, 1]>(p) m = MatMul(t, bank) h = MatMul(m, w1) r = Relu(h) y = MatMul(r, w2) }"""
    halves = np.array([N // 2 + 1] * 2)
    weights = {"basis": basis, "bank": bank, "halves": halves, "w1": (bank.shape[1], 8), "w2": (8, 2)}
    found = analyse(graph_of(net(text, weights)))
    return [group.name for group in found.groups], {group.name: str(group.why_frozen) for group in found.frozen}


def test_a_fourier_transform_and_a_bank_of_filters_stay() -> None:
    names, why = groups(FOURIER, filters(N // 2 + 1, MELS))
    assert names == ["w1"]
    assert why["basis"].endswith("basis is a Fourier transform, no layer")
    assert why["bank"].endswith("bank is a bank of filters, no layer")


@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_trained_weights_of_their_sizes_are_layers(noise: float) -> None:
    rng = np.random.default_rng(0)
    basis = FOURIER + noise * rng.normal(size=FOURIER.shape).astype(np.float32)
    bank = filters(N // 2 + 1, MELS) + noise * rng.normal(size=(N // 2 + 1, MELS)).astype(np.float32)
    assert set(groups(basis, bank)[0]) == {"basis", "bank", "w1"}


def test_front_ends_of_their_own_ops_offer_nothing() -> None:
    text = """g (float[N, 256, 1] x) => (float[N, F, 2] y) {
        s = STFT(x, step, window) re, im = Split<axis = 3>(s, halves) a = Mul(re, re) b = Mul(im, im) c = Add(a, b)
        p = Squeeze(c, last) bank = MelWeightMatrix(n_mels, n_bins, rate, low, high) m = MatMul(p, bank)
        h = MatMul(m, w1) r = Relu(h) y = MatMul(r, w2) }"""
    numbers = {"step": 32, "halves": [1, 1], "last": [3], "n_mels": 8, "n_bins": 64, "rate": 8000}
    floats = {"window": np.ones(64, np.float32), "low": np.array(20, np.float32), "high": np.array(4000, np.float32)}
    weights = {**{name: np.array(value) for name, value in numbers.items()}, **floats, "w1": (8, 6), "w2": (6, 2)}
    found = analyse(graph_at(net(text, weights), {"x": (1, 256, 1)}))
    assert [group.name for group in found.groups] == ["w1"]

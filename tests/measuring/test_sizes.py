"""One set of sizes: given, the data's, or a guess that runs; and a second one that tells open dims apart."""

from __future__ import annotations

import numpy as np
import pytest

from agmc_onnx.data.samples import Samples
from agmc_onnx.errors import UsageError
from agmc_onnx.graph.shapes import Shape
from agmc_onnx.graph.sizes import input_dims, only_seem_open
from agmc_onnx.measuring.sizes import second_feeds, settle, shapes_of
from tests.nets import model as net

IMAGES = net("g (float[N, 3, H, W] x) => (y) { y = Conv(x, w) }", {"w": [4, 3, 3, 3]})
CACHE = net("g (float[N, S, 4] x, float[N, P, 4] past, float[N, T] mask) => (y) {"
            " k = Concat<axis=1>(past, x) t = Transpose<perm=[0,2,1]>(k) s = MatMul(x, t)"
            " m = Unsqueeze(mask, ax) y = Add(s, m) }",
            {"ax": np.array([1])})  # fmt: skip


def samples(*sides: int) -> Samples:
    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"x": np.zeros((len(rows), 3, sides[rows[0]], 8), np.float32)}

    return Samples("data", read, np.arange(len(sides)), None)


def test_given_before_the_datas_before_a_guess() -> None:
    assert str(settle(IMAGES)) == "x 1x3x224x224 (guessed; --input-shape or --data says better)"
    assert str(settle(IMAGES, samples=lambda: samples(8, 64, 16))) == "x 1x3x16x8 (those of the data)"  # the median
    assert str(settle(IMAGES, ["x=4,3,32,48"])) == "x 1x3x32x48 (as given)"  # the batch counts as 1
    assert str(settle(IMAGES, ["1,3,32,48"])) == "x 1x3x32x48 (as given)"
    assert str(settle(net("g (float[N, 4] x) => (y) { y = Relu(x) }"))) == "x 1x4"


@pytest.mark.parametrize(
    "text, problem",
    [
        ("z=1,3,8,8", "no such input, got 'z=1,3,8,8'; expected NAME=1,3,H,W with one of x=N,3,H,W"),
        ("x=1,3,8", "no such shape, got '1,3,8'"),
        ("x=1,3,a,8", "no such shape, got '1,3,a,8'"),
        ("x=1,4,8,8", "dim 1 is fixed, got 4; expected 3"),
        ("x=1,3,32,8", "contradicts the data, got 1x3x32x8; the data's samples have 1x3x16x8"),
    ],
)
def test_wrong_sizes_are_one_line(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        settle(IMAGES, [text], lambda: samples(16))


def test_a_cache_of_past_tokens_is_a_sum() -> None:
    sizes = settle(CACHE).inputs
    assert sizes == {"x": (1, 16, 4), "past": (1, 16, 4), "mask": (1, 32)}
    (feed,) = second_feeds(CACHE, sizes, 0)
    assert feed["mask"].shape[1] == feed["x"].shape[1] + feed["past"].shape[1] != 32


@pytest.mark.parametrize("height, width", [(224, 224), (500, 400), (64, 256), (10, 40)])
def test_the_second_size_tells_open_dims_apart(height: int, width: int) -> None:
    (feed,) = second_feeds(IMAGES, {"x": (1, 3, height, width)}, 0)
    assert len({*feed["x"].shape[2:], height, width}) == (4 if height != width else 3)


def test_one_token_of_two_sizes_is_not_taken_for_fixed() -> None:
    """64 and 96 samples both make one token: only a far larger size tells."""
    text = "g (float[N, 1, L] x) => (y) { y = Conv<strides=[64]>(x, w) }"
    model = net(text, {"w": [4, 1, 64]})
    sizes = settle(model).inputs
    assert sizes["x"] == (1, 1, 64)
    shape = shapes_of(model, sizes)["y"]
    assert not shape.is_fixed(2)
    (feed,) = second_feeds(model, sizes, 0)
    assert feed["x"].shape[2] >= 128


def test_a_run_tells_the_shapes_that_inference_does_not() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]>
        g (float[N, 4] x) => (y) { a = ai.onnx.ml.Scaler<offset=[0.0], scale=[1.0]>(x) y = MatMul(a, w) }"""
    shapes = shapes_of(net(text, {"w": [4, 6]}), {"x": (1, 4)})
    assert shapes["y"].dims == (1, 6) and shapes["y"].other == (2, 6)


def test_dims_that_only_seem_open_are_taken_as_fixed() -> None:
    """A batch of 1 and 4 x 4 places are written into the file as numbers: at sizes that differ there it does not run."""
    text = """g (float[N, 3, H, W] x) => (y) {
        c = Conv<strides=[8, 8]>(x, w) m = Reshape(c, flat) t = Transpose<perm=[0, 2, 1]>(m) p = Add(t, places)
        s = Reshape(p, heads) y = Identity(s) }"""
    model = net(
        text, {"w": [8, 3, 8, 8], "places": [1, 16, 8], "flat": np.array([1, 8, -1]), "heads": np.array([0, 16, 2, 4])}
    )
    shapes = shapes_of(model, {"x": (1, 3, 32, 32)})
    assert shapes["x"] == Shape((1, 3, 32, 32), (1, 3, 34, 35))  # the batch is 1, and 34 x 35 makes the same 16 places
    assert shapes["y"] == Shape((1, 16, 2, 4), (1, 16, 2, 4))
    assert only_seem_open(input_dims(model), lambda name, dim: shapes[name].is_fixed(dim)) == [("x", 0, "N")]

"""Shape inference where onnx's own would end the process."""

from __future__ import annotations

import nets
import numpy as np

from agmc_onnx.graph.shapes import infer_shapes


def test_too_small_a_guess_ends_nothing() -> None:
    """At 16 samples a kernel of 40 leaves a size below zero, at which onnx's inference of Slice fails an assertion."""
    net = nets.model(
        "g (float[N, 1, T] x) => (float[N, C, U] y) { c = Conv(x, w) s = Slice(c, one, last, two) y = Relu(s) }",
        {"w": (4, 1, 40), "one": np.array([1]), "last": np.array([-1]), "two": np.array([2])},
    )
    shapes = infer_shapes(net)
    assert shapes["c"].dims[1] == 4
    assert shapes["y"].dims[2] == shapes["c"].dims[2] - 2 > 0
    assert not shapes["y"].is_fixed(2)

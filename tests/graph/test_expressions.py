"""Numbers computed from open sizes: what is the same for every input is known, all else is not."""

from __future__ import annotations

import numpy as np
import pytest

from agmc_onnx.graph.view import graph_of
from tests.nets import model

ROWS: dict[str, tuple[str, list[int | None] | None]] = {
    "a size that cancels": ("m = Mul(h, eight) y = Div(m, h)", [8]),
    "half of an open size": ("y = Div(h, two)", [None]),
    "twice, then half": ("m = Mul(h, two) y = Div(m, two)", [None]),
    "both in one vector": ("y = Concat<axis = 0>(eight, h, two)", [8, None, 2]),
    "picked out of a vector": ("v = Concat<axis = 0>(eight, h, two) y = Slice(v, two, three)", [2]),
    "a difference of equal sizes": ("r = Shape(z) k = Slice(r, two, three) y = Sub(k, h)", [0]),
    "through floating numbers": (
        "f = Cast<to = 1>(h) g = Div(f, two_f) l = Floor(g) i = Cast<to = 7>(l) m = Mul(i, zero) y = Add(m, eight)",
        [8],
    ),
    "amounts of a Pad turned round": (
        """c = Concat<axis = 0>(h, eight) f = ConstantOfShape<value = int64[1] {0}>(two) a = Concat<axis = 0>(c, f)
           r = Reshape(a, pairs)
           b = Slice(r, minus, low, zero, minus) t = Transpose<perm = [1, 0]>(b) y = Reshape(t, minus)""",
        [0, None, 0, 8],
    ),
    "a choice that is sure": ("e = Equal(h, minus) y = Where(e, eight, h)", [None]),
    "a choice between sizes": ("e = Equal(h, eight) y = Where(e, eight, two)", None),
    "the number of all entries": ("n = Size(x) u = Unsqueeze(n, zero) d = Div(u, h) y = Sub(d, d)", [0]),
    "a product of all sizes": ("p = ReduceProd<axes = [0]>(s) q = ReduceProd<axes = [0]>(s) y = Div(p, q)", [1]),
    "the smaller of two": ("y = Min(h, h)", [None]),
    "not below a bound that it never meets": ("m = Neg(h) c = Clip(m, zero, ) y = Add(c, eight)", [8]),
    "between two bounds": ("c = Clip(h, two, eight) d = Sub(c, c) y = Concat<axis = 0>(c, d)", [None, 0]),
    "an end that is left out": ("y = Clip(h, , eight)", None),
    "an entry of the input": ("i = Cast<to = 7>(x) y = Reshape(i, minus)", None),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_computed_sizes(name: str) -> None:
    nodes, wanted = ROWS[name]
    constants = {"zero": 0, "two": 2, "three": 3, "eight": 8, "minus": -1}
    arrays = {key: np.array([value], np.int64) for key, value in constants.items()}
    arrays |= {
        "pairs": np.array([-1, 2], np.int64),
        "low": np.array([-(1 << 60)], np.int64),
        "two_f": np.array([2.0], np.float32),
    }
    text = f"g (float[N, 3, H, W] x) => (int64[] y) {{ z = Relu(x) s = Shape(x) h = Slice(s, two, three) {nodes} }}"
    assert graph_of(model(text, arrays)).sizes("y") == wanted

"""Random small graphs with batch, height and width open, whose targets are computed as exporters write them.

Each is cut at random and equals its masked original at two sizes of every open dim, with the MACs of a run at both. The
default run draws few; `AGMC_GRAPHS=1000 pytest tests/pruning/test_random_open.py` draws as many as it says.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import onnx
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from onnx import helper

from tests.oracle import Held, hold
from tests.pruning.test_random_graphs import Builder

N_GRAPHS = int(os.environ.get("AGMC_GRAPHS", "15"))
WIDTHS = (4, 6, 8, 12)


class OpenBuilder(Builder):
    """Grows a graph of (N, channels, height, width) values; a shape is (channels, halvings, places padded)."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.values = [("x", (3, 0, 0))]

    def size(self, value: str, dim: int) -> str:
        """Return one size of a value as a vector of one number, written in one of several ways."""
        kind, shape = int(self.rng.integers(5)), self.op("Shape", value)
        if kind == 0:
            return self.op("Slice", shape, self.ints(dim), self.ints(dim + 1))
        size = self.op("Gather", shape, self.tensor(np.array(dim, np.int64)), axis=0)
        size = self.op("Unsqueeze", size, self.ints(0))
        if kind == 1:
            size = self.op("Div", self.op("Mul", size, self.ints(6)), self.ints(6))
        elif kind == 2:
            real = self.op("Floor", self.op("Cast", size, to=onnx.TensorProto.FLOAT))
            size = self.op("Cast", real, to=onnx.TensorProto.INT64)
        elif kind == 3:
            size = self.op("Where", self.op("Equal", size, self.ints(-1)), self.ints(1), size)
        return size

    def target(self, *sizes: str | int) -> str:
        """Return a target of sizes computed and given."""
        return self.op("Concat", *(self.ints(s) if isinstance(s, int) else s for s in sizes), axis=0)

    def number_of(self, value: str, dim: int, known: int) -> str | int:
        """Return a size that is known, as a number or computed all the same."""
        return known if self.rng.random() < 0.5 else self.size(value, dim)

    def open_model(self) -> onnx.ModelProto:
        """Return the model, its last two values pooled and added up."""
        made = self.model()
        made.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, "H", "W"]))
        return made


def conv(b: OpenBuilder) -> None:
    x, (c, half, padded) = b.pick()
    out, side = int(b.rng.choice(WIDTHS)), int(b.rng.choice([1, 3]))
    if b.rng.random() < 0.25 and half < 2 and not padded:
        b.add(b.op("Conv", x, b.weight(out, c, 2, 2), strides=[2, 2]), (out, half + 1, padded))
    else:
        b.add(b.op("Conv", x, b.weight(out, c, side, side), b.weight(out), pads=[side // 2] * 4), (out, half, padded))


def unary(b: OpenBuilder) -> None:
    x, shape = b.pick()
    b.add(b.op(str(b.rng.choice(["Relu", "Sigmoid", "Tanh", "Neg"])), x), shape)


def added(b: OpenBuilder) -> None:
    x, shape = b.pick()
    other = b.mate(x, shape)
    if other is not None:
        b.add(b.op(str(b.rng.choice(["Add", "Mul"])), x, other), shape)


def joined(b: OpenBuilder) -> None:
    x, (c, half, padded) = b.pick()
    fit = [(v, s) for v, s in b.values if s[1:] == (half, padded)]
    other, shape = fit[int(b.rng.integers(len(fit)))]
    if c + shape[0] <= 32:
        b.add(b.op("Concat", x, other, axis=1), (c + shape[0], half, padded))


def tokens(b: OpenBuilder) -> None:
    """Places become tokens, and a map again."""
    x, (c, half, padded) = b.pick()
    places = b.op("Mul", b.size(x, 2), b.size(x, 3)) if b.rng.random() < 0.6 else -1
    y = b.op("Reshape", x, b.target(b.size(x, 0), b.number_of(x, 1, c), places))
    y = b.op("Transpose", y, perm=[0, 2, 1])
    if b.rng.random() < 0.5:
        y = b.op("LayerNormalization", y, b.weight(c), b.weight(c), axis=-1)
    out = int(b.rng.choice(WIDTHS))
    if b.rng.random() < 0.5:
        y = b.op("MatMul", y, b.weight(c, out))
    else:  # batch and tokens in one dim
        flat = b.op("Mul", b.size(y, 0), b.size(y, 1))
        z = b.op("Gemm", b.op("Reshape", y, b.target(flat, b.number_of(x, 1, c))), b.weight(c, out), b.weight(out))
        y = b.op("Reshape", z, b.target(b.size(y, 0), b.size(y, 1), b.number_of(z, 1, out)))
    y = b.op("Transpose", b.op("Relu", y), perm=[0, 2, 1])
    b.add(b.op("Reshape", y, b.target(b.size(x, 0), out, b.size(x, 2), b.size(x, 3))), (out, half, padded))


def heads(b: OpenBuilder) -> None:
    """Attention over all places, its heads split by computed targets."""
    x, (c, half, padded) = b.pick()
    if half == 0:
        return
    n, size = int(b.rng.integers(1, 4)), int(b.rng.integers(1, 4))
    seq = b.op("Transpose", b.op("Reshape", x, b.target(b.size(x, 0), c, -1)), perm=[0, 2, 1])
    batch, length = b.size(seq, 0), b.size(seq, 1)

    def apart() -> str:
        y = b.op("MatMul", seq, b.weight(c, n * size))
        return b.op("Transpose", b.op("Reshape", y, b.target(batch, length, n, size)), perm=[0, 2, 1, 3])

    q, k, v = apart(), apart(), apart()
    scores = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    y = b.op("Transpose", b.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    y = b.op("MatMul", b.op("Reshape", y, b.target(batch, length, n * size)), b.weight(n * size, c))
    y = b.op("Transpose", b.op("Add", y, seq), perm=[0, 2, 1])
    b.add(b.op("Reshape", y, b.op("Shape", x)), (c, half, padded))


def grouped_norm(b: OpenBuilder) -> None:
    x, (c, half, padded) = b.pick()
    g = int(b.rng.choice([g for g in range(1, c + 1) if c % g == 0]))
    y = b.op("Reshape", x, b.ints(0, g, -1))
    if b.rng.random() < 0.5:
        y = b.op("InstanceNormalization", y, b.tensor(np.ones(g, np.float32)), b.tensor(np.zeros(g, np.float32)))
    else:
        d = b.op("Sub", y, b.op("ReduceMean", y, axes=[2]))
        v = b.op("ReduceMean", b.op("Mul", d, d), axes=[2])
        y = b.op("Div", d, b.op("Sqrt", b.op("Add", v, b.tensor(np.array(1e-3, np.float32)))))
    y = b.op(
        "Reshape",
        y,
        b.op("Shape", x) if b.rng.random() < 0.5 else b.target(b.size(x, 0), c, b.size(x, 2), b.size(x, 3)),
    )
    b.add(b.op("Add", b.op("Mul", y, b.weight(c, 1, 1)), b.weight(c, 1, 1)), (c, half, padded))


def resized(b: OpenBuilder) -> None:
    """To the size of another map, by its Shape."""
    x, (c, _, _) = b.pick()
    other, shape = b.values[int(b.rng.integers(len(b.values)))]
    to = b.target(b.size(x, 0), b.number_of(x, 1, c), b.size(other, 2), b.size(other, 3))
    b.add(b.op("Resize", x, "", "", to, mode="nearest"), (c, *shape[1:]))


def padded(b: OpenBuilder) -> None:
    """Padded and cropped again by computed amounts."""
    x, (c, half, more) = b.pick()
    n = int(b.rng.integers(1, 3))
    amount = b.op("Sub", b.op("Add", b.size(x, 2), b.ints(n)), b.size(x, 2))
    y = b.op("Pad", x, b.target(0, 0, 0, 0, 0, 0, amount, n))
    if b.rng.random() < 0.5:
        b.add(b.op("Conv", y, b.weight(c, c, 1, 1)), (c, half, more + 10 * n))
        return
    y = b.op("Slice", y, b.ints(0), b.size(x, 2), b.ints(2))
    b.add(b.op("Slice", y, b.ints(0), b.size(x, 3), b.ints(3)), (c, half, more))


def expanded(b: OpenBuilder) -> None:
    x, (c, half, padded) = b.pick()
    to = b.op("Shape", x) if b.rng.random() < 0.5 else b.target(b.size(x, 0), c, b.size(x, 2), b.size(x, 3))
    b.add(b.op("Expand", b.op("GlobalAveragePool", x), to), (c, half, padded))


def filled(b: OpenBuilder) -> None:
    """Zeros of a computed size, joined."""
    x, (c, half, padded) = b.pick()
    if c <= 16:
        value = helper.make_tensor("value", 1, [1], [0.5])
        k = b.op("ConstantOfShape", b.target(b.size(x, 0), 2, b.size(x, 2), b.size(x, 3)), value=value)
        b.add(b.op("Concat", x, k, axis=1), (c + 2, half, padded))


def measured(b: OpenBuilder) -> None:
    """Scaled by the root of its own width."""
    x, shape = b.pick()
    width = b.op("Sqrt", b.op("Cast", b.size(x, 1), to=onnx.TensorProto.FLOAT))
    b.add(b.op("Div", x, width), shape)


def split(b: OpenBuilder) -> None:
    """The first half of the channels, by a computed bound."""
    x, (c, half, padded) = b.pick()
    if c >= 2 and c % 2 == 0:
        bound = b.op("Div", b.size(x, 1), b.ints(2))
        b.add(b.op("Slice", x, b.ints(0), bound, b.ints(1)), (c // 2, half, padded))


OPS: dict[str, Callable[[OpenBuilder], None]] = {
    f.__name__: f
    for f in (
        conv, unary, added, joined, tokens, heads, grouped_norm, resized, padded, expanded, filled, measured, split,
    )
}  # fmt: skip


def check(ops: list[str], number: int) -> Held:
    """Draw one graph and hold it to the oracle."""
    builder = OpenBuilder(number)
    conv(builder)
    for name in ops:
        OPS[name](builder)
    return hold(builder.open_model(), number % 1000, ("x=1,3,8,12",))


@seed(28)
@settings(
    max_examples=N_GRAPHS, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow], print_blob=False
)
@given(st.lists(st.sampled_from(sorted(OPS)), min_size=2, max_size=8), st.integers(0, 2**32 - 1))
def test_open_sizes_equal_masked(ops: list[str], number: int) -> None:
    held = check(ops, number)
    assert held.n_settings == 2

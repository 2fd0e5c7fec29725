"""Peak bytes: those of values between nodes, and not known where nodes make values inside of them."""

from __future__ import annotations

import numpy as np
import pytest

from agmc_onnx.measuring.memory import peak_bytes
from tests import nets

HEAD = '<ir_version: 8, opset_import: ["" : 17, "local" : 1]>'
X = {"x": np.ones((1, 4), np.float32)}


def test_values_that_are_needed_at_once() -> None:
    model = nets.model(f"{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{ a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }}",
                       {"w": (4, 8), "v": (8, 4)})  # fmt: skip
    assert peak_bytes(model, X) == 4 * (4 + 8 + 8)


INSIDE = {
    "a branch": "y = If(yes)<then_branch = t () => (p) { a = Abs(x) p = Exp(a) }, else_branch = e () => (q) { q = Neg(x) }>",
    "a function": "y = local.twice(x)",
    "a sequence": "s = SequenceConstruct(x, x) i = Constant<value_int = 0>() y = SequenceAt(s, i)",
}  # fmt: skip
FUNCTION = '<domain: "local", opset_import: ["" : 17]> twice (v) => (u) { u = Add(v, v) }'


@pytest.mark.parametrize("name", INSIDE)
def test_what_is_made_inside_of_a_node_is_not_known(name: str) -> None:
    text = f"{HEAD} g (float[N, 4] x) => (float[N, 4] y) {{ {INSIDE[name]} }} {FUNCTION if 'local' in INSIDE[name] else ''}"
    assert peak_bytes(nets.model(text, {"yes": np.array(True)}), X) is None


def test_a_quantised_model_is_counted_with_its_integer_kernels() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) wd = DequantizeLinear(w, s, z) a = MatMul(d, wd)
        p = QuantizeLinear(a, s, z) y = DequantizeLinear(p, s, z) }"""
    weights = {"w": np.ones((4, 64), np.int8), "s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    model = nets.model(text.replace("float[N, 4] y", "float[N, 64] y"), weights)
    assert peak_bytes(model, X) == 4 * 4 + 64 + 4 * 64  # x, what the product makes in int8, and the output

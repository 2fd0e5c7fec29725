"""What a run says where nothing can be pruned, and where a budget is out of reach."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

from agmc_onnx import compress
from agmc_onnx.errors import BudgetError, ModelError
from tests import nets

QUICK = {"flops": 0.5, "policy": "uniform", "recover": "none", "latency_seconds": 0.0}


@pytest.mark.parametrize(
    "text, said",
    [
        (
            "g (float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, w) r = CumSum(h, one) y = MatMul(r, v) }",
            "(CumSum r: works on the whole dimension 1 of h at once). Export it in float and plain ops",
        ),
        (
            "g (float[N, 8] x) => (float[N, 6] y) { y = MatMul(x, w) }",
            "(all its channels are those of its inputs and outputs). Export it in float and plain ops",
        ),
        (
            "g (float[N, T, 8] x) => (float[N, S, 4] y)"
            " { h = MatMul(x, w) t = Transpose<perm = [0, 2, 1]>(h) r = Reshape(t, back) y = MatMul(r, v) }",
            "). Export it with fixed sizes",
        ),
    ],
)
def test_where_nothing_can_be_pruned_a_node_is_named_and_what_to_do(text: str, said: str) -> None:
    weights = {"w": (8, 6), "v": (6, 4), "one": np.array(1), "back": np.array([0, -1, 6])}
    model = nets.model(text, weights)
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)
    onnx.checker.check_model(model)
    with pytest.raises(ModelError, match=re.escape(said)) as error:
        compress(model, **QUICK)
    assert str(error.value).endswith("; agmc-onnx inspect names all that stays.")


def test_a_budget_out_of_reach_says_what_was_asked_for_and_what_every_width_reaches() -> None:
    text = "g (float[N, 8] x) => (float[N, 6] y) { h = MatMul(x, w) r = Relu(h) k = MatMul(r, v) y = MatMul(k, u) }"
    model = nets.model(text, {"w": (8, 8), "v": (8, 10), "u": (10, 6)})
    with pytest.raises(BudgetError) as error:
        compress(model, **QUICK | {"flops": 0.1, "round_to": 8})
    match = re.search(
        r"cannot keep only 0\.1000 .* the best reachable value is (0\.\d{4}), with round_to=1 it is (0\.\d{4})\."
        r" Ask for at least \1\.",
        str(error.value),
    )
    assert match and float(match[1]) > float(match[2])
    free = compress(model, **QUICK | {"flops": 0.5, "round_to": 2**70})  # no group has that many
    assert free.report["target"]["reached"] <= 0.5
    assert compress(model, **QUICK | {"flops": float(match[1]), "round_to": 8}).report["target"]["reached"] <= float(
        match[1]
    )

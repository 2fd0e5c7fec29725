"""What the oracle compares, what it allows, and what it says of the rest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from agmc_onnx.errors import PlanError, VerificationError
from agmc_onnx.graph.view import graph_of
from agmc_onnx.ops import analyse
from agmc_onnx.pruning.masked_norms import norms_of
from agmc_onnx.pruning.plan import Plan, make_plan
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.pruning.verification import kept_region, verify
from agmc_onnx.reporting.record import verified_facts
from agmc_onnx.reporting.text import verified_line
from tests.nets import model as net

NET = (
    "g (float[N, 3, 8, 8] x) => (float[N, 4] y)"
    " { a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) c = GlobalAveragePool(b) d = Flatten(c) %s }"
)
WEIGHTS = {"w": [8, 3, 3, 3], "v": [8, 4]}


def cut(model: onnx.ModelProto, n: int = 4) -> tuple[onnx.ModelProto, Plan]:
    channels = analyse(graph_of(model))
    kept = [np.arange(min(n, group.n_units)) for group in channels.groups]
    return Surgeon(channels).cut(kept), make_plan(channels, kept, "0" * 64)


def other_op(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    next(node for node in wrong.graph.node if node.op_type == old).op_type = new
    return wrong


@pytest.mark.parametrize(
    "tail, wrong",
    [
        ("z = MatMul(d, v) y = Log(z)", ("Relu", "Sigmoid")),  # nan and -inf where z <= 0
        ("z = MatMul(d, v) y = Reciprocal(z)", ("Relu", "Sigmoid")),
    ],
)
def test_nan_and_infinity_only_where_the_original_has_them(tail: str, wrong: tuple[str, str]) -> None:
    model = net(NET % tail, WEIGHTS)
    pruned, plan = cut(model)
    assert verify(model, pruned, plan).masked_equivalence
    with pytest.raises(VerificationError, match="output y of the compressed model differs"):
        verify(model, other_op(pruned, *wrong), plan)


def test_an_output_that_is_nan_everywhere_is_not_called_equal() -> None:
    model = net(NET % "z = MatMul(d, v) e = Abs(z) m = Neg(e) y = Sqrt(m)", WEIGHTS)
    found = verify(model, *cut(model))
    assert found.masked_equivalence is None
    assert found.note == "output y was not compared: it is nan or infinite everywhere"
    assert "equality could not be compared. Note: output y" in verified_line(verified_facts(found, False))


RANDOM: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "Dropout n": ("e = Dropout(d, p, t) y = MatMul(e, v)", {"p": np.array(0.5, np.float32), "t": np.array(True)}),
    "RandomNormalLike r": ("r = RandomNormalLike(d) e = Add(d, r) y = MatMul(e, v)", {}),
    "RandomUniformLike r": ("r = RandomUniformLike<low=-3.0,high=3.0>(d) e = Add(d, r) y = MatMul(e, v)", {}),
    "RandomNormal r": ("e = MatMul(d, v) r = RandomNormal<shape=[1,4]>() y = Add(e, r)", {}),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_ops_are_named_and_switched_off(name: str) -> None:
    tail, more = RANDOM[name]
    model = net(NET % tail, WEIGHTS | more)
    for node in model.graph.node:
        node.name = "n" if node.op_type == "Dropout" else ""
    pruned, plan = cut(model)
    found = verify(model, pruned, plan)
    assert found.masked_equivalence and found.random == (name,)
    assert found.tolerance < 0.01 * found.max_abs_output
    assert f"random ops were switched off for it: {name}" in verified_line(verified_facts(found, False))
    with pytest.raises(VerificationError, match="differs"):
        verify(model, other_op(pruned, "Relu", "Sigmoid"), plan)


def test_dropout_that_passes_is_no_random_op() -> None:
    model = net(NET % "e = Dropout(d) y = MatMul(e, v)", WEIGHTS)
    assert verify(model, *cut(model)).random == ()


def scaled(pruned: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    wrong = onnx.ModelProto()
    wrong.CopyFrom(pruned)
    tensor = next(t for t in wrong.graph.initializer if t.name == "s")
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(factor), "s"))
    return wrong


def test_large_entries_hide_nothing_of_small_ones() -> None:
    """Boxes in pixels beside probabilities: each of them is held to its own size."""
    text = (
        "g (float[N, 3, 8, 8] x) => (float[N, 64, 2] y) { a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) c = Conv(b, v)"
        " d = Reshape(c, to) e = Mul(d, big) f = Mul(d, s) y = Concat<axis=2>(e, f) }"
    )
    constants = {"to": np.array([0, 64, 1]), "big": np.array(640, np.float32), "s": np.full(1, 0.01, np.float32)}
    model = net(text, {"w": [8, 3, 3, 3], "v": [1, 8, 1, 1]} | constants)
    pruned, plan = cut(model)
    assert verify(model, pruned, plan).masked_equivalence
    with pytest.raises(VerificationError, match="differs"):
        verify(model, scaled(pruned, 1.5), plan)


def test_a_large_mean_hides_nothing_of_what_varies() -> None:
    model = net(
        NET % "z = MatMul(d, v) q = Mul(z, s) y = Add(q, k)",
        WEIGHTS | {"s": np.ones(1, np.float32), "k": np.array(100, np.float32)},
    )
    pruned, plan = cut(model)
    assert verify(model, pruned, plan).masked_equivalence
    with pytest.raises(VerificationError, match="differs"):
        verify(model, scaled(pruned, 1.2), plan)


def test_whole_numbers_are_compared_one_by_one() -> None:
    text = (
        NET.replace("float[N, 4] y", "int64[N] y") % "z = MatMul(d, v) q = ArgMax<axis=1,keepdims=0>(z) y = Add(q, k)"
    )
    model = net(text, WEIGHTS | {"k": np.array(30000)})
    pruned, plan = cut(model)
    found = verify(model, pruned, plan)
    assert found.masked_equivalence and found.max_abs_diff == 0
    wrong = other_op(pruned, "ArgMax", "ArgMin")
    with pytest.raises(VerificationError, match="differs"):
        verify(model, wrong, plan)


def test_statistics_over_cut_entries_are_named() -> None:
    text = "g (float[N, 8] x) => (float[N, 4] y) { a = MatMul(x, w) b = LayerNormalization(a, s, t) y = MatMul(b, v) }"
    model = net(text, {"w": [8, 16], "v": [16, 4], "s": np.ones(16, np.float32), "t": np.zeros(16, np.float32)})
    channels = analyse(graph_of(model))
    kept = [np.arange(8)]
    pruned, plan = Surgeon(channels).cut(kept), make_plan(channels, kept, "0" * 64)
    found = verify(model, pruned, plan, norms=norms_of(channels, kept))
    assert found.statistics == ("b",)
    assert "set to zero, the statistics of b taken over what is kept;" in verified_line(verified_facts(found, False))


def only_at(size: int) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    def edit(model: onnx.ModelProto) -> onnx.ModelProto:
        wrong = onnx.ModelProto()
        wrong.CopyFrom(model)
        shape = next(t for t in wrong.graph.initializer if t.name == "to")
        shape.CopyFrom(onnx.numpy_helper.from_array(np.array([0, size, 4]), "to"))
        return wrong

    return edit


def test_a_result_must_run_at_every_size_that_its_original_runs_at() -> None:
    text = "g (float[N, T, 8] x) => (float[N, T, 4] y) { a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) y = Reshape(c, to) }"
    model = net(text, {"w": [8, 16], "v": [16, 4], "to": np.array([0, -1, 4])})
    pruned, plan = cut(model, 8)
    feeds = [{"x": np.random.default_rng(0).standard_normal((1, n, 8)).astype(np.float32)} for n in (16, 24)]
    found = verify(model, pruned, plan, feeds[:1], others=feeds[1:])
    assert found.sizes == ("x 1x16x8", "x 1x24x8")
    assert "at 2 settings of the open sizes" in verified_line(verified_facts(found, False))
    broken = only_at(16)(pruned)
    assert verify(model, broken, plan, feeds[:1]).masked_equivalence
    with pytest.raises(
        VerificationError, match="cannot run the compressed model where it runs the original, at one of"
    ):
        verify(model, broken, plan, feeds[:1], others=feeds[1:])
    assert verify(only_at(16)(model), broken, plan, feeds[:1], others=feeds[1:]).sizes == (
        "x 1x16x8",
    )  # neither does it


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"x": [0]}, "plan: w keeps no indices along dimension 'x'. Write it again with compress."),
        ({"0": ["2024-01-01"]}, "plan: w keeps no indices along dimension '0'. Write it again with compress."),
        ({"0": [[0, 1], [0]]}, "plan: w keeps no indices along dimension '0'. Write it again with compress."),
        ({"0": [2**70]}, "plan: w keeps no indices along dimension '0'. Write it again with compress."),
        ({"0": [[[0]]]}, "plan: w keeps [1, 1, 1] indices along dimension 0; expected one list of them."),
        ({"0": 3}, "plan: w keeps [] indices along dimension 0; expected one list of them."),
        ({"1": [[0], [9]]}, "plan: w keeps indices outside of 0..2 along dimension 1."),
    ],
)
def test_indices_of_a_plan_that_are_none(axes: dict, said: str) -> None:
    with pytest.raises(PlanError) as error:
        kept_region((4, 3), axes, "w")
    assert str(error.value) == said

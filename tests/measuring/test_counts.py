"""The package's count of MACs against one made by running (tests/independent_counter.py), at two sizes of every open dim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.sizes import input_dims, sizes_at, symbols_of
from agmc_onnx.measuring.sizes import graph_at, samples_at, second_feeds, settle
from agmc_onnx.ops import analyse
from agmc_onnx.pruning.bodies import uncounted
from agmc_onnx.pruning.cost import count_macs, params_cost, stored_params
from tests.independent_counter import count
from tests.nets import model as net
from tests.pruning.test_equivalence import SMALL_NETS

CASES = Path(__file__).parents[3] / "shared" / "cases" / "graphs"
UNRUNNABLE = ("02-names", "44-customop", "47b-strings")
FUSED = ("Attention", "GroupQueryAttention", "MultiHeadAttention")  # the other counter does not know them


def compare(model: onnx.ModelProto) -> int:
    """Compare the counts at the guessed sizes and at others; return at how many."""
    sizes = settle(model).inputs
    feeds = [samples_at(model, sizes, 1, 0).feeds(1)[0], *second_feeds(model, sizes, 0)]
    for feed in feeds:
        graph = graph_at(normalize(model), {name: x.shape for name, x in feed.items()})
        assert uncounted(graph) == []
        assert sum(count_macs(graph).values()) == sum(count(model, feed).values())
    return len(feeds)


@pytest.mark.parametrize("name", SMALL_NETS)
def test_small_nets_count_as_they_run(name: str) -> None:
    text, weights = SMALL_NETS[name]
    model: Any = net(text, weights)
    if any(node.op_type in FUSED for node in model.graph.node):
        pytest.skip("fused attention")
    compare(model)


def opened(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose images have open sides."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for value in result.graph.input:
        dims = value.type.tensor_type.shape.dim
        for at in (2, 3) if len(dims) == 4 else ():
            dims[at].dim_param = f"{value.name}_{at}"
    for value in result.graph.output:
        value.type.tensor_type.ClearField("shape")
    return result


def test_small_nets_of_open_sizes_count_as_they_run_at_two() -> None:
    """With the 30 models of open sizes among the cases these are more than 40."""
    at_two = []
    for name, (text, weights) in SMALL_NETS.items():
        model = net(text, weights)
        free = opened(model)
        sizes = {name: tuple(int(d) for d in dims) for name, dims in sizes_at(input_dims(model), {}).items()}
        others = second_feeds(free, sizes, 0) if symbols_of(input_dims(free)) else []
        if not others or any(node.op_type in FUSED for node in model.graph.node):
            continue  # a size that is written into the model
        for feed in (samples_at(free, sizes, 1, 0).feeds(1)[0], *others):
            graph = graph_at(normalize(free), {name: x.shape for name, x in feed.items()})
            assert uncounted(graph) == [], name
            assert sum(count_macs(graph).values()) == sum(count(free, feed).values()), name
        at_two.append(name)
    assert len(at_two) >= 12, at_two


@pytest.mark.skipif(not CASES.exists(), reason="no ../shared")
@pytest.mark.parametrize(
    "path", sorted(CASES.glob("*/*.onnx")) if CASES.exists() else [], ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_cases_count_as_they_run(path: Path) -> None:
    if path.parent.name in UNRUNNABLE or path.stem == "broken":
        pytest.skip("cannot be run by the other counter")
    model = onnx.load(path)
    n = compare(model)
    assert n == 2 or not symbols_of(input_dims(model))


def test_a_node_that_cannot_be_counted_is_named() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "far" : 1]>
        g (float[N, 4] x) => (y) { a = far.Away(x) b = MatMul(a, w) y = Relu(b) }"""
    graph = graph_at(net(text, {"w": [4, 4]}), {"x": (1, 4)})
    assert uncounted(graph) == ["Away a (unknown op of far)", "MatMul b (unknown shape)"]


def test_parameters_are_those_that_the_file_holds() -> None:
    """A copy that an Identity makes, and a statistic of a weight that is fixed, are none of the original's."""
    text = """g (float[1, 3, 9, 9] x) => (float[1, 8, 7, 7] y) {
        v = Identity(w) a = Conv(x, w) b = Conv(x, v) m = ReduceMean<axes = [1, 2, 3], keepdims = 0>(w) r = Reshape(m, shape)
        s = Add(a, b) y = Mul(s, r) }"""
    model = net(text, {"w": (8, 3, 3, 3), "shape": np.array([1, 8, 1, 1])})
    assert stored_params(model) == 8 * 27
    assert stored_params(normalize(model)) == 2 * 8 * 27 + 8


def test_parameters_in_branches_count() -> None:
    text = """g (float[N, 8] x, bool p) => (float[N, 4] y) {
        h = MatMul(x, w)
        r = If (p) <then_branch = t () => (o1) <float[8] k = {1,2,3,4,5,6,7,8}> { o1 = Mul(h, k) },
                    else_branch = e () => (o2) { c = Constant<value = float[1] {2}>() o2 = Mul(h, c) }> y = MatMul(r, v) }"""
    model = net(text, {"w": (8, 8), "v": (8, 4)})
    channels = analyse(graph_at(model, {"x": (1, 8), "p": ()}))
    assert stored_params(model) == params_cost(channels)([g.n_units for g in channels.groups]) == 64 + 32 + 8 + 1

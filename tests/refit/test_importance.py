from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from agmc_onnx.data.samples import synthetic
from agmc_onnx.errors import UsageError
from agmc_onnx.graph.view import graph_of
from agmc_onnx.measuring.session import make_session, model_inputs, run_model
from agmc_onnx.ops import analyse
from agmc_onnx.options import CompressOptions
from agmc_onnx.pruning.importance import NEED_DATA, choose, importance_of, median_distance
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.refit.importance import MEASURED, Measurements
from agmc_onnx.refit.options import RecoverOptions
from agmc_onnx.run.analysis import analyse_model
from agmc_onnx.run.samples import with_recovery
from agmc_onnx.ties.groups import Channels
from tests import nets

torch.set_num_threads(1)
NET = """
f (float[n, 3, 8, 8] x) => (float[n, 5] y) {
    a = Conv<pads=[1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    c = Conv<pads=[1, 1, 1, 1]> (r, w2)
    d = Relu (c)
    p = GlobalAveragePool (d)
    q = Flatten (p)
    y = Gemm (q, wf)
}
"""
SHAPES = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (6, 8, 3, 3), "wf": (6, 5)}


def net() -> tuple[Channels, Measurements]:
    """Return a net whose first layer's unit 2 is never used and whose unit 5 is always zero."""
    proto = nets.model(NET, SHAPES)
    for tensor in proto.graph.initializer:
        array = np.array(nets.onnx.numpy_helper.to_array(tensor))
        if tensor.name == "w2":
            array[:, 2] = 0
        if tensor.name in ("w1", "b1"):
            array[5] = 0
        tensor.CopyFrom(nets.onnx.numpy_helper.from_array(array, tensor.name))
    channels = analyse(graph_of(proto))
    return channels, Measurements(channels, synthetic(model_inputs(proto), 32, 0), RecoverOptions(batch_size=16))


@pytest.mark.parametrize("name", MEASURED)
def test_units_without_effect_come_last(name: str) -> None:
    channels, measured = net()
    scores = measured.scores(name)
    first = scores[channels.groups[0].units]
    assert scores.shape == (channels.n_units,) and np.isfinite(scores).all() and (scores >= 0).all()
    assert set(np.argsort(first, kind="stable")[:2]) == {2, 5}


@pytest.mark.parametrize("name", MEASURED)
def test_scores_are_the_same_again(name: str) -> None:
    np.testing.assert_array_equal(net()[1].scores(name), net()[1].scores(name))


def test_taylor_is_near_the_change_that_leaving_a_unit_out_makes() -> None:
    channels, measured = net()
    group = channels.groups[1]
    scores = measured.scores("taylor")[group.units]
    model = channels.graph.model
    feed = measured.samples.feeds(32)[0]
    base = run_model(make_session(model), feed)[0]
    p = np.exp(base - base.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    cost = []
    for i in range(group.n_units):
        kept = [np.arange(g.n_units) for g in channels.groups]
        kept[1] = np.delete(kept[1], i)
        change = run_model(make_session(Surgeon(channels).cut(kept)), feed)[0] - base
        cost.append(float((p * change**2).sum() - ((p * change).sum(1) ** 2).sum()))  # change^T F change
    assert np.corrcoef(np.log(scores), np.log(cost))[0, 1] > 0.8


def test_units_near_the_median_of_their_group_go_first() -> None:
    channels, _ = net()
    array = np.zeros((8, 3, 3, 3), np.float32)
    array[:, 0, 0, 0] = [-9, -3, -1, 0.1, 1, 3, 9, 27]
    proto = nets.model(
        NET, {**SHAPES, "w1": array, "b1": np.zeros(8, np.float32), "w2": np.zeros((6, 8, 3, 3), np.float32)}
    )
    channels = analyse(graph_of(proto))
    scores = median_distance(channels)
    order = np.argsort(scores[channels.groups[0].units])
    assert set(order[:2]) <= {3, 4} and order[-1] == 7
    assert choose(channels, scores, [2, 6])[0].tolist() == [0, 7]


def test_an_unknown_importance_is_refused() -> None:
    with pytest.raises(
        UsageError, match="importance: unknown name, got 'l7'; expected one of moments, activations, taylor"
    ):
        net()[1].scores("l7")


def test_what_needs_data_says_so() -> None:
    assert tuple(MEASURED) == NEED_DATA
    with pytest.raises(
        UsageError, match="importance: taylor looks at activations, got no data; expected one of l2, l1, median"
    ):
        importance_of("taylor")


DEPTHWISE = """
f (float[n, 4, 6, 6] x) => (float[n, 4, 6, 6] y) {
    a = Conv (x, w1)
    b = Conv<group=8, pads=[1, 1, 1, 1]> (a, wd)
    y = Conv (b, w2)
}
"""


@pytest.mark.parametrize(
    ("group", "options", "data", "expected"),
    [
        (8, {}, "digits", "moments"),
        (8, {"recover": "distill"}, "digits", "moments"),
        (8, {"recover": "none"}, "digits", "l2"),
        (8, {"recover": "statistics"}, "digits", "l2"),
        (8, {}, None, "l2"),
        (8, {"importance": "l1"}, "digits", "l1"),
        (1, {}, "digits", "l2"),
    ],
)
def test_the_ranking_suits_model_and_recovery(
    tmp_path: Path, group: int, options: dict[str, str], data: str | None, expected: str
) -> None:
    text = DEPTHWISE.replace("group=8", f"group={group}")
    weights = {"w1": (8, 4, 1, 1), "wd": (8, 8 // group, 3, 3), "w2": (4, 8, 1, 1)}
    onnx.save(nets.model(text, weights), tmp_path / "m.onnx")
    settings = CompressOptions.of(flops=0.5, **options)
    assert with_recovery(analyse_model(tmp_path / "m.onnx"), data, settings).search.importance == expected

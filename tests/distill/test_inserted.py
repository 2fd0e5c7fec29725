from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from agmc_onnx.distill.inserted import FILTER_RMS, Normalised
from agmc_onnx.graph.edit import with_arrays
from agmc_onnx.graph.view import graph_of
from agmc_onnx.measuring.session import make_session, run_model
from agmc_onnx.torch_view.module import TorchGraph
from tests import nets

NET = """
f (float[n, 3, 6, 6] x) => (float[n, 4] y) {
    a = Conv<pads=[1, 1, 1, 1]> (x, w1)
    r = Relu (a)
    c = Conv<group=8> (r, w2, b2)
    p = GlobalAveragePool (c)
    s = Conv (p, w3, b3)
    z = Mul (c, s)
    q = GlobalAveragePool (z)
    f = Flatten (q)
    y = Gemm (f, w4, b4)
}
"""
SHAPES = {"w1": (8, 3, 3, 3), "w2": (8, 1, 1, 1), "b2": (8,), "w3": (8, 8, 1, 1), "b3": (8,), "w4": (8, 4), "b4": (4,)}


def images(n: int = 16, seed: int = 3) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))}


def answer(proto: onnx.ModelProto, feed: dict[str, torch.Tensor]) -> np.ndarray:
    session = make_session(proto, optimise=False)
    return run_model(session, {name: value.numpy() for name, value in feed.items()})[0]


def test_statistics_of_its_own_outputs_change_nothing() -> None:
    proto = nets.model(NET, SHAPES)
    made = Normalised(proto, [images()])
    kinds = [node.op_type for node in made.model.graph.node]
    assert kinds.count("BatchNormalization") == 2  # not behind s, which has one position
    np.testing.assert_allclose(answer(made.model, images()), answer(proto, images()), rtol=0, atol=1e-5)
    onnx.checker.check_model(made.model)


def test_the_statistics_of_the_batch_they_were_taken_from_change_nothing_either() -> None:
    proto = nets.model(NET, SHAPES)
    made = Normalised(proto, [images()])
    module = TorchGraph(made.model).train()
    made.learn_statistics(module)
    with torch.no_grad():
        found = module.run(images())["y"].numpy()
    np.testing.assert_allclose(found, answer(proto, images()), rtol=0, atol=1e-4)


def test_what_was_learned_goes_into_weights_and_biases() -> None:
    proto = nets.model(NET, SHAPES)
    made = Normalised(proto, [images()])
    rng = np.random.default_rng(5)
    new = {
        t.name: np.abs(rng.standard_normal(tuple(t.dims))).astype(np.float32) + 0.1
        for t in made.model.graph.initializer
    }
    changed = with_arrays(made.model, new)
    back = made.fold(changed)
    assert [node.op_type for node in back.graph.node] == [node.op_type for node in proto.graph.node]
    assert set(graph_of(back).tensors) == {*SHAPES, "a__bias"}
    want = answer(changed, images())
    np.testing.assert_allclose(answer(back, images()), want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    "text", [NET.replace("Conv<pads=[1, 1, 1, 1]> (x, w1)", "Conv<pads=[1, 1, 1, 1]> (x, w1)  e = Identity (w1)")]
)
def test_a_kernel_that_others_use_too_is_left_alone(text: str) -> None:
    made = Normalised(nets.model(text, SHAPES), [images()])
    assert made.outputs == {"c"}


def test_channels_that_hardly_vary_are_not_blown_up() -> None:
    weight = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    weight[2] = 0
    made = Normalised(nets.model(NET, {**SHAPES, "w1": weight}), [images()])
    graph = graph_of(made.model)
    assert graph.array("a__scale")[2] > 0
    assert graph.array("a__scale")[2] < 0.01 * graph.array("a__scale").max()


def test_all_filters_are_of_one_size_while_they_train() -> None:
    graph = graph_of(Normalised(nets.model(NET, SHAPES), [images()]).model)
    for name in ("w1", "w2"):
        weight = graph.array(name)
        rms = np.sqrt((weight.reshape(len(weight), -1) ** 2).mean(1))
        np.testing.assert_allclose(rms, FILTER_RMS, rtol=1e-5)

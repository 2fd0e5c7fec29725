"""Networks of PyTorch made of graphs: names, sharing, zeros, and the way back."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch

import agmc_onnx
from agmc_onnx.errors import ModelError
from agmc_onnx.measuring.session import make_session, run_model
from tests import nets

NET = """
f (float[n, 3, 8, 8] x) => (float[n, 4] y) {
    a = Conv<pads=[1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    t = Conv<pads=[1, 1, 1, 1]> (r, w2)
    u = Conv<pads=[1, 1, 1, 1]> (t, w2)
    p = GlobalAveragePool (u)
    q = Flatten (p)
    y = Gemm (q, wf, bf)
}
"""
RENAMED = {"w1": "body.0.weight", "b1": "body.0.bias", "w2": "body/shared", "wf": "train", "bf": "body"}


def net(zeros: bool = False) -> onnx.ModelProto:
    model = nets.model(NET, {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (6, 6, 3, 3), "wf": (6, 4), "bf": (4,)}, 0)
    for node in model.graph.node:
        node.input[:] = [RENAMED.get(name, name) for name in node.input]
    for tensor in model.graph.initializer:
        tensor.name = RENAMED.get(tensor.name, tensor.name)
        if zeros and tensor.name == "body/shared":
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[:, ::2] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return model


def trained(model: onnx.ModelProto) -> torch.nn.Module:
    network = agmc_onnx.to_torch(model)
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-2)
    for _ in range(3):
        loss = (network(torch.randn(4, 3, 8, 8)) ** 2).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network


def test_parameters_lie_in_modules_after_their_names() -> None:
    network = agmc_onnx.to_torch(net())
    names = dict(network.named_parameters())
    assert network.names == {
        "body.0.weight": "body.0.weight", "body.0.bias": "body.0.bias", "body.shared": "body/shared",
        "train_": "train", "body_": "body",
    }  # fmt: skip
    assert set(names) == set(network.names) == set(network.state_dict())  # no name is lost, none is there twice
    assert isinstance(getattr(network.body, "0"), torch.nn.Module)


def test_a_trained_network_answers_as_its_file() -> None:
    model = net()
    network = trained(model)
    made = agmc_onnx.from_torch(network, like=model)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        wanted = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run_model(make_session(made), {"x": x})[0], wanted, rtol=1e-4, atol=1e-4)
    assert [(n.op_type, list(n.input)) for n in made.graph.node] == [
        (n.op_type, list(n.input)) for n in model.graph.node
    ]
    assert sorted(t.name for t in made.graph.initializer) == sorted(RENAMED.values())  # the shared one once
    assert agmc_onnx.from_torch(agmc_onnx.to_torch(model), like=model) == model
    again = agmc_onnx.from_torch(copy.deepcopy(network), like=model)
    assert again.SerializeToString(deterministic=True) == made.SerializeToString(deterministic=True)


def test_zeros_stay() -> None:
    made = agmc_onnx.from_torch(trained(net(zeros=True)), like=net(zeros=True))
    shared = next(onnx.numpy_helper.to_array(t) for t in made.graph.initializer if t.name == "body/shared")
    before = next(onnx.numpy_helper.to_array(t) for t in net(zeros=True).graph.initializer if t.name == "body/shared")
    assert not shared[:, ::2].any()
    assert (shared[:, 1::2] != before[:, 1::2]).all()


def test_a_module_of_another_model_is_refused() -> None:
    other = nets.model("f (float[n, 4] x) => (float[n, 2] y) { y = MatMul (x, w) }", {"w": (4, 2)}, 0)
    with pytest.raises(
        ModelError, match=r"parameter 'w': does not belong to this model, got nothing; expected \(4, 2\)"
    ):
        agmc_onnx.from_torch(agmc_onnx.to_torch(net()), like=other)


def test_export_to_torch(tmp_path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(net(), path)
    report = agmc_onnx.export(path, to="torch", seconds=0.1)
    assert report["ran"] and report["difference"]["max_abs"] < 1e-3
    program = torch.export.load(tmp_path / "net.pt2").module()
    x = torch.randn(1, 3, 8, 8)
    wanted = run_model(make_session(net()), {"x": x.numpy()})[0]
    np.testing.assert_allclose(program(x)[0].detach().numpy(), wanted, rtol=1e-4, atol=1e-4)

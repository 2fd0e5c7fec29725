from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from agmc_onnx.errors import ModelError
from agmc_onnx.graph.edit import with_arrays
from agmc_onnx.graph.view import graph_of
from agmc_onnx.measuring.session import make_session, run_model
from agmc_onnx.torch_view.module import OPS, TorchGraph, prepare, run_node, to_model
from tests import nets

torch.set_num_threads(1)


def both(proto: onnx.ModelProto, *arrays: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the outputs of onnxruntime and of torch."""
    module = TorchGraph(proto).eval()
    wanted = run_model(make_session(proto, optimise=False), dict(zip(module.inputs, arrays, strict=True)))
    with torch.no_grad():
        return list(wanted), [value.numpy() for value in module(*map(torch.from_numpy, arrays))]


def check(proto: onnx.ModelProto, *arrays: np.ndarray) -> None:
    # float32 rounding of some hundred additions, relative to the largest value
    for a, b in zip(*both(proto, *arrays), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert np.abs(a.astype(float) - b).max() <= 1e-5 * max(np.abs(a).max(), 1e-3)


IMAGE = (2, 6, 9, 8)
# One node on an image x: (operator and attributes, further inputs as arrays or shapes, opset)
ONE_NODE = [
    ("Conv<auto_pad='SAME_UPPER', strides=[2, 2]>", [(4, 6, 3, 3)], 17),
    ("Conv<auto_pad='SAME_LOWER', strides=[2, 2]>", [(4, 6, 4, 3), (4,)], 17),
    ("Conv<pads=[0, 1, 2, 0], dilations=[2, 1], group=2>", [(4, 3, 3, 3), (4,)], 17),
    ("Conv<group=6, pads=[1, 1, 1, 1]>", [(12, 1, 3, 3)], 17),
    ("ConvTranspose<strides=[2, 2], pads=[1, 0, 0, 1], output_padding=[1, 0]>", [(6, 4, 3, 3), (4,)], 17),
    ("ConvTranspose<strides=[2, 2], auto_pad='SAME_UPPER', group=2>", [(6, 2, 3, 3)], 17),
    ("ConvTranspose<strides=[3, 2], output_shape=[28, 18], dilations=[2, 1]>", [(6, 4, 3, 3)], 17),
    ("MaxPool<kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, pads=[0, 0, 1, 1]>", [], 17),
    ("MaxPool<kernel_shape=[3, 3], strides=[2, 2], auto_pad='SAME_UPPER'>", [], 17),
    ("MaxPool<kernel_shape=[2, 2], dilations=[2, 2]>", [], 17),
    ("AveragePool<kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]>", [], 17),
    ("AveragePool<kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1], count_include_pad=1>", [], 17),
    ("AveragePool<kernel_shape=[3, 2], strides=[2, 2], auto_pad='SAME_UPPER'>", [], 17),
    ("AveragePool<kernel_shape=[2, 2], strides=[2, 2]>", [], 7),
    ("GlobalAveragePool", [], 17),
    ("GlobalMaxPool", [], 17),
    ("LpPool<kernel_shape=[2, 2], p=2>", [], 17),
    ("LRN<size=5, alpha=0.5, beta=0.75, bias=2.0>", [], 17),
    ("InstanceNormalization", [(6,), (6,)], 17),
    ("LayerNormalization<axis=-2>", [(9, 8), (9, 8)], 17),
    ("GroupNormalization<num_groups=3>", [(3,), (3,)], 18),
    ("GroupNormalization<num_groups=3>", [(6,), (6,)], 21),
    ("MeanVarianceNormalization", [], 17),
    ("LpNormalization<axis=1>", [], 17),
    ("PRelu", [(6, 1, 1)], 17),
    ("LeakyRelu<alpha=0.2>", [], 17), ("Elu", [], 17), ("Selu", [], 17), ("HardSigmoid", [], 17), ("HardSwish", [], 17),
    ("Softplus", [], 17), ("Softsign", [], 17), ("Mish", [], 18), ("Gelu", [], 20), ("Gelu<approximate='tanh'>", [], 20),
    ("Celu", [], 17), ("ThresholdedRelu", [], 17), ("Erf", [], 17), ("Shrink<bias=0.1, lambd=0.3>", [], 17),
    ("Clip<min=-0.5, max=0.5>", [], 7),
    ("Clip", [np.float32(-0.5), np.float32(0.25)], 17),
    ("Softmax", [], 11), ("Softmax", [], 17), ("LogSoftmax<axis=1>", [], 17), ("Softmax<axis=2>", [], 9),
    ("Pad<mode='reflect', pads=[0, 0, 1, 2, 0, 0, 2, 1]>", [], 10),
    ("Pad<mode='edge'>", [np.array([0, 0, 1, 2, 0, 0, 2, 1])], 17),
    ("Pad<mode='wrap'>", [np.array([1, 2, 2, 1]), np.float32(0), np.array([2, 3])], 19),
    ("Pad", [np.array([0, 0, 1, -2, 0, 0, 2, 1]), np.float32(0.5)], 17),
    ("Resize<mode='nearest'>", [np.empty(0, np.float32), np.array([1, 1, 2, 1.5], np.float32)], 17),
    ("Resize<mode='linear'>", [np.empty(0, np.float32), np.array([1, 1, 2, 0.6], np.float32)], 17),
    ("Resize<mode='cubic'>", [np.empty(0, np.float32), np.array([1, 1, 2, 0.6], np.float32)], 17),
    ("Resize<mode='linear', coordinate_transformation_mode='align_corners'>",
     [np.empty(0, np.float32), np.empty(0, np.float32), np.array([2, 6, 17, 5])], 17),
    ("Resize<mode='nearest', coordinate_transformation_mode='asymmetric', nearest_mode='floor'>",
     [np.empty(0, np.float32), np.array([1, 1, 2, 2], np.float32)], 11),
    ("Resize<mode='linear', coordinate_transformation_mode='pytorch_half_pixel'>",
     [np.empty(0, np.float32), np.array([1, 1, 0.5, 2], np.float32)], 13),
    ("Upsample<mode='nearest'>", [np.array([1, 1, 2, 3], np.float32)], 9),
    ("Upsample<mode='nearest', scales=[1.0, 1.0, 2.0, 2.0]>", [], 7),
    ("SpaceToDepth<blocksize=1>", [], 17),
    ("Transpose<perm=[0, 2, 3, 1]>", [], 17), ("Flatten<axis=2>", [], 17), ("Flatten<axis=-1>", [], 17),
    ("Reshape", [np.array([0, -1, 4])], 17),
    ("Slice<starts=[1, -5], ends=[5, 1000], axes=[1, 2]>", [], 9),
    ("Slice", [np.array([-1, 0]), np.array([-1000, 7]), np.array([2, 3]), np.array([-2, 3])], 17),
    ("Gather<axis=1>", [np.array([[0, -1], [3, 2]])], 17), ("Gather<axis=2>", [np.array(3)], 17),
    ("Unsqueeze<axes=[0, 3]>", [], 11), ("Unsqueeze", [np.array([-1, 0])], 17),
    ("Expand", [np.array([3, 1, 1, 1, 1])], 17), ("Tile", [np.array([1, 2, 1, 3])], 17),
    ("ReduceMean<axes=[2, 3]>", [], 17), ("ReduceMean<keepdims=0>", [np.array([-1])], 18),
    ("ReduceSum<noop_with_empty_axes=1>", [], 17), ("ReduceL2<axes=[1], keepdims=0>", [], 17), ("ReduceMax", [], 17),
    ("ReduceLogSumExp<axes=[1, 2]>", [], 17), ("ReduceProd<axes=[1, 2], keepdims=0>", [], 17),
    ("ArgMax<axis=1>", [], 17), ("CumSum<reverse=1, exclusive=1>", [np.array(1)], 17), ("Trilu<upper=0>", [], 17),
    ("Einsum<equation='nchw, cd -> nhwd'>", [(6, 5)], 17), ("MatMul", [(8, 5)], 17),
    ("Pow", [np.float32(2)], 17), ("Sum", [(6, 1, 1), (9, 8)], 17), ("Mean", [(6, 1, 1)], 17), ("Max", [(8,)], 17),
    ("Cast<to=7>", [], 17), ("Dropout", [], 17), ("Round", [], 17), ("Mod<fmod=1>", [np.full(1, 0.3, np.float32)], 17),
]  # fmt: skip


@pytest.mark.parametrize(("node", "rest", "opset"), ONE_NODE, ids=lambda v: v if isinstance(v, str) else "")
def test_a_node_gives_what_onnxruntime_gives(node: str, rest: list, opset: int) -> None:
    names = [f"w{i}" for i in range(len(rest))]
    name, _, attributes = node.replace("'", '"').partition("<")
    line = f"y = {name}{('<' + attributes) if attributes else ''} (" + ", ".join(["x", *names]) + ")"
    kind = "int64" if name == "ArgMax" or "to=7" in attributes else "float"
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    weights = {
        n: np.asarray(v) if isinstance(v, np.ndarray | np.generic) else v for n, v in zip(names, rest, strict=True)
    }
    proto = nets.model(f"{head} f (float[n, 6, 9, 8] x) => ({kind}[] y) {{ {line} }}", weights)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    x = (np.random.default_rng(1).standard_normal(IMAGE) * 2).astype(np.float32)
    check(proto, x)


NET = """
f (float[n, 3, 8, 8] x) => (float[n, 5] y) {
    c = Conv<pads=[1, 1, 1, 1]> (x, w1, b1)
    n1 = BatchNormalization (c, g, beta, mean, var)
    r = Relu (n1)
    t = Conv<pads=[1, 1, 1, 1]> (r, w2)
    s = Add (r, t)
    i = Identity (w2)
    u = Conv<pads=[1, 1, 1, 1]> (s, i)
    h = Sigmoid (u)
    m = Mul (h, s)
    p = GlobalAveragePool (m)
    shape = Shape (p)
    one = Constant<value = int64[1] {0}> ()
    batch = Gather<axis=0> (shape, one)
    rest = Constant<value = int64[1] {-1}> ()
    target = Concat<axis=0> (batch, rest)
    q = Reshape (p, target)
    y = Gemm<transB=1> (q, wf, bf)
}
"""
WEIGHTS = {
    "w1": (4, 3, 3, 3), "b1": (4,), "g": (4,), "beta": (4,), "mean": (4,),
    "var": np.linspace(0.5, 1.5, 4, dtype=np.float32), "w2": (4, 4, 3, 3), "wf": (5, 4), "bf": (5,),
}  # fmt: skip


def images(n: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 3, 8, 8)).astype(np.float32)


def test_a_net_gives_what_onnxruntime_gives() -> None:
    check(nets.model(NET, WEIGHTS), images())


def test_floats_are_parameters_statistics_are_buffers_and_shared_tensors_are_one() -> None:
    module = TorchGraph(nets.model(NET, WEIGHTS))
    learned = {module.names[key] for key, _ in module.named_parameters()}
    assert learned == {"w1", "b1", "g", "beta", "w2", "wf", "bf"}
    assert {module.names[key] for key, _ in module.named_buffers() if key in module.names} == {"mean", "var"}


def test_settings_are_not_learned() -> None:
    text = "f (float[n, 4] x) => (float[n, 4] y) { a = Mul (x, s)  b = Add (a, v)  y = Clip (b, l, h) }"
    weights = {name: np.array(v, np.float32) for name, v in (("s", 2), ("l", -1), ("h", 1))}
    module = TorchGraph(nets.model(text, {**weights, "v": (4,)}))
    assert [module.names[key] for key, _ in module.named_parameters()] == ["v"]


def test_gradients_agree_with_finite_differences() -> None:
    module = TorchGraph(nets.model(NET, WEIGHTS)).double().eval()
    x = torch.from_numpy(images(2)).double()
    parameters = list(module.parameters())
    assert torch.autograd.gradcheck(lambda *_: module(x)[0], parameters, eps=1e-6, atol=1e-6, rtol=1e-4)


def test_gradients_in_training_mode_agree_with_finite_differences() -> None:
    module = TorchGraph(nets.model(NET, WEIGHTS)).double().train()
    x = torch.from_numpy(images(2)).double()
    assert torch.autograd.gradcheck(lambda *_: module(x)[0], list(module.parameters()), eps=1e-6, atol=1e-6, rtol=1e-4)


def test_training_mode_learns_statistics() -> None:
    proto = nets.model(NET, WEIGHTS)
    module = TorchGraph(proto).train()
    x = torch.from_numpy(images(4))
    before = module.constant("mean").clone()
    module(x)
    batch = module.eval().run({"x": x}, ["c"])["c"].mean((0, 2, 3))
    assert torch.allclose(module.constant("mean"), 0.9 * before + 0.1 * batch, atol=1e-6)
    frozen = TorchGraph(proto).train().freeze_statistics()
    frozen(x)
    assert torch.equal(frozen.constant("mean"), before)


def test_trained_numbers_go_back_into_the_model() -> None:
    proto = nets.model(NET, WEIGHTS)
    data = proto.SerializeToString()
    module = TorchGraph(proto).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    new = to_model(module, proto)
    assert proto.SerializeToString() == data
    assert [n.op_type for n in new.graph.node] == [n.op_type for n in proto.graph.node]
    x = images()
    wanted = run_model(make_session(new), {"x": x})[0]
    assert np.allclose(module(torch.from_numpy(x))[0].detach().numpy(), wanted, atol=1e-5)


def test_constant_nodes_are_written_back() -> None:
    text = "f (float[n, 2] x) => (float[n, 2] y) { c = Constant<value = float[2] {1, 2}> ()  y = Mul (x, c) }"
    proto = nets.model(text)
    new = with_arrays(proto, {"c": np.array([3.0, 4.0])})
    assert graph_of(new).array("c").tolist() == [3, 4]
    with pytest.raises(ModelError, match=r"c: shape changed, got \[3\]; expected \[2\]"):
        with_arrays(proto, {"c": np.zeros(3)})


def test_values_inside_the_graph_can_be_asked_for() -> None:
    module = TorchGraph(nets.model(NET, WEIGHTS)).eval()
    found = module.run({"x": torch.from_numpy(images())}, ["r", "w1"])
    assert found["r"].shape == (3, 4, 8, 8) and found["w1"].shape == (4, 3, 3, 3)
    with pytest.raises(ModelError, match=r"no such values, got \['nowhere'\]"):
        module.run({"x": torch.from_numpy(images())}, ["nowhere"])


GATED = """
f (float[n, 3, 8, 8] x) => (float[n, 4, 8, 8] y) {
    a = Conv<pads=[1, 1, 1, 1]> (x, w)
    s = Sigmoid (a)
    b = Mul (s, a)
    t = Sigmoid (b)
    c = Mul (b, t)
    y = Add (c, t)
}
"""


def test_gates_are_one_node_while_training_and_say_the_same() -> None:
    proto = nets.model(GATED, {"w": (4, 3, 3, 3)})
    module, x = TorchGraph(proto), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plain, fused = module.eval().run({"x": x})["y"], module.train().run({"x": x})["y"]
    assert module._swish[1] is None and module._swish[3] is not None  # t has another user
    torch.testing.assert_close(fused, plain, rtol=1e-6, atol=1e-6)
    assert torch.equal(module.run({"x": x}, ["s"])["s"], module.eval().run({"x": x}, ["s"])["s"])


def test_a_cut_keeps_what_is_learned_behind_it_from_what_is_before_it() -> None:
    module = TorchGraph(nets.model(NET, WEIGHTS)).eval()
    feed = {"x": torch.from_numpy(images())}
    whole, cut = module.run(feed, ["r", "y"]), module.run(feed, ["r", "y"], cut=["r"])
    assert torch.equal(whole["y"], cut["y"]) and torch.equal(whole["r"], cut["r"])
    named = {name: parameter for key, parameter in module.named_parameters() for name in [module.names[key]]}
    cut["y"].sum().backward(retain_graph=True)
    assert named["wf"].grad is not None and named["w1"].grad is None
    cut["r"].sum().backward()
    assert named["w1"].grad is not None


def test_an_unknown_op_is_named() -> None:
    text = "f (float[n, 4] x) => (float[n, 4] y) { y = com.example.Magic (x) }"
    proto = nets.model('<ir_version: 8, opset_import: ["" : 17, "com.example" : 1]>\n' + text)
    with pytest.raises(ModelError, match=r"Magic y: torch has no counterpart of this op here, got com.example.Magic"):
        TorchGraph(proto)


def test_a_node_that_fails_is_named_with_its_shapes() -> None:
    node = graph_of(nets.model("f (float[2, 3] x, float[4, 5] w) => (float[2, 5] y) { y = MatMul (x, w) }")).nodes[0]
    with pytest.raises(ModelError, match=r"MatMul y: torch cannot run this node.*\(2, 3\), \(4, 5\)"):
        run_node(node, [torch.zeros(2, 3), torch.zeros(4, 5)])
    assert prepare(node, 17).op_type in OPS

"""What is learned of answers that are no class scores, and models that are made for one sample at a time."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch

from agmc_onnx.data.samples import Samples, synthetic
from agmc_onnx.distill import distillation
from agmc_onnx.distill.distillation import distill
from agmc_onnx.distill.hints import hints_of
from agmc_onnx.distill.losses import loss_of
from agmc_onnx.distill.sizes import by_size, filter_sizes
from agmc_onnx.errors import UsageError
from agmc_onnx.graph.view import graph_of
from agmc_onnx.measuring.accuracy import Evaluator
from agmc_onnx.measuring.outputs import Answer
from agmc_onnx.measuring.session import make_session, model_inputs, run_model
from agmc_onnx.refit.goals import Goal, output_goals
from agmc_onnx.refit.options import RecoverOptions
from agmc_onnx.torch_view.batches import takes_batches, with_open_batch
from agmc_onnx.torch_view.module import TorchGraph
from tests import nets

torch.set_num_threads(1)
DETECTOR = """
f (float[1, 3, 32, 32] x) => (float[1, 21, 8] y) {
    a = Conv<strides=[2, 2], pads=[1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    c = Conv<strides=[4, 4], kernel_shape=[4, 4]> (r, w2, b2)
    s = Relu (c)
    p1 = Conv (s, w3, b3)
    m = MaxPool<kernel_shape=[2, 2], strides=[2, 2]> (s)
    p2 = Conv (m, w3, b3)
    m2 = MaxPool<kernel_shape=[2, 2], strides=[2, 2]> (m)
    p3 = Conv (m2, w3, b3)
    f1 = Reshape (p1, t16)
    f2 = Reshape (p2, t4)
    f3 = Reshape (p3, t1)
    all = Concat<axis=2> (f1, f2, f3)
    rows = Transpose<perm=[0, 2, 1]> (all)
    place = Slice (rows, zero, four, two)
    rest = Slice (rows, four, end, two)
    bits = Sigmoid (rest)
    y = Concat<axis=2> (place, bits)
}
"""
WEIGHTS = {
    "w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 4, 4), "b2": (8,), "w3": (8, 8, 1, 1), "b3": (8,),
    "t16": np.array([1, 8, 16]), "t4": np.array([1, 8, -1]), "t1": np.array([1, 8, 1]),
    "zero": np.array([0]), "four": np.array([4]), "two": np.array([2]), "end": np.array([8]),
}  # fmt: skip


def detector(seed: int = 0) -> onnx.ModelProto:
    return nets.model(DETECTOR, WEIGHTS, seed)


def changed(model: onnx.ModelProto, scale: float) -> onnx.ModelProto:
    """Return the model with noise on its first two kernels."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    for tensor in found.graph.initializer:
        if tensor.name in ("w1", "w2"):
            array = onnx.numpy_helper.to_array(tensor)
            noise = np.random.default_rng(3).standard_normal(array.shape).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array + scale * array.std() * noise, tensor.name))
    return found


def outputs(model: onnx.ModelProto, samples: Samples) -> np.ndarray:
    session = make_session(model)
    return np.concatenate([run_model(session, feed)[0] for feed in samples.feeds(1)])


def test_a_model_of_one_sample_at_a_time_learns_from_several() -> None:
    model = detector()
    opened = with_open_batch(model)
    assert [onnx.numpy_helper.to_array(t)[0] for t in opened.graph.initializer if t.name in ("t16", "t4", "t1")] == [
        0,
        0,
        0,
    ]
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)}
    both = run_model(make_session(opened), feed)[0]
    alone = [run_model(make_session(model), {"x": feed["x"][i : i + 1]})[0] for i in range(2)]
    np.testing.assert_allclose(both, np.concatenate(alone), rtol=1e-5, atol=1e-6)
    assert takes_batches(TorchGraph(graph_of(opened)), {"x": torch.from_numpy(feed["x"])})


def test_samples_that_look_at_each_other_are_not_taken_together() -> None:
    mixed = nets.model("f (float[1, 4] x) => (float[1, 4] y) { m = ReduceMean<axes=[0]> (x) y = Sub (x, m) }", {}, 0)
    feed = {"x": torch.tensor([[1.0, 2, 3, 4], [4, 3, 2, 0]])}
    assert not takes_batches(TorchGraph(graph_of(with_open_batch(mixed))), feed)


def test_a_detector_learns_and_never_loses_what_it_had() -> None:
    teacher, student = detector(), changed(detector(), 0.7)
    samples = synthetic(model_inputs(teacher), 48, 0)
    options = RecoverOptions(n_steps=60, learning_rate=2e-2)
    tuned = distill(student, teacher, samples, options)
    (goal,) = output_goals(graph_of(teacher))
    assert goal.answer is not None and (goal.answer.kind, goal.answer.form) == ("detections", "raw")
    held = synthetic(model_inputs(teacher), 32, 9)
    judge = Evaluator(held, "agreement", reference=teacher, original=teacher)
    assert judge(tuned).fidelity > judge(student).fidelity + 3
    wild = distill(student, teacher, samples, RecoverOptions(n_steps=30, learning_rate=9.0))
    assert judge(wild).fidelity > judge(student).fidelity - 1


def test_steps_that_make_it_worse_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = detector(), changed(detector(), 0.7)
    made = []
    init = distillation._Distillation.__init__
    monkeypatch.setattr(
        distillation._Distillation, "__init__", lambda self, *args: (init(self, *args), made.append(self))[0]
    )
    distill(student, teacher, synthetic(model_inputs(teacher), 48, 0), RecoverOptions(n_steps=30, learning_rate=9.0))
    assert made[0].share_of_rate < distillation.OWN_SHARE
    assert made[0]._batch_rows() == 8


def test_hints_are_the_channels_that_are_left() -> None:
    teacher = detector()
    student = onnx.ModelProto()
    student.CopyFrom(teacher)
    kept = [0, 2, 3, 7]
    for tensor in student.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if tensor.name in ("w1", "b1"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(array[kept], tensor.name))
        elif tensor.name == "w2":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array[:, kept]), tensor.name))
    found = hints_of(graph_of(student), graph_of(teacher), {"w1": {"0": kept}, "w2": {"1": kept}})
    assert [hint.value for hint in found] == ["a", "c", "p1", "p2", "p3"]
    value = torch.arange(8.0).reshape(1, 8, 1, 1)
    assert found[0].of(value).flatten().tolist() == kept and found[1].kept is None


@pytest.mark.parametrize(
    ("answer", "shapes"),
    [
        (Answer("detections", (0,), 2, "raw"), [(2, 5, 8)]),
        (Answer("detections", (0,), 2, "objectness"), [(2, 5, 8)]),
        (Answer("detections", (0,), 1, "classes"), [(2, 8, 5)]),
        (Answer("detections", (0, 1), 2, "pair", background=0), [(2, 5, 4), (2, 5, 3)]),
        (Answer("detections", (0, 1), 2, "pair of logits, centres", background=2), [(2, 5, 4), (2, 5, 3)]),
        (Answer("embedding", (0,), 1), [(2, 8)]),
        (Answer("mask", (0,)), [(2, 1, 4, 4)]),
        (Answer("positions", (0,), 2), [(2, 5, 8)]),
        (Answer("positions", (0,), 2, "probabilities"), [(2, 5, 8)]),
    ],
    ids=lambda value: getattr(value, "kind", None) and f"{value.kind} {value.form}",
)
def test_losses_are_zero_for_equals_and_pull_towards_them(answer: Answer, shapes: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    theirs = [torch.rand(shape) for shape in shapes]
    goal = Goal("y", False, answer, tuple("z" for _ in shapes[1:]))
    assert float(loss_of(goal, theirs, theirs, 4.0)) == pytest.approx(0, abs=1e-6)
    ours = [(value + 0.2 * torch.rand(value.shape)).clamp(0, 1).requires_grad_() for value in theirs]
    before = loss_of(goal, ours, theirs, 4.0)
    pulls = torch.autograd.grad(before, ours)
    after = loss_of(goal, [a - 0.01 * g / (g.norm() + 1e-9) for a, g in zip(ours, pulls, strict=True)], theirs, 4.0)
    assert float(before.detach()) > 0 and float(after.detach()) < float(before.detach())


def test_a_softmax_over_positions_is_learned_before_it() -> None:
    net = nets.model(
        "f (float[n, 5, 4] x) => (float[n, 5, 6] y) { h = MatMul (x, w) y = Softmax (h) }", {"w": (4, 6)}, 0
    )
    (goal,) = output_goals(graph_of(net))
    assert (goal.value, goal.is_logits, goal.answer.kind) == ("h", True, "positions")


def test_a_loss_of_the_users_own_is_made_small() -> None:
    teacher, student = detector(), changed(detector(), 0.7)
    samples = synthetic(model_inputs(teacher), 32, 0)

    def loss(ours, theirs, labels):
        assert labels is None and ours["y"].shape == theirs["y"].shape
        return ((ours["y"][..., :2] - 3) ** 2).mean()

    tuned = distill(student, teacher, samples, RecoverOptions(n_steps=40, learning_rate=3e-2), loss=loss)
    before, after = (((outputs(model, samples)[..., :2] - 3) ** 2).mean() for model in (student, tuned))
    assert after < 0.5 * before
    for wrong, text in ((lambda *_: 1 / 0, "the function failed, got ZeroDivisionError"), (lambda *_: 3, "gave int")):
        with pytest.raises(UsageError, match=f"--loss: .*{text}"):
            distill(student, teacher, samples, RecoverOptions(n_steps=1), loss=wrong)


def test_a_step_is_a_share_of_the_size_of_a_filter() -> None:
    small, large = torch.full((2, 3, 1, 1), 0.01), torch.full((2, 3, 1, 1), 20.0)
    small[1] = 1e-9  # nearly nothing: as if it were a twentieth of the tensor
    parameters = [torch.nn.Parameter(value) for value in (small, large, torch.zeros(2), torch.full((2,), 3.0))]
    sizes = filter_sizes(parameters)
    whole = 0.01 / math.sqrt(2)
    assert [size.flatten().tolist() for size in sizes] == [
        pytest.approx(found) for found in ([0.01, 0.05 * whole], [20.0, 20.0], [0.1], [3.0])
    ]
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.5
    by_size(parameters, before, sizes)
    for parameter, old, size in zip(parameters, before, sizes, strict=True):
        torch.testing.assert_close(parameter.detach(), old + 0.5 * size)

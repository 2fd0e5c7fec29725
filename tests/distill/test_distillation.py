from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from agmc_onnx.data.samples import Samples, synthetic
from agmc_onnx.distill.distillation import CHECKPOINT, _augmented, distill
from agmc_onnx.errors import ModelError, Notice, UsageError
from agmc_onnx.measuring.session import make_session, model_inputs, run_model
from agmc_onnx.refit.options import RecoverOptions
from tests import nets

torch.set_num_threads(1)
NET = """
f (float[n, 3, 8, 8] x) => (float[n, 4] y) {
    a = Conv<pads=[1, 1, 1, 1]> (x, w1)
    b = BatchNormalization (a, g, beta, mean, var)
    r = Relu (b)
    t = Conv<pads=[1, 1, 1, 1]> (r, w2, b2)
    s = Add (r, t)
    p = GlobalAveragePool (s)
    q = Flatten (p)
    z = Gemm (q, wf, bf)
    y = Softmax (z)
}
"""
WEIGHTS = {
    "w1": (6, 3, 3, 3), "g": (6,), "beta": (6,), "mean": (6,), "var": np.linspace(0.5, 1.5, 6, dtype=np.float32),
    "w2": (6, 6, 3, 3), "b2": (6,), "wf": (6, 4), "bf": (4,),
}  # fmt: skip
OPTIONS = RecoverOptions(n_steps=30, train_batch_size=16, learning_rate=1e-2)


def net(seed: int = 0) -> onnx.ModelProto:
    proto = nets.model(NET, WEIGHTS, seed)
    for tensor in proto.graph.initializer:
        if tensor.name == "wf":  # else all answers are much the same
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 8, "wf"))
    return proto


def draw(n: int = 64) -> Samples:
    return synthetic(model_inputs(net()), n, 0)


def divergence(student: onnx.ModelProto) -> float:
    """Return the Kullback-Leibler divergence from the teacher's answers on new samples."""
    feed = synthetic(model_inputs(student), 64, 5).feeds(64)[0]
    p, q = (run_model(make_session(m), feed)[0] for m in (net(), student))
    return float((p * np.log(p / q)).sum(1).mean())


@pytest.mark.parametrize(
    "changes",
    [{}, {"optimiser": "sgd"}, {"loss": "mse"}, {"block_share": 0.2}, {"block_share": 0.0}, {"train_statistics": True}],
    ids=str,
)
def test_a_student_comes_nearer_to_its_teacher(changes: dict) -> None:
    student = net(1)
    data = student.SerializeToString()
    options = RecoverOptions(**{"n_steps": 60, "train_batch_size": 16, "learning_rate": 1e-2, **changes})
    new = distill(student, net(), draw(), options)
    assert student.SerializeToString() == data
    assert divergence(new) < 0.7 * divergence(student)
    onnx.checker.check_model(new)


def test_the_same_seed_gives_the_same_student() -> None:
    runs = [distill(net(1), net(), draw(), OPTIONS, augment=("flip", "crop")) for _ in range(2)]
    assert runs[0].SerializeToString() == runs[1].SerializeToString()


def test_a_step_takes_fewer_samples_where_their_activations_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, read = [], Samples.read
    monkeypatch.setattr(Samples, "read", lambda self, rows: taken.append(len(rows)) or read(self, rows))
    distill(net(1), net(), draw(), RecoverOptions(n_steps=1, train_batch_size=16, train_memory_bytes=60_000))
    assert taken and set(taken) == {4}  # a, r, t and s of a sample are (6, 8, 8): 1,536 bytes each, counted twice


def test_an_interrupted_run_is_taken_up_again(tmp_path: Path) -> None:
    options = RecoverOptions(n_steps=30, train_batch_size=16, learning_rate=1e-2, save_every=10)
    whole = distill(net(1), net(), draw(), options)
    steps: list[int] = []
    folder = tmp_path / "out.run"  # nobody has made it

    def stop(step: int, _: int, __: object) -> None:
        steps.append(step)
        if step == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(net(1), net(), draw(), options, stop, folder=folder)
    assert (folder / CHECKPOINT).is_file()
    again = distill(net(1), net(), draw(), options, lambda step, *_: steps.append(step), folder=folder)
    assert steps == [*range(1, 16), *range(11, 31)]
    assert again.SerializeToString() == whole.SerializeToString()
    assert not folder.exists()


def test_a_checkpoint_of_another_run_is_passed_over(tmp_path: Path) -> None:
    options = RecoverOptions(n_steps=4, train_batch_size=16, save_every=2)

    def stop(step: int, _: int, __: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(net(1), net(), draw(), options, stop, folder=tmp_path)
    steps: list[int] = []
    distill(net(2), net(), draw(), options, lambda step, *_: steps.append(step), folder=tmp_path)
    assert steps == [1, 2, 3, 4]


def test_a_damaged_checkpoint_is_set_aside(tmp_path: Path) -> None:
    options = RecoverOptions(n_steps=4, train_batch_size=16, save_every=2)
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    steps: list[int] = []
    with pytest.warns(
        Notice, match=r"\.damaged: the checkpoint cannot be read \(\w+\) and was set aside; the run begins anew\."
    ):
        distill(net(1), net(), draw(), options, lambda step, *_: steps.append(step), folder=tmp_path)
    assert steps == [1, 2, 3, 4] and (tmp_path / f"{CHECKPOINT}.damaged").read_bytes() == b"no checkpoint"


def test_the_best_rewarded_model_is_returned_and_training_stops_early() -> None:
    rewards = iter([0.5, 0.7, 0.6, 0.6, 0.9])
    seen: list[onnx.ModelProto] = []

    def reward(model: onnx.ModelProto) -> float:
        seen.append(model)
        return next(rewards)

    told: list[dict] = []
    options = RecoverOptions(n_steps=100, train_batch_size=16, evaluate_every=2, patience=2)
    best = distill(net(1), net(), draw(), options, lambda *a: told.append(dict(a[2])), reward=reward)
    assert len(told) == 6 and [t["reward"] for t in told if "reward" in t] == [0.7, 0.6, 0.6]
    assert best.SerializeToString() == seen[1].SerializeToString()


def test_a_student_that_only_gets_worse_is_returned_as_it_was() -> None:
    student = net()  # its own teacher
    assert distill(student, net(), draw(), OPTIONS).SerializeToString() == student.SerializeToString()


def test_labels_are_learned_where_asked_for() -> None:
    samples = draw()
    samples.labels = np.zeros(64, np.int64)
    plain, labelled = (
        distill(
            net(1),
            net(),
            samples,
            RecoverOptions(n_steps=30, train_batch_size=16, label_weight=weight, learning_rate=1e-2),
        )
        for weight in (0.0, 10.0)
    )
    feed = samples.feeds(64)[0]
    first = [run_model(make_session(m), feed)[0][:, 0].mean() for m in (plain, labelled)]
    assert first[1] > first[0]


def test_images_are_flipped_and_shifted_in_either_layout() -> None:
    images = torch.arange(2 * 3 * 16 * 16.0).reshape(2, 3, 16, 16)
    seed = torch.Generator().manual_seed(0)
    first = _augmented(images, ("flip", "crop"), seed)
    again = _augmented(images.permute(0, 2, 3, 1), ("flip", "crop"), torch.Generator().manual_seed(0))
    assert first.shape == images.shape and not torch.equal(first, images)
    assert torch.equal(again.permute(0, 3, 1, 2), first)
    flipped = _augmented(images, ("flip",), torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) or torch.equal(a.flip(2), b) for a, b in zip(images, flipped, strict=True))


def test_unknown_options_are_refused() -> None:
    with pytest.raises(UsageError, match="distill: unknown loss, got 'l3'; expected one of kl, mse"):
        distill(net(1), net(), draw(), RecoverOptions(loss="l3"))
    with pytest.raises(UsageError, match="distill: unknown optimiser, got 'lion'; expected one of adamw, sgd"):
        distill(net(1), net(), draw(), RecoverOptions(optimiser="lion"))
    with pytest.raises(UsageError, match=r"distill: unknown augmentation, got \['colour'\]"):
        distill(net(1), net(), draw(), augment=("colour",))


def test_a_model_without_float_outputs_is_refused() -> None:
    proto = nets.model("f (float[n, 4] x) => (int64[n, 1] y) { a = Mul (x, w)  y = ArgMax<axis=1> (a) }", {"w": (4,)})
    with pytest.raises(ModelError, match="distill: the model has no float output"):
        distill(proto, proto, synthetic(model_inputs(proto), 8, 0))


def test_a_loss_that_explodes_is_an_error() -> None:
    options = RecoverOptions(n_steps=200, learning_rate=1e30, optimiser="sgd", train_batch_size=16)
    with pytest.raises(ModelError, match=r"distill: the loss is (nan|inf) at step \d+; expected a number"):
        distill(net(1), net(), draw(), options)

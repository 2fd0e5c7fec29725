"""Scores and sessions: values by hand, degenerate outputs, every error's text, and the real models where they lie."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy.stats import binomtest

from agmc_onnx.data.card import NEEDS_LABELS
from agmc_onnx.data.samples import InputSpec, Samples, load_card, open_data, synthetic
from agmc_onnx.errors import AgmcError, DataError, ModelError, UsageError
from agmc_onnx.measuring import session as session_module
from agmc_onnx.measuring.accuracy import METRICS, Evaluator
from agmc_onnx.measuring.agreeing import wilson
from agmc_onnx.measuring.closeness import class_scores
from agmc_onnx.measuring.session import make_session, model_inputs, provider_of, run_model
from tests.measuring.agreement import agree

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the real models and images are not at {SHARED}")
    return SHARED


def parse(body: str, signature: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\ng {signature} {{ {body} }}')


def identity(shape: str = "N, 4") -> onnx.ModelProto:
    return parse("y = Identity(x)", f"(float[{shape}] x) => (float[{shape}] y)")


def shifted(amount: float) -> onnx.ModelProto:
    """Adds `amount` to class 1 of 4, so that it wins more often."""
    return parse("y = Add(x, b)", f"(float[N, 4] x) => (float[N, 4] y) <float[4] b = {{0, {amount}, 0, 0}}>")


def rows(x: list | np.ndarray, labels: list[int] | None, fixed_batch: int | None = None) -> Samples:
    """Samples of one input x."""
    array = np.asarray(x, np.float32)
    y = None if labels is None else np.asarray(labels, np.int64)
    return Samples("t test", lambda i: {"x": array[i]}, np.arange(len(array)), y, fixed_batch=fixed_batch)


SCORES = [[9, 1, 0, 0], [0, 1, 0, 2], [0, 3, 1, 0], [0, 1, 5, 0], [4, 1, 0, 0]]  # classes 0, 3, 1, 2, 0


def fails(text: str, error: type[AgmcError]):
    return pytest.raises(error, match="^" + re.escape(text) + "$")


# --- scores


def test_the_tables_name_the_same_metrics() -> None:
    assert METRICS.keys() == NEEDS_LABELS.keys()


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_top1(batch_size: int) -> None:
    evaluator = Evaluator(rows(SCORES, [0, 3, 1, 0, 1]), "top1", batch_size=batch_size)
    evaluation = evaluator(identity(), keep_outputs=True)
    score = evaluation.score
    assert (score.name, score.value, score.n) == ("top1", 60.0, 5)
    assert evaluation.inference_s > 0 and evaluation.session_s > 0
    np.testing.assert_array_equal(evaluation.outputs[0], np.float32(SCORES))
    assert evaluator(identity()).outputs is None


def test_top1_of_probabilities_and_of_outputs_with_spatial_dims() -> None:
    samples = rows(SCORES, [0, 3, 1, 0, 1])
    softmax = parse("y = Softmax<axis = 1>(x)", "(float[N, 4] x) => (float[N, 4] y)")
    spatial = parse("y = Reshape(x, s)", "(float[N, 4] x) => (float[N, 4, 1, 1] y) <int64[4] s = {-1, 4, 1, 1}>")
    middle = parse("y = Reshape(x, s)", "(float[N, 4] x) => (float[N, 1, 4] y) <int64[3] s = {-1, 1, 4}>")
    assert [Evaluator(samples)(model).score.value for model in (softmax, spatial, middle)] == [60.0] * 3


def test_top5_and_ties_that_go_to_the_lower_class() -> None:
    samples = rows(np.arange(12).reshape(2, 6), [1, 0])
    model = identity("N, 6")
    assert [Evaluator(samples, name)(model).score.value for name in ("top1", "top5")] == [0.0, 50.0]
    dead = parse("y = Mul(x, z)", "(float[N, 6] x) => (float[N, 6] y) <float[1] z = {0}>")
    labels = rows(np.ones((6, 6)), [0, 1, 2, 3, 4, 5])  # a dead network may not win by equal scores
    assert [Evaluator(labels, name)(dead).score.value for name in ("top1", "top5")] == pytest.approx([100 / 6, 500 / 6])


def test_nan_counts_as_wrong() -> None:
    x = np.float32(SCORES)
    x[0, 2] = np.nan
    assert Evaluator(rows(x, [0, 3, 1, 2, 0]))(identity()).score.value == 80.0
    evaluator = Evaluator(rows(SCORES, None), "agreement", reference=identity())
    dead = parse("y = Div(x, z)", "(float[N, 4] x) => (float[N, 4] y) <float[1] z = {0}>")
    assert evaluator(dead).score.value == 0.0


def test_the_first_output_of_class_scores_is_judged() -> None:
    model = parse(
        "b = ArgMax<axis = 1, keepdims = 0>(x) y = Identity(x)", "(float[N, 4] x) => (int64[N] b, float[N, 4] y)"
    )
    assert Evaluator(rows(SCORES, [0, 3, 1, 0, 1]))(model).score.value == 60.0


def test_a_fixed_batch_counts_only_its_samples() -> None:
    evaluator = Evaluator(rows(SCORES, [0, 3, 1, 2, 1], fixed_batch=3), "top1", batch_size=100, reference=None)
    evaluation = evaluator(identity("3, 4"), keep_outputs=True)
    assert (evaluator.batch_size, evaluation.score.value, len(evaluation.outputs[0])) == (3, 80.0, 5)


def test_wilson_is_the_interval_of_scipy() -> None:
    for k, n in [(0, 7), (3, 5), (469, 500), (10, 10)]:
        interval = binomtest(k, n).proportion_ci(0.95, method="wilson")
        np.testing.assert_allclose(wilson(k / n, n), (interval.low, interval.high), atol=1e-12)
    low, high = Evaluator(rows(SCORES, [0, 3, 1, 0, 1]))(identity()).score.interval
    assert (round(low, 2), round(high, 2)) == (23.07, 88.24)


# --- agreement


def test_agreement_of_class_scores() -> None:
    evaluator = Evaluator(rows(SCORES, None), "agreement", reference=identity())
    assert evaluator(identity()).score.value == 100.0
    score = evaluator(shifted(1.5)).score  # 0 1.5+1 0 2 -> class 1: one of five differs
    assert score.value == 80.0 and score.interval == pytest.approx((100 * wilson(0.8, 5)[0], 100 * wilson(0.8, 5)[1]))


def test_agreement_of_other_outputs_is_the_share_of_signal() -> None:
    reference = np.array([[[0.0, 5.0], [1.0, 1.0]], [[2.0, 5.0], [1.0, 3.0]]])  # deviations 1, 0, 0, 1: S^2 = 1/2
    assert agree([reference], [reference]) == 100.0
    mean = np.broadcast_to(reference.mean(axis=0), reference.shape)
    assert agree([mean], [reference]) == pytest.approx(50.0)  # E = S
    assert agree([reference + np.sqrt(0.5) * 3], [reference]) == pytest.approx(25.0)  # E = 3 S
    half = reference.copy()
    half[0, 0, 0] = np.inf
    assert agree([half], [reference]) == 50.0
    assert agree([np.full_like(reference, np.nan)], [reference]) == 0.0
    assert agree([reference, half], [reference, reference]) == 75.0


def test_agreement_of_integers_and_of_changing_shapes() -> None:
    a = np.array([1, 2, 3, 4])
    assert agree([a], [np.array([1, 2, 0, 0])]) == 50.0
    assert agree([np.ones(3, np.float32)], [np.ones(4, np.float32)]) == 0.0
    assert agree([np.ones((0, 4), np.float32)], [np.ones((0, 4), np.float32)]) == 100.0


def test_agreement_of_outputs_without_a_batch_axis() -> None:
    model = parse("y = ReduceSum<keepdims = 0>(x)", "(float[N, 4] x) => (float y)")
    evaluation = Evaluator(rows(SCORES, None), "agreement", batch_size=2, reference=model)(model, keep_outputs=True)
    assert evaluation.score.value == 100.0 and evaluation.score.interval is None
    assert evaluation.outputs[0].tolist() == [13.0, 10.0, 5.0]


def test_agreement_thins_large_outputs() -> None:
    model = identity("N, 2, 50000")
    samples = synthetic(model_inputs(model), 2, seed=0)
    evaluation = Evaluator(samples, "agreement", reference=model)(model, keep_outputs=True)
    assert (evaluation.score.value, evaluation.outputs[0].shape) == (100.0, (2, 2, 25000))


@pytest.mark.parametrize(
    "shape, is_scores", [((2, 10), True), ((2, 1, 1, 3), True), ((2, 1), False), ((2, 3, 4), False), ((2,), False)]
)
def test_class_scores(shape: tuple[int, ...], is_scores: bool) -> None:
    assert (class_scores(np.ones(shape, np.float32)) is not None) == is_scores
    assert class_scores(np.ones(shape, np.int64)) is None


# --- a user's metric


def test_a_user_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_metric.py").write_text(
        "def mean(outputs, labels):\n    return outputs[0].mean() + (0 if labels is None else labels.sum())\n"
        "def nan(outputs, labels):\n    return float('nan')\nvalue = 3\n"
        "def bad(outputs, labels):\n    return labels[0]\n"
    )
    monkeypatch.chdir(tmp_path)
    score = Evaluator(rows([[1.0, 3.0]], [5]), "my_metric:mean")(identity("N, 2")).score
    assert (score.name, score.value, score.interval) == ("my_metric:mean", 7.0, None)
    assert Evaluator(rows([[1.0, 3.0]], None), "my_metric:mean")(identity("N, 2")).score.value == 2.0
    assert Evaluator(rows([[1.0, 3.0]], None), "my_metric:nan")(identity("N, 2")).score.value == 0.0
    with fails(
        "metric: my_metric:bad failed, got TypeError: 'NoneType' object is not subscriptable; expected a number. "
        "Correct the function.",
        UsageError,
    ):
        Evaluator(rows([[1.0, 3.0]], None), "my_metric:bad")(identity("N, 2"))
    with fails("metric: no function 'value' in my_metric, got 3; expected one. Correct the name.", UsageError):
        Evaluator(rows(SCORES, None), "my_metric:value")
    with fails(
        "metric: cannot import 'no_metric', got \"No module named 'no_metric'\"; expected a module. "
        "Run it from the module's folder.",
        UsageError,
    ):
        Evaluator(rows(SCORES, None), "no_metric:f")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "def f(o, y):\n    return wrong",
            "metric: m0:f failed, got NameError: name 'wrong' is not defined; expected a number.",
        ),
        ("def f(o, y):\n    raise SystemExit(0)", "metric: m1:f failed, got SystemExit: 0; expected a number."),
        ("def f(o, y):\n    return float('inf')", "metric: m2:f gave inf; expected a finite number."),
        (
            "def f(o, y):\n    return 'high'",
            "metric: m3:f failed, got ValueError: could not convert string to float: 'high';",
        ),
        (
            "wrong",
            "metric: m4 fails when it is imported, got NameError: name 'wrong' is not defined; expected a module.",
        ),
        ("import sys; sys.exit(0)", "metric: m5 fails when it is imported, got SystemExit: 0; expected a module."),
        (
            "def f(",
            "metric: m6 fails when it is imported, got SyntaxError: '(' was never closed (m6.py, line 1); expected",
        ),
    ],
)
def test_a_user_metric_that_cannot_be_used(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = said.split()[1].split(":", maxsplit=1)[0]
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        Evaluator(rows([[1.0, 3.0]], None), f"{name}:f")(identity("N, 2"))
    assert str(error.value).startswith(said)


# --- errors


def test_metric_errors() -> None:
    with fails(
        f"metric: unknown name, got 'top3'; expected {', '.join(NEEDS_LABELS)} or \"module:function\". Choose one.",
        UsageError,
    ):
        Evaluator(rows(SCORES, None), "top3")
    with fails(
        "t test: metric top1 needs labels, got samples without; expected labels. "
        'Use a role that has them, or metric "agreement".',
        DataError,
    ):
        Evaluator(rows(SCORES, None), "top1")
    with fails("metric: agreement needs a reference, got none; expected the original. Pass its model.", UsageError):
        Evaluator(rows(SCORES, None), "agreement")
    with fails("metric: top5 says nothing here, got 4 classes; expected more than 5. Use top1.", UsageError):
        Evaluator(rows(SCORES, [0] * 5), "top5")(identity())


def test_labels_out_of_range_of_the_classes() -> None:
    with fails(
        "t test: label is no class of the model, got 4; expected 0..3. "
        "Check that the labels number the classes as the model does.",
        DataError,
    ):
        Evaluator(rows(SCORES, [0, 1, 2, 3, 4]))(identity())


def test_outputs_that_are_no_class_scores() -> None:
    model = parse("y = ArgMax<axis = 1, keepdims = 0>(x)", "(float[N, 4] x) => (int64[N] y)")
    with fails(
        "model: no class scores among its outputs, got int64 [5]; expected float [5, classes]. "
        'Use metric "agreement" or "module:function".',
        ModelError,
    ):
        Evaluator(rows(SCORES, [0] * 5))(model)


def test_agreement_with_another_number_of_outputs() -> None:
    with fails(
        "model: outputs do not match the original's, got 1; expected 2, at least 1. "
        "Compare a model with the one it was made from.",
        ModelError,
    ):
        agree([np.ones(2)], [np.ones(2), np.ones(2)])


# --- sessions


def test_a_model_its_bytes_and_its_path_are_the_same(tmp_path: Path) -> None:
    model = identity()
    onnx.save(model, tmp_path / "m.onnx")
    values = [Evaluator(rows(SCORES, [0] * 5))(m) for m in (model, model.SerializeToString(), tmp_path / "m.onnx")]
    assert [v.score.value for v in values] == [40.0] * 3
    assert provider_of(make_session(model, provider="auto")) in ("cpu", "cuda")
    assert provider_of(make_session(model, optimise=False)) == "cpu"


def test_a_model_above_2_gb_is_read_from_a_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = numpy_helper.from_array(np.ones((4, 600), np.float32), "w")  # above the 1 KB from which data is external
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", s]) for n, s in (("x", 4), ("y", 600)))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    before = model.SerializeToString()
    monkeypatch.setattr(session_module, "_serialise", lambda model, *rest: session_module._spill(model))
    (value,) = run_model(make_session(model), {"x": np.ones((2, 4), np.float32)})
    assert value.tolist() == np.full((2, 600), 4.0).tolist() and model.SerializeToString() == before
    written = list(session_module._spilled.values())
    make_session(model)  # found again
    assert list(session_module._spilled.values()) == written and Path(written[0], "model.onnx").is_file()
    model.graph.node[0].name = "another"
    make_session(model)
    assert list(session_module._spilled.values()) != written and not Path(written[0]).exists()


def test_models_that_cannot_be_loaded(tmp_path: Path) -> None:
    with fails(
        f"{tmp_path / 'no.onnx'}: no such model, got no file; expected an .onnx file. Check the path.", ModelError
    ):
        make_session(tmp_path / "no.onnx")
    (tmp_path / "bad.onnx").write_text("not a model")
    end = "; expected a valid ONNX model that this onnxruntime supports. Check it with onnx.checker.$"
    with pytest.raises(
        ModelError, match=r"^bad\.onnx: onnxruntime cannot load it, got '.*rotobuf parsing failed.*'" + end
    ):
        make_session(tmp_path / "bad.onnx")
    model = identity()
    model.graph.node[0].op_type = "NoSuchOp"
    with pytest.raises(ModelError, match="^model: onnxruntime cannot load it, got .*NoSuchOp.*" + end) as caught:
        make_session(model)
    assert "\n" not in str(caught.value) and "ONNXRuntimeError" not in str(caught.value)


def test_a_feed_that_does_not_fit() -> None:
    with pytest.raises(
        ModelError, match=r"^model: inference failed, got .*; expected outputs\. Check the model and what"
    ):
        run_model(make_session(identity()), {"x": np.ones((1, 5), np.float32)})


def test_session_options_that_cannot_be_used() -> None:
    with fails("threads: too few, got 0; expected at least 1. Use 1 on a shared machine.", UsageError):
        make_session(identity(), threads=0)
    with fails("provider: unknown name, got 'gpu'; expected one of cpu, cuda, auto. Choose one.", UsageError):
        make_session(identity(), provider="gpu")


def test_cuda_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda self: ["CPUExecutionProvider"])
    with fails(
        "provider: cuda did not start, got cpu; expected cuda. "
        "Install the CUDA and cuDNN libraries that this onnxruntime asks for, or use 'auto' or 'cpu'.",
        UsageError,
    ):
        make_session(identity(), provider="cuda")


# --- the real models


@pytest.mark.parametrize(
    "model, card, top1",
    [("cifar10_resnet20_bn", "cifar10", 93.8), ("cifar10_tinyresnet_tf2onnx", "cifar10_tinyresnet", 89.4)],
)
def test_cifar10_models_have_their_published_top1(shared: Path, model: str, card: str, top1: float) -> None:
    inputs = model_inputs(onnx.load(shared / f"{model}.onnx"))
    dataset = open_data(load_card(shared / f"{card}.toml", roles={"test": "0:500"}), inputs)
    score = Evaluator(dataset.role("test"), dataset.metric)(shared / f"{model}.onnx").score
    assert (score.n, round(score.value, 6)) == (500, top1)


def test_mobilenet_is_within_the_interval_of_its_first_images(shared: Path) -> None:
    path = shared / "imagenet_mobilenetv2.onnx"
    dataset = open_data(
        load_card(shared / "imagenet_mobilenetv2.toml", roles={"test": "0:60"}), model_inputs(onnx.load(path))
    )
    score = Evaluator(dataset.role("test"), dataset.metric, batch_size=20)(path).score
    assert score.n == 60 and score.interval[0] < 79.38 < score.interval[1]


def test_models_with_fixed_inputs_agree_with_themselves(shared: Path) -> None:
    for name, sizes in [("face_rfb320", {}), ("silero_vad_16k", {"sequence": 576})]:
        path = shared / f"{name}.onnx"
        inputs = model_inputs(onnx.load(path))
        samples = synthetic(inputs, 3, seed=0, sizes=sizes)
        assert samples.fixed_batch == 1 and all(isinstance(spec, InputSpec) for spec in inputs)
        assert Evaluator(samples, "agreement", reference=path)(path).score.value == 100.0

"""What outputs are, told by the graph, and what is counted of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from agmc_onnx.data.samples import Samples
from agmc_onnx.errors import DataError
from agmc_onnx.measuring import boxes
from agmc_onnx.measuring.accuracy import Evaluator
from agmc_onnx.measuring.agreeing import MEASURES, agreement, bootstrap
from agmc_onnx.measuring.outputs import KINDS, Answer, answers_of, sampled

DETECTOR = Path(__file__).parents[3] / "shared" / "data" / "det_yolox_nano.onnx"


def kinds(signature: str, body: str, said: dict[str, str] | None = None) -> list[tuple[str, tuple[int, ...], int, str]]:
    """Return the kinds of a net in ONNX text; values that it declares are weights of ones."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\ng {signature} {{ {body} }}')
    for value in model.graph.value_info:
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(sizes, np.float32), value.name))
    model.graph.ClearField("value_info")
    return [(a.kind, a.at, a.axis, a.form) for a in answers_of(model, said)]


W = "<float[8, 8] w, float[8] b>"


@pytest.mark.parametrize(
    ("signature", "body", "kind", "axis"),
    [
        (f"(float[N, 8] x) => (float[N, 8] y) {W}", "y = Gemm(x, w, b)", "classes", 1),
        (f"(float[N, 8] x) => (float[N, 8] y) {W}", "h = Gemm(x, w, b) y = Softmax(h)", "classes", 1),
        (f"(float[N, 8] x) => (float[N, 8] y) {W}", "h = Gemm(x, w) y = LpNormalization(h)", "embedding", 1),
        (
            f"(float[N, 8] x) => (float[N, 8] y) {W}",
            "h = Gemm(x, w) n = ReduceL2<axes = [1]>(h) m = Add(n, b) y = Div(h, m)",
            "embedding",
            1,
        ),
        ("(float[N, T, 8] x) => (float[N, 8] y)", "y = ReduceMean<axes = [1], keepdims = 0>(x)", "embedding", 1),
        (f"(float[N, 7, 8] x) => (float[N, 7, 8] y) {W}", "h = MatMul(x, w) y = Softmax(h)", "positions", 2),
        (f"(float[N, 7, 8] x) => (float[N, 7, 8] y) {W}", "h = MatMul(x, w) y = Add(h, b)", "positions", 2),
        (f"(float[N, 7, 8] x) => (float[N, 7, 8] y) {W}", "y = LayerNormalization(x, b)", "embedding", 2),
        (
            "(float[N, 3, 16, 16] x) => (float[N, 8, 16, 16] y) <float[8, 3, 1, 1] k>",
            "y = Conv(x, k)",
            "positions",
            1,
        ),
        ("(float[N, 3, 16, 16] x) => (float[N, 3, 16, 16] y) <float[3, 3, 1, 1] k>", "y = Conv(x, k)", "map", 1),
        (
            "(float[N, 3, 16, 16] x) => (float[N, 1, 16, 16] y) <float[1, 3, 1, 1] k>",
            "h = Conv(x, k) y = Sigmoid(h)",
            "mask",
            1,
        ),
        ("(float[N, 4000] x) => (float[N, 4000] y)", "y = Tanh(x)", "waveform", 1),
        ("(float[N, 8] x) => (int64[N] y)", "y = ArgMax<axis = 1, keepdims = 0>(x)", "choices", 1),
        ("(float[N, 8] x, float[N, 8] s) => (float[N, 8] state_out)", "state_out = Add(x, s)", "state", 1),
        (
            "(float[N, 4, 9, 9] x) => (float[N, 8, 4, 4] y) <float[8, 4, 3, 3] k>",
            "h = Conv(x, k) y = Relu(h)",
            "map",
            1,
        ),
    ],
)
def test_kinds(signature: str, body: str, kind: str, axis: int) -> None:
    (found,) = kinds(signature, body)
    assert found[0] == kind and (found[2] == axis or kind not in ("positions", "embedding"))


def test_a_card_overrules_the_graph_and_is_checked() -> None:
    signature, body = f"(float[N, 8] x) => (float[N, 8] y) {W}", "y = Gemm(x, w, b)"
    assert kinds(signature, body, {"y": "embedding"})[0][0] == "embedding"
    with pytest.raises(DataError, match=r"^\[outputs\] y: no such kind, got 'vector'; expected one of classes, "):
        kinds(signature, body, {"y": "vector"})
    with pytest.raises(DataError, match=r"no such output, got 'z'; expected one of y"):
        kinds(signature, body, {"z": "classes"})


def test_boxes_and_their_scores_are_one_answer() -> None:
    signature = "(float[N, 9, 4] a, float[N, 9, 3] b) => (float[N, 9, 4] boxes, float[N, 9, 3] scores)"
    assert kinds(signature, "boxes = Identity(a) scores = Softmax(b)") == [("detections", (0, 1), 2, "pair")]


def test_large_outputs_are_sampled_by_position() -> None:
    grid = np.arange(2 * 5000 * 3).reshape(2, 5000, 3)
    few = sampled(grid, 100)
    assert few.shape == (2, 100, 3)
    assert (few[..., 1] == few[..., 0] + 1).all()  # the entries of a position stay together
    assert len(np.unique(np.diff(few[0, :, 0]))) > 3  # and no pattern of the grid is met


def seen(kind: str, *arrays: np.ndarray, **facts: object) -> tuple[Answer, object]:
    answer = Answer(kind, tuple(range(len(arrays))), **facts).settled(arrays)
    return answer, answer.seen(arrays)


def test_classes_at_positions() -> None:
    theirs = np.zeros((2, 3, 4, 5), np.float32)
    theirs[:, 1] = 1
    ours = theirs.copy()
    ours[0, 2, 0] = 2  # 5 of 40 positions
    answer, told = seen("positions", theirs, axis=1)
    assert agreement([answer], [answer.seen([ours])], [told])[:2] == ("positions", 87.5)
    name, value, *_ = agreement([answer], [answer.seen([ours])], [told], "miou")
    assert (name, value) == ("miou", pytest.approx(100 * (35 / 40 + 0 / 5) / 2))


def test_directions() -> None:
    theirs = np.eye(4, dtype=np.float32)[:, :3] + 0.1
    answer, told = seen("embedding", theirs)
    assert agreement([answer], [answer.seen([5 * theirs])], [told])[1] == pytest.approx(100)
    assert agreement([answer], [answer.seen([-theirs])], [told])[1] == pytest.approx(-100)
    assert agreement([answer], [answer.seen([5 * theirs])], [told], "neighbours")[1] == 100


def test_sounds_and_pictures() -> None:
    theirs = np.random.default_rng(0).standard_normal((3, 2000)).astype(np.float32)
    noise = np.random.default_rng(1).standard_normal(theirs.shape).astype(np.float32)
    answer, told = seen("waveform", theirs)
    close = answer.seen([2 * (theirs + 0.1 * noise)])
    assert agreement([answer], [close], [told], "sisdr")[1] == pytest.approx(20, abs=0.3)  # no matter how loud
    assert agreement([answer], [told], [told], "psnr")[1] == 100
    peak = theirs.max() - theirs.min()
    found = agreement([answer], [answer.seen([theirs + 0.1 * peak])], [told], "psnr")[1]
    assert found == pytest.approx(20, abs=1e-4)


def test_intervals_are_those_of_samples_drawn_anew() -> None:
    counts = np.stack([np.arange(100) % 2, np.ones(100)], axis=1)
    low, high = bootstrap(counts, MEASURES["positions"].value)
    assert 38 < low < 42 and 58 < high < 62
    assert bootstrap(counts[:1], MEASURES["positions"].value) is None


# -- boxes ------------------------------------------------------------------------------------------------------------------


def rows(n: int, centres: list[tuple[float, float]], form: str) -> np.ndarray:
    """Return one sample of `n` positions, the first of which hold boxes of 20 by 20 pixels, of class 1."""
    found = np.zeros((1, n, 7 if form == "objectness" else 6), np.float32)
    for i, (x, y) in enumerate(centres):
        found[0, i] = [x, y, 20, 20, 0.9, 0.1, 0.8] if form == "objectness" else [x, y, 20, 20, 0.1, 0.8]
    return found


@pytest.mark.parametrize("form", ["objectness", "classes"])
def test_decoded_grids(form: str) -> None:
    grid = rows(84, [(10, 10), (12, 10), (50, 50)], form)  # the second overlaps the first
    grid = grid if form == "objectness" else grid.transpose(0, 2, 1)
    answer, told = seen("detections", grid, axis=2 if form == "objectness" else 1, form=form)
    assert answer.form == form
    assert told.said[0, :2].tolist() == [
        pytest.approx([0.72 if form == "objectness" else 0.8, 1, 0, 0, 20, 20]),
        pytest.approx([0.72 if form == "objectness" else 0.8, 1, 40, 40, 60, 60]),
    ]
    assert not told.said[0, 2:].any()


def test_boxes_with_a_background_and_queries() -> None:
    corners = np.array([[[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.2, 0.2, 0.4, 0.4]]], np.float32)
    shares = np.array([[[0.9, 0.05, 0.05], [0.1, 0.1, 0.8], [1, 0, 0]]], np.float32)
    answer, told = seen("detections", corners, shares, form="pair")
    assert (answer.form, answer.background) == ("pair", 0)
    assert told.said[0, 0].tolist() == pytest.approx([0.8, 1, 0, 0, 0.5, 0.5])
    assert not told.said[0, 1:].any()
    centres = np.array([[[0.5, 0.5, 0.2, 0.2]] * 4], np.float32)
    logits = np.full((1, 4, 3), -9.0, np.float32)
    logits[..., 2] = 3  # the last class is "nothing"
    logits[0, 1, 0] = 9
    answer, told = seen("detections", centres, logits, form="pair")
    assert (answer.form, answer.background) == ("pair of logits, centres", 2)
    assert told.said[0, 0, 1:].tolist() == pytest.approx([0, 0.4, 0.4, 0.6, 0.6])


def test_lists_of_boxes() -> None:
    place, score, own = np.array([[[0, 0, 2, 2], [5, 5, 6, 6]]]), np.array([[0.3, 0.9]]), np.array([[4, 7]])
    found = boxes.listed([place, score, own], 3)
    assert found.tolist() == [[pytest.approx([0.9, 7, 5, 5, 6, 6]), [0] * 6, [0] * 6]]
    yolo10 = np.array([[[5, 5, 6, 6, 0.9, 7]]], np.float32)
    assert boxes.listed([yolo10], 1).tolist() == [[pytest.approx([0.9, 7, 5, 5, 6, 6])]]


def test_boxes_of_two_models_are_matched_once() -> None:
    theirs = boxes.best(*boxes.decoded([rows(3, [(10, 10), (50, 50)], "classes")], "classes", 2, (), None), 9)
    ours = boxes.best(*boxes.decoded([rows(3, [(11, 10), (90, 90), (130, 90)], "classes")], "classes", 2, (), None), 9)
    counts = boxes.matches(ours, theirs)
    assert counts.tolist() == [[1, 2, 1]]
    assert MEASURES["boxes"].value(counts.sum(0)) == pytest.approx(40)  # 2 / 5


def test_every_kind_compares_and_counts() -> None:
    shapes = {"classes": (4, 9), "embedding": (4, 9), "waveform": (4, 999), "detections": (4, 9, 6)}
    for kind in KINDS:
        one = np.random.default_rng(0).random(shapes.get(kind, (4, 3, 5, 5))).astype(np.float32)
        facts = {"axis": 2, "form": "classes"} if kind == "detections" else {}
        answer, told = seen(kind, one, **facts)
        assert len(told.compared) == len(told.said) == 4
        assert agreement([answer], [answer.seen([one], told.marks)], [told])[1] == pytest.approx(100)


def test_without_a_box_of_the_original_boxes_are_not_counted() -> None:
    grid = np.concatenate([rows(3, [(10, 10)], "classes")] * 4)
    shares = np.random.default_rng(0).uniform(0.6, 0.9, (4, 3, 2))
    for most, name in ((1.0, "boxes"), (0.1, "closeness")):
        theirs, ours = (
            np.concatenate([grid[..., :4], by * most * shares], axis=2, dtype=np.float32) for by in (1, 0.98)
        )
        answer, told = seen("detections", theirs, axis=2, form="classes")
        found, value, *_ = agreement([answer], [answer.seen([ours], told.marks)], [told])
        assert found == name and (value > 80 or name == "boxes")


@pytest.mark.skipif(not DETECTOR.is_file(), reason="the detector is not there")
def test_yolox() -> None:
    model = onnx.load(DETECTOR)
    (answer,) = answers_of(model)
    assert (answer.kind, answer.axis, answer.form, len(answer.grid)) == ("detections", 2, "raw", 3)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 416, 416)).astype(np.float32)
    samples = Samples("noise", lambda rows: {"images": images[rows]}, np.arange(2), None, fixed_batch=1)
    found = Evaluator(samples, "agreement", reference=model, original=model)(model)
    # noise has no boxes, and their F1 would say nothing
    assert (found.score.name, found.score.value, found.fidelity) == ("closeness", 100.0, 100.0)

"""What recognisers read."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from agmc_onnx.data.samples import Samples, load_card, open_data
from agmc_onnx.errors import DataError
from agmc_onnx.measuring.accuracy import Evaluator
from agmc_onnx.measuring.outputs import answers_of
from agmc_onnx.measuring.reading import alphabet_of, texts_of
from agmc_onnx.measuring.session import model_inputs
from tests import nets

CLASSES = np.array([[0, 1, 1, 0, 1, 2, 0, 0], [0, 2, 2, 0, 3, 1, 0, 0]])  # "aab", "b a"


def recogniser(with_names: bool = True) -> onnx.ModelProto:
    """Reads what it is given: classes as one-hot rows."""
    text = "f (float[n, 8, 4] x) => (float[n, 8, 4] y) { h = MatMul (x, w) y = Softmax<axis=2> (h) }"
    model = nets.model(text, {"w": 9 * np.eye(4, dtype=np.float32)}, 0)
    if with_names:
        onnx.helper.set_model_props(model, {"character": "a\nb"})
    return model


def samples(labels: list[str] | None) -> Samples:
    rows = np.eye(4, dtype=np.float32)[CLASSES]
    return Samples("t", lambda i: {"x": rows[i]}, np.arange(2), None if labels is None else np.array(labels))


def test_greedy_ctc() -> None:
    assert texts_of(CLASSES, 0) == [[1, 1, 2], [2, 3, 1]]
    assert texts_of(CLASSES, 0, ("", "a", "b", " ")) == [list("aab"), list("b a")]


def test_the_alphabet_is_in_the_metadata() -> None:
    assert alphabet_of(recogniser(), 4) == ("", "a", "b", " ")
    assert alphabet_of(recogniser(), 3) == ("", "a", "b")
    assert alphabet_of(recogniser(), 9) == ()
    assert answers_of(recogniser())[0].alphabet == ("", "a", "b", " ")


@pytest.mark.parametrize(("metric", "value"), [("characters", 100 * 5 / 6), ("words", 100 * 2 / 3), ("lines", 50)])
def test_texts_are_counted(metric: str, value: float) -> None:
    score = Evaluator(samples(["aab", "b b"]), metric, reference=recogniser())(recogniser()).score
    assert (score.name, score.value) == (metric, pytest.approx(value))
    same = Evaluator(samples(None), metric, reference=recogniser())(recogniser()).score
    assert same.value == 100


def shapeless(with_names: bool) -> onnx.ModelProto:
    """Return the recogniser as PaddleOCR writes it: nothing tells the shape of its output."""
    text = (
        "f (float[n, 8, 4] x, int64[k] s) => (float y) { r = Reshape (x, s) h = MatMul (r, w) y = Softmax<axis=2> (h) }"
    )
    model = nets.model(text, {"w": 9 * np.eye(4, dtype=np.float32)}, 0)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    if with_names:
        onnx.helper.set_model_props(model, {"character": "a\nb"})
    return model


def test_a_recogniser_of_unknown_shape_is_known_by_its_dictionary() -> None:
    answer = answers_of(shapeless(True))[0]
    assert (answer.kind, answer.alphabet) == ("positions", ("", "a", "b", " "))
    assert answers_of(shapeless(False))[0].kind == "numbers"


def test_what_has_no_positions_cannot_be_read() -> None:
    text = "f (float[n, 4] x) => (float[n, 3] y) { y = Gemm (x, w) }"
    plain = nets.model(text, {"w": (4, 3)}, 0)
    rows = Samples("t", lambda i: {"x": np.ones((len(i), 4), np.float32)}, np.arange(2), np.array(["a", "b"]))
    with pytest.raises(DataError, match="no output of the model is classes at positions, got classes; expected one"):
        Evaluator(rows, "characters", reference=plain)(plain)


def test_a_model_without_a_dictionary_cannot_be_held_against_texts() -> None:
    with pytest.raises(DataError, match="metric characters: the model does not say what its classes stand for"):
        Evaluator(samples(["aab", "b b"]), "characters", reference=recogniser(False))(recogniser(False))


def test_labels_of_cards_may_be_texts(tmp_path) -> None:
    rows = np.eye(4, dtype=np.float32)[np.concatenate([CLASSES] * 3)]
    np.savez(tmp_path / "lines.npz", x=rows, y=np.array(["aab", "b a"] * 3))
    card = load_card(tmp_path / "lines.npz", metric="characters")
    role = open_data(card, model_inputs(recogniser())).role("test")
    assert role.labels is not None and role.labels.dtype.kind == "U"


def test_classes_at_positions_against_labels() -> None:
    labelled = Samples("t", samples(None).read, np.arange(2), CLASSES)
    assert Evaluator(labelled, "miou", reference=recogniser())(recogniser()).score.value == 100
    short = Samples("t", samples(None).read, np.arange(2), CLASSES[:, :5])
    with pytest.raises(DataError, match="labels of another size than the output, got 5 positions; expected 8"):
        Evaluator(short, "miou", reference=recogniser())(recogniser())

from __future__ import annotations

import numpy as np
import onnx
import pytest

from agmc_onnx.data.samples import Samples, synthetic
from agmc_onnx.measuring.accuracy import Evaluator
from agmc_onnx.measuring.outputs import answers_of
from agmc_onnx.measuring.session import model_inputs
from agmc_onnx.refit.scores import rescored
from tests import nets

LEVEL = """
    r{i} = Conv (s{i}, wr, br{i})
    lo{i} = Conv (s{i}, wo, bo{i})
    lc{i} = Conv (s{i}, wc, bc{i})
    o{i} = Sigmoid (lo{i})
    c{i} = Sigmoid (lc{i})
    h{i} = Concat<axis=1> (r{i}, o{i}, c{i})
    f{i} = Reshape (h{i}, flat)
"""
DETECTOR = f"""
f (float[1, 3, 32, 32] x) => (float[1, 21, 8] y) {{
    a = Conv<strides=[8, 8]> (x, w)
    s0 = Relu (a)
    s1 = MaxPool<kernel_shape=[2, 2], strides=[2, 2]> (s0)
    s2 = MaxPool<kernel_shape=[2, 2], strides=[2, 2]> (s1)
    {"".join(LEVEL.format(i=i) for i in range(3))}
    all = Concat<axis=2> (f0, f1, f2)
    y = Transpose<perm=[0, 2, 1]> (all)
}}
"""


def detector(shift: float = 0.0, shared: bool = False) -> onnx.ModelProto:
    """Return a detector whose boxes are sure, less so by a shift of both logits."""
    weights: dict = {
        "w": (8, 3, 8, 8),
        "wr": (4, 8, 1, 1),
        "wo": (1, 8, 1, 1),
        "wc": (3, 8, 1, 1),
        "flat": np.array([1, 8, -1]),
    }
    text = DETECTOR
    for i in range(3):
        weights |= {f"br{i}": np.zeros(4, np.float32), f"bc{i}": np.full(3, -shift, np.float32)}
        weights[f"bo{i}"] = np.full(1, -1 - shift, np.float32)
        if shared:
            text = text.replace(f"bo{i})", "bo0)")
    if shared:
        weights = {name: value for name, value in weights.items() if name not in ("bo1", "bo2")}
    proto = nets.model(text, weights, 0)
    for tensor in proto.graph.initializer:
        if tensor.name in ("wo", "wc"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(6 * onnx.numpy_helper.to_array(tensor), tensor.name))
    return proto


def draw(seed: int) -> Samples:
    return synthetic(model_inputs(detector()), 24, seed)


def f1(model: onnx.ModelProto) -> float:
    return Evaluator(draw(5), "agreement", reference=detector(), original=detector())(model).score.value


def test_boxes_that_are_found_with_too_low_a_score_come_back() -> None:
    student = detector(1.5)
    data = student.SerializeToString()
    better = rescored(student, detector(), draw(1), answers_of(detector()))
    assert student.SerializeToString() == data
    assert f1(student) < 80 and f1(better) > 97
    onnx.checker.check_model(better)


def test_scores_that_are_right_stay() -> None:
    model = detector()
    assert rescored(model, model, draw(1), answers_of(model)).SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize("case", ["a bias of several", "no detector"])
def test_what_is_not_understood_stays(case: str) -> None:
    if case == "no detector":
        model = nets.model("f (float[n, 4] x) => (float[n, 3] y) { y = Gemm (x, w) }", {"w": (4, 3)}, 0)
        samples = synthetic(model_inputs(model), 8, 0)
        assert rescored(model, model, samples, answers_of(model)) is model
    else:
        student = detector(1.5, shared=True)
        assert rescored(student, detector(), draw(1), answers_of(detector())) is student

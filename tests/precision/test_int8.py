from __future__ import annotations

import numpy as np
import onnx
import pytest

from agmc_onnx.data.samples import Samples, load_card, open_data
from agmc_onnx.graph.files import read_model
from agmc_onnx.measuring.accuracy import Evaluator
from agmc_onnx.measuring.session import make_session, model_inputs, run_model
from agmc_onnx.precision import ranges
from agmc_onnx.precision.int8 import TARGETS, corrected_biases, plain, raised, rounded, write_int8
from agmc_onnx.precision.quantiser import Quantiser
from agmc_onnx.precision.ranges import Observed, extremes, least_error, observe
from agmc_onnx.verbs.demo import NETWORK
from tests.nets import model

CHAIN = """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu(a)
    y = Conv(r, v)
}"""
WEIGHTS = {"w": (6, 3, 3, 3), "b": (6,), "v": (4, 6, 1, 1)}


def digits() -> tuple[onnx.ModelProto, Samples]:
    proto = read_model(NETWORK).proto
    return proto, open_data(load_card("digits"), model_inputs(proto)).role("calibration")


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_gives_a_valid_model_that_answers_alike(target: str) -> None:
    proto, samples = digits()
    found = Quantiser(samples, target)(proto)
    onnx.checker.check_model(found.model)
    feed = samples.feeds(20)[0]
    a, b = (run_model(make_session(one), feed)[0] for one in (proto, found.model))
    assert np.mean(a.argmax(axis=1) == b.argmax(axis=1)) >= 0.95  # 8-bit products may overflow here without VNNI
    assert set(found.precision) == {node.output[0] for node in proto.graph.node}
    convolutions = [node.output[0] for node in proto.graph.node if node.op_type == "Conv"]
    assert all(found.precision[name] == "int8" for name in convolutions) and found.why_float == {}


def test_large_values_are_observed_in_smaller_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    proto, samples = digits()
    simple, few = plain(proto), samples.take(25)
    whole = observe(simple, few)
    monkeypatch.setattr(ranges, "CHUNK_BYTES", 1)
    one_by_one = observe(simple, few)
    assert extremes(one_by_one).keys() == extremes(whole).keys()
    for name, known in extremes(whole).items():
        np.testing.assert_allclose(extremes(one_by_one)[name], known, rtol=1e-4, atol=1e-5)


def test_corrected_biases_answer_closer_than_rounded_weights_alone() -> None:
    proto, samples = digits()
    judge = Evaluator(samples, "agreement", reference=proto, original=proto)
    simple, target = plain(proto), TARGETS["avx2"]
    observed = observe(simple, samples)
    given = extremes(observed)
    as_rounded = judge(write_int8(simple, given, target)).fidelity
    corrected = judge(write_int8(corrected_biases(simple, observed, target), given, target)).fidelity
    assert corrected > as_rounded


def test_a_bias_takes_off_what_rounding_moves() -> None:
    proto = plain(model(CHAIN, WEIGHTS))
    generator = np.random.default_rng(0)
    x = generator.uniform(0, 1, (16, 3, 8, 8)).astype(np.float32)

    class Rows:
        """Samples of one batch."""

        def batch_size(self, n: int) -> int:
            return n

        def batches(self, n: int):
            yield {"x": x}, None

    observed = observe(proto, Rows())
    np.testing.assert_allclose(observed["x"].mean, x.mean(axis=(0, 2, 3)), rtol=1e-5)
    made = corrected_biases(proto, observed, TARGETS["avx2"])
    old, new = ({t.name: onnx.numpy_helper.to_array(t) for t in one.graph.initializer} for one in (proto, made))
    moved = rounded(old["w"], TARGETS["avx2"]) - old["w"]
    wanted = old["b"] - (moved.sum(axis=(2, 3)) * x.mean(axis=(0, 2, 3))).sum(axis=1)
    np.testing.assert_allclose(new["b"], wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(old["w"], new["w"])


def test_ranges_of_least_error_leave_out_what_nearly_nothing_reaches() -> None:
    entries = np.random.default_rng(0).normal(0, 1, 10_000).astype(np.float32)
    observed = {"x": Observed(-4.0, 40.0, entries, None), "even": Observed(-2.0, 3.0, np.linspace(-2, 3, 1000), None)}
    assert extremes(observed)["x"] == (-4.0, 40.0)
    assert least_error(observed)["x"][1] < 40.0 and least_error(observed)["even"] == (-2.0, 3.0)
    low, high = least_error(observed, is_symmetric=True)["x"]
    assert low == -high


def test_a_node_that_stays_float_is_float_in_the_file() -> None:
    proto, samples = digits()
    name = plain(proto).graph.node[0].name
    found = Quantiser(samples, "avx2")(proto, (name,))
    assert found.precision[proto.graph.node[0].output[0]] == "float"
    node = next(one for one in found.model.graph.node if one.name == name)
    assert node.input[0] == "input"


def test_old_opsets_get_a_scale_for_every_channel() -> None:
    old = model('<ir_version: 8, opset_import: ["" : 11]> ' + CHAIN, WEIGHTS)
    assert raised(old).opset_import[0].version == 13
    made = write_int8(plain(old), dict.fromkeys(("x", "a", "r", "y"), (-9.0, 9.0)), TARGETS["avx2"])
    onnx.checker.check_model(made)
    make_session(made)
    scales = {t.name: t.dims for t in made.graph.initializer if t.name.endswith("_scale")}
    assert list(scales["w_scale"]) == [6]

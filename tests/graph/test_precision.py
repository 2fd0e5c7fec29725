"""Half precision: cut in float16 and bfloat16, compared in float32."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from agmc_onnx.graph.precision import is_half, to_float32
from agmc_onnx.graph.view import graph_of
from agmc_onnx.ops import analyse
from agmc_onnx.pruning.importance import choose, l2_norm
from agmc_onnx.pruning.plan import make_plan
from agmc_onnx.pruning.surgery import Surgeon
from agmc_onnx.pruning.verification import verify
from tests.nets import model as net
from tests.pruning.test_equivalence import SMALL_NETS

KINDS = {"float16": (TensorProto.FLOAT16, np.float16), "bfloat16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}


def narrowed(model: onnx.ModelProto, kind: str) -> onnx.ModelProto:
    data_type, dtype = KINDS[kind]
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = data_type
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = data_type
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["attention by einsum", "scale computed from the head size", "lstm and gru of two directions"]
)
def test_half_precision_is_cut_as_float32(name: str, kind: str) -> None:
    model = narrowed(net(*SMALL_NETS[name]), kind)
    channels = analyse(graph_of(model))
    assert [g.name for g in channels.groups] == [g.name for g in analyse(graph_of(net(*SMALL_NETS[name]))).groups]
    kept = choose(channels, l2_norm(channels), [g.step * max(g.n_units // g.step // 2, 1) for g in channels.groups])
    pruned = Surgeon(channels).cut(kept)
    types = {t.name: t.data_type for t in model.graph.initializer}
    assert all(t.data_type == types[t.name] for t in pruned.graph.initializer if t.name in types)
    found = verify(model, pruned, make_plan(channels, kept, "0" * 64))
    assert found.masked_equivalence and (found.checker or kind == "bfloat16")  # ONNX has no LSTM of bfloat16
    assert found.max_abs_diff < 1e-5 * found.max_abs_output
    assert ("does not run" in found.note) == (kind == "bfloat16")


def test_float32_of_a_half_model_has_its_numbers_and_no_half_type() -> None:
    text = """g (float16[N, 2] x) => (float16[N, 2] out) {
       a = Add(x, w) f = Cast<to = 1>(a) h = Cast<to = 10>(f) b = Greater(h, h)
       i = If(flag)<then_branch = then () => (float16[2] t) { t = Identity(w) }, else_branch = other () => (float16[2] e)
          { e = Mul(w, w) }>
       out = Add(h, i) }"""
    half = net(text, {"w": np.array([0.1, 2], np.float16), "flag": np.array(True)})
    wide = to_float32(half)
    assert is_half(half) and not is_half(wide)
    assert numpy_helper.to_array(wide.graph.initializer[0]).tolist() == np.array([0.1, 2], np.float16).tolist()
    onnx.checker.check_model(wide, full_check=True)
    feed = np.ones((1, 2), np.float32)
    found = onnx.reference.ReferenceEvaluator(wide).run(None, {"x": feed})[0]
    assert found.dtype == np.float32 and np.allclose(found, 1 + 2 * np.array([0.1, 2], np.float16).astype(np.float32))

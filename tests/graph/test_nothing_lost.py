"""What a user put into a model is in the compressed one: all of it, and nothing that is no longer true."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from google.protobuf.message import Message
from onnx import TensorProto, helper

from agmc_onnx.graph import files
from agmc_onnx.graph.files import read_model, write_model
from agmc_onnx.graph.inline import unwrapped
from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.view import graph_of
from agmc_onnx.ops import analyse
from agmc_onnx.pruning.importance import choose, l2_norm
from agmc_onnx.pruning.plan import make_plan
from agmc_onnx.verbs.apply import apply
from agmc_onnx.verbs.compress import compress

TEXT = """
<ir_version: 10, opset_import: ["" : 20, "local" : 1, "com.example.unused" : 3],
 producer_name: "maker", producer_version: "1.2", domain: "org.example", model_version: 7, doc_string: "about the model">
g (float[N, 3, 8, 8] x, float[4] scale) => (float[N, 5] y, float[N, 3, 8, 8] same)
<float[N, 12, 8, 8] a, float[N, 12, 8, 8] r, float[N, 12] f, float[N, 12, 1, 1] p, float[4] twice>
{
    a = Conv<pads = [1, 1, 1, 1]>(x, w, b)
    r = Relu(a)
    q = Conv<pads = [1, 1, 1, 1]>(r, v)
    t = Sigmoid(q)
    s = Mul(q, t)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    h = Gemm<transB = 1>(f, u)
    yy = Add(h, c)
    same = local.gate(x)
    twice = Add(scale, scale)
    k = ReduceSum<keepdims = 0>(twice)
    y = Mul(yy, k)
}
<domain: "local", opset_import: ["" : 20], doc_string: "a local function">
gate (i) => (o) { t = Sigmoid(i) o = Mul(i, t) }
"""
SHAPES = {"w": (12, 3, 3, 3), "b": (12,), "v": (12, 12, 3, 3), "u": (5, 12), "c": (5,)}


def model() -> onnx.ModelProto:
    """Return a small network with every kind of note that ONNX has a place for."""
    proto = nets.model(TEXT, {**SHAPES, "scale": np.ones(4, np.float32), "unused": np.arange(3.0)})
    graph = proto.graph
    values = helper.make_tensor("thin", TensorProto.FLOAT, [2], [1.0, 2.0])
    graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, helper.make_tensor("at", TensorProto.INT64, [2], [0, 3]), [5])
    )
    for node in graph.node:
        node.name = f"{node.op_type.lower()} {node.output[0]}"
    for number, (message, _) in enumerate(messages(proto)):
        fields = message.DESCRIPTOR.fields_by_name
        if "doc_string" in fields and not message.doc_string:
            message.doc_string = f"note {number}"
        if "metadata_props" in fields:
            message.metadata_props.add(key="team", value=f"vision {number}")
    graph.input[0].type.tensor_type.shape.dim[1].denotation = "DATA_CHANNEL"
    graph.input[0].type.denotation = "IMAGE"
    for name in ("a", "x"):
        annotation = graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    onnx.checker.check_model(proto, full_check=True)
    return proto


def messages(message: Message, path: str = "") -> Iterator[tuple[Any, str]]:
    """Yield a message and all messages in it, with their paths."""
    yield message, path
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for number, item in enumerate(value if field.is_repeated else [value]):
            label = next((str(n) for n in (getattr(item, "name", ""), getattr(item, "key", "")) if n), str(number))
            yield from messages(item, f"{path}/{field.name}[{label}]")


def plain(message: Message) -> dict[str, Any]:
    """Return the fields of a message that are no messages themselves."""
    fields = ((f, v) for f, v in message.ListFields() if f.message_type is None and f.name != "data_location")
    return {f.name: list(v) if f.is_repeated else v for f, v in fields}


def differences(original: onnx.ModelProto, made: onnx.ModelProto) -> dict[str, str]:
    """Return what differs between two models, by path."""
    found = {}
    # functions are written out where they are called; an id says which set a file belongs to
    one, other = (
        {path: plain(m) for m, path in messages(p) if "agmc_onnx.set" not in path} for p in (unwrapped(original), made)
    )
    for path in [*one, *(path for path in other if path not in one)]:
        if one.get(path) != other.get(path):
            keys = sorted(
                k for k in {**one.get(path, {}), **other.get(path, {})}
                if one.get(path, {}).get(k) != other.get(path, {}).get(k)
            )  # fmt: skip
            found[path] = "gone" if path not in other else "new" if path not in one else ",".join(keys)
    return found


CUT = {  # what has to differ when half of the channels of both convolutions go
    "/graph[g]/initializer[w]": "dims,raw_data",
    "/graph[g]/initializer[b]": "dims,raw_data",
    "/graph[g]/initializer[v]": "dims,raw_data",
    "/graph[g]/initializer[u]": "dims,raw_data",
    **{
        f"/graph[g]/value_info[{name}]/type[0]/tensor_type[0]/shape[0]/dim[1]": "dim_value"
        for name in ("a", "r", "f", "p")
    },
}


def test_compress_keeps_everything(tmp_path: Path) -> None:
    original = model()
    write_model(original, tmp_path / "net.onnx")
    options = {"flops": 0.3, "policy": "uniform", "latency_seconds": 0.02}
    result = compress(tmp_path / "net.onnx", output=tmp_path / "small.onnx", recover="none", **options)
    assert result.verification.masked_equivalence
    written = onnx.load(tmp_path / "small.onnx")
    assert differences(original, written) == CUT
    onnx.checker.check_model(written, full_check=True)


@pytest.mark.parametrize("external", [False, True])
def test_apply_keeps_everything(tmp_path: Path, external: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if external:
        for limit in ("_LOADED_BYTES", "_SMALL_BYTES", "_INLINE_BYTES"):
            monkeypatch.setattr(files, limit, 64)
    original = model()
    write_model(original, tmp_path / "net.onnx", external=external)
    file = read_model(tmp_path / "net.onnx")
    channels = analyse(graph_of(normalize(file.proto)))
    kept = choose(channels, l2_norm(channels), [6, 6])
    (tmp_path / "plan.json").write_text(make_plan(channels, kept, file.sha256).to_json())
    made = apply(tmp_path / "net.onnx", tmp_path / "plan.json", tmp_path / "small.onnx").model
    assert differences(original, onnx.load(tmp_path / "small.onnx")) == CUT
    bare = onnx.ModelProto()
    bare.CopyFrom(onnx.load(tmp_path / "small.onnx"))
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True).graph.value_info
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred}
    declared = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in made.graph.value_info}
    assert {name: sizes[name] for name in declared if name in sizes} == declared


def test_recovery_keeps_notes_too(tmp_path: Path) -> None:
    original = model()
    del original.graph.node[9], original.graph.output[1]  # recovery knows no local functions
    write_model(original, tmp_path / "net.onnx")
    x = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x=x)
    options = {"flops": 0.3, "policy": "uniform", "latency_seconds": 0.02}
    result = compress(tmp_path / "net.onnx", data=tmp_path / "data.npz", recover="compensate", **options)
    found = differences(original, result.model)
    assert {path: what for path, what in found.items() if path in CUT} == CUT
    assert {path: what for path, what in found.items() if path not in CUT} == {
        "/graph[g]/initializer[c]": "raw_data",
        "/graph[g]/initializer[q__agmc_bias]": "new",  # recovery gives a convolution the bias it lacks
        "/graph[g]/node[conv q]": "input",
    }

"""Models of half precision computed in float32: for comparing what they say, on any machine."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import numpy_helper

_T = onnx.TensorProto
HALF = frozenset({_T.FLOAT16, _T.BFLOAT16})
_NAMES_A_TYPE = {  # op: attribute that holds the type of its result
    "Bernoulli": "dtype",
    "BlackmanWindow": "output_datatype",
    "Cast": "to",
    "DequantizeLinear": "output_dtype",
    "EyeLike": "dtype",
    "HammingWindow": "output_datatype",
    "HannWindow": "output_datatype",
    "MelWeightMatrix": "output_datatype",
    "RandomNormal": "dtype",
    "RandomNormalLike": "dtype",
    "RandomUniform": "dtype",
    "RandomUniformLike": "dtype",
    "SequenceEmpty": "dtype",
}


def is_half(model: onnx.ModelProto) -> bool:
    """Whether any weight or graph input of the main graph is float16 or bfloat16."""
    graph = model.graph
    kinds = {tensor.data_type for tensor in graph.initializer}
    kinds.update(value.type.tensor_type.elem_type for value in (*graph.input, *graph.output))
    kinds.update(a.t.data_type for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.HasField("t"))
    return bool(kinds & HALF)


def to_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with every float16 and bfloat16 tensor, and every cast to one, in float32.

    Args:
        model: Any model whose data is loaded; not changed.
    """
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    _widen_graph(wide.graph)
    for function in wide.functions:
        _widen_nodes(function.node)
    return wide


def as_fed(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a feed for `to_float32` of the model it was made for."""
    return {name: x.astype(np.float32) if _is_half(x.dtype) else x for name, x in feed.items()}


def _is_half(dtype: np.dtype) -> bool:
    return dtype == np.float16 or dtype.name == "bfloat16"


def _widen_graph(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for sparse in graph.sparse_initializer:
        _widen_tensor(sparse.values)
    for value in (*graph.input, *graph.output, *graph.value_info):
        _widen_type(value.type)
    _widen_nodes(graph.node)


def _widen_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        names_a_type = _NAMES_A_TYPE.get(node.op_type)
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_tensor(attribute.t)
            if attribute.HasField("g"):
                _widen_graph(attribute.g)
            if attribute.name == names_a_type and attribute.i in HALF:
                attribute.i = _T.FLOAT


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in HALF:
        array = np.ascontiguousarray(numpy_helper.to_array(tensor).astype(np.float32))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _widen_type(kind: onnx.TypeProto) -> None:
    which = kind.WhichOneof("value")
    if which in ("sequence_type", "optional_type"):
        _widen_type(getattr(kind, which).elem_type)
    elif which == "tensor_type" and kind.tensor_type.elem_type in HALF:
        kind.tensor_type.elem_type = _T.FLOAT

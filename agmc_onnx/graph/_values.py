"""Constants of a graph under edit, whose numbers stay in the original protobuf until they are asked for, and signatures.

Two signatures are equal exactly when what is exported would be equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from agmc_onnx.graph.files import read_array, read_sparse


def dtype_of(data_type: int) -> Any:
    """Return the numpy type of a tensor's type, or its number where numpy has none."""
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(data_type)
    except KeyError:
        return data_type


class Kept(LazyValues):
    """Values of a constant that stay in the original protobuf until they are asked for."""

    def __init__(self, original: onnx.TensorProto) -> None:
        self.original = original
        self.shape = list(original.dims)
        self.dtype = dtype_of(original.data_type)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * getattr(self.dtype, "itemsize", 1)

    @property
    def is_external(self) -> bool:
        """Whether the numbers lie in another file."""
        return self.original.data_location == onnx.TensorProto.EXTERNAL

    @property
    def tensor(self) -> onnx.TensorProto:
        """A private copy, for graphsurgeon's own export: it renames what it exports."""
        copy = onnx.TensorProto()
        copy.CopyFrom(self.original)
        return copy

    def load(self) -> np.ndarray:
        """Return the numbers."""
        return np.array(read_array(self.original))


class KeptSparse(SparseValues):
    """The same for a sparse initializer; once asked for, it is dense."""

    def __init__(self, original: onnx.SparseTensorProto) -> None:
        self.original = original
        self.shape = list(original.dims)
        self.dtype = dtype_of(original.values.data_type)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * getattr(self.dtype, "itemsize", 1)

    @property
    def tensor(self) -> onnx.SparseTensorProto:
        """A private copy, as of `Kept`."""
        copy = onnx.SparseTensorProto()
        copy.CopyFrom(self.original)
        return copy

    def load(self) -> np.ndarray:
        """Return the numbers."""
        return read_sparse(self.original)


def same_values(one: Any, two: Any) -> bool:
    """Whether two constants hold the same; numbers are compared only where one of them was loaded."""
    if isinstance(one, LazyValues) and isinstance(two, LazyValues):
        return one is two or getattr(one, "original", one) is getattr(two, "original", two)
    if one.dtype != two.dtype or tuple(one.shape) != tuple(two.shape):
        return False
    if any(isinstance(values, Kept) and values.is_external for values in (one, two)):
        return False  # what was not loaded cannot be where the other came from
    one, two = (values.load() if isinstance(values, LazyValues) else values for values in (one, two))
    return bool(np.array_equal(one, two)) if one.dtype == object else one.tobytes() == two.tobytes()


def tensor_proto(name: str, values: Any, base: onnx.TensorProto | onnx.SparseTensorProto | None) -> onnx.TensorProto:
    """Return a constant's tensor; `base` is what it was before, whose documentation stays."""
    out = onnx.TensorProto()
    if isinstance(base, onnx.TensorProto) and not isinstance(values, LazyValues) and same_values(values, Kept(base)):
        values = Kept(base)  # was read, not changed
    if isinstance(values, Kept):
        if values.original.name == name:
            return values.original
        out.CopyFrom(values.original)
        out.name = name
        return out
    if isinstance(values, LazyValues):
        values = values.load()
    out.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name))
    if isinstance(base, onnx.SparseTensorProto):
        base = base.values
    if base is not None:
        out.metadata_props.extend(base.metadata_props)
        if base.doc_string:
            out.doc_string = base.doc_string
    return out


def append_tensor(into: onnx.GraphProto, tensor: onnx.TensorProto | onnx.SparseTensorProto) -> None:
    """Add an initializer, dense or sparse."""
    if isinstance(tensor, onnx.SparseTensorProto):
        into.sparse_initializer.append(tensor)
    else:
        into.initializer.append(tensor)


def sign_tensor(tensor: gs.Tensor) -> tuple[Any, ...]:
    """Return name and type of a tensor, or which values a constant holds."""
    if isinstance(tensor, gs.Constant):
        return (tensor.name, "constant", id(tensor._values))
    return (tensor.name, tensor.dtype, None if tensor.shape is None else tuple(tensor.shape))


def sign_node(node: gs.Node) -> tuple[Any, ...]:
    """Return everything of a node that is exported."""
    attributes = tuple((name, sign(value)) for name, value in node.attrs.items())
    inputs = tuple(sign_tensor(tensor) for tensor in node.inputs)
    outputs = tuple(sign_tensor(tensor) for tensor in node.outputs)
    return (node.op, node.name, node.domain or "", inputs, outputs, attributes)


def sign(value: Any) -> Any:
    """Return the signature of an attribute's value."""
    if isinstance(value, gs.Constant):
        return sign_tensor(value)
    if isinstance(value, gs.Graph):
        inputs = tuple(sign_tensor(tensor) for tensor in value.inputs)
        outputs = tuple(sign_tensor(tensor) for tensor in value.outputs)
        return (value.name, value.doc_string, inputs, outputs, tuple(sign_node(node) for node in value.nodes))
    if isinstance(value, list | tuple):
        return tuple((type(item).__name__, item) for item in value)
    if isinstance(value, np.ndarray):
        return ("array", id(value))
    return (type(value).__name__, value)

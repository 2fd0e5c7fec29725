"""JAX functions to ONNX, by jax2onnx; modules of Flax and Equinox are such functions too."""

from __future__ import annotations

from typing import Any

import numpy as np

from agmc_onnx.errors import UsageError
from agmc_onnx.exchange.importers.source import (
    Conversion,
    Feed,
    ImportOptions,
    InputShape,
    Source,
    converting,
    need,
    version,
)

OPSET = 21


def convert_function(source: Source, options: ImportOptions) -> Conversion:
    """Convert a function of arrays; its parameters are what it closes over."""
    shapes = options.input_shapes
    if not shapes:
        raise UsageError(
            f"{source}: does not say what it is fed, got no input shape; expected one per argument. Give --input-shape, such as"
            " --input-shape N,28,28,1."
        )
    if not (source.is_reference and callable(source.value)):
        raise UsageError(f"{source}: no function, got {source.text!r}; expected module:function. Name the function.")
    need(source, "import-jax", "jax", "jax2onnx")
    import jax
    from jax2onnx import to_onnx

    function = source.value
    with converting(source, "jax2onnx"):
        inputs = [_spec(shape, options) for shape in shapes]
        model = to_onnx(function, inputs=inputs, opset=options.opset or OPSET)
    names = [value.name for value in model.graph.input]

    def answer(feed: Feed) -> list[np.ndarray]:
        found: Any = function(*(feed[name] for name in names))
        return [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(found)]

    return Conversion(model, answer, version("jax"), version("jax2onnx"))


def _spec(shape: InputShape, options: ImportOptions) -> Any:
    """Return an input as jax2onnx reads it: a name stands for an open dim."""
    import jax

    first = shape.dims[:1] if options.fixed_batch else ("B",)
    dims = (*first, *shape.dims[1:]) if shape.dims else ()
    return jax.ShapeDtypeStruct(dims, np.dtype(shape.dtype)) if all(isinstance(d, int) for d in dims) else dims

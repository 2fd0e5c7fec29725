"""Tiny nets for the tests: a few lines of ONNX text, with seeded weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx


def model(text: str, weights: Mapping[str, Sequence[int] | np.ndarray] | None = None, seed: int = 0) -> onnx.ModelProto:
    """Return the model of a piece of ONNX text (https://onnx.ai/onnx/repo-docs/Syntax.html).

    Args:
        text: The model; without a `<ir_version: ...>` header it gets IR version 8 and opset 17.
        weights: Initializers to add, by name: a shape, filled with random float32 numbers of variance 1 / fan-in, so
            that activations keep their size; or the array itself (positive variances, int64 shapes).
        seed: Of the random numbers.
    """
    if not text.lstrip().startswith("<"):
        text = '<ir_version: 8, opset_import: ["" : 17]>\n' + text
    proto = onnx.parser.parse_model(text)
    generator = np.random.default_rng(seed)
    for name, weight in (weights or {}).items():
        if isinstance(weight, np.ndarray):
            array = weight
        else:
            fan_in = int(np.prod(weight[1:])) or 1
            array = (generator.standard_normal(weight) / np.sqrt(fan_in)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return proto

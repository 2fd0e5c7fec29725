"""The numbers that a node of shape arithmetic gives: in numpy where its op says how, by onnx's reference for all others.

The reference builds a model and an evaluator for every node, a millisecond each; graphs that PyTorch's older exporter
writes hold thousands of such nodes.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from agmc_onnx.errors import ModelError
from agmc_onnx.graph.registry import graph_op

Array = np.ndarray
_FIRST_WITH_NUMPY_BROADCAST = 7  # before this opset, operands were aligned by an attribute


def evaluate_node(proto: onnx.NodeProto, feeds: dict[str, Array], opset: int) -> list[Array | None]:
    """Return the outputs of one node of the default domain.

    Args:
        proto: The node.
        feeds: Value of each of its inputs.
        opset: Version of the default operator set.

    Returns:
        One array an output; None for all of them where the node cannot be evaluated.
    """
    op = graph_op("", proto.op_type) if opset >= _FIRST_WITH_NUMPY_BROADCAST else None
    evaluation = None if op is None else op.evaluate
    with np.errstate(all="ignore"):
        if evaluation is not None and len(proto.output) == 1:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}
            inputs = [feeds[name] if name else None for name in proto.input]
            try:
                found = evaluation(inputs, attributes)
            except MemoryError:
                raise ModelError(
                    f"node {proto.op_type} {proto.name or proto.output[0]}: its constant output takes more memory than there is;"
                    " expected the size that the model runs at. Export the model again."
                ) from None
            except (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError, OverflowError):
                found = None  # let the reference say whether the node is wrong or only unusual
            if found is not None:
                return [np.asarray(found)]
        return _by_reference(proto, feeds, opset)


def _by_reference(proto: onnx.NodeProto, feeds: dict[str, Array], opset: int) -> list[Array | None]:
    types = onnx.helper.np_dtype_to_tensor_dtype
    infos = [onnx.helper.make_tensor_value_info(name, types(value.dtype), None) for name, value in feeds.items()]
    outs = [onnx.helper.make_empty_tensor_value_info(output) for output in proto.output if output]
    graph = onnx.helper.make_graph([proto], "one", infos, outs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    try:
        found = iter(ReferenceEvaluator(model).run(None, feeds))
    except Exception:  # any failure of onnx.reference means the same here: the value is not known
        return [None for _ in proto.output]
    return [np.asarray(next(found)) if name else None for name in proto.output]

"""Nodes that torch has no counterpart of, run by onnxruntime one by one: fused ops, If and Loop, a model's own functions.

They have no gradient, but a refit in closed form needs none: it only has to see what goes into the layers behind them.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from agmc_onnx.errors import ModelError
from agmc_onnx.graph.view import Graph, Node, captured_names
from agmc_onnx.measuring.session import Run, make_session, run_model
from agmc_onnx.torch_view.math_ops import Call
from agmc_onnx.torch_view.module import to_tensor

_TYPES = {
    torch.float32: onnx.TensorProto.FLOAT, torch.float64: onnx.TensorProto.DOUBLE, torch.float16: onnx.TensorProto.FLOAT16,
    torch.int64: onnx.TensorProto.INT64, torch.int32: onnx.TensorProto.INT32, torch.int16: onnx.TensorProto.INT16,
    torch.int8: onnx.TensorProto.INT8, torch.uint8: onnx.TensorProto.UINT8, torch.bool: onnx.TensorProto.BOOL,
}  # fmt: skip


class Foreign(Call):
    """A node as a model of its own; its inputs are those of the node and what its subgraphs capture."""

    def __init__(self, node: Node, graph: Graph) -> None:
        """Take what the node needs of its graph; the session is opened when the types of its inputs are known.

        Args:
            node: Any node.
            graph: Where it stands.
        """
        known = {*graph.inputs, *graph.tensors, *graph.producer}
        captured = [name for name in dict.fromkeys(captured_names(node.proto)) if name in known]
        self.n_own = len(node.inputs)
        super().__init__(node.op_type, (*node.inputs, *captured), node.outputs, {}, graph.opset, node.label)
        self._node, self._graph = node, graph
        self._run: Run | None = None

    def run(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs by name.

        Args:
            values: At least the inputs that are no constants.

        Raises:
            ModelError: If onnxruntime cannot run the node.
        """
        fed = [name for name in dict.fromkeys(self.inputs) if name and name not in self._graph.tensors]
        if self._run is None:
            self._run = self._open({name: values[name] for name in fed})
        found = self._run({name: values[name].detach().contiguous().numpy() for name in fed})
        return dict(zip([name for name in self.outputs if name], map(to_tensor, found), strict=True))

    def _open(self, feed: Mapping[str, Tensor]) -> Run:
        whole, constants = (
            self._graph.model,
            [name for name in dict.fromkeys(self.inputs) if name in self._graph.tensors],
        )
        strange = [f"{name} of {x.dtype}" for name, x in feed.items() if x.dtype not in _TYPES]
        if strange:
            raise ModelError(
                f"{self.label}: cannot be run alone, got {', '.join(strange)}; expected other types. Use --recover none."
            )
        inputs = [onnx.helper.make_tensor_value_info(name, _TYPES[x.dtype], None) for name, x in feed.items()]
        outputs = [onnx.ValueInfoProto(name=name) for name in self.outputs if name]
        tensors = [numpy_helper.from_array(self._graph.array(name), name) for name in constants]
        graph = onnx.helper.make_graph([self._node.proto], "node", inputs, outputs, tensors)
        model = onnx.helper.make_model(graph, opset_imports=whole.opset_import, functions=whole.functions)
        model.ir_version = whole.ir_version
        session = make_session(model, torch.get_num_threads())
        return lambda arrays: run_model(session, arrays)

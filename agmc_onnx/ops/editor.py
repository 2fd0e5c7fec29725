"""The edits of nodes that a cut asks for, noted for `agmc_onnx.graph.edit`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from agmc_onnx.arrays import IntArray, Mask
from agmc_onnx.graph.edit import Change, Gone, Input, Made, Output, Undeclared
from agmc_onnx.graph.shapes import Shape
from agmc_onnx.graph.view import Node as GraphNode
from agmc_onnx.ops.table import op_of
from agmc_onnx.ties.cut import Cut

_PADS_ARE_AN_INPUT = 11  # since this opset
Attribute = int | float | Sequence[int] | onnx.TensorProto | None


class Editor:
    """What a repair may do to the model that is being built. It only notes it: the nodes it is given are the original's.

    Attributes:
        cut: What stays of every axis.
        graph: The original.
        changes: Of the structure, each once, in the order in which they were asked for.
        arrays: Numbers of the constants that come, by name.
        attributes: New attributes of nodes, by what a node makes first; None removes one.
    """

    def __init__(self, cut: Cut) -> None:
        self.cut = cut
        self.graph = cut.graph
        self.changes: dict[Change, None] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.attributes: dict[str, dict[str, Attribute]] = {}

    def change(self, *changes: Change) -> None:
        """Change the structure."""
        self.changes.update(dict.fromkeys(changes))

    def constant(self, proto: onnx.NodeProto, position: int, values: Sequence[int] | IntArray) -> None:
        """Let an input of a node be a new constant: int64, or as given where it is floating."""
        self.change(Input(proto.output[0], position, self._constant(proto.output[0], position, values)))

    def _constant(self, output: str, position: int, values: Sequence[int] | IntArray) -> str:
        name = f"{output}__agmc_{position}"
        values = np.asarray(values)
        dtype = values.dtype if np.issubdtype(values.dtype, np.floating) else np.int64  # Resize has scales
        self.arrays[name] = values.astype(dtype)
        return name

    def numbers(self, proto: onnx.NodeProto, position: int, values: Sequence[int | None]) -> None:
        """Let an input have these numbers; None for those that go on being computed at run time."""
        if None in values:
            self.mix(proto, position, values)
        else:
            self.constant(proto, position, [value for value in values if value is not None])

    def mix(self, proto: onnx.NodeProto, position: int, values: Sequence[int | None]) -> None:
        """Let an input, sizes computed at run time, have these numbers where they are not None."""
        name = f"{proto.output[0]}__agmc_{position}"
        self._mixed(proto.input[position], values, name, name, name)
        self.change(Input(proto.output[0], position, name))

    def _mixed(
        self, sizes: str, values: Sequence[int | None], begin: str, output: str, name: str, behind: str = ""
    ) -> None:
        """Let nodes make sizes with other numbers where these are not None."""
        keep, add, kept = (f"{begin}_{part}" for part in ("keep", "add", "kept"))
        self.arrays[keep] = np.array([value is None for value in values], np.int64)
        self.arrays[add] = np.array([value or 0 for value in values], np.int64)
        self.change(Made("Mul", (sizes, keep), (kept,), name=kept, behind=behind))
        self.change(Made("Add", (kept, add), (output,), name=name, behind=behind))

    def among_zeros(self, proto: onnx.NodeProto, dim: int, mask: Mask) -> None:
        """Let a node's first input have its old size along a dim, zero where entries went, and cut its output instead.

        Args:
            proto: A node whose output has the size of its first input along the dim.
            dim: The dim.
            mask: bool (size,), true where an entry stays.
        """
        x, y = proto.input[0], proto.output[0]
        shape = self.shape(x)
        padded, spread, whole = (f"{y}__agmc_{part}_{dim}" for part in ("padded", "spread", "whole"))
        pads = [0] * (2 * shape.rank)
        pads[shape.rank + dim] = 1  # the zero
        if self.graph.opset < _PADS_ARE_AN_INPUT:
            self.change(Made("Pad", (x,), (padded,), (("pads", tuple(pads)),), name=padded))
        else:
            self.change(Made("Pad", (x, self._constant(padded, 1, pads)), (padded,), name=padded))
        stays, axis = np.flatnonzero(mask), (("axis", dim),)
        before = self._constant(spread, 1, np.where(mask, np.cumsum(mask) - 1, stays.size))
        after = self._constant(y, 1, stays)
        self.change(
            Made("Gather", (padded, before), (spread,), axis, name=spread),
            Input(y, 0, spread),
            Output(y, whole),
            Made("Gather", (whole, after), (y,), axis, name=f"{y}__agmc_kept_{dim}", behind=y),
        )

    def attribute(self, proto: onnx.NodeProto, name: str, value: Attribute) -> None:
        """Set, or with None remove, an attribute."""
        self.attributes.setdefault(proto.output[0], {})[name] = value

    def shape(self, value: str) -> Shape:
        """Return a value's shape; repairs are only asked for where all shapes are known."""
        shape = self.graph.shape(value)
        assert shape is not None
        return shape

    def reads_cut_size(self, node: GraphNode) -> bool:
        """Whether a node computes with the size of an axis that is cut."""
        axes = self.cut.channels.sized.get(node.index, ())
        return any(self.cut.mask(value, dim) is not None for value, dim in axes)

    def pin(self, node: GraphNode) -> None:
        """Let a node that reads a cut size keep the numbers of the original; its repair then names what it cuts itself."""
        if not self.reads_cut_size(node):
            return
        positions = op_of(node).shape_inputs
        if not positions:
            self._pin_output(node)
            return
        for position in positions:
            if position < len(node.inputs) and node.inputs[position] not in self.graph.tensors:
                value = self.graph.value(node.inputs[position]) if node.inputs[position] else None
                if value is not None:
                    self.constant(node.proto, position, value)

    def _pin_output(self, node: GraphNode) -> None:
        y = node.outputs[0]
        value, sizes = self.graph.value(y), self.graph.sizes(y)
        if value is not None:
            self.change(Made("Constant", (), node.outputs))
            self.attribute(node.proto, "value", numpy_helper.from_array(value, y))
            return
        assert sizes is not None and node.op_type == "Shape"
        self.change(Output(y, f"{y}__agmc_read"))
        self._mixed(f"{y}__agmc_read", sizes, f"{y}__agmc", y, f"{y}__agmc_pinned", behind=y)

    def gather(self, proto: onnx.NodeProto, output: str, dim: int, index: IntArray) -> None:
        """Turn a node into a Gather of its first input."""
        name = self._constant(output, 1, index)
        self.change(Made("Gather", (proto.input[0], name), (output,), (("axis", dim),), place=proto.output[0]))

    def bypass(self, first: GraphNode, last: GraphNode) -> None:
        """Let the last of two nodes be an Identity of the first one's first input."""
        self.change(Made("Identity", (first.inputs[0],), last.outputs[:1]))
        self.drop(first)

    def forget(self, values: Sequence[str]) -> None:
        """Remove declared shapes that no longer hold."""
        self.change(*(Undeclared(value) for value in values if value))

    def drop(self, node: GraphNode) -> None:
        """Remove a node whose work another does now."""
        self.change(Gone(node.outputs[0]))

"""The edits of nodes that a cut asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from agmc_onnx.arrays import IntArray, Mask
from agmc_onnx.graph.view import Node as GraphNode
from agmc_onnx.ops.table import op_of
from agmc_onnx.ties.cut import Cut

_PADS_ARE_AN_INPUT = 11  # since this opset


class Editor:
    """What a repair may do to the model that is being built."""

    def __init__(self, model: onnx.ModelProto, cut: Cut) -> None:
        self.model = model
        self.cut = cut
        self.graph = cut.graph
        self._replaced: set[str] = set()
        self._dropped: set[str] = set()
        # before (0) or after (1) the node that makes this value
        self._added: list[tuple[str, int, list[onnx.NodeProto]]] = []

    def constant(self, proto: onnx.NodeProto, position: int, values: Sequence[int] | IntArray) -> None:
        """Let an input of a node be a new constant: int64, or as given where it is floating."""
        name = f"{proto.output[0]}__agmc_{position}"
        values = np.asarray(values)
        dtype = values.dtype if np.issubdtype(values.dtype, np.floating) else np.int64  # Resize has scales
        tensor = numpy_helper.from_array(values.astype(dtype), name)
        if len(proto.input) > position and proto.input[position] == name:  # pinned before
            next(t for t in self.model.graph.initializer if t.name == name).CopyFrom(tensor)
            return
        self.model.graph.initializer.append(tensor)
        while len(proto.input) <= position:
            proto.input.append("")
        if proto.input[position]:
            self._replaced.add(proto.input[position])
        proto.input[position] = name

    def mix(self, proto: onnx.NodeProto, position: int, values: Sequence[int | None]) -> None:
        """Let an input, sizes computed at run time, have these numbers where they are not None."""
        source, name = proto.input[position], f"{proto.output[0]}__agmc_{position}"
        add = [0 if value is None else value for value in values]
        keep = [1 if value is None else 0 for value in values]
        for part, numbers in (("keep", keep), ("add", add)):
            self.model.graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.int64), f"{name}_{part}"))
        nodes = [
            onnx.helper.make_node("Mul", [source, f"{name}_keep"], [f"{name}_kept"], f"{name}_kept"),
            onnx.helper.make_node("Add", [f"{name}_kept", f"{name}_add"], [name], name),
        ]
        self._added.append((proto.output[0], 0, nodes))
        proto.input[position] = name

    def among_zeros(self, proto: onnx.NodeProto, dim: int, mask: Mask) -> None:
        """Let a node's first input have its old size along a dim, zero where entries went, and cut its output instead.

        Args:
            proto: A node whose output has the size of its first input along the dim.
            dim: The dim.
            mask: bool (size,), true where an entry stays.
        """
        x, y = proto.input[0], proto.output[0]
        shape = self.graph.shape(x)
        assert shape is not None
        padded, spread, whole = (f"{y}__agmc_{part}_{dim}" for part in ("padded", "spread", "whole"))
        pads = [0] * (2 * shape.rank)
        pads[shape.rank + dim] = 1  # the zero
        pad = onnx.helper.make_node("Pad", [x], [padded], padded)
        if self.graph.opset < _PADS_ARE_AN_INPUT:
            self.attribute(pad, "pads", pads)
        else:
            self.constant(pad, 1, pads)
        stays = np.flatnonzero(mask)
        before = onnx.helper.make_node("Gather", [padded], [spread], spread, axis=dim)
        self.constant(before, 1, np.where(mask, np.cumsum(mask) - 1, stays.size))
        after = onnx.helper.make_node("Gather", [whole], [y], f"{y}__agmc_kept_{dim}", axis=dim)
        self.constant(after, 1, stays)
        proto.input[0], proto.output[0] = spread, whole
        self._added += [(whole, 0, [pad, before]), (whole, 1, [after])]

    def attribute(self, proto: onnx.NodeProto, name: str, value: int | float | Sequence[int] | None) -> None:
        """Set, or with None remove, an attribute."""
        kept = [a for a in proto.attribute if a.name != name]
        if value is not None:
            kept.append(onnx.helper.make_attribute(name, value))
        del proto.attribute[:]
        proto.attribute.extend(kept)

    def reads_cut_size(self, node: GraphNode) -> bool:
        """Whether a node computes with the size of an axis that is cut."""
        axes = self.cut.channels.sized.get(node.index, ())
        return any(self.cut.mask(value, dim) is not None for value, dim in axes)

    def pin(self, node: GraphNode, proto: onnx.NodeProto) -> None:
        """Let a node that reads a cut size keep the numbers of the original; its repair then names what it cuts itself."""
        if not self.reads_cut_size(node):
            return
        positions = op_of(node).shape_inputs
        if not positions:
            values = [self.graph.value(output) for output in node.outputs]
            assert len(values) == 1 and values[0] is not None
            self._replaced.update(name for name in proto.input if name)
            del proto.input[:]
            del proto.attribute[:]
            proto.op_type = "Constant"
            tensor = numpy_helper.from_array(values[0], node.outputs[0])
            proto.attribute.append(onnx.helper.make_attribute("value", tensor))
            return
        for position in positions:
            if position < len(node.inputs) and node.inputs[position] not in self.graph.tensors:
                value = self.graph.value(node.inputs[position]) if node.inputs[position] else None
                if value is not None:
                    self.constant(proto, position, value)

    def gather(self, proto: onnx.NodeProto, output: str, dim: int, index: IntArray) -> None:
        """Turn a node into a Gather of its first input."""
        self._replaced.update(name for name in proto.input[1:] if name)
        source = proto.input[0]
        del proto.input[:]
        del proto.output[:]
        del proto.attribute[:]
        proto.op_type = "Gather"
        proto.input.append(source)
        proto.output.append(output)
        proto.attribute.append(onnx.helper.make_attribute("axis", dim))
        self.constant(proto, 1, index)

    def bypass(self, first: GraphNode, last: GraphNode) -> None:
        """Let the last of two nodes be an Identity of the first one's first input."""
        proto = self.proto_of(last)
        self._replaced.update(name for name in (*proto.input, *first.inputs[1:]) if name)
        del proto.input[:]
        del proto.attribute[:]
        proto.op_type = "Identity"
        proto.input.append(first.inputs[0])
        self.drop(first)
        self.forget(first.outputs)

    def forget(self, values: Sequence[str]) -> None:
        """Remove declared shapes that no longer hold."""
        infos = self.model.graph.value_info
        _delete(infos, [i for i, info in enumerate(infos) if info.name in values])

    def drop(self, node: GraphNode) -> None:
        """Remove a node whose work another does now."""
        self._dropped.update(node.outputs)
        self._replaced.update(name for name in node.inputs if name)

    def proto_of(self, node: GraphNode) -> onnx.NodeProto:
        """Return the node of the new model that makes the same outputs."""
        return next(p for p in self.model.graph.node if tuple(p.output) == node.outputs)

    def finish(self) -> None:
        """Add the nodes that repairs made; remove nodes and constants that fed only what repairs replaced."""
        graph = self.model.graph
        for output, later, nodes in self._added:
            at = later + next(i for i, p in enumerate(graph.node) if output in p.output)
            for offset, made in enumerate(nodes):
                graph.node.insert(at + offset, made)
        dead = {i for i, p in enumerate(graph.node) if p.op_type != "Gather" and self._dropped.intersection(p.output)}
        pending = set(self._replaced)
        if not pending:
            return
        outside = {o.name for o in graph.output} | set(self.graph.captured) | {i.name for i in graph.input}
        users = Counter(name for i, p in enumerate(graph.node) if i not in dead for name in p.input)
        maker = {name: i for i, p in enumerate(graph.node) for name in p.output}
        unused = set()
        while pending:
            name = pending.pop()
            if users[name] or name in outside:
                continue
            unused.add(name)
            node = maker.get(name)
            if (
                node is not None
                and node not in dead
                and not any(users[o] or o in outside for o in graph.node[node].output)
            ):
                dead.add(node)
                for source in graph.node[node].input:
                    users[source] -= 1
                    pending.add(source)
        lost = {name for i in dead for name in graph.node[i].output} - {
            o for i, p in enumerate(graph.node) if i not in dead for o in p.output
        }
        _delete(graph.node, dead)
        _delete(graph.initializer, [i for i, t in enumerate(graph.initializer) if t.name in unused])
        _delete(graph.value_info, [i for i, v in enumerate(graph.value_info) if v.name in lost])


def _delete(items: Any, indices: Iterable[int]) -> None:
    for index in sorted(indices, reverse=True):
        del items[index]

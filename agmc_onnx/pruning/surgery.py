"""Cutting: every tensor on its axes, every node that names a size, every declared shape."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from agmc_onnx.arrays import IntArray, Mask
from agmc_onnx.graph.external import is_external, part_of, take
from agmc_onnx.graph.files import write_array
from agmc_onnx.graph.protobuf import without_initializers
from agmc_onnx.graph.view import Graph
from agmc_onnx.ops.editor import Editor
from agmc_onnx.ops.table import op_of
from agmc_onnx.pruning.depth import closer_of, shallower
from agmc_onnx.ties.cut import Cut
from agmc_onnx.ties.groups import Channels

_SHALLOWER = 8  # graphs without some layers that are kept between cuts
_PREPARED_BYTES = 64_000_000  # of weights that are kept as arrays between cuts


class Surgeon:
    """Cuts one analysed model again and again; what does not change between candidates is prepared once."""

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        model = channels.graph.model
        self._skeleton = without_initializers(model)
        self._initializers = list(model.graph.initializer)
        graph = channels.graph
        touched = {value for value, _ in channels.axes}
        tensors = {name for name in touched if name in graph.tensors}
        inside = [name for name in tensors if not is_external(graph.tensors[name])]
        n_bytes = sum(graph.tensors[name].ByteSize() for name in inside)
        # of larger models a second copy of the weights costs more than reading each again where it is cut
        self._arrays = {name: graph.array(name) for name in inside if n_bytes <= _PREPARED_BYTES}
        constants = {proto.output[0]: i for i, proto in enumerate(model.graph.node) if proto.op_type == "Constant"}
        self._constant_nodes = {name: constants[name] for name in tensors if name in constants}
        positions = [i for i, proto in enumerate(model.graph.node) if not _is_constant(proto, graph)]
        followers = {node.index for shuffle in channels.shuffles.values() for node in shuffle.chain[1:]}
        followers.update(node.index for node in channels.views.values())
        self._repairs = [
            (node, positions[node.index], op_of(node).repair)
            for node in graph.nodes
            if node.index not in followers
            and (
                node.index in channels.sized
                or (op_of(node).repair is not None and touched.intersection((*node.inputs, *node.outputs)))
            )
        ]
        self._declared = [i for i, info in enumerate(model.graph.value_info) if info.name in touched]
        self._shallower: dict[frozenset[int], Surgeon] = {}
        self._inputs = [i for i, info in enumerate(model.graph.input) if info.name in touched]

    def cut(self, kept: Sequence[IntArray]) -> onnx.ModelProto:
        """Return the model with only the kept units.

        Args:
            kept: For each prunable group the kept positions, ascending; what goes with groups that keep nothing must keep nothing
                either (`ties.closed`).
        """
        nothing = frozenset(i for i, positions in enumerate(kept) if not len(positions))
        if not nothing:
            return self._cut(kept)
        if nothing not in self._shallower:
            while len(self._shallower) >= _SHALLOWER:
                del self._shallower[next(iter(self._shallower))]
            self._shallower[nothing] = Surgeon(shallower(self.channels, closer_of(self.channels)(nothing)))
        return self._shallower[nothing]._cut(kept)

    def _cut(self, kept: Sequence[IntArray]) -> onnx.ModelProto:
        cut = Cut(self.channels, kept)
        model = onnx.ModelProto()
        model.CopyFrom(self._skeleton)
        graph = model.graph
        masks = cut.tensor_axes()
        for tensor in self._initializers:
            self._add_tensor(tensor, tensor.name, masks, graph.initializer.add())
        for name, at in self._constant_nodes.items():
            if name in masks:
                del graph.node[at].attribute[:]
                value = graph.node[at].attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
                self._add_tensor(self.channels.graph.tensors[name], name, masks, value.t)
        for infos, indices in ((graph.value_info, self._declared), (graph.input, self._inputs)):
            for i in indices:
                _redeclare(infos[i], cut)
        editor = Editor(model, cut)
        for node, at, repair in self._repairs:
            editor.pin(node, graph.node[at])
            if repair is not None:
                repair(editor, node, graph.node[at])
        editor.finish()
        return model

    def _add_tensor(
        self, tensor: onnx.TensorProto, name: str, masks: dict[str, dict[int, Mask]], into: onnx.TensorProto
    ) -> None:
        """Write what stays of a tensor; of one in another file a reference, read when it is written or run."""
        if name not in masks:
            into.CopyFrom(tensor)
        elif is_external(tensor):
            into.CopyFrom(part_of(tensor, masks[name]))
        else:
            array = self._arrays[name] if name in self._arrays else self.channels.graph.array(name)
            array = take(array, masks[name])
            into.name, into.data_type, into.doc_string = tensor.name, tensor.data_type, tensor.doc_string
            into.dims.extend(array.shape)
            into.metadata_props.extend(tensor.metadata_props)
            write_array(array, into)


def _is_constant(proto: onnx.NodeProto, graph: Graph) -> bool:
    return proto.op_type == "Constant" and proto.output[0] in graph.tensors


def _redeclare(info: onnx.ValueInfoProto, cut: Cut) -> None:
    shape = info.type.tensor_type.shape
    for dim in range(len(shape.dim)):
        if cut.mask(info.name, dim) is not None:
            shape.dim[dim].dim_value = cut.size(info.name, dim)

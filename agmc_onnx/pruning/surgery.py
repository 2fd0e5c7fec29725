"""Cutting: every tensor on its axes, every node that names a size, every declared shape."""

from __future__ import annotations

from collections.abc import Sequence, Set

import onnx

from agmc_onnx.arrays import IntArray, Mask
from agmc_onnx.graph.edit import Skeletons, put_attributes
from agmc_onnx.graph.external import is_external, part_of, take
from agmc_onnx.graph.files import write_array
from agmc_onnx.ops.editor import Editor
from agmc_onnx.ops.table import op_of
from agmc_onnx.ops.vanish import closer_of
from agmc_onnx.pruning.depth import shallower
from agmc_onnx.ties.balance import numbered
from agmc_onnx.ties.cut import Cut
from agmc_onnx.ties.groups import Channels

_SHALLOWER = 8  # graphs without some layers that are kept between cuts
_PREPARED_BYTES = 64_000_000  # of weights that are kept as arrays between cuts


class Surgeon:
    """Cuts one analysed model again and again; what does not change between candidates is prepared once."""

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        model = channels.graph.model
        self._skeletons = Skeletons(model)
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        graph = channels.graph
        touched = {value for value, _ in channels.axes}
        constants = {proto.output[0] for proto in model.graph.node if proto.op_type == "Constant"}
        tensors = {name for name in touched if name in graph.tensors and name in constants | self._initializers.keys()}
        inside = [name for name in tensors if not is_external(graph.tensors[name])]
        n_bytes = sum(graph.tensors[name].ByteSize() for name in inside)
        # of larger models a second copy of the weights costs more than reading each again where it is cut
        self._arrays = {name: graph.array(name) for name in inside if n_bytes <= _PREPARED_BYTES}
        self._constant_nodes = [name for name in tensors if name in constants]
        followers = {node.index for shuffle in channels.shuffles.values() for node in shuffle.chain[1:]}
        followers.update(node.index for node in channels.views.values())
        self._repairs = [
            (node, op_of(node).repair)
            for node in graph.nodes
            if node.index not in followers
            and (
                node.index in channels.sized
                or (op_of(node).repair is not None and touched.intersection((*node.inputs, *node.outputs)))
            )
        ]
        self._declared = [info.name for info in model.graph.value_info if info.name in touched]
        self._inputs = [info.name for info in model.graph.input if info.name in touched]
        self._shallower: dict[frozenset[int], Surgeon] = {}
        may_go = numbered([group.units for group in channels.groups], channels.n_units) >= 0
        self._bodies = [
            (body, Surgeon(channels.inside(body)))
            for body in channels.bodies
            if any(may_go[axis.units].any() for axis in body.axes.values())
        ]

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
        editor = Editor(cut)
        for node, repair in self._repairs:
            editor.pin(node)
            if repair is not None:
                repair(editor, node, node.proto)
        skeleton = self._skeletons.of(tuple(editor.changes))
        model = skeleton.copy()
        graph = model.graph
        masks = cut.tensor_axes()
        for name in skeleton.initializers:
            self._add_tensor(self._initializers[name], name, masks, graph.initializer.add())
        for name in self._constant_nodes:
            if name in masks and name in skeleton.nodes:
                proto = graph.node[skeleton.nodes[name]]
                del proto.attribute[:]
                value = proto.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
                self._add_tensor(self.channels.graph.tensors[name], name, masks, value.t)
        for infos, names, places in (
            (graph.value_info, self._declared, skeleton.infos),
            (graph.input, self._inputs, skeleton.inputs),
        ):
            for name in names:
                if name in places:
                    _redeclare(infos[places[name]], cut)
        for output, attributes in editor.attributes.items():
            if output in skeleton.nodes:
                put_attributes(graph.node[skeleton.nodes[output]], attributes)
        skeleton.add_new(model, editor.arrays)
        for body, surgeon in self._bodies:
            if body.holder in skeleton.nodes:
                surgeon._put(
                    kept, graph.node[skeleton.nodes[body.holder]], body.name, self.channels.graph.tensors.keys()
                )
        return model

    def _put(self, kept: Sequence[IntArray], holder: onnx.NodeProto, name: str, outer: Set[str]) -> None:
        """Write what is left of this graph into the node that holds it; the constants of the graph around it stay there."""
        cut = self._cut(kept).graph
        body = next(attribute.g for attribute in holder.attribute if attribute.name == name)
        for field in ("node", "initializer", "value_info"):
            body.ClearField(field)
        body.node.extend(cut.node)
        body.initializer.extend(tensor for tensor in cut.initializer if tensor.name not in outer)

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


def _redeclare(info: onnx.ValueInfoProto, cut: Cut) -> None:
    shape = info.type.tensor_type.shape
    for dim in range(len(shape.dim)):
        if cut.mask(info.name, dim) is not None:
            shape.dim[dim].dim_value = cut.size(info.name, dim)

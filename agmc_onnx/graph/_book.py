"""What was what before an edit by onnx-graphsurgeon, and how the edited graph is written back so that nothing is lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from agmc_onnx.errors import ModelError
from agmc_onnx.graph._values import (
    Kept,
    KeptSparse,
    append_tensor,
    same_values,
    sign,
    sign_node,
    sign_tensor,
    tensor_proto,
)
from agmc_onnx.graph.protobuf import copy_fields, is_shown, ordered, retyped, used_names
from agmc_onnx.graph.view import captured_names

_A = onnx.AttributeProto
_Scopes = tuple[tuple[set[str], int], ...]  # initializer names and identity of a graph, then of those around it


@dataclass
class Book:
    """What was what before the edit: every imported object with its protobuf and a signature to notice changes by.

    Objects are known by identity and kept alive here, so that no identity is used twice.
    """

    lists_initializers: bool  # whether all initializers have to be graph inputs, so that none is overridable
    tensors: list[onnx.TensorProto | onnx.SparseTensorProto] = field(default_factory=list)
    graphs: dict[int, tuple[gs.Graph, onnx.GraphProto]] = field(default_factory=dict)
    nodes: dict[int, tuple[gs.Node, onnx.NodeProto, Any, dict[str, Any]]] = field(default_factory=dict)
    values: dict[int, tuple[gs.Tensor, Any, Any]] = field(default_factory=dict)  # (tensor, signature, kept values)
    owners: dict[int, int] = field(default_factory=dict)  # tensor -> graph it belongs to
    idle: dict[int, list[gs.Tensor]] = field(default_factory=dict)  # graph -> outputs nobody used to begin with

    # -- before the edit

    def strip_graph(self, graph: onnx.GraphProto, into: onnx.GraphProto) -> None:
        """Copy a graph with a stub in place of every tensor: graphsurgeon has nothing to load, to change or to lose.

        A stub's doc string is the position of its original in `tensors`.
        """
        into.name, into.doc_string = graph.name, graph.doc_string
        for tensor in graph.initializer:
            self._strip_tensor(tensor, into.initializer.add())
        for sparse in graph.sparse_initializer:
            stub = into.sparse_initializer.add(dims=sparse.dims)
            self._strip_tensor(sparse, stub.values)
        for field_name in ("input", "output", "value_info"):
            for value in getattr(graph, field_name):
                shown = getattr(into, field_name).add(name=value.name)
                if value.type.HasField("tensor_type") or value.type.sequence_type.elem_type.HasField("tensor_type"):
                    shown.type.CopyFrom(value.type)
        for node in graph.node:
            self._strip_node(node, into.node.add())

    def _strip_tensor(self, tensor: onnx.TensorProto | onnx.SparseTensorProto, stub: onnx.TensorProto) -> None:
        is_sparse = isinstance(tensor, onnx.SparseTensorProto)
        stub.name = tensor.values.name if is_sparse else tensor.name
        stub.dims.extend(tensor.dims)
        stub.data_type = onnx.TensorProto.FLOAT  # never looked at, and known to every graphsurgeon
        stub.doc_string = str(len(self.tensors))
        self.tensors.append(tensor)

    def _strip_node(self, node: onnx.NodeProto, into: onnx.NodeProto) -> None:
        if not any(a.type in (_A.TENSOR, _A.GRAPH) or not is_shown(a) for a in node.attribute):
            into.CopyFrom(node)
            return
        copy_fields(node, into, but={"attribute"})
        for attribute in filter(is_shown, node.attribute):
            shown = into.attribute.add(name=attribute.name, type=attribute.type)
            if attribute.type == _A.TENSOR:
                self._strip_tensor(attribute.t, shown.t)
            elif attribute.type == _A.GRAPH:
                self.strip_graph(attribute.g, shown.g)
            else:
                shown.CopyFrom(attribute)

    def register(self, graph: gs.Graph, proto: onnx.GraphProto, outer: _Scopes) -> None:
        """Note every object of a freshly imported graph, and give its constants their original values."""
        self.graphs[id(graph)] = (graph, proto)
        own = {tensor.name for tensor in proto.initializer} | {s.values.name for s in proto.sparse_initializer}
        scopes = ((own, id(graph)), *outer)
        for tensor in (*graph.inputs, *graph.outputs):
            self._register_tensor(tensor, scopes)
        for node, node_proto in zip(graph.nodes, proto.node, strict=True):
            for tensor in (*node.inputs, *node.outputs):
                self._register_tensor(tensor, scopes)
            protos = {attribute.name: attribute for attribute in node_proto.attribute}
            for name, value in node.attrs.items():
                if isinstance(value, gs.Constant):
                    self._restore(value)
                elif isinstance(value, gs.Graph):
                    self.register(value, protos[name].g, scopes)
            attributes = {name: sign(value) for name, value in node.attrs.items()}
            self.nodes[id(node)] = (node, node_proto, sign_node(node), attributes)
        outputs = {tensor.name for tensor in graph.outputs}
        hidden = {name for node in proto.node if any(a.graphs for a in node.attribute) for name in captured_names(node)}
        self.idle[id(graph)] = [
            tensor
            for node in graph.nodes
            for tensor in node.outputs
            if tensor.name in hidden or not any(other.outputs or other.name in outputs for other in node.outputs)
        ]

    def _register_tensor(self, tensor: gs.Tensor, scopes: _Scopes) -> None:
        if id(tensor) in self.values or tensor.is_empty():
            return
        kept = self._restore(tensor) if isinstance(tensor, gs.Constant) else None
        # a captured value was registered when its producer was met, so a new one belongs to the innermost graph
        self.owners[id(tensor)] = next((key for own, key in scopes if tensor.name in own), scopes[0][1])
        self.values[id(tensor)] = (tensor, sign_tensor(tensor), kept)

    def _restore(self, constant: gs.Constant) -> Kept | KeptSparse:
        stub = constant._values.tensor
        key = stub.values.doc_string if isinstance(stub, onnx.SparseTensorProto) else stub.doc_string
        original = self.tensors[int(key)]
        kept = KeptSparse(original) if isinstance(original, onnx.SparseTensorProto) else Kept(original)
        constant._values = kept
        return kept

    # -- after the edit

    def clean(self, graph: gs.Graph) -> None:
        """Drop nodes that no longer lead to an output, but not those that never did."""
        for inner in graph.subgraphs():
            self.clean(inner)
        outputs = list(graph.outputs)
        present = {id(node) for node in graph.nodes}
        graph.outputs.extend(
            tensor for tensor in self.idle.get(id(graph), ()) if any(id(node) in present for node in tensor.inputs)
        )
        graph.cleanup(recurse_subgraphs=False, recurse_functions=False)
        graph.outputs = outputs

    def write_graph(self, graph: gs.Graph, into: onnx.GraphProto, outer: frozenset[int]) -> None:
        """Write a graph into an empty protobuf.

        Args:
            graph: The graph after the edit.
            into: Filled.
            outer: Identities of the constants that the graphs around it have as initializers.
        """
        original = self.graphs[id(graph)][1] if id(graph) in self.graphs else onnx.GraphProto()
        copy_fields(
            original, into, but={"node", "initializer", "sparse_initializer", "input", "output", "value_info",
                                 "quantization_annotation"}
        )  # fmt: skip
        if graph.name != original.name:
            into.name = graph.name
        if (graph.doc_string or "") != original.doc_string:
            into.doc_string = graph.doc_string
        constants = self._constants(graph, outer)
        inner = outer | {id(constant) for constant in constants.values()}
        into.node.extend(ordered([self._node_proto(node, inner) for node in graph.nodes], graph.name))
        self._write_initializers(constants, original, into)
        self._write_values(graph, original, into)

    def _constants(self, graph: gs.Graph, outer: frozenset[int]) -> dict[str, gs.Constant]:
        """Return the constants that are initializers of this very graph, by name."""
        found: dict[str, gs.Constant] = {}

        def add(tensor: gs.Tensor) -> None:
            if isinstance(tensor, gs.Constant) and id(tensor) not in outer:
                known = found.setdefault(tensor.name, tensor)
                if known is not tensor and not same_values(known._values, tensor._values):
                    raise ModelError(
                        f"graph {graph.name}: two constants are called {tensor.name}; expected one. Rename one of them."
                    )

        for tensor in graph.outputs:
            add(tensor)
        for node in graph.nodes:
            for tensor in node.inputs:
                add(tensor)
        for inner in graph.subgraphs(recursive=True):
            for tensor in (*inner.outputs, *(tensor for node in inner.nodes for tensor in node.inputs)):
                if self.owners.get(id(tensor)) == id(graph):
                    add(tensor)
        return found

    def _write_initializers(
        self, constants: dict[str, gs.Constant], original: onnx.GraphProto, into: onnx.GraphProto
    ) -> None:
        protected = set() if self.lists_initializers else {value.name for value in original.input}
        for annotation in original.quantization_annotation:
            protected.update(entry.value for entry in annotation.quant_parameter_tensor_names)
        used = set(used_names(original))
        produced = {name for node in into.node for name in node.output}
        pending = dict(constants)
        for tensor in (*original.initializer, *original.sparse_initializer):
            name = tensor.values.name if isinstance(tensor, onnx.SparseTensorProto) else tensor.name
            if name in pending:
                self._write_constant(pending.pop(name), into, tensor)
            elif (name in protected or name not in used) and name not in produced:
                append_tensor(into, tensor)
        for constant in pending.values():
            base = self.values[id(constant)][2].original if self._was_constant(constant) else None
            self._write_constant(constant, into, base)

    def _was_constant(self, tensor: gs.Tensor) -> bool:
        return id(tensor) in self.values and self.values[id(tensor)][2] is not None

    def _write_constant(
        self, constant: gs.Constant, into: onnx.GraphProto, base: onnx.TensorProto | onnx.SparseTensorProto | None
    ) -> None:
        values = constant._values
        if isinstance(values, KeptSparse):
            append_tensor(into, values.original)
            into.sparse_initializer[-1].values.name = constant.name
        else:
            into.initializer.append(tensor_proto(constant.name, values, base))

    def _write_values(self, graph: gs.Graph, original: onnx.GraphProto, into: onnx.GraphProto) -> None:
        """Write inputs, outputs, value infos and quantization annotations."""
        constants = {tensor.name for tensor in original.initializer}
        constants.update(sparse.values.name for sparse in original.sparse_initializer)
        protos = {value.name: value for value in (*original.value_info, *original.input, *original.output)}
        kept = {t.name: (t.data_type, t.dims) for t in into.initializer}
        kept.update((s.values.name, (s.values.data_type, s.dims)) for s in into.sparse_initializer)
        pending = iter(graph.inputs)
        for value in original.input:
            if value.name in constants:
                if value.name in kept:  # overridable: not among graphsurgeon's inputs
                    into.input.append(retyped(value, kept[value.name]))
            elif (tensor := next(pending, None)) is not None:
                into.input.append(self._value_proto(tensor, protos))
        into.input.extend(self._value_proto(tensor, protos) for tensor in pending)
        into.output.extend(self._value_proto(tensor, protos) for tensor in graph.outputs)
        if self.lists_initializers and id(graph) in self.graphs:
            listed = {value.name for value in into.input}
            into.input.extend(
                onnx.helper.make_tensor_value_info(name, *kept[name]) for name in kept if name not in listed | constants
            )

        now = {tensor.name: tensor for node in graph.nodes for tensor in node.outputs}
        before = {name for node in original.node for name in node.output} | constants
        gone = before - now.keys() - kept.keys()
        for value in original.value_info:
            if value.name in now:
                if now[value.name].dtype is not None or self._is_as_before(now[value.name]):
                    into.value_info.append(self._value_proto(now[value.name], protos))
            elif value.name not in gone and (value.name not in kept or value.name in constants):
                into.value_info.append(value)
        listed = {value.name for value in (*original.value_info, *into.input, *into.output)}
        into.value_info.extend(
            self._value_proto(tensor, protos)
            for name, tensor in now.items()
            if name not in listed and not tensor.is_empty() and tensor.dtype is not None
        )
        into.quantization_annotation.extend(a for a in original.quantization_annotation if a.tensor_name not in gone)

    def _value_proto(self, tensor: gs.Tensor, protos: dict[str, onnx.ValueInfoProto]) -> onnx.ValueInfoProto:
        known = self.values.get(id(tensor))
        old_name = known[1][0] if known else tensor.name
        value = onnx.ValueInfoProto()
        if old_name in protos:
            value.CopyFrom(protos[old_name])
        value.name = tensor.name
        if old_name not in protos or not self._is_as_before(tensor):
            exported = OnnxExporter.export_value_info_proto(tensor, do_type_check=False)
            if exported.HasField("type"):
                value.type.CopyFrom(exported.type)
        return value

    def _is_as_before(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor has the type it was imported with."""
        known = self.values.get(id(tensor))
        return known is not None and sign_tensor(tensor)[1:] == known[1][1:]

    def _node_proto(self, node: gs.Node, outer: frozenset[int]) -> onnx.NodeProto:
        proto = onnx.NodeProto()
        attributes: dict[str, Any] = {}
        if id(node) in self.nodes:
            _, proto, signature, attributes = self.nodes[id(node)]
            if sign_node(node) == signature:
                return proto
        out = onnx.NodeProto()
        copy_fields(proto, out, but={"attribute", "input", "output"})
        for name, now in (("op_type", node.op), ("name", node.name), ("domain", node.domain)):
            if (now or "") != getattr(out, name):
                setattr(out, name, now or "")
        out.input.extend(tensor.name for tensor in node.inputs)
        out.output.extend(tensor.name for tensor in node.outputs)
        pending = dict(node.attrs)
        for attribute in proto.attribute:
            if not is_shown(attribute):
                out.attribute.append(attribute)
            elif attribute.name in pending:
                value = pending.pop(attribute.name)
                is_same = sign(value) == attributes[attribute.name]
                out.attribute.append(attribute if is_same else self._attribute_proto(attribute, value, outer))
        for name, value in pending.items():
            out.attribute.append(self._attribute_proto(_A(name=name), value, outer))
        return out

    def _attribute_proto(self, base: onnx.AttributeProto, value: Any, outer: frozenset[int]) -> onnx.AttributeProto:
        out = onnx.AttributeProto(name=base.name)
        if base.doc_string:
            out.doc_string = base.doc_string
        if isinstance(value, gs.Graph):
            out.type = _A.GRAPH
            self.write_graph(value, out.g, outer)
        elif isinstance(value, gs.Constant):
            out.type = _A.TENSOR
            out.t.CopyFrom(tensor_proto(value.name, value._values, base.t if base.HasField("t") else None))
        else:
            try:
                made = onnx.helper.make_attribute(base.name, value, attr_type=base.type or None)
            except (TypeError, ValueError):  # the edit changed its type
                made = OnnxExporter.export_attributes({base.name: value})[0]
            if base.doc_string:
                made.doc_string = base.doc_string
            return made
        return out

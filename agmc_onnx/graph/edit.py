"""The one editor of models: nodes that come, go or read something else, and new numbers in constants.

Structure is edited by onnx-graphsurgeon: it imports the graph, the edit changes that, and what the edit touched is written
back. All else is taken from the original protobuf, so that metadata, doc strings, annotations, overridable inputs,
attribute types that graphsurgeon does not know and data in other files survive. `rewire` takes any edit; `edited` takes
named changes and arrays, and `Skeletons` remembers what a set of changes makes of one model, for those who put other
arrays into it again and again.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.logger import G_LOGGER

from agmc_onnx.errors import ModelError
from agmc_onnx.graph._book import Book
from agmc_onnx.graph.protobuf import copy_fields, import_domains, unmade, used_names, without_initializers
from agmc_onnx.graph.view import captured_names

_SILENCE = G_LOGGER.CRITICAL + 1
LAST_IR_WITH_INPUTS = 3  # up to this IR version every initializer has to be listed as a graph input too
_SKELETONS, _SKELETON_BYTES = 64, 64_000_000  # that are remembered of one model
Numbers = np.ndarray | onnx.TensorProto | onnx.SparseTensorProto


@dataclass(frozen=True, slots=True)
class Made:
    """A node that comes, right before the first that reads it if nothing else is said.

    Attributes:
        op_type, inputs, outputs: As in ONNX. An input that nothing makes is a new initializer.
        attributes: (name, value) pairs, hashable.
        domain, name: As in ONNX.
        place: A value: the node comes in place of the one that makes it, whose documentation stays. The first output, if
            nothing else is said and a node makes that.
        behind: A value: the node comes right behind the one that makes it.
    """

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, Any], ...] = ()
    domain: str = ""
    name: str = ""
    place: str = ""
    behind: str = ""


@dataclass(frozen=True, slots=True)
class Gone:
    """The node that makes a value goes; where the value is still read, it is a new initializer."""

    output: str


@dataclass(frozen=True, slots=True)
class Input:
    """The node that makes a value, `output`, reads another value at a position; a new initializer where nothing makes it."""

    output: str
    position: int
    value: str


@dataclass(frozen=True, slots=True)
class Output:
    """The node that makes a value, `output`, makes it under another name."""

    output: str
    value: str


@dataclass(frozen=True, slots=True)
class Alias:
    """Every node that reads `value` reads `instead`; a graph output stays what it is."""

    value: str
    instead: str


@dataclass(frozen=True, slots=True)
class Undeclared:
    """The declared type of a value no longer holds."""

    value: str


Change = Made | Gone | Input | Output | Alias | Undeclared  # they name nodes by what these make before the edit


def rewire(model: onnx.ModelProto, edit: Callable[[gs.Graph], None]) -> onnx.ModelProto:
    """Return the model with an edit by onnx-graphsurgeon applied to its main graph and subgraphs.

    Nodes, and initializers, whose last use the edit took away are dropped; nodes it added may stand anywhere, they are
    put in order. Everything the edit did not touch is as in the original, to the byte: also unused nodes and
    initializers, and weights in other files, which are never read. An initializer that is a graph input (an
    overridable one) is shown as a `gs.Constant`, not among `graph.inputs`, and is never dropped.

    Local functions are not shown to the edit and stay as they are; functions it adds are appended.

    Args:
        model: Any model; not changed.
        edit: Changes the `gs.Graph` it is given, in place. `gs.Constant.values` reads numbers when they are asked for.

    Raises:
        ModelError: If the edit makes a cycle, gives two constants of one graph the same name, leaves a value in use that
            nothing makes, or asks for numbers that lie in another file and were not loaded.
    """
    book = Book(model.ir_version <= LAST_IR_WITH_INPUTS)
    skeleton = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    skeleton.producer_name, skeleton.producer_version = model.producer_name, model.producer_version
    book.strip_graph(model.graph, skeleton.graph)
    result = onnx.ModelProto()
    with G_LOGGER.suppress(_SILENCE):  # it prints to stdout, which belongs to the command line
        graph = gs.import_onnx(skeleton)
        book.register(graph, model.graph, ())
        edit(graph)
        book.clean(graph)
        copy_fields(model, result, but={"graph"})
        book.write_graph(graph, result.graph, frozenset())
    if missing := sorted(unmade(result.graph) - unmade(model.graph)):
        raise ModelError(
            f"graph {result.graph.name}: nothing makes {', '.join(missing)} any more; expected no use of it to be left. "
            "Undo that part of the edit."
        )
    result.functions.extend(OnnxExporter.export_function(function) for function in graph.functions)
    import_domains(model, result, graph.import_domains or ())
    return result


def edited(
    model: onnx.ModelProto, changes: Iterable[Change], arrays: Mapping[str, Numbers] | None = None
) -> onnx.ModelProto:
    """Return the model with changes of its main graph, and numbers for its constants.

    As with `rewire`, what only the changed nodes needed is dropped, all else stays, and the nodes are put in order.

    Args:
        model: Any model; not changed.
        changes: Applied together: the values they name are those of `model`.
        arrays: By the name of an initializer or a Constant node's output. A numpy array of any type is written in the
            type, and has to have the shape, that the constant has; a protobuf takes its place as it is. New initializers
            are added in this order. Names that the model lacks are passed over.

    Raises:
        ModelError: As `rewire`; if an array has another shape than its constant, or a new initializer has no array.
    """
    skeleton = Skeleton(model, tuple(changes))
    arrays = arrays or {}
    result = skeleton.model
    originals = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in skeleton.initializers:
        _add(result.graph, name, originals[name], arrays.get(name))
    for old in [one for one in skeleton.model.graph.sparse_initializer if one.values.name in arrays]:
        _add(result.graph, old.values.name, None, arrays[old.values.name])
        result.graph.sparse_initializer.remove(old)
    for node in result.graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and node.output[0] in arrays:
            _put_into(node, arrays[node.output[0]])
    skeleton.add_new(result, arrays)
    sparse = {name for name, numbers in arrays.items() if isinstance(numbers, onnx.SparseTensorProto)}
    for value in [value for value in result.graph.input if value.name in sparse]:  # cannot be listed there
        result.graph.input.remove(value)
    return result


def with_arrays(model: onnx.ModelProto, arrays: Mapping[str, Numbers]) -> onnx.ModelProto:
    """Return the model with other numbers in some of its constants; see `edited`."""
    return edited(model, (), arrays)


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Return the model with these values as its outputs; of those that it did not have, onnxruntime finds the type."""
    result = without_initializers(model)
    result.graph.initializer.extend(model.graph.initializer)
    declared = {value.name: value for value in model.graph.output}
    del result.graph.output[:]
    result.graph.output.extend(declared.get(name) or onnx.ValueInfoProto(name=name) for name in names)
    return result


class Skeleton:
    """A model after structural changes, without initializers: what an edit leaves for arrays to be put into.

    Attributes:
        model: Without initializers; to be copied before it is filled, unless it is filled only once.
        initializers: Names of the original's initializers that stay, in order.
        new: Names of those that come.
        nodes: Position of each node, by the name that its first output had before the edit.
        infos, inputs: Positions of the value infos and graph inputs, by name.
    """

    def __init__(self, model: onnx.ModelProto, changes: tuple[Change, ...] = ()) -> None:
        self.model = without_initializers(model)
        old = [tensor.name for tensor in model.graph.initializer]
        self.initializers, self.new = tuple(old), frozenset[str]()
        if changes:
            names = _read_constants(self.model, old, changes)
            if names is None:
                self.model, names = _restructured(self.model, model.graph.initializer, changes)
            self.initializers, self.new = tuple(name for name in old if name in names), frozenset(names.difference(old))
        graph = self.model.graph
        self.nodes = {node.output[0]: i for i, node in enumerate(graph.node) if node.output}
        renamed = [change for change in changes if isinstance(change, Output) and change.value in self.nodes]
        self.nodes.update({change.output: self.nodes[change.value] for change in renamed})
        self.infos = {value.name: i for i, value in enumerate(graph.value_info)}
        self.inputs = {value.name: i for i, value in enumerate(graph.input)}

    def copy(self) -> onnx.ModelProto:
        """Return a copy of the model, to be filled."""
        made = onnx.ModelProto()
        made.CopyFrom(self.model)
        return made

    def add_new(self, model: onnx.ModelProto, arrays: Mapping[str, Numbers]) -> None:
        """Add the initializers that come to a copy, in the order of the arrays.

        Raises:
            ModelError: If one has no array.
        """
        if missing := sorted(self.new.difference(arrays)):
            raise ModelError(
                f"graph {model.graph.name}: nothing makes {', '.join(missing)} any more; expected numbers for it. "
                "Undo that part of the edit."
            )
        for name in filter(self.new.__contains__, arrays):
            _add(model.graph, name, None, arrays[name])
            if model.ir_version <= LAST_IR_WITH_INPUTS:
                tensor = model.graph.initializer[-1]
                model.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))


class Skeletons:
    """What each set of changes makes of one model; the last ones used are remembered."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Start.

        Args:
            model: Not to be changed as long as this is used.
        """
        self._model = model
        self._known: OrderedDict[tuple[Change, ...], Skeleton] = OrderedDict()
        n_bytes = without_initializers(model).ByteSize()
        self._limit = max(1, min(_SKELETONS, _SKELETON_BYTES // max(n_bytes, 1)))

    def of(self, changes: Sequence[Change] = ()) -> Skeleton:
        """Return the model after these changes; not to be changed."""
        key = tuple(changes)
        found = self._known.pop(key, None) or Skeleton(self._model, key)
        self._known[key] = found
        if len(self._known) > self._limit:
            self._known.popitem(last=False)
        return found


def _restructured(
    slim: onnx.ModelProto, initializers: Iterable[onnx.TensorProto], changes: Sequence[Change]
) -> tuple[onnx.ModelProto, set[str]]:
    """Return a model without initializers after changes, and the names of the initializers that it has then."""
    for tensor in initializers:
        slim.graph.initializer.add(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    old = {tensor.name for tensor in initializers}
    slim = rewire(slim, lambda graph: _apply(graph, changes))
    names = {tensor.name for tensor in slim.graph.initializer}
    del slim.graph.initializer[:]
    for i in reversed(range(len(slim.graph.input))):
        if slim.graph.input[i].name in names - old:  # an old model lists them; their sizes are not known yet
            del slim.graph.input[i]
    return slim, names


def _read_constants(slim: onnx.ModelProto, initializers: Sequence[str], changes: Sequence[Change]) -> set[str] | None:
    """Let nodes read new constants, be constants, or be others that read the same and constants, in place.

    That concerns no other node but those that only they needed, which go.

    Returns:
        Names of the initializers that there are then; None, and nothing is changed, where the changes are others.
    """
    graph = slim.graph
    makers = {name: node for node in graph.node for name in node.output if name}
    sparse = {one.values.name for one in graph.sparse_initializer}
    known = {*initializers} | makers.keys() | {value.name for value in graph.input} | sparse
    reads = [change for change in changes if isinstance(change, Input)]
    made = [change for change in changes if isinstance(change, Made)]
    gone = {change.output for change in changes if isinstance(change, Gone)}
    undeclared = {change.value for change in changes if isinstance(change, Undeclared)}
    if not all(one.output in makers for one in reads):
        return None
    old = {_input(makers[one.output], one.position) for one in reads}
    old.update(name for output in gone for name in makers[output].input)
    fresh = {one.value for one in reads}
    for new in made:
        node = makers.get(new.place or new.outputs[0])
        if new.behind or new.domain or node is None or tuple(node.output) != new.outputs or any(captured_names(node)):
            return None
        old.update(set(node.input).difference(new.inputs))
        fresh.update(name for name in new.inputs if name not in node.input)
    if (
        slim.ir_version <= LAST_IR_WITH_INPUTS
        or not all(isinstance(change, Input | Made | Gone | Undeclared) for change in changes)
        or any(len(makers[output].output) > 1 for output in gone)
        or not known.isdisjoint(fresh)
        or not sparse.isdisjoint(old)
    ):
        return None
    for one in reads:
        _connect(makers[one.output].input, one.position, one.value)
    for new in made:
        node = makers[new.place or new.outputs[0]]
        node.op_type = new.op_type
        if node.domain:
            node.domain = ""
        if new.name:
            node.name = new.name
        node.input[:] = new.inputs
        del node.attribute[:]
        node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in new.attributes)
    for i in reversed(range(len(graph.node)) if gone else ()):
        if graph.node[i].output and graph.node[i].output[0] in gone:
            del graph.node[i]
    uses = Counter(used_names(graph))
    old.discard("")
    for i in reversed(range(len(graph.node)) if old else ()):  # what only they needed
        node = graph.node[i]
        if old.intersection(node.output) and not any(uses[name] for name in node.output):
            needed = [*node.input, *captured_names(node)]
            uses.subtract(needed)
            old.update(needed)
            undeclared.update(node.output)
            del graph.node[i]
    listed = {value.name for value in graph.input}
    listed.update(e.value for a in graph.quantization_annotation for e in a.quant_parameter_tensor_names)
    unused = {name for name in old if not uses[name]} - listed
    for i in reversed(range(len(graph.value_info))):
        if graph.value_info[i].name in undeclared:
            del graph.value_info[i]
    return ({*initializers} - unused) | fresh | {name for name in gone if uses[name]}


def put_attributes(node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
    """Set attributes of a node in place; with None, remove one."""
    kept = [attribute for attribute in node.attribute if attribute.name not in attributes]
    kept += [onnx.helper.make_attribute(name, value) for name, value in attributes.items() if value is not None]
    del node.attribute[:]
    node.attribute.extend(kept)


def _input(node: onnx.NodeProto, position: int) -> str:
    return node.input[position] if position < len(node.input) else ""


def _connect(inputs: Any, position: int, value: Any, empty: Callable[[], Any] = str) -> None:
    """Put a value at a position of a node's inputs, which may be fewer."""
    while len(inputs) <= position:
        inputs.append(empty())
    inputs[position] = value


def _is_constant(node: onnx.NodeProto) -> bool:
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx")


def _apply(graph: gs.Graph, changes: Sequence[Change]) -> None:
    """Make changes in a graph of onnx-graphsurgeon."""
    values = {t.name: t for t in (*graph.inputs, *graph.outputs)}
    for node in graph.nodes:
        values.update((t.name, t) for t in (*node.inputs, *node.outputs) if t.name)
    makers = {t.name: node for node in graph.nodes for t in node.outputs}
    unmade = {name for name, t in values.items() if not t.inputs}  # constants, inputs of the graph or of one around it

    def value(name: str) -> gs.Tensor:
        return values.setdefault(name, gs.Variable(name)) if name else gs.Variable.empty()

    def of(kind: type) -> list[Any]:
        return [change for change in changes if isinstance(change, kind)]

    for change in of(Undeclared):
        value(change.value).dtype = value(change.value).shape = None
    for change in of(Alias):
        _replace(value(change.value), value(change.instead))
    gone = {id(makers[change.output]): makers[change.output] for change in of(Gone)}
    for node in gone.values():
        node.inputs.clear()
        node.outputs.clear()
    for change in of(Output):
        made = makers[change.output].outputs
        made[next(i for i, t in enumerate(made) if t.name == change.output)] = value(change.value)
    for change in of(Input):
        _connect(makers[change.output].inputs, change.position, value(change.value), gs.Variable.empty)
    behind: dict[int, list[gs.Node]] = {}
    last: list[gs.Node] = []  # put in their places where the nodes are put in order
    for change in of(Made):
        node = None if change.behind else makers.get(change.place or change.outputs[0])
        if node is None or id(node) in gone:
            node = gs.Node(change.op_type, change.name)
            (behind.setdefault(id(makers[change.behind]), []) if change.behind else last).append(node)
        node.op, node.domain, node.attrs = change.op_type, change.domain or None, dict(change.attributes)
        node.name = change.name or node.name
        for name in change.outputs:
            if isinstance(value(name), gs.Constant):
                constant = values.pop(name)
                _replace(constant, value(name))
        node.inputs, node.outputs = [value(name) for name in change.inputs], [value(name) for name in change.outputs]
    nodes = [node for node in graph.nodes if id(node) not in gone]
    graph.nodes = [one for node in nodes for one in (node, *behind.get(id(node), ()))] + last
    outputs = {tensor.name for tensor in graph.outputs}
    for name, tensor in values.items():
        if not tensor.inputs and name not in unmade and (tensor.outputs or name in outputs):
            tensor.to_constant(np.zeros(0, np.float32))  # a new initializer: its numbers come later


def _replace(tensor: gs.Tensor, instead: gs.Tensor) -> None:
    """Let every node that reads a tensor read another."""
    for node in list(tensor.outputs):
        for i, used in enumerate(node.inputs):
            if used is tensor:
                node.inputs[i] = instead


def _add(
    graph: onnx.GraphProto,
    name: str,
    original: onnx.TensorProto | onnx.SparseTensorProto | None,
    numbers: Numbers | None,
) -> None:
    """Add an initializer: the original, if there are no numbers for it."""
    if isinstance(numbers, onnx.SparseTensorProto):
        graph.sparse_initializer.append(numbers)
        graph.sparse_initializer[-1].values.name = name
        return
    tensor = graph.initializer.add()
    if isinstance(numbers, onnx.TensorProto):
        tensor.CopyFrom(numbers)
        tensor.name = name
    elif numbers is None:
        tensor.CopyFrom(original)
    else:
        _write(tensor, numbers, name, original)


def _write(tensor: onnx.TensorProto, numbers: np.ndarray, name: str, original: onnx.TensorProto | None) -> None:
    """Let an empty tensor hold numbers, in the type of the original."""
    if original is not None:
        if tuple(original.dims) != numbers.shape:
            raise ModelError(
                f"{name}: shape changed, got {list(numbers.shape)}; expected {list(original.dims)}. "
                "Use the model it was read from."
            )
        numbers = numbers.astype(onnx.helper.tensor_dtype_to_np_dtype(original.data_type), copy=False)
        tensor.doc_string = original.doc_string
        tensor.metadata_props.extend(original.metadata_props)
    tensor.MergeFrom(numpy_helper.from_array(np.ascontiguousarray(numbers).reshape(numbers.shape), name))


def _put_into(node: onnx.NodeProto, numbers: Numbers) -> None:
    """Put numbers into a Constant node."""
    attribute = node.attribute[0]
    if isinstance(numbers, onnx.TensorProto):
        attribute.CopyFrom(onnx.helper.make_attribute("value", numbers))
    elif attribute.name == "value":
        old = onnx.TensorProto()
        old.CopyFrom(attribute.t)
        attribute.t.Clear()
        _write(attribute.t, np.asarray(numbers), node.output[0], old)
        attribute.t.name = old.name
    elif attribute.name == "value_float":
        attribute.f = float(numbers)
    elif attribute.name == "value_floats":
        attribute.floats[:] = np.asarray(numbers, np.float64).tolist()

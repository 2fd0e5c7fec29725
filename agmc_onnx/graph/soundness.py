"""The cheap check of a model as it was read, before anything else: nothing is run, inferred or allocated for it."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx
from onnx import AttributeProto, TensorProto, defs, helper

from agmc_onnx.errors import ModelError

MOST_CALLED_NODES = (
    10_000  # that calls of local functions may stand for, in all; more where so many times less are written
)
MOST_TIMES_WRITTEN = 50
DEEPEST_CALL = 100  # functions that call one another, and graphs inside of graphs
LONGEST_DIM = 2**40  # of anything declared: sizes are multiplied in 64 bits
PACKED_NAMES = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
PACKED_BITS = {TensorProto.DataType.Value(name): bits for name, bits in PACKED_NAMES.items()
               if name in TensorProto.DataType.keys()}  # fmt: skip  # noqa: SIM118
_BYTES: dict[int, int] = {
    TensorProto.FLOAT: 4,
    TensorProto.FLOAT16: 2,
    TensorProto.DOUBLE: 8,
    TensorProto.INT64: 8,
    TensorProto.INT8: 1,
}
_COMPLEX = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
_TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
_STANDARD = ("", "ai.onnx")
_AGAIN = "Export the model again."

_Nodes = Sequence[onnx.NodeProto]
_Key = tuple[str, str, str]


def check_sound(model: onnx.ModelProto, where: str) -> None:
    """Refuse a model that would stop, crash or flood what reads it next; sort and name apart its nodes where they are not.

    Checked are: names in UTF-8; every value made once, from values that are there, in no cycle; local functions that call
    no function that calls them, less than `DEEPEST_CALL` deep and standing for at most `MOST_CALLED_NODES` nodes, or
    `MOST_TIMES_WRITTEN` times those that are written; the bytes
    of every tensor against its type and sizes; number of inputs and outputs, and type of attributes, of standard ops.

    Args:
        model: As parsed; nodes of a graph that is not in topological order are put in order, in place, and of nodes that
            have one name, which onnxruntime refuses, all but the first are renamed.
        where: How errors name the model.

    Raises:
        ModelError: With the first thing that is wrong, and the node or tensor that has it.
    """
    _check_text(where, model.producer_name, model.producer_version, model.domain, model.doc_string)
    _check_text(where, *(entry.domain for entry in model.opset_import), *_keys(model.metadata_props))
    for function in model.functions:
        _check_text(where, function.name, function.domain, function.overload, *function.input, *function.output)
    for entry in (*model.opset_import, *(one for function in model.functions for one in function.opset_import)):
        if not 0 < entry.version < 2**31:
            name = entry.domain or "ai.onnx"
            raise ModelError(f"{where}: opset of {name} is none, got {entry.version}; expected a version. {_AGAIN}")
    _check_calls(model, where)
    opsets = _opsets(model.opset_import)
    _require(_Body(opsets, where).check_graph(model.graph), where)
    for function in model.functions:
        body = _Body(_opsets(function.opset_import) or opsets, f"{where}: function {function.name}", True)
        order, free = body.check_nodes(function.node, set(function.input))
        _put_in_order(function.node, order)
        made = {name for node in function.node for name in node.output}.union(function.input)
        free.update((name, "its outputs") for name in function.output if name not in made)
        _require({name: user for name, user in free.items() if name not in made}, body.where)


def stored_bytes(tensor: onnx.TensorProto, count: int) -> int | None:
    """Return how many bytes `count` elements of a tensor's type take in a file; None for strings and unknown types."""
    if tensor.data_type in PACKED_BITS:
        return (count * PACKED_BITS[tensor.data_type] + 7) // 8
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        return None
    return None if tensor.data_type == TensorProto.STRING else count * int(dtype.itemsize)


def label(node: onnx.NodeProto) -> str:
    """Return how messages name a node: its op type, with its name or first output."""
    return f"{node.op_type or 'without op_type'} {node.name or next(filter(None, node.output), '')}".rstrip()


@dataclass(frozen=True)
class _Body:
    """What the nodes of a graph or function are checked against."""

    opsets: dict[str, int]
    where: str
    is_function: bool = False

    def check_graph(self, graph: onnx.GraphProto, depth: int = 0) -> dict[str, str]:
        """Check a graph and put its nodes in order; return the values it takes from outside, and who uses them."""
        if depth > DEEPEST_CALL:
            raise ModelError(
                f"{self.where}: graphs inside of graphs, got over {DEEPEST_CALL}; expected fewer. {_AGAIN}"
            )
        _check_text(self.where, graph.name, graph.doc_string)
        for value in (*graph.input, *graph.output, *graph.value_info):
            _check_value(value, self.where)
        given = {value.name for value in graph.input}
        for tensor in graph.initializer:
            if not _is_plain(tensor):
                _check_tensor(tensor, f"{self.where}: initializer {tensor.name}")
            given.add(tensor.name)
        for sparse in graph.sparse_initializer:
            _check_sparse(sparse, f"{self.where}: sparse initializer {sparse.values.name}")
            given.add(sparse.values.name)
        order, free = self.check_nodes(graph.node, given, depth)
        _put_in_order(graph.node, order)
        made = given.union(*(node.output for node in graph.node))
        free.update((value.name, "the graph's outputs") for value in graph.output if value.name not in made)
        return {name: user for name, user in free.items() if name not in made}

    def check_nodes(self, nodes: _Nodes, given: set[str], depth: int = 0) -> tuple[list[int] | None, dict[str, str]]:
        """Check nodes; return a topological order where theirs is none, and the values that none of them makes."""
        _name_apart(nodes)
        maker: dict[str, int] = {}
        needs: list[list[str]] = []
        free: dict[str, str] = {}
        for i, node in enumerate(nodes):
            used = [value for value in node.input if value]
            used += [value for value in self._check_node(node, depth) if value]
            needs.append(used)
            for output in node.output:
                if output and (output in maker or output in given):
                    other = f"{label(nodes[maker[output]])} and" if output in maker else "an input or initializer and"
                    raise ModelError(
                        f"{self.where}: value {output} is made twice, got {other} {label(node)}; expected once. {_AGAIN}"
                    )
                if output:
                    maker[output] = i
        is_sorted = True
        for i, used in enumerate(needs):
            for value in used:
                is_sorted = is_sorted and maker.get(value, -1) < i
                if value not in maker and value not in given:
                    free.setdefault(value, f"node {label(nodes[i])}")
        return (None if is_sorted else self._order(nodes, needs, maker)), free

    def _order(self, nodes: _Nodes, needs: list[list[str]], maker: dict[str, int]) -> list[int]:
        before = [{maker[value] for value in used if value in maker} for used in needs]
        after: dict[int, list[int]] = {}
        for i, makers in enumerate(before):
            for j in makers:
                after.setdefault(j, []).append(i)
        waits = [len(makers) for makers in before]
        order = [i for i, n in enumerate(waits) if not n]
        for i in order:  # grows
            for j in after.get(i, ()):
                waits[j] -= 1
                if not waits[j]:
                    order.append(j)
        if len(order) < len(waits):
            i = next(i for i, n in enumerate(waits) if n)
            seen: list[int] = []
            while i not in seen:  # back along what waits: it ends in the cycle
                seen.append(i)
                i = next(j for j in before[i] if waits[j])
            cycle = ", ".join(label(nodes[j]) for j in seen[seen.index(i) :][:4][::-1])
            raise ModelError(f"{self.where}: its nodes form a cycle, got {cycle}; expected none. {_AGAIN}")
        return order

    def _check_node(self, node: onnx.NodeProto, depth: int) -> Iterator[str]:
        """Check one node, and yield what its subgraphs take from outside."""
        where = f"{self.where}: node {label(node)}"
        texts = (node.name, node.op_type, node.domain, node.overload, node.doc_string)
        _check_text(where, *texts, *node.input, *node.output)
        if not node.op_type or not node.output:
            missing = "op_type" if not node.op_type else "output"
            raise ModelError(f"{where}: has no {missing}, got an empty one; expected one. {_AGAIN}")
        seen: dict[str, int] = {}
        for attribute in node.attribute:
            _check_text(where, attribute.name, attribute.ref_attr_name, attribute.doc_string)
            if attribute.name in seen:
                raise ModelError(f"{where}: attribute {attribute.name} is there twice; expected once. {_AGAIN}")
            seen[attribute.name] = attribute.type
            if attribute.ref_attr_name:
                if not self.is_function:
                    raise ModelError(
                        f"{where}: attribute {attribute.name} refers to one of a function, got "
                        f"{attribute.ref_attr_name!r} outside of any; expected a value. {_AGAIN}"
                    )
                continue
            if attribute.type not in _FIELDS:
                raise ModelError(
                    f"{where}: attribute {attribute.name} has no known type, got {attribute.type}; expected one. {_AGAIN}"
                )
            if attribute.type in (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.FLOATS):
                continue
            yield from self._check_attribute(attribute, where, depth)
        if node.domain in _STANDARD:
            self._check_against_schema(node, seen, where)

    def _check_attribute(self, attribute: onnx.AttributeProto, where: str, depth: int) -> Iterator[str]:
        if attribute.type in (AttributeProto.TENSOR, AttributeProto.TENSORS):
            for tensor in (attribute.t,) if attribute.type == AttributeProto.TENSOR else attribute.tensors:
                _check_tensor(tensor, f"{where}, attribute {attribute.name}")
        elif attribute.type in (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS):
            is_one = attribute.type == AttributeProto.SPARSE_TENSOR
            for sparse in (attribute.sparse_tensor,) if is_one else attribute.sparse_tensors:
                _check_sparse(sparse, f"{where}, attribute {attribute.name}")
        elif attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            for graph in (attribute.g,) if attribute.type == AttributeProto.GRAPH else attribute.graphs:
                yield from self.check_graph(graph, depth + 1)

    def _check_against_schema(self, node: onnx.NodeProto, attributes: dict[str, int], where: str) -> None:
        rules = _rules(node.op_type, self.opsets.get("", 1))
        if rules is None:
            return
        given = list(node.input)
        while given and not given[-1]:
            given.pop()
        for names, (fewest, most), what in ((given, rules.inputs, "input"), (node.output, rules.outputs, "output")):
            if not fewest <= len(names) <= most:
                expected = (
                    f"{fewest}"
                    if fewest == most
                    else f"{fewest} to {most}"
                    if most < 2**31 - 1
                    else f"{fewest} or more"
                )
                raise ModelError(
                    f"{where}: wrong number of {what}s, got {len(names)}; expected {expected} of {node.op_type}. {_AGAIN}"
                )
        for i in rules.required:
            if i < len(given) and not given[i]:
                raise ModelError(f"{where}: input {i} is left out; expected a value there. {_AGAIN}")
        for name, kind in attributes.items():
            if rules.attributes.get(name, kind) != kind:
                got, expected = (
                    AttributeProto.AttributeType.Name(kind),
                    AttributeProto.AttributeType.Name(rules.attributes[name]),
                )
                raise ModelError(
                    f"{where}: attribute {name} has the wrong type, got {got}; expected {expected}. {_AGAIN}"
                )
        missing = rules.needed - set(attributes)
        if missing:
            raise ModelError(f"{where}: attribute {min(missing)} is missing; expected it of {node.op_type}. {_AGAIN}")


_TYPE_OF = dict(AttributeProto.AttributeType.items())
_FIELDS = frozenset(_TYPE_OF.values()) - {AttributeProto.UNDEFINED}


@dataclass(frozen=True)
class _Rules:
    """What a standard op demands of its nodes."""

    inputs: tuple[int, int]
    outputs: tuple[int, int]
    required: tuple[int, ...]  # inputs that may not be left out
    attributes: dict[str, int]
    needed: frozenset[str]


@functools.cache
def _rules(op_type: str, opset: int) -> _Rules | None:
    try:
        schema = defs.get_schema(op_type, opset, "")
    except defs.SchemaError:
        return None  # unknown: left alone
    single = defs.OpSchema.FormalParameterOption.Single
    return _Rules(
        (schema.min_input, schema.max_input),
        (schema.min_output, schema.max_output),
        tuple(i for i, one in enumerate(schema.inputs) if one.option == single),
        {name: _TYPE_OF[str(one.type).rpartition(".")[2]] for name, one in schema.attributes.items()},
        frozenset(name for name, one in schema.attributes.items() if one.required),
    )


def _opsets(imports: Sequence[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in imports}


def _require(free: dict[str, str], where: str) -> None:
    for name, user in free.items():
        raise ModelError(
            f"{where}: value {name!r}, used by {user}, is made by nothing; expected a node or input. {_AGAIN}"
        )


def _name_apart(nodes: _Nodes) -> None:
    names = {node.name for node in nodes}
    seen: Counter[str] = Counter()
    for node in nodes:
        name = node.name
        seen[name] += 1
        if name and seen[name] > 1:
            while (new := f"{name}_{seen[name]}") in names:
                seen[name] += 1
            node.name = new


def _put_in_order(nodes: _Nodes, order: list[int] | None) -> None:
    if order is not None:
        found = [nodes[i] for i in order]
        del nodes[:]  # type: ignore[attr-defined]
        nodes.extend(found)  # type: ignore[attr-defined]


def _check_text(where: str, *texts: str) -> None:
    if bytes in map(type, texts):  # what protobuf gives for a string that is none
        wrong = next(text for text in texts if isinstance(text, bytes))
        raise ModelError(f"{where}: a name is not UTF-8, got {wrong[:40]!r}; expected text. {_AGAIN}")


def _keys(entries: Sequence[onnx.StringStringEntryProto]) -> Iterator[str]:
    for entry in entries:
        yield from (entry.key, entry.value)


def _check_value(value: onnx.ValueInfoProto, where: str) -> None:
    dims = [(dim.dim_param, dim.dim_value) for dim in value.type.tensor_type.shape.dim]
    _check_text(where, value.name, value.doc_string, *(text for text, _ in dims))
    for _, size in dims:
        if abs(size) > LONGEST_DIM:
            raise ModelError(f"{where}: value {value.name} has a size of {size}; expected at most 2^40. {_AGAIN}")


def _is_plain(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor is as most are, which is told at once: with names that are text, inline, with as many bytes as it says."""
    size, dims = _BYTES.get(tensor.data_type), tensor.dims
    return (
        size is not None
        and isinstance(tensor.name, str)
        and isinstance(tensor.doc_string, str)
        and not tensor.external_data
        and tensor.data_location != TensorProto.EXTERNAL
        and min(dims, default=1) >= 0
        and max(dims, default=1) <= LONGEST_DIM
        and tensor.HasField("raw_data")
        and len(tensor.raw_data) == size * math.prod(dims)
    )


def _check_tensor(tensor: onnx.TensorProto, where: str) -> None:
    """Check type and sizes of a tensor, and its bytes against them; of data in another file the type and sizes alone."""
    _check_text(where, tensor.name, tensor.doc_string, *_keys(tensor.external_data))
    dims = list(tensor.dims)
    if tensor.data_type not in _TYPES:
        raise ModelError(f"{where}: unknown type of element, got {tensor.data_type}; expected one of ONNX. {_AGAIN}")
    if any(not 0 <= size <= LONGEST_DIM for size in dims):
        raise ModelError(f"{where}: a size that none can have, got {dims}; expected 0 to 2^40. {_AGAIN}")
    if tensor.data_location == TensorProto.EXTERNAL:
        return
    count = math.prod(dims)
    if tensor.HasField("raw_data"):
        got, wanted = len(tensor.raw_data), stored_bytes(tensor, count)
        if got != wanted:
            expected = "no raw bytes" if wanted is None else f"{wanted} for its sizes {dims}"
            raise ModelError(f"{where}: wrong number of bytes, got {got}; expected {expected}. {_AGAIN}")
        return
    got = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))
    wanted = 2 * count if tensor.data_type in _COMPLEX else count
    if tensor.data_type in PACKED_BITS:
        wanted = (count * PACKED_BITS[tensor.data_type] + 7) // 8
    if got != wanted:
        raise ModelError(
            f"{where}: wrong number of elements, got {got}; expected {wanted} for its sizes {dims}. {_AGAIN}"
        )


def _check_sparse(sparse: onnx.SparseTensorProto, where: str) -> None:
    _check_tensor(sparse.values, where)
    _check_tensor(sparse.indices, f"{where}, its indices")
    dims, n, index = list(sparse.dims), list(sparse.values.dims), list(sparse.indices.dims)
    if not dims or any(not 0 < size <= LONGEST_DIM for size in dims) or math.prod(dims) > LONGEST_DIM:
        raise ModelError(f"{where}: sizes that none can have, got {dims}; expected 1 to 2^40 in all. {_AGAIN}")
    if len(n) != 1 or index not in (n, [*n, len(dims)]) or sparse.indices.data_type != TensorProto.INT64:
        raise ModelError(f"{where}: indices that do not fit, got {index} for {n} values; expected int64 {n}. {_AGAIN}")


def _check_calls(model: onnx.ModelProto, where: str) -> None:
    """Check that local functions call one another without end, and stand for no more nodes than can be handled."""
    if not model.functions:
        return
    functions: dict[_Key, onnx.FunctionProto] = {(f.domain, f.name, f.overload): f for f in model.functions}
    sizes: dict[_Key, tuple[int, int]] = {}  # nodes that a call stands for, and how deep it goes
    open_calls: list[_Key] = []

    def size_of(nodes: _Nodes) -> tuple[int, int]:
        total, deepest = 0, 0
        for node in _all_nodes(nodes):
            key = (node.domain, node.op_type, node.overload)
            n, depth = called(key) if key in functions else (1, 0)
            total, deepest = total + n, max(deepest, depth)
        return total, deepest

    def called(key: _Key) -> tuple[int, int]:
        if key in open_calls:
            cycle = ", ".join(name for _, name, _ in open_calls[open_calls.index(key) :][:4])
            raise ModelError(f"{where}: local functions call themselves, got {cycle}; expected no cycle. {_AGAIN}")
        if key not in sizes:
            if len(open_calls) >= DEEPEST_CALL:
                raise ModelError(
                    f"{where}: local functions call one another, got over {DEEPEST_CALL} deep; expected less. {_AGAIN}"
                )
            open_calls.append(key)
            n, depth = size_of(functions[key].node)
            sizes[key] = n, depth + 1
            open_calls.pop()
        return sizes[key]

    for key in functions:
        called(key)
    total, _ = size_of(model.graph.node)
    written = sum(len(f.node) for f in model.functions) + len(model.graph.node)
    most = max(MOST_CALLED_NODES, MOST_TIMES_WRITTEN * written)
    if total > most:
        raise ModelError(
            f"{where}: local functions stand for {total:,} nodes; expected at most {most:,}. "
            "Export the model without nested functions."
        )


def _all_nodes(nodes: _Nodes) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
                for graph in (attribute.g, *attribute.graphs):
                    yield from _all_nodes(graph.node)

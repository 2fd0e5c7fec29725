"""Sizes that a graph computes with: where the number read by a Shape node ends, and the ops that are made of sizes alone.

A Reshape target may be computed from the shape of another value that merely has the same width. So every place where such a
number ends must be able to name its own sizes after a cut, or the axis that was read stays whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from agmc_onnx.graph.registry import Attributes
from agmc_onnx.graph.shapes import Shape
from agmc_onnx.graph.view import FLOATS, Node
from agmc_onnx.ops.editor import Editor
from agmc_onnx.ops.passing import carry
from agmc_onnx.ops.table import Op, Vanishing, op_of, register
from agmc_onnx.ops.zeros import where_first_is
from agmc_onnx.ties.ledger import Ledger

_SCALAR = Shape((), ())
_INTEGERS = (6, 7)  # TensorProto.INT32, INT64


def shape_of(ledger: Ledger, node: Node) -> None:
    """Shape, Size: follow whatever is cut; each use of the number names its own sizes anew, or reads the original's."""
    x = node.inputs[0]
    labelled = set(ledger.labelled(x))
    for dim in labelled:
        ledger.axis(node, x, dim)
    if not labelled:
        return
    for user, position, dims in _uses(ledger, node):
        read = labelled & dims
        if not read:
            continue
        if _can_name(ledger, user, position):
            ledger.sized.setdefault(user.index, set()).update((x, dim) for dim in read)
        elif node.op_type == "Shape" or ledger.graph.value(node.outputs[0]) is not None:
            ledger.sized.setdefault(node.index, set()).update((x, dim) for dim in read)
        else:
            for dim in read:
                ledger.freeze(ledger.entries[x, dim].ids, f"{user.label}: computes with the size of {x}")


def _uses(ledger: Ledger, node: Node) -> Iterator[tuple[Node, int, set[int]]]:
    """Yield (user, input position, dims read) wherever a size read by `node` is used for anything but integer arithmetic.

    A graph output is its maker's use at position -1.
    """
    graph = ledger.graph
    rank = ledger.shape(node.inputs[0]).rank
    first = node.attribute("start", 0)
    everything = list(range(rank))[first : node.attribute("end", rank)]
    pending: list[tuple[Node, list[int], bool]] = [(node, everything, node.op_type == "Shape")]
    seen: set[int] = set()
    while pending:
        maker, dims, is_vector = pending.pop()
        for output in maker.outputs:
            if output in graph.outputs or output in graph.captured:
                yield maker, -1, set(dims)
            for user, position in graph.consumers.get(output, ()):
                if op_of(user).ties is shape_of:  # reads how many numbers there are, not which
                    continue
                is_float = user.op_type == "Cast" and user.attribute("to") not in _INTEGERS
                if position in op_of(user).shape_inputs or not op_of(user).computes_sizes or is_float:
                    yield user, position, set(dims)
                elif user.index not in seen:
                    picked = _picked(ledger, user, position, dims) if is_vector else None
                    if picked is None:
                        seen.add(user.index)
                    # a Slice, or a Gather by a list, gives sizes of which others may be picked again
                    still = picked is not None and (ledger.graph.shape(user.outputs[0]) or _SCALAR).rank == 1
                    pending.append((user, dims if picked is None else picked, still))


def _picked(ledger: Ledger, user: Node, position: int, dims: list[int]) -> list[int] | None:
    """Return which dims a Gather or Slice takes out of a whole shape, or None where another op uses it."""
    if position != 0:
        return None
    if user.op_type == "Gather":
        index = ledger.graph.value(user.inputs[1])
        return None if index is None else [dims[int(i)] for i in index.ravel()]
    if user.op_type == "Slice" and len(user.inputs) > 1:
        bounds = [ledger.graph.value(name) for name in user.inputs[1:] if name]
        if all(bound is not None and bound.size == 1 for bound in bounds):
            start, stop = (int(bound.ravel()[0]) for bound in bounds[:2] if bound is not None)
            step = int(bounds[3].ravel()[0]) if len(bounds) > 3 and bounds[3] is not None else 1
            return dims[start:stop:step]
    return None


def _can_name(ledger: Ledger, user: Node, position: int) -> bool:
    """Whether a use of a size can be rewritten with numbers known from the analysis."""
    graph = ledger.graph
    if position == -1:
        return False
    if position not in op_of(user).shape_inputs:  # data: keeps the number of the original
        return all(graph.value(output) is not None for output in user.outputs)
    if graph.value(user.inputs[position]) is not None:
        return True
    shape = graph.shape(user.outputs[0])
    if shape is None:
        return False
    if user.op_type == "Reshape":
        return sum(not shape.is_fixed(dim) for dim in range(shape.rank)) <= 1
    if user.op_type == "Expand":
        source = graph.shape(user.inputs[0])
        return source is not None and _can_name_expand(source, shape)
    return False


def expand(ledger: Ledger, node: Node) -> None:
    """Expand: dims of the input pass; along one that is widened all entries are equal, so any of them may go."""
    x, y = node.inputs[0], node.outputs[0]
    before, after = ledger.shape(x), ledger.shape(y)
    shift = after.rank - before.rank
    given = ledger.graph.shape(node.inputs[1])
    if not _can_name_expand(before, after) and (given is None or given.other != (after.rank,)):
        return
    carry(ledger, node, x, y, {dim: dim + shift for dim in range(before.rank)})
    for dim in range(shift, after.rank):
        if before.other[dim - shift] == 1 and after.other[dim] > 1 and after.is_fixed(dim):
            ledger.set(y, dim, ledger.fresh(after.other[dim]))


def _can_name_expand(before: Shape, after: Shape) -> bool:
    """Whether the target of an Expand can be written anew: every open dim is one of the input's own."""
    return all(
        after.is_fixed(dim)
        or (
            (own := dim - after.rank + before.rank) >= 0
            and (before.dims[own], before.other[own]) == (after.dims[dim], after.other[dim])
        )
        for dim in range(after.rank)
    )


def constant_of_shape(ledger: Ledger, node: Node) -> None:
    """ConstantOfShape: equal entries, so any of them may go; initial states of recurrent nodes are made so."""
    y = node.outputs[0]
    shape = ledger.shape(y)
    given = ledger.graph.shape(node.inputs[0])
    if given is None or given.other != (shape.rank,) or not ledger.graph.consumers.get(y):
        return
    value = node.attribute("value")
    if value is not None and value.data_type not in FLOATS:
        return  # numbers to compute sizes with
    for dim in range(shape.rank):
        if shape.is_fixed(dim) and shape.other[dim] > 1:
            ledger.set(y, dim, ledger.fresh(shape.other[dim]))


def expand_repair(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """Expand: the target names the new sizes; 1 keeps the input's own size."""
    cut, y = editor.cut, node.outputs[0]
    source, shape = editor.graph.shape(node.inputs[0]), editor.graph.shape(y)
    if not (cut.is_cut(y) or editor.reads_cut_size(node)) or source is None or shape is None:
        return
    new: list[int | None] = []
    for dim in range(shape.rank):
        own = dim - shape.rank + source.rank
        same = own >= 0 and (source.dims[own], source.other[own]) == (shape.dims[dim], shape.other[dim])
        new.append(1 if same else cut.size(y, dim) if shape.is_fixed(dim) else None)
    given = editor.graph.shape(node.inputs[1])
    if None not in new:
        editor.constant(proto, 1, [size for size in new if size is not None])
    elif given is not None and given.other == (shape.rank,):
        editor.mix(proto, 1, new)


def constant_of_shape_repair(editor: Editor, node: Node, proto: onnx.NodeProto) -> None:
    """ConstantOfShape: the sizes that are cut."""
    cut, y = editor.cut, node.outputs[0]
    shape = editor.graph.shape(y)
    if shape is None or not cut.is_cut(y):
        return
    fixed = [cut.size(y, dim) if shape.is_fixed(dim) else None for dim in range(shape.rank)]
    if None not in fixed:
        editor.constant(proto, 0, [size for size in fixed if size is not None])
    else:
        editor.mix(proto, 0, fixed)


def _constant(_: list[Any], attributes: Attributes) -> np.ndarray | None:
    for name, value in attributes.items():
        if name == "value":
            return numpy_helper.to_array(value)
        if name in ("value_int", "value_ints", "value_float", "value_floats"):
            return np.array(value, np.int64 if "int" in name else np.float32)
    return None


def _constant_of_shape(inputs: list[Any], attributes: Attributes) -> np.ndarray:
    value = numpy_helper.to_array(attributes["value"]) if "value" in attributes else np.zeros(1, np.float32)
    return np.full(inputs[0].tolist(), value.ravel()[0], value.dtype)


def _expand(inputs: list[Any], _: Attributes) -> np.ndarray:
    x, target = inputs
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(target.tolist()))).copy()


def _range(inputs: list[Any], _: Attributes) -> np.ndarray:
    return np.arange(*(value.ravel()[0] for value in inputs), dtype=inputs[0].dtype)


OPS = register(
    Op("Shape", shape_of, when_empty=Vanishing("size")),
    Op("Size", shape_of, when_empty=Vanishing("size")),
    Op("Constant", evaluate=_constant),
    Op("Range", linear_in="second", shape_inputs=(0, 1, 2), evaluate=_range),
    Op(
        "ConstantOfShape", constant_of_shape, repair=constant_of_shape_repair, shape_inputs=(0,),
        evaluate=_constant_of_shape,
    ),
    Op(
        "Expand", expand, repair=expand_repair, shape_inputs=(1,), shrinks=True, evaluate=_expand, keeps_zero=where_first_is,
        edge="reshape",
    ),
)  # fmt: skip

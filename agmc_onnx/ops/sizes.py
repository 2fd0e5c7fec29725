"""Sizes that a graph computes with: where the number read by a Shape node ends.

A Reshape target may be computed from the shape of another value that merely has the same width. So every place where such a
number ends must be able to name its own sizes after a cut, or the axis that was read stays whole.
"""

from __future__ import annotations

from collections.abc import Iterator

from agmc_onnx.graph.shapes import Shape
from agmc_onnx.graph.view import Node
from agmc_onnx.ops.move import can_name_expand
from agmc_onnx.ties.ledger import Ledger

SHAPE_INPUTS: dict[str, tuple[int, ...]] = {
    # op: inputs that are sizes, bounds or counts
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Tile": (1,),
    "Upsample": (1,),
}
_IGNORES_NUMBERS = frozenset({"Shape", "Size"})  # they read how many numbers there are, not which
_ARITHMETIC = frozenset(
    (
        "Add",
        "Cast",
        "Concat",
        "Div",
        "Equal",
        "Floor",
        "Gather",
        "Identity",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "Reshape",
        "ScatterND",
        "Slice",
        "Split",
        "Squeeze",
        "Sub",
        "Transpose",
        "Unsqueeze",
        "Where",
    )
)
_SCALAR = Shape((), ())
_INTEGERS = (6, 7)  # TensorProto.INT32, INT64


def shape_of(ledger: Ledger, node: Node) -> None:
    """Shape, Size: follow whatever is cut, where each use of the number can name its own sizes anew."""
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
                if user.op_type in _IGNORES_NUMBERS:
                    continue
                is_float = user.op_type == "Cast" and user.attribute("to") not in _INTEGERS
                if position in SHAPE_INPUTS.get(user.op_type, ()) or user.op_type not in _ARITHMETIC or is_float:
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
    if position not in SHAPE_INPUTS.get(user.op_type, ()):  # data: keeps the number of the original
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
        return source is not None and can_name_expand(source, shape)
    return False

"""Numbers that a graph computes from sizes, as expressions in the open ones.

An open size is a symbol, named by what it is at the two settings of `agmc_onnx.graph.shapes.Shape`, so sizes that agree at
both are one symbol. What an expression simplifies to a number is that number for every input; all else stays computed when
it runs. sympy is imported when a graph first asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx

from agmc_onnx.graph.registry import Attributes, graph_op

if TYPE_CHECKING:
    from agmc_onnx.graph.view import Graph, Node

_LARGEST = 64  # entries of a value that sizes are computed in
_LONGEST_CHAIN = 200  # nodes
_SELECTING = frozenset({"Concat", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
_ARITHMETIC = frozenset({"Add", "Mul", "Neg", "Sub"})


class Computed(NamedTuple):
    """Entries of a value, and whether they are floating numbers.

    Attributes:
        entries: Of dtype object: whole numbers and sympy expressions.
        is_float: Whether a quotient of them is not rounded.
    """

    entries: np.ndarray
    is_float: bool


def computed_sizes(graph: Graph, name: str) -> list[int | None] | None:
    """Return the entries of a value made of sizes, None for one that depends on open sizes; or None where it is not so made."""
    found = _compute(graph, name)
    if found is None:
        return None
    return [_number(entry) for entry in found.entries.ravel()]


def _number(entry: Any) -> int | None:
    if isinstance(entry, int):
        return entry
    entry = _sympy().simplify(entry)
    return int(entry) if entry.is_Integer else None


@cache
def _sympy() -> Any:
    import sympy  # takes a third of a second, and most graphs compute no sizes

    return sympy


def _compute(graph: Graph, name: str) -> Computed | None:
    found: dict[str, Computed | None] = {}
    pending = [name]
    while pending:  # an explicit stack: chains can be longer than Python's recursion limit
        current = pending[-1]
        if current in found:
            pending.pop()
            continue
        node = graph.producer.get(current)
        value = graph.value(current)
        if value is not None or node is None or node.domain or len(found) > _LONGEST_CHAIN:
            found[current] = None if value is None or value.size > _LARGEST else _of_numbers(value)
            continue
        if node.op_type in ("Shape", "Size"):
            found[current] = _of_shape(graph, node)
            continue
        missing = [used for used in node.inputs if used and used not in found]
        if missing:
            pending += missing
            continue
        operands = [found[used] if used else None for used in node.inputs]
        is_known = all(operand is not None or not used for operand, used in zip(operands, node.inputs, strict=True))
        try:
            found[current] = _apply(node, operands) if is_known and len(node.outputs) == 1 else None
        except (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError, AttributeError):
            found[current] = None  # wrong, or unusual: not known
    return found[name]


def _of_numbers(value: np.ndarray) -> Computed | None:
    is_float = value.dtype.kind == "f"
    if value.dtype.kind not in "iubf" or (
        is_float and not (np.isfinite(value).all() and (value == value.round()).all())
    ):
        return None
    return Computed(_objects(value.astype(np.int64).tolist(), value.shape), is_float)


def _of_shape(graph: Graph, node: Node) -> Computed | None:
    shape = graph.shape(node.inputs[0])
    if shape is None:
        return None
    sizes = [_size(*pair) for pair in zip(shape.dims, shape.other, strict=True)]
    if node.op_type == "Size":
        return Computed(np.array(np.prod(np.array([1, *sizes], object)), object), False)
    part = sizes[node.attribute("start", 0) : node.attribute("end", len(sizes))]
    return Computed(_objects(part, (len(part),)), False)


def _size(first: int, other: int) -> Any:
    """Return a size as a number where it is fixed, else as its symbol."""
    return first if first == other else _sympy().Symbol(f"s{first}_{other}", integer=True, positive=True)


def _objects(entries: Any, shape: tuple[int, ...]) -> np.ndarray:
    found = np.empty(shape, object)
    found[...] = np.array(entries, object).reshape(shape)
    return found


def _apply(node: Node, operands: list[Computed | None]) -> Computed | None:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.proto.attribute}
    first = operands[0]
    assert first is not None
    if node.op_type in _SELECTING:
        rule = graph_op("", node.op_type)
        if rule is None or rule.evaluate is None:
            return None
        data = len(operands) if node.op_type == "Concat" else 1  # what follows says which entries, not what they are
        given = [None if one is None else one.entries if at < data else _whole(one) for at, one in enumerate(operands)]
        chosen = rule.evaluate(given, attributes)
        return None if chosen is None else Computed(np.asarray(chosen, object), first.is_float)
    if node.op_type in _ARITHMETIC:
        function = {"Add": np.add, "Mul": np.multiply, "Neg": np.negative, "Sub": np.subtract}[node.op_type]
        made = function(*(one.entries for one in operands if one is not None))
        return Computed(np.asarray(made, object), first.is_float)
    entry_rule = _ENTRY_RULES.get(node.op_type)
    if entry_rule is not None and (node.op_type != "Clip" or "" not in node.inputs[:2]):
        return entry_rule([one for one in operands if one is not None], attributes)
    return None


def _whole(one: Computed) -> np.ndarray:
    """Return entries as whole numbers.

    Raises:
        TypeError: If one of them is an expression.
    """
    if not all(isinstance(entry, int) for entry in one.entries.ravel()):
        raise TypeError("an index that depends on an open size")
    return one.entries.astype(np.int64)


def _each(function: Callable[..., Any], *operands: np.ndarray) -> np.ndarray:
    return np.asarray(np.frompyfunc(function, len(operands), 1)(*operands), object)


def _cast(operands: list[Computed], attributes: Attributes) -> Computed:
    """Cast; to whole numbers it rounds, and sizes are above zero."""
    kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"])).kind
    entries, is_float = operands[0]
    if kind in "iu" and is_float:
        entries = _each(_floor, entries)
    elif kind not in "iuf":
        raise TypeError("no number")
    return Computed(entries, kind == "f")


def _floor(entry: Any) -> Any:
    found = _sympy().floor(entry)
    return int(found) if found.is_Integer else found


def _ceil(entry: Any) -> Any:
    found = _sympy().ceiling(entry)
    return int(found) if found.is_Integer else found


def _quotient(one: Any, other: Any, is_float: bool) -> Any:
    sympy = _sympy()
    ratio = sympy.sympify(one) / sympy.sympify(other)
    if not is_float and ratio.is_negative:
        raise ValueError("whole numbers are rounded towards zero")
    found = ratio if is_float else sympy.floor(ratio)
    return int(found) if found.is_Integer else found


def _divide(operands: list[Computed], _: Attributes) -> Computed:
    one, other = operands
    entries = _each(lambda a, b: _quotient(a, b, one.is_float), one.entries, other.entries)
    return Computed(entries, one.is_float)


def _equal(operands: list[Computed], _: Attributes) -> Computed:
    """Equal, as 0 and 1; what is neither sure to be equal nor to differ is not known."""
    sympy = _sympy()

    def same(one: Any, other: Any) -> int:
        is_zero = sympy.simplify(sympy.sympify(one) - other).is_zero
        if is_zero is None:
            raise ValueError("equal for some sizes")
        return int(is_zero)

    return Computed(_each(same, operands[0].entries, operands[1].entries), False)


def _where(operands: list[Computed], _: Attributes) -> Computed:
    condition, one, other = operands
    return Computed(_each(lambda c, a, b: a if c else b, _whole(condition), one.entries, other.entries), one.is_float)


def _extreme(name: str) -> Callable[[list[Computed], Attributes], Computed]:
    def rule(operands: list[Computed], _: Attributes) -> Computed:
        def of_two(one: Any, other: Any) -> Any:
            found = getattr(_sympy(), name)(one, other)
            return int(found) if found.is_Integer else found

        entries = operands[0].entries
        for other in operands[1:]:
            entries = _each(of_two, entries, other.entries)
        return Computed(entries, operands[0].is_float)

    return rule


def _clip(operands: list[Computed], attributes: Attributes) -> Computed:
    """Clip, whose ends are inputs: not below the first, not above the second."""
    if attributes:
        raise ValueError("ends of old opsets")
    found = _extreme("Max")(operands[:2], attributes)
    return _extreme("Min")([found, *operands[2:]], attributes)


def _fill(operands: list[Computed], attributes: Attributes) -> Computed:
    """ConstantOfShape: of so many entries, all one number."""
    value = onnx.numpy_helper.to_array(attributes["value"]) if "value" in attributes else np.zeros(1, np.float32)
    filled = _of_numbers(np.broadcast_to(value.ravel()[:1], tuple(_whole(operands[0]).tolist())))
    if filled is None or filled.entries.size > _LARGEST:
        raise ValueError("no sizes")
    return filled


def _product(operands: list[Computed], attributes: Attributes) -> Computed:
    """ReduceProd of a whole vector."""
    if operands[0].entries.ndim != 1:
        raise ValueError("no vector of sizes")
    made = np.array(np.prod(operands[0].entries), object)
    return Computed(made.reshape(1) if attributes.get("keepdims", 1) else made, operands[0].is_float)


_ENTRY_RULES: Mapping[str, Callable[[list[Computed], Attributes], Computed]] = {
    "Cast": _cast,
    "Clip": _clip,
    "Ceil": lambda operands, _: Computed(_each(_ceil, operands[0].entries), operands[0].is_float),
    "ConstantOfShape": _fill,
    "Div": _divide,
    "Equal": _equal,
    "Floor": lambda operands, _: Computed(_each(_floor, operands[0].entries), operands[0].is_float),
    "Max": _extreme("Max"),
    "Min": _extreme("Min"),
    "ReduceProd": _product,
    "Where": _where,
}

"""Sizes of the open dims of a model's inputs: what decides each, guesses, and second settings that tell them apart.

A dim is named by what decides it: its symbol, or "input:dim" where it has none; "4*H" is decided by H. The first dim of an input
is the batch, which counts as 1.
"""

from __future__ import annotations

import ast
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx

from agmc_onnx.graph.registry import graph_op

InputDims = tuple[int | str, ...]  # an open dim by its symbol, or by what it is computed from
Setting = dict[str, int]  # sizes by symbol
InputSizes = dict[str, tuple[int, ...]]  # by input

TOKENS, IMAGE = 16, 224
USUAL = (TOKENS, 64, IMAGE, 256, 512, 576, 1024, 16000, 32, 384, 640)  # tokens, small and usual images, audio windows
SOURCES = {
    "fixed": "", "given": "as given", "data": "those of the data", "guessed": "guessed; --input-shape or --data says better",
}  # fmt: skip
_FACTORS = (
    4,
    2,
    1.5,
    0.5,
)  # of the second setting: the largest first, since few samples may make one token as fewer did
_APART = ((1.5, 0.5), (4, 1))  # first factor and step of second settings in which every open dim has its own
_IMAGE_RANK, _COLORS = 4, (1, 3, 4)
_MOST_SYMBOLS = 8  # beyond which sums of two are not looked for
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv, ast.Div: operator.floordiv,
}  # fmt: skip


def input_dims(model: onnx.ModelProto) -> dict[str, InputDims]:
    """Return the dims of every real input, open ones by what decides them; those that weights fix are fixed.

    Inputs that are no tensors, or of unknown rank, are left out.
    """
    graph = model.graph
    tensors = {t.name: t for t in graph.initializer}
    has_value = tensors.keys() | {t.values.name for t in graph.sparse_initializer}
    found: dict[str, InputDims] = {}
    for value in graph.input:
        kind = value.type.tensor_type
        if value.name in has_value or value.type.WhichOneof("value") != "tensor_type" or not kind.HasField("shape"):
            continue
        dims: list[int | str] = []
        for at, dim in enumerate(kind.shape.dim):
            is_known = dim.HasField("dim_value") and dim.dim_value > 0
            dims.append(dim.dim_value if is_known else dim.dim_param or f"{value.name}:{at}")
        if len(dims) > 1 and isinstance(dims[1], str):
            dims[1] = _channels(graph, value.name, tensors) or dims[1]
        found[value.name] = tuple(dims)
    return found


def _channels(graph: onnx.GraphProto, value: str, tensors: Mapping[str, onnx.TensorProto]) -> int | None:
    """Return how many channels the weights that a value meets want of it; None where none says."""
    found = None
    for node in graph.node:
        op = graph_op(node.domain, node.op_type) if value in node.input[:1] and len(node.input) > 1 else None
        weight = tensors.get(node.input[1]) if op is not None and op.in_channels else None
        if op is not None and op.in_channels and weight is not None and len(weight.dims) > 1:
            n_groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            found = op.in_channels(weight.dims, n_groups)
    return found


def sizes_text(inputs: Mapping[str, Sequence[int]], source: str) -> str:
    """Return sizes of inputs in one line, with where they come from."""
    shapes = ", ".join(f"{name} {'x'.join(map(str, dims)) or 'scalar'}" for name, dims in inputs.items())
    return f"{shapes} ({SOURCES[source]})" if SOURCES[source] else shapes


def batch_symbols(inputs: Mapping[str, InputDims]) -> set[str]:
    """Return the names of the first dims."""
    return {str(dims[0]) for dims in inputs.values() if dims and isinstance(dims[0], str)}


def symbols_of(inputs: Mapping[str, InputDims]) -> list[str]:
    """Return what decides the open dims but the batch, in order, each once."""
    names = [name for dims in inputs.values() for dim in dims if isinstance(dim, str) for name in _names(dim)]
    batch = batch_symbols(inputs)
    return [name for name in dict.fromkeys(names) if name not in batch]


def sizes_at(inputs: Mapping[str, InputDims], setting: Mapping[str, int]) -> InputSizes:
    """Return the shapes of the inputs at a setting; a batch that it does not name is 1."""
    return {name: tuple(_size(dim, setting) for dim in dims) for name, dims in inputs.items()}


def setting_of(inputs: Mapping[str, InputDims], sizes: Mapping[str, Sequence[int]]) -> Setting:
    """Return the setting that gives these shapes: the batch is 1; what cannot be solved for its symbols is one itself."""
    batch, setting = batch_symbols(inputs), Setting()
    pairs = [
        (dim, size)
        for name, dims in inputs.items()
        if name in sizes
        for dim, size in zip(dims, sizes[name], strict=True)
    ]
    opened = [(dim, int(size)) for dim, size in pairs if isinstance(dim, str)]
    for dim, size in opened:
        if dim in batch or _names(dim) == [dim]:
            setting.setdefault(dim, 1 if dim in batch else size)
    for dim, size in opened:
        names = [name for name in _names(dim) if name not in setting]
        if len(names) == 1 and names != [dim]:
            slope = _size(dim, {**setting, names[0]: 1}) - _size(dim, {**setting, names[0]: 0})
            value = (size - _size(dim, {**setting, names[0]: 0})) // slope if slope else 0
            if value >= 0 and _size(dim, {**setting, names[0]: value}) == size:
                setting[names[0]] = value
    for dim, size in opened:
        if _size(dim, setting) != size and dim not in batch:
            setting[dim] = size
    return setting


def guesses(inputs: Mapping[str, InputDims], model: onnx.ModelProto) -> Iterator[Setting]:
    """Yield what the open dims may be where nothing says it, the likeliest first.

    224 for images (four dims or more, one or three channels, and no whole numbers beside them), 16 for all others, then the other
    usual sizes; and each once more with one dim the sum of two others, as caches of past tokens want it.
    """
    symbols = symbols_of(inputs)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    has_tokens = any(kinds.get(name) in (onnx.TensorProto.INT64, onnx.TensorProto.INT32) for name in inputs)
    images = {
        name
        for dims in inputs.values()
        if _is_image(dims) and not has_tokens
        for dim in dims
        if isinstance(dim, str)
        for name in _names(dim)
    }
    scale = {name: _multiple(name, inputs) for name in symbols}

    def all_at(image: int, other: int) -> Setting:
        return {name: max((image if name in images else other) // scale[name], 1) for name in symbols}

    pairs = [(IMAGE, TOKENS), *((size, size) for size in USUAL)]
    sums = list(itertools.permutations(symbols, 3)) if 3 <= len(symbols) <= _MOST_SYMBOLS else []
    for image, other in dict.fromkeys(pairs):
        first = all_at(image, other)
        yield first
        if (image, other) == pairs[0]:
            yield from ({**first, total: first[a] + first[b]} for total, a, b in sums if a < b)
        if not symbols:
            return


def others(inputs: Mapping[str, InputDims], first: Mapping[str, int]) -> Iterator[Setting]:
    """Yield second settings to compare a first one with: different in every open dim, and in the batch.

    First those in which no two symbols grow alike, then those that grow alike, so that any sum among them still holds.
    """
    batch = batch_symbols(inputs)
    free = [name for name in first if name not in batch]
    both = dict.fromkeys(batch, 2)
    if len(free) > 1:
        for factor, step in _APART:
            apart = _apart({name: first[name] for name in free}, factor, step)
            yield apart | both
            for total, a, b in itertools.permutations(free, 3) if len(free) <= _MOST_SYMBOLS else ():
                if a < b and first[total] == first[a] + first[b]:
                    yield apart | both | {total: apart[a] + apart[b]}
    for factor in _FACTORS:
        yield {name: _near(first[name], factor) for name in free} | both


def changes(inputs: Mapping[str, InputDims], first: Mapping[str, int]) -> dict[str, list[int]]:
    """Return, for every open dim and the batch, other sizes to try where a model does not run with all of them changed."""
    batch = batch_symbols(inputs)
    return {
        name: [2, 3] if name in batch else [_near(size, 2 + at), _near(size, 4 + at), size + 1 + at]
        for at, (name, size) in enumerate(first.items())
    }


def only_seem_open(inputs: Mapping[str, InputDims], is_fixed: Callable[[str, int], bool]) -> list[tuple[str, int, str]]:
    """Return the dims (input, dim, symbol) that are declared open, and yet are fixed."""
    found = [(name, at, dim) for name, dims in inputs.items() for at, dim in enumerate(dims) if isinstance(dim, str)]
    return [(name, at, dim) for name, at, dim in found if is_fixed(name, at)]


def _apart(first: Mapping[str, int], factor: float, step: float) -> Setting:
    """Return sizes of which no two are equal, nor equal to one of the first."""
    found: Setting = {}
    taken = set(first.values())
    for name, size in first.items():
        while (grown := _near(max(size, 1), factor)) in taken:
            factor += step
        found[name] = grown
        taken.add(grown)
        factor += step
    return found


def _near(size: int, factor: float) -> int:
    """Return a size times a factor, in steps of what divides it."""
    unit = int(np.gcd(size, 32)) or 1
    grown = int(size * factor) // unit * unit
    return grown if grown not in (0, size) else size + unit


def _is_image(dims: InputDims) -> bool:
    free = [dim for dim in dims[1:] if isinstance(dim, str)]
    return len(dims) >= _IMAGE_RANK and bool(free) and (len(free) > 1 or dims[1] in _COLORS or dims[-1] in _COLORS)


def _multiple(name: str, inputs: Mapping[str, InputDims]) -> int:
    """Return k where a dim is k times a symbol and nothing more, else 1."""
    for dims in inputs.values():
        for dim in dims:
            if isinstance(dim, str) and dim != name and _names(dim) == [name]:
                at = [_size(dim, {name: n}) for n in (0, 1, 2)]
                if at[0] == 0 and at[2] == 2 * at[1] > 0:
                    return at[1]
    return 1


def _tree(dim: str) -> ast.expr | None:
    try:
        return ast.parse(dim, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _names(dim: str) -> list[str]:
    """Return the symbols of a dim: those of an expression, or itself."""
    tree = _tree(dim)
    if tree is None or isinstance(tree, ast.Name):
        return [dim]
    try:
        names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
        _evaluate(tree, dict.fromkeys(names, 1))
    except (KeyError, TypeError, ZeroDivisionError, OverflowError, RecursionError):
        return [dim]
    return list(dict.fromkeys(names)) or [dim]


def _size(dim: int | str, setting: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if dim in setting:
        return setting[dim]
    tree = _tree(dim)
    try:
        return 1 if tree is None else max(int(_evaluate(tree, setting)), 0)
    except (KeyError, TypeError, ZeroDivisionError, OverflowError, RecursionError):
        return 1


def _evaluate(tree: ast.expr, setting: Mapping[str, int]) -> int:
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
        return tree.value
    if isinstance(tree, ast.Name):
        return setting[tree.id]
    if isinstance(tree, ast.BinOp) and type(tree.op) in _OPERATORS:
        return _OPERATORS[type(tree.op)](_evaluate(tree.left, setting), _evaluate(tree.right, setting))
    raise TypeError(f"no arithmetic: {ast.dump(tree)[:40]}")

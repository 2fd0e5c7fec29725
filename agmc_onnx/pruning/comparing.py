"""Whether two runs of a model gave the same, output by output: what verification allows, and what it could not compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

_OF_SPREAD = 1e-3  # float32 sums of some thousand terms in another order: far below; a wrong channel: far above
_OF_SIZE = 1e-5  # of the largest entry: what rounding alone changes where all entries are nearly the same number
_OF_ALL = 1e-6  # the same of the largest entry of the output, for a part of it
_NOISE = 10.0  # times what onnxruntime's own optimisations change in the masked original
_BLIND = 0.25  # a tolerance above this share of what an output varies by could not fail
_PART_ENTRIES, _PARTS = 64, 4096  # parts of an output compared alone: entries of each at least, number at most
_OF_ENTRIES = 1e-3  # of whole numbers: share that may differ, where two scores tie

Runs = Sequence[Sequence[Any]]  # by feed, by output


@dataclass(frozen=True)
class Difference:
    """How one output, or the worst part of it, compares.

    Attributes:
        name: Of the output.
        diff: Largest difference of an entry; infinite where nan, infinity or shape differ; of whole numbers, bools and text the
            share of entries that differ.
        top: Largest finite entry of the reference; 1 for shares.
        spread: What the reference varies by around its mean there.
        tolerance: What is allowed.
        blind: Why nothing was compared, or "".
    """

    name: str
    diff: float
    top: float
    spread: float
    tolerance: float
    blind: str = ""

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.diff <= self.tolerance


def differences(names: Sequence[str], want: Runs, got: Runs, noise: Callable[[], Runs]) -> list[Difference]:
    """Return how every output compares, each at the part of it that differs most for what is allowed there.

    An output is compared as a whole and, where it has more than two dims, slice by slice along its second and its last: boxes
    in pixels hide nothing of the probabilities beside them.

    Args:
        names: Of the outputs.
        want: Outputs of the reference.
        got: Those of the model.
        noise: Runs the reference with all of onnxruntime's optimisations: called only where a difference is above rounding, and
            ten times what these change is then allowed too, unless that would allow anything.
    """
    found: list[Difference] = []
    rerun: Runs | None = None
    for k, name in enumerate(names):
        parts = list(_parts(name, _column(want, k), _column(got, k)))
        if any(not part.holds for part in parts):
            rerun = noise() if rerun is None else rerun
            changes = list(_parts(name, _column(want, k), _column(rerun, k)))
            parts = [_allowing(part, change.diff) for part, change in zip(parts, changes, strict=True)]
        seen = [part for part in parts if not part.blind]
        found.append(max(seen or parts, key=lambda part: (part.diff / (part.tolerance + 1e-300), part.top)))
    return found


def _allowing(part: Difference, noise: float) -> Difference:
    if part.holds or part.blind or noise == 0 or (np.isinf(part.diff) and not np.isinf(noise)):
        return part
    tolerance = part.tolerance + _NOISE * noise
    blind = "" if tolerance <= _BLIND * part.spread else (
        f"onnxruntime's optimisations alone change the original's by {noise:.3g}, its largest entry being {part.top:.3g}"
    )  # fmt: skip
    return Difference(part.name, part.diff, part.top, part.spread, tolerance, blind)


def _column(runs: Runs, k: int) -> list[np.ndarray]:
    """Return an output of all feeds, stacked where its shape is the same for all; arrays inside of sequences and maps too."""
    rows = [list(_arrays(outputs[k])) for outputs in runs]
    columns = zip(*rows, strict=True) if len({len(row) for row in rows}) == 1 else [[x for row in rows for x in row]]
    found: list[np.ndarray] = []
    for column in columns:
        found += [np.stack(column)] if len({x.shape for x in column}) == 1 else [x[None] for x in column]
    return found


def _arrays(value: Any) -> Iterator[np.ndarray]:
    """Yield the arrays of an output: itself, or those of a sequence or of a map."""
    if isinstance(value, Mapping):
        yield np.array(list(value))
        yield np.array(list(value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for item in value:
            yield from _arrays(item)
    elif value is not None:
        yield np.asarray(value)


def _parts(name: str, want: list[np.ndarray], got: list[np.ndarray]) -> Iterator[Difference]:
    if [x.shape for x in want] != [x.shape for x in got]:
        yield Difference(name, float("inf"), 0.0, 0.0, 0.0)
        return
    if not any(x.size for x in want):
        yield Difference(name, 0.0, 0.0, 0.0, 0.0, "it is empty")
    for a, b in zip(want, got, strict=True):
        if a.size and not np.issubdtype(a.dtype, np.inexact):
            yield Difference(name, float(np.mean(a != b)), 1.0, 1.0, _OF_ENTRIES)
        elif a.size:
            yield from _float_parts(name, a.astype(np.float64), b.astype(np.float64))


def _float_parts(name: str, a: np.ndarray, b: np.ndarray) -> Iterator[Difference]:
    """Yield the difference as a whole, and of the worst slice along the second and the last dim of a sample."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    finite = np.isfinite(a)
    if not (np.isfinite(b) == finite).all() or not same[~finite].all():
        yield Difference(name, float("inf"), float(np.abs(a[finite]).max(initial=0.0)), 0.0, 0.0)
        return
    if not finite.any():
        yield Difference(name, 0.0, 0.0, 0.0, 0.0, "it is nan or infinite everywhere")
        return
    everything = float(np.abs(a[finite]).max())
    dims = {None} if a.ndim < 4 else {None, 2, a.ndim - 1}  # the first are feeds and batch
    for dim in dims:
        others = tuple(range(a.ndim)) if dim is None else tuple(d for d in range(a.ndim) if d != dim)
        if dim is not None and (a.shape[dim] > _PARTS or a.size < _PART_ENTRIES * a.shape[dim]):
            continue
        n = np.maximum(finite.sum(axis=others), 1)
        mean = np.where(finite, a, 0.0).sum(axis=others, keepdims=True) / n.reshape(
            [-1 if d == dim else 1 for d in range(a.ndim)]
        )
        with np.errstate(invalid="ignore"):
            diff = np.where(finite, np.abs(a - b), 0.0).max(axis=others)
            top = np.where(finite, np.abs(a), 0.0).max(axis=others)
            spread = np.where(finite, np.abs(a - mean), 0.0).max(axis=others)
        tolerance = _OF_SPREAD * spread + _OF_SIZE * top + (0 if dim is None else _OF_ALL * everything) + 1e-9
        worst = int(np.argmax(np.ravel(diff / tolerance)))
        found = [float(np.ravel(x)[worst]) for x in (diff, top, spread, tolerance)]
        yield Difference(name, diff=found[0], top=found[1], spread=found[2], tolerance=found[3])


def varies(want: Runs, k: int) -> bool:
    """Return whether an output depends on what a model is fed, by more than rounding."""
    for column in _column(want, k):
        if not np.issubdtype(column.dtype, np.inexact):
            if len(column) > 1 and (column != column[:1]).any():
                return True
            continue
        known = np.where(np.isfinite(column), column, 0.0).astype(np.float64)
        if known.size and np.ptp(known, axis=0).max() > _OF_ALL * np.abs(known).max():
            return True
    return False


_NOTHING = 1e-30  # onnxruntime ends the process where a width is 0
_HELD = {  # ops that draw numbers, and the attributes with which they give their mean
    "RandomNormal": {"scale": _NOTHING},
    "RandomNormalLike": {"scale": _NOTHING},
    "RandomUniform": {},
    "RandomUniformLike": {},
    "Bernoulli": {"seed": 1.0},
    "Multinomial": {"seed": 1.0},
}
_TRAINS_BY_INPUT = 12  # opset since which Dropout is told by its third input


def held_still(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return a model whose random ops draw nothing, and their names: Dropout passes, the others give their mean.

    Bernoulli and Multinomial draw with a fixed seed. The model itself is returned where it has none.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    if not any(_is_random(node, opset, _constants(graph)) for graph in _graphs(model) for node in graph.node):
        return model, ()
    result, names = onnx.ModelProto(), []
    result.CopyFrom(model)
    for graph in _graphs(result):
        constants = _constants(graph)
        for node in graph.node:
            if not _is_random(node, opset, constants):
                continue
            names.append(f"{node.op_type} {node.name or node.output[0]}")
            values = dict(_HELD.get(node.op_type, {}))
            if node.op_type == "Dropout":
                del node.input[1:]
                values = {"is_test": 1} if opset < 7 else {}
            elif node.op_type.startswith("RandomUniform"):
                low, high = (
                    next((a.f for a in node.attribute if a.name == n), d) for n, d in (("low", 0.0), ("high", 1.0))
                )
                values = {"low": (low + high) / 2, "high": (low + high) / 2}
            kept = [a for a in node.attribute if a.name not in values]
            del node.attribute[:]
            node.attribute.extend(kept)
            node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in values.items())
    return result, tuple(dict.fromkeys(names))


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """Yield the main graph, those in its nodes, and the functions."""
    pending: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while pending:
        graph = pending.pop()
        yield graph
        pending += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]


def _constants(graph: onnx.GraphProto | onnx.FunctionProto) -> dict[str, bool]:
    """Return which scalars of a graph are true."""
    found = {n.output[0]: a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"}
    found.update((t.name, t) for t in getattr(graph, "initializer", ()))
    return {
        name: bool(onnx.numpy_helper.to_array(t).any())
        for name, t in found.items()
        if t.data_type == onnx.TensorProto.BOOL and sum(t.dims) <= 1
    }


def _is_random(node: onnx.NodeProto, opset: int, constants: Mapping[str, bool]) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Dropout":
        if opset >= _TRAINS_BY_INPUT:
            return len(node.input) > 2 and node.input[2] != "" and constants.get(node.input[2], True)
        return opset < 7 and not any(a.name == "is_test" and a.i for a in node.attribute)
    return node.op_type in _HELD

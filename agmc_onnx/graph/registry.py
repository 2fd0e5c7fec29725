"""What the graph layer asks of an op: the numbers a node gives, and shapes that onnx's inference does not know.

The table of ops lies above (`agmc_onnx.ops`) and puts itself here; it is imported when the first question is asked.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Key = tuple[str, str]  # domain, op_type
Dims = tuple[int, ...]
Attributes = dict[str, Any]
Evaluate = Callable[[list[Any], Attributes], np.ndarray | None]
ShapeRule = Callable[[Sequence[Any], Attributes], list[Dims | None]]


class GraphOp(Protocol):
    """The part of `agmc_onnx.ops.table.Op` that this layer reads; the fields are described there."""

    @property
    def evaluate(self) -> Evaluate | None: ...  # noqa: D102
    @property
    def shape(self) -> ShapeRule | None: ...  # noqa: D102
    @property
    def begins_with(self) -> tuple[str, int] | None: ...  # noqa: D102
    @property
    def type_input(self) -> int: ...  # noqa: D102
    @property
    def in_channels(self) -> Callable[[Sequence[int], int], int] | None: ...  # noqa: D102
    @property
    def arranges(self) -> bool: ...  # noqa: D102
    @property
    def linear_in(self) -> str: ...  # noqa: D102
    @property
    def shrinks(self) -> bool: ...  # noqa: D102
    @property
    def is_random(self) -> bool: ...  # noqa: D102


_tables: list[Mapping[Key, GraphOp]] = []


def install(table: Mapping[Key, GraphOp]) -> None:
    """Let questions be answered from this table."""
    _tables[:] = [table]


def graph_op(domain: str, op_type: str) -> GraphOp | None:
    """Return what is known of an op, or None."""
    if not _tables:
        importlib.import_module("agmc_onnx.ops")
    return _tables[0].get(("" if domain == "ai.onnx" else domain, op_type))


def same_as_first(dims: Sequence[Any], _: Attributes) -> list[Dims | None]:
    """Return the shapes of an op whose only output has shape and type of its first input."""
    return [dims[0]]

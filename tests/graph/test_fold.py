"""Every row of the table of shape arithmetic gives what onnx's reference implementation gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from agmc_onnx.graph.fold import _by_reference, evaluate_node
from agmc_onnx.ops.table import TABLE

V, W = np.array([6, -7, 3], np.int64), np.array([2, 2, 5], np.int64)
B, C = np.array([True, False, True]), np.array([True, True, False])
F = np.array([0.5, 2.25, 7.0], np.float32)
GRID = np.arange(24, dtype=np.int64).reshape(2, 3, 4)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    *((op, [V, W], {}) for op in ("Add", "Sub", "Mul", "Equal", "Greater", "Less", "Mod", "Max", "Min")),
    ("Mod", [V, W], {"fmod": 1}),
    ("Div", [F, F[::-1].copy()], {}),
    ("Div", [i64(6, 7, 9), W], {}),
    *((op, [B, C], {}) for op in ("And", "Or")),
    ("Not", [B], {}),
    *((op, [F], {}) for op in ("Ceil", "Floor", "Sqrt", "Neg", "Identity")),
    ("Cast", [F], {"to": 7}),
    ("Cast", [V], {"to": 1}),
    ("Cast", [V], {"to": 9}),
    ("Concat", [V, W, V], {"axis": 0}),
    ("Concat", [GRID, GRID], {"axis": -1}),
    ("Constant", [], {"value_ints": [3, 4]}),
    ("Constant", [], {"value": numpy_helper.from_array(F)}),
    ("ConstantOfShape", [i64(2, 3)], {}),
    ("ConstantOfShape", [i64(2)], {"value": numpy_helper.from_array(i64(7))}),
    ("Expand", [V, i64(2, 1)], {}),
    ("Gather", [V, np.array(1)], {}),
    ("Gather", [GRID, i64(2, -1)], {"axis": 1}),
    ("Range", [np.array(1), np.array(9), np.array(3)], {}),
    ("Reshape", [GRID, i64(0, -1)], {}),
    ("Slice", [GRID, i64(1, -1), i64(3, -9), i64(1, 2), i64(1, -1)], {}),
    ("Slice", [V, i64(1), i64(2**62)], {}),
    ("Squeeze", [GRID[:1], i64(0)], {}),
    ("Squeeze", [GRID[:1, :, :1]], {}),
    ("Transpose", [GRID], {"perm": [2, 0, 1]}),
    ("Transpose", [GRID], {}),
    ("Unsqueeze", [V, i64(0, 2)], {}),
    ("Where", [B, V, W], {}),
]


@pytest.mark.parametrize(("op", "inputs", "attributes"), CASES)
def test_as_the_reference(op: str, inputs: list[np.ndarray], attributes: dict[str, Any]) -> None:
    node = helper.make_node(op, [f"i{k}" for k in range(len(inputs))], ["y"], **attributes)
    feeds = {f"i{k}": value for k, value in enumerate(inputs)}
    (want,), (got,) = _by_reference(node, feeds, 17), evaluate_node(node, feeds, 17)
    assert want is not None and got is not None
    assert got.dtype == want.dtype and got.shape == want.shape and np.array_equal(got, want)


def test_every_row_has_a_case() -> None:
    assert {op for op, _, _ in CASES} == {op.op_type for op in TABLE.values() if op.evaluate}


def test_whole_numbers_divide_towards_zero() -> None:
    node = helper.make_node("Div", ["a", "b"], ["y"])
    (found,) = evaluate_node(node, {"a": i64(-7, 7, -6), "b": i64(2, -2, 3)}, 17)
    assert found is not None and found.tolist() == [-3, -3, -2]


def test_what_cannot_be_is_none() -> None:
    node = helper.make_node("Gather", ["a", "b"], ["y"])
    assert evaluate_node(node, {"a": V, "b": i64(9)}, 17) == [None]

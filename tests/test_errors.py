"""Errors speak of flags on the command line, and of arguments in Python."""

from __future__ import annotations

from typing import Any

import pytest

import agmc_onnx
from agmc_onnx.errors import in_python


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--flops: out of range, got 2", "flops: out of range, got 2"),
        ("expected --params R or --max-drop P.", "expected params=R or max_drop=P."),
        ("Say --stages 1 or leave out --latency-table.", "Say stages=1 or leave out latency_table."),
        (
            "Run agmc-onnx import m:f --input-shape 1,3 -o M. Or --force.",
            "Run agmc-onnx import m:f --input-shape 1,3 -o M. Or force.",
        ),
        ("a - b -- c", "a - b -- c"),
    ],
)
def test_flags_become_arguments(text: str, said: str) -> None:
    assert in_python(text) == said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"flops": 2}, r"^flops: the share to keep is out of range, got 2"),
        ({}, r"expected exactly one of flops=R, params=R and latency=R"),
        ({"flops": 0.5, "latency_table": "t.json"}, r"^latency_table: got no latency"),
    ],
)
def test_a_caller_reads_of_arguments(options: dict[str, Any], said: str) -> None:
    with pytest.raises(agmc_onnx.UsageError, match=said):
        agmc_onnx.compress("m.onnx", **options)

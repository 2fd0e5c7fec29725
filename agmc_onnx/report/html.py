"""The report as one self-contained HTML file."""

from __future__ import annotations

from typing import Any


def render(report: dict[str, Any]) -> str:
    """Return the report as HTML."""
    return f"<!doctype html><title>agmc-onnx</title><pre>{report}</pre>"

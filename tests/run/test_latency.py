"""Budgets on latency that a table of op times cannot tell."""

from types import SimpleNamespace
from typing import Any

import pytest

from agmc_onnx.errors import UsageError
from agmc_onnx.run import latency


def test_a_table_that_predicts_no_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "table_samples", lambda *_: ())
    monkeypatch.setattr(latency, "latency_cost", lambda *_: lambda kept: 0.0)
    known: Any = SimpleNamespace(channels=None, n_units=0)
    with pytest.raises(UsageError, match="predicts 0 ms for the whole model; expected more"):
        latency.latency_target(known, known, known, known, lambda *_: None)

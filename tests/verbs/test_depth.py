"""A run in which layers go, from the search to the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import agmc_onnx
from agmc_onnx.reporting.html import render
from agmc_onnx.reporting.text import summary
from tests.verbs.test_compress import DIGITS

OPTIONS: dict[str, Any] = {
    "data": "digits", "flops": 0.1, "policy": "random", "episodes": 4, "finalists": 1, "search_samples": 64,
    "latency_seconds": 0.2,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[agmc_onnx.Result, Path]:
    output = tmp_path_factory.mktemp("depth") / "small.onnx"
    return agmc_onnx.compress(DIGITS, output=output, keep_layers=False, **OPTIONS), output


def test_the_best_candidate_has_branches_gone_and_says_so(made: tuple[agmc_onnx.Result, Path]) -> None:
    result, output = made
    gone = result.report["gone"]
    assert gone["branches"] and gone["of"] == 5
    assert any(
        line.startswith(f"layers: {len(gone['branches'])} of 5 branches gone") for line in summary(result.report)
    )
    assert "branches gone" in render(result.report)
    assert result.report["verified"]["masked_equivalence"]
    assert result.report["target"]["reached"] <= 0.1
    plan = json.loads(output.with_suffix(".plan.json").read_text())
    assert plan["format"] == "agmc-onnx/plan@2" and set(plan["gone"]) == set(result.plan.gone)


def test_its_files_are_verified_and_its_plan_is_applied(made: tuple[agmc_onnx.Result, Path], tmp_path: Path) -> None:
    _, output = made
    assert agmc_onnx.verify(DIGITS, output).masked_equivalence
    applied = agmc_onnx.apply(DIGITS, output.with_suffix(".plan.json"), tmp_path / "applied.onnx")
    assert applied.verification.masked_equivalence


def test_layers_are_kept_where_that_is_asked() -> None:
    report = agmc_onnx.compress(DIGITS, keep_layers=True, **OPTIONS).report
    assert report.get("gone") is None and all(group["kept"] for group in report["groups"])


@pytest.mark.parametrize(
    "options",
    [
        {"recover": "none"},
        {"recover": "statistics"},
        {"stages": 2},
        {"sparsity": 0.5, "sparse_layers": "all"},
        {"sparsity": 0.5, "sparse_layers": "all", "sparse_decide": "policy"},
    ],
    ids=["no recovery", "statistics", "stages", "sparse", "sparse by policy"],
)
def test_layers_may_go_whatever_else_is_asked(options: dict[str, Any], tmp_path: Path) -> None:
    asked = {**OPTIONS, "flops": 0.06, "policy": "greedy", "episodes": 6, "floor": 0.5, **options}
    output = tmp_path / "small.onnx"
    result = agmc_onnx.compress(DIGITS, output=output, **asked)
    assert any(0 in record["kept"] for record in result.report["history"])
    assert result.report["verified"]["masked_equivalence"]
    assert agmc_onnx.verify(DIGITS, output).masked_equivalence


def test_layers_stay_where_made_up_inputs_would_judge() -> None:
    report = agmc_onnx.compress(DIGITS, **{**OPTIONS, "data": None, "policy": "uniform"}).report
    assert report.get("gone") is None

"""A run whose result is quantised, from the finalists to the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

import agmc_onnx
from agmc_onnx.errors import UsageError
from agmc_onnx.graph.outputs import set_of, twin_of
from agmc_onnx.reporting.html import render
from agmc_onnx.reporting.tables import summary
from agmc_onnx.verbs.demo import NETWORK

OPTIONS: dict[str, Any] = {"data": "digits", "flops": 0.5, "policy": "random", "episodes": 3, "latency_seconds": 0.1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[agmc_onnx.Result, Path]:
    output = tmp_path_factory.mktemp("int8") / "small.onnx"
    return agmc_onnx.compress(NETWORK, output=output, precision="int8", **OPTIONS), output


def test_finalists_are_judged_quantised(made: tuple[agmc_onnx.Result, Path]) -> None:
    report = made[0].report
    assert len(report.finalists) == 3
    assert all(one["fidelity"] != one["float_fidelity"] for one in report.finalists)
    taken = next(one for one in report.finalists if one["taken"])
    assert taken["fidelity"] == max(one["fidelity"] for one in report.finalists)
    assert report.precision is not None and -1 <= (report.precision.correlation or 0) <= 1


def test_the_result_computes_in_integers_and_keeps_its_answers(made: tuple[agmc_onnx.Result, Path]) -> None:
    result, output = made
    report = result.report
    model = onnx.load(output)
    onnx.checker.check_model(model)
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) > 5
    assert report.compressed.file_bytes == output.stat().st_size < 0.5 * report.precision.twin.file_bytes
    assert report.compressed.metric.value > report.original.metric.value - 4
    assert report.precision.nodes["int8"] > report.precision.nodes["float"]
    assert any(line.startswith("precision: int8") for line in summary(report))
    assert "Precision: int8" in render(report)


def test_the_twin_is_what_the_plan_speaks_of(made: tuple[agmc_onnx.Result, Path], tmp_path: Path) -> None:
    result, output = made
    twin = twin_of(output)
    plan = json.loads(output.with_suffix(".plan.json").read_text())
    assert plan["format"] == "agmc-onnx/plan@2"
    outputs = {node.output[0] for node in onnx.load(twin).graph.node}
    assert set(plan["precision"]) == outputs and set(plan["precision"].values()) == {"int8", "float"}
    assert set_of(twin) == set_of(output) == plan["set"]
    found = agmc_onnx.verify(NETWORK, output)
    assert found.masked_equivalence and "small.float.onnx" in found.note
    again = agmc_onnx.apply(NETWORK, output.with_suffix(".plan.json"), tmp_path / "again.onnx")
    assert [i.dims for i in again.model.graph.initializer] == [i.dims for i in result.twin.graph.initializer]
    tuned = agmc_onnx.finetune(output, teacher=NETWORK, data="digits", steps=2, output=tmp_path / "tuned.onnx")
    assert not any(node.op_type == "QuantizeLinear" for node in tuned.model.graph.node)
    assert agmc_onnx.verify(NETWORK, tmp_path / "tuned.onnx").masked_equivalence


def test_a_plan_alone_does_not_write_over_its_quantised_model(made: tuple[agmc_onnx.Result, Path]) -> None:
    output = made[1]
    with pytest.raises(UsageError, match="gives its float twin"):
        agmc_onnx.apply(NETWORK, output.with_suffix(".plan.json"), output)


def test_a_float_set_of_the_same_name_takes_the_twin_away(made: tuple[agmc_onnx.Result, Path], tmp_path: Path) -> None:
    result, _ = made
    result.save(tmp_path / "x.onnx")
    assert (tmp_path / "x.float.onnx").is_file()
    agmc_onnx.compress(NETWORK, output=tmp_path / "x.onnx", flops=0.5, policy="uniform", latency_seconds=0.1)
    assert not (tmp_path / "x.float.onnx").exists()


def test_a_latency_budget_is_met_by_what_runs() -> None:
    options = OPTIONS | {"policy": "uniform", "flops": None, "latency": 0.9}
    report = agmc_onnx.compress(NETWORK, precision="int8", **options).report
    assert report.target.kind == "latency" and report.precision is not None
    assert report.latency_budget["trials"][0]["measured"]["median"] > 0


def test_mixed_precision_says_what_it_measured(tmp_path: Path) -> None:
    result = agmc_onnx.compress(NETWORK, output=tmp_path / "m.onnx", precision="mixed", **OPTIONS)
    facts = result.report.precision
    assert facts is not None and facts.asked == "mixed"
    assert sum(one.is_taken for one in facts.tried) == 1 and {"float", "int8"} <= {one.kind for one in facts.tried}
    assert any(
        line.startswith("mixed precision, tried on the original: ") and "(taken)" in line
        for line in summary(result.report)
    )
    assert agmc_onnx.verify(NETWORK, tmp_path / "m.onnx").masked_equivalence


def test_mixed_precision_is_a_format_of_export(tmp_path: Path) -> None:
    found = agmc_onnx.export(
        NETWORK, to="mixed", data="digits", output=tmp_path / "m.onnx", seconds=0.2, calibration_samples=50
    )
    assert any(note.startswith("mixed precision, tried on the original: ") for note in found["notes"])
    assert found["metric"]["exported"]["value"] > found["metric"]["onnx"]["value"] - 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "mixed", "data": None}, "precision: mixed needs inputs to find the range"),
        ({"precision": "mixed", "provider": "cuda"}, "decided by times of kernels on provider cpu"),
        ({"precision": "int8", "data": None}, "precision: int8 needs inputs to find the range"),
        ({"precision": "fp16"}, "computes float16 as float on provider cpu"),
        ({"precision": "bf16"}, "no bfloat16 kernels"),
        ({"precision": "int8", "stages": 2}, "got int8 beside .*stages"),
        ({"precision": "int4"}, "expected one of float, int8"),
    ],
)
def test_what_gains_nothing_is_refused_with_a_word(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        agmc_onnx.compress(NETWORK, **(OPTIONS | options))

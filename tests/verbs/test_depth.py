"""A run in which layers go, from the search to the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import agmc_onnx
from agmc_onnx.latency.tables import cache_path, cached_table
from agmc_onnx.ops.vanish import closer_of
from agmc_onnx.reporting.html import render
from agmc_onnx.reporting.tables import inspection, summary
from agmc_onnx.run.analysis import analyse_model
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


def test_inspect_has_the_share_of_time_where_this_machine_has_timed_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGMC_ONNX_CACHE", str(tmp_path))
    plain = agmc_onnx.inspect(DIGITS)
    assert plain["layers"] and "time_share" not in plain["layers"][0]
    analysis = analyse_model(DIGITS)
    full = [group.n_units for group in analysis.channels.groups]
    first = [group.name for group in analysis.channels.groups].index(plain["layers"][0]["name"])
    convs = [node.outputs[0] for node in analysis.graph.nodes if node.op_type == "Conv"]
    gone = set(closer_of(analysis.channels).branches[0].gone)
    samples = [
        {"kept": kept, "ops": [[name, "Conv", 1.0] for name in names], "ms": float(len(names))}
        for kept, names in (
            (full, convs),
            ([0 if i == first else n for i, n in enumerate(full)], [name for name in convs if name not in gone]),
        )
    ]
    table = cached_table(1, "cpu", 1).with_model(analysis.file.sha256, samples)
    path = cache_path(1, "cpu", 1)
    path.parent.mkdir(parents=True)
    path.write_text(table.to_json())
    found = agmc_onnx.inspect(DIGITS)
    assert found["layers"][0]["time_share"] == pytest.approx(2 / len(convs), abs=1e-3)
    assert any("of time" in line for line in inspection(found))


def test_a_layer_that_is_excluded_stays_and_may_shrink() -> None:
    layers = agmc_onnx.inspect(DIGITS)["layers"]
    name = layers[0]["name"]
    channels = analyse_model(DIGITS, exclude=(f"layer:{name}",)).channels
    assert name in [group.name for group in channels.groups]
    assert name not in [branch.name for branch in closer_of(channels).branches]
    assert closer_of(channels).why_not[name] == f"group {name}: stays by --exclude layer:{name}"
    options = {**OPTIONS, "exclude": ",".join(f"layer:{one['name']}" for one in layers)}
    assert all(group["kept"] for group in agmc_onnx.compress(DIGITS, **options).report["groups"])

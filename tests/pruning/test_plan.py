"""Plans of what keeps nothing: written as plan@2, read again, and applied."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from agmc_onnx import apply, compress, verify
from agmc_onnx.errors import PlanError
from agmc_onnx.graph.normal_form import normalize
from agmc_onnx.graph.view import graph_of
from agmc_onnx.ops import analyse
from agmc_onnx.pruning.plan import Plan, kept_units, make_plan, read_plan
from agmc_onnx.ties.groups import Channels
from tests.graph.test_normalize import standardised
from tests.ties.test_closed import RESIDUAL


def deep() -> tuple[Channels, Plan]:
    """Return an analysis, and the plan in which its first branch is gone."""
    channels = analyse(graph_of(normalize(RESIDUAL)))
    kept = [np.arange(0 if group.name == "w1" else group.n_units) for group in channels.groups]
    return channels, make_plan(channels, kept, "0" * 64)


def test_a_plan_says_what_is_gone_and_is_read_again(tmp_path: Path) -> None:
    channels, plan = deep()
    (tmp_path / "plan.json").write_text(plan.to_json())
    found = json.loads(plan.to_json())
    assert found["format"] == "agmc-onnx/plan@2" and found["folded"] == {}
    assert found["gone"] == ["c1", "r1", "c2", "n2", "t", "u"]
    assert found["tensors"]["beta"] == {"0": []} and found["tensors"]["w2"] == {"0": []}
    assert read_plan(tmp_path / "plan.json") == plan
    assert [k.size for k in kept_units(channels, plan)] == [6, 0, 4, 3]


def test_a_plan_of_widths_stays_plan_1() -> None:
    channels, _ = deep()
    text = make_plan(channels, [np.arange(g.n_units) for g in channels.groups], "0" * 64).to_json()
    assert json.loads(text)["format"] == "agmc-onnx/plan@1" and "gone" not in json.loads(text)


def test_a_plan_is_applied_and_verified(tmp_path: Path) -> None:
    _, plan = deep()
    onnx.save(RESIDUAL, tmp_path / "model.onnx")
    with pytest.raises(PlanError, match=r"is the plan of another model, got sha256 000000000000...; expected"):
        (tmp_path / "other.json").write_text(plan.to_json())
        apply(tmp_path / "model.onnx", tmp_path / "other.json")
    plan = replace(plan, sha256=hashlib.sha256((tmp_path / "model.onnx").read_bytes()).hexdigest())
    (tmp_path / "small.plan.json").write_text(plan.to_json())
    before = (tmp_path / "small.plan.json").read_bytes()
    result = apply(tmp_path / "model.onnx", tmp_path / "small.plan.json", tmp_path / "small.onnx")
    assert result.verification.masked_equivalence and result.plan.gone == plan.gone
    assert verify(tmp_path / "model.onnx", tmp_path / "small.onnx").masked_equivalence
    assert (tmp_path / "small.plan.json").read_bytes() == before, "an input is never written over"


def test_a_plan_names_tensors_of_the_file_and_others_apart(tmp_path: Path) -> None:
    """Statistics of standardised weights, and copies of vectors that layers share, are no tensors of the original."""
    onnx.save(standardised(), tmp_path / "model.onnx")
    options = {
        "flops": 0.7,
        "policy": "uniform",
        "recover": "none",
        "latency_seconds": 0.0,
        "output": tmp_path / "c.onnx",
    }
    compress(tmp_path / "model.onnx", **options)
    found = json.loads((tmp_path / "c.plan.json").read_text())
    assert found["format"] == "agmc-onnx/plan@1"
    names = {tensor.name for tensor in standardised().graph.initializer}
    assert found["tensors"].keys() == {"w0", "w1", "to_flat", "to0", "to1", "ones", "zeros"} & found["tensors"].keys()
    assert {"w0", "w1", "ones", "zeros"} <= found["tensors"].keys() <= names
    assert {"mean0", "var0", "ones__2", "zeros__2"} & found["derived"].keys() and not found["derived"].keys() & names
    assert read_plan(tmp_path / "c.plan.json").tensors == found["tensors"] | found["derived"]
    assert verify(tmp_path / "model.onnx", tmp_path / "c.onnx").masked_equivalence is not False


def test_a_plan_that_keeps_units_of_what_is_gone_is_refused() -> None:
    channels, plan = deep()
    for group in plan.groups:
        if group["name"] == "v1":
            group["keep"].clear()
    with pytest.raises(PlanError, match="group v2 keeps units of what is gone; expected none"):
        kept_units(channels, plan)


def test_a_plan_that_keeps_nothing_of_what_must_stay_is_refused() -> None:
    channels, plan = deep()
    next(group for group in plan.groups if group["name"] == "ws")["keep"].clear()
    with pytest.raises(PlanError, match="y would no longer depend on the inputs"):
        kept_units(channels, plan)


def changed(**facts: object) -> str:
    return json.dumps(json.loads(deep()[1].to_json()) | facts)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no json", "not JSON (Expecting value: line 1 column 1 (char 0)); expected a plan."),
        ("[1]", "not a plan, got list; expected a JSON object."),
        ("{}", "not a plan, got format None; expected agmc-onnx/plan@1 or agmc-onnx/plan@2."),
        (changed(model={}), "not a plan, model: object missing required field `sha256`."),
        (changed(groups=[{"units": 3, "keep": []}]), "not a plan, groups[0]: object missing required field `name`."),
        (
            changed(groups=[{"name": "a", "units": 3, "keep": [-1]}]),
            "not a plan, groups[0].keep[0]: expected `int` >= 0.",
        ),
        (changed(groups="abc"), "not a plan, groups: expected `array`, got `str`."),
        (changed(tensors={"w": {"0": ["x"]}}), "not a plan, tensors[...][...][0]: expected `int | array`, got `str`."),
        (changed(sparsity={"w": 7}), "not a plan, sparsity[...]: expected `float` <= 1.0."),
        (changed(sparsity_pattern="2:"), "not a plan, sparsity_pattern: expected `str` matching regex"),
    ],
)
def test_what_is_no_plan_is_said_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.plan.json"
    path.write_text(text)
    with pytest.raises(PlanError) as caught:
        read_plan(path)
    assert said in str(caught.value) and str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("Give a plan.json that compress wrote.")

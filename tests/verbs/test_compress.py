import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import agmc_onnx
from agmc_onnx import CompressOptions, UsageError
from agmc_onnx.graph.outputs import output_files, write_files
from agmc_onnx.pruning.verification import kept_region

DIGITS = Path(__file__).parents[2] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"
SEARCH = {"flops": 0.5, "data": "digits", "episodes": 8, "latency_seconds": 0.1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The result of a short search with the AGMC policy, and where it was written."""
    output = tmp_path_factory.mktemp("made") / "small.onnx"
    return agmc_onnx.compress(DIGITS, output=output, **SEARCH), output


@pytest.fixture(scope="module")
def as_cut(tmp_path_factory):
    """A result without recovery, whose weights are those of the original."""
    output = tmp_path_factory.mktemp("cut") / "small.onnx"
    options = SEARCH | {"policy": "uniform", "recover": "none"}
    return agmc_onnx.compress(DIGITS, output=output, **options), output


def steps(result):
    """Return a history without times."""
    timed = ("wall_s", "inference_s")
    return [{key: value for key, value in record.items() if key not in timed} for record in result.report["history"]]


def test_same_seed_same_result(made):
    result, _ = made
    again = agmc_onnx.compress(DIGITS, **SEARCH)
    assert again.plan == result.plan
    assert steps(again) == steps(result)
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)


def test_report_has_every_key_of_the_contract(made):
    result, output = made
    report = json.loads(output_files(output)["report"].read_text())
    assert report["format"] == "agmc-onnx/report@1"
    for side in ("original", "compressed"):
        assert {"macs", "params", "file_bytes", "metric", "latency_ms"} <= set(report[side])
        assert {"name", "value", "n"} <= set(report[side]["metric"])
        assert {"p50", "p90", "batch", "threads"} <= set(report[side]["latency_ms"])
    assert {"metric_before_recovery", "weight_density"} <= set(report["compressed"])
    assert set(report["target"]) == {"kind", "keep", "reached"}
    assert {"policy", "seed", "episodes", "evaluations", "wall_s", "inference_s"} <= set(report)
    assert {"episode", "reward", "macs", "inference_s", "wall_s"} <= set(report["history"][0])
    assert {"masked_equivalence", "max_abs_diff", "checker"} <= set(report["verified"])
    assert {"agmc_onnx", "onnx", "onnxruntime", "provider", "torch", "cpu"} <= set(report["environment"])
    assert (report["episodes"], len(report["history"])) == (8, 8)
    assert report["data"] == {
        "source": "digits",
        "metric": "top1",
        "roles": {"calibration": 150, "reward": 300, "test": 350},
    }
    assert report["output"] == str(output)
    assert result.report["history"] == report["history"]


def test_budget_is_met_on_the_written_model(made):
    result, output = made
    target = result.report["target"]
    assert target["keep"] - 0.02 < target["reached"] <= target["keep"]
    measured = agmc_onnx.measure(DIGITS, output, seconds=0.1)["models"]
    assert measured[1]["macs"] == result.report["compressed"]["macs"]
    assert measured[1]["macs"] / measured[0]["macs"] == pytest.approx(target["reached"])
    assert measured[1]["file_bytes"] == output.stat().st_size == result.report["compressed"]["file_bytes"]


def test_plan_rebuilds_the_weights_with_numpy_alone(as_cut):
    _, output = as_cut
    plan = json.loads(output_files(output)["plan"].read_text())
    assert plan["format"] == "agmc-onnx/plan@1"
    before, after = (
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(p).graph.initializer} for p in (DIGITS, output)
    )
    for name, array in after.items():
        axes = plan["tensors"].get(name, {})
        np.testing.assert_array_equal(array, before[name][kept_region(before[name].shape, axes, name)])


def test_recovery_gives_accuracy_back_and_verifies(made):
    result, output = made
    after = result.report["compressed"]
    assert result.report["verified"]["recovered"] is True
    assert after["metric"]["value"] > after["metric_before_recovery"] + 20
    checked = agmc_onnx.verify(DIGITS, output)
    assert checked.masked_equivalence is True
    assert "the weights were refitted" in checked.note


def test_groups_of_the_report_are_in_the_order_of_the_network(made):
    result, _ = made
    groups = result.report["groups"]
    assert groups[-1]["name"] == "fc.weight"
    assert groups[-1]["why_frozen"] == "graph output output"
    kept = {group["name"]: len(group["keep"]) for group in result.plan.groups}
    assert {group["name"]: group["kept"] for group in groups} == kept


def test_public_api(as_cut):
    result, output = as_cut
    for name in agmc_onnx.__all__:
        assert getattr(agmc_onnx, name) is not None
    assert set(agmc_onnx.__all__) <= set(dir(agmc_onnx))
    assert agmc_onnx.verify(DIGITS, output).masked_equivalence is True
    assert agmc_onnx.apply(DIGITS, output_files(output)["plan"]).model == result.model
    assert agmc_onnx.inspect(DIGITS)["params"] == 100_554
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        agmc_onnx.compres  # noqa: B018
    with pytest.raises(UsageError, match="Did you mean flops"):
        CompressOptions.of(flop=0.5)


def test_the_verb_measure_is_no_module():
    assert agmc_onnx.measure.__module__ == "agmc_onnx.verbs.measure"


def test_models_with_other_inputs_are_not_compared(tmp_path):
    model = onnx.load(DIGITS)
    model.graph.input[0].name = "pixels"
    model.graph.node[0].input[0] = "pixels"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UsageError, match=r"takes other inputs than .* got pixels float32; expected input float32"):
        agmc_onnx.measure(DIGITS, tmp_path / "other.onnx")
    with pytest.raises(UsageError, match="no model given"):
        agmc_onnx.measure()


def test_files_are_written_all_or_none(tmp_path, monkeypatch):
    model = onnx.load(DIGITS)
    output = tmp_path / "m.onnx"
    write_files(model, {"plan": "old", "report": "old", "html": "old"}, output)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 4
    replace = Path.replace

    def fail_late(self, target):
        if self.parent.name == "new" and self.name == "m.report.html":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_late)
    with pytest.raises(UsageError, match=r"cannot be written .No space left on device."):
        write_files(model, {"plan": "new", "report": "new", "html": "new"}, output)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.setattr(Path, "replace", replace)
    write_files(model, {"plan": "new", "report": "new", "html": "new"}, output)
    assert (tmp_path / "m.plan.json").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 4


def test_distillation_follows_the_refit():
    stages = []
    options = {"data": "digits", "flops": 0.15, "policy": "uniform", "latency_seconds": 0.1}
    refitted = agmc_onnx.compress(DIGITS, **options)
    taught = agmc_onnx.compress(
        DIGITS, **options, recover="distill", distill_steps=40, progress=lambda stage, facts: stages.append(stage)
    )
    assert stages.count("distilling") >= 40
    assert taught.plan == refitted.plan
    assert taught.verification.masked_equivalence is True
    assert taught.report["compressed"]["metric"]["value"] >= refitted.report["compressed"]["metric"]["value"]


@pytest.mark.parametrize("judge", ["fidelity", "metric"])
def test_the_best_finalist_is_the_result(judge):
    settings = {"data": "digits", "flops": 0.2, "policy": "random", "episodes": 6, "latency_seconds": 0.1}
    report = agmc_onnx.compress(DIGITS, **settings, judge=judge).report
    finalists = report["finalists"]
    assert len(finalists) == 4
    best = max(finalists, key=lambda finalist: finalist[judge])
    kept = [g["kept"] for g in report["groups"] if g["why_frozen"] is None]
    assert sorted(kept) == sorted(best["kept"]) and [one for one in finalists if one["taken"]] == [best]


def test_what_is_excluded_stays_whole_and_the_rest_meets_the_budget(tmp_path):
    result = agmc_onnx.compress(DIGITS, flops=0.6, policy="uniform", exclude="residual", output=tmp_path / "o.onnx")
    groups = {group["name"]: group for group in result.plan.groups}
    whole = [name for name, group in groups.items() if len(group["keep"]) == group["units"]]
    assert result.report["compressed"]["macs"] <= 0.6 * result.report["original"]["macs"]
    left = [name for name in whole if groups[name]["why_frozen"] == "left whole by --exclude residual"]
    assert len(left) == 3 and len(groups) - len(whole) >= 3
    assert agmc_onnx.verify(DIGITS, tmp_path / "o.onnx").masked_equivalence
    again = agmc_onnx.apply(DIGITS, tmp_path / "o.plan.json")
    assert again.model.graph.initializer[0].dims == result.model.graph.initializer[0].dims


def test_names_to_exclude_are_patterns_and_unknown_ones_are_refused():
    names = [group["name"] for group in agmc_onnx.inspect(DIGITS)["groups"]]
    result = agmc_onnx.compress(DIGITS, flops=0.6, policy="uniform", exclude=f"{names[1]}, */stages.0.1/conv1/*")
    kept = {group["name"]: len(group["keep"]) == group["units"] for group in result.plan.groups}
    assert kept[names[1]] and kept[names[2]] and not all(kept[name] for name in names)
    with pytest.raises(UsageError, match="exclude: no group has this name, got 'layer9'"):
        agmc_onnx.compress(DIGITS, flops=0.6, exclude="layer9")
    with pytest.raises(agmc_onnx.BudgetError, match="what exclude names"):
        agmc_onnx.compress(DIGITS, flops=0.01, policy="uniform", exclude=names[1])


def test_what_cannot_be_trained_is_said_before_the_search(tmp_path):
    model = onnx.load(DIGITS)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type, relu.domain = "FastGelu", "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(agmc_onnx.ModelError, match="FastGelu; expected one of"):
        agmc_onnx.compress(tmp_path / "m.onnx", data="digits", flops=0.5, recover="distill", episodes=10**6)
    result = agmc_onnx.compress(tmp_path / "m.onnx", data="digits", flops=0.5, policy="greedy", latency_seconds=0.1)
    after = result.report["compressed"]
    assert after["metric"]["value"] > after["metric_before_recovery"]

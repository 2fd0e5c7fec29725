import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import agmc_onnx
from agmc_onnx import CompressOptions, UsageError
from agmc_onnx.errors import BudgetError
from agmc_onnx.graph.outputs import output_files
from agmc_onnx.measuring.paired import upper_bound
from agmc_onnx.run import dropping, stages
from agmc_onnx.search.journal import Journal, Section, run_folder
from agmc_onnx.search.problem import Outcome

DIGITS = Path(__file__).parents[2] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"
FAST = {"data": "digits", "policy": "greedy", "latency_seconds": 0.1, "search_samples": 64, "search_positions": 1000}


@pytest.fixture(scope="module", autouse=True)
def coarse():
    """Let a search for a drop end after three budgets or so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dropping, "CLOSE", 0.2)
        yield


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """A model compressed to a fifth in two stages."""
    output = tmp_path_factory.mktemp("staged") / "small.onnx"
    return agmc_onnx.compress(DIGITS, output=output, flops=0.2, stages=2, **FAST), output


@pytest.fixture(scope="module")
def dropped(tmp_path_factory):
    """The smallest model within three points."""
    output = tmp_path_factory.mktemp("dropped") / "small.onnx"
    return agmc_onnx.compress(DIGITS, output=output, max_drop=3, **FAST), output


def test_stages_reach_the_budget_step_by_step(staged):
    report = staged[0].report
    first, last = report["stages"]
    assert first["keep"] == pytest.approx(0.2**0.5)
    assert (last["keep"], last["reached"]) == (0.2, report["target"]["reached"])
    assert 0.2 < first["reached"] <= first["keep"]
    assert report["compressed"]["metric"]["value"] > 90


def test_a_later_stage_keeps_nothing_that_an_earlier_one_removed(staged):
    history = staged[0].report["history"]
    assert [record["episode"] for record in history] == list(range(len(history)))
    widest = np.max([record["kept"] for record in history if record["stage"] == 1], axis=0)
    assert all((np.array(record["kept"]) <= widest).all() for record in history if record["stage"] == 2)


def test_a_result_of_stages_is_verified_against_the_original(staged):
    result, output = staged
    assert result.verification.masked_equivalence
    assert agmc_onnx.verify(DIGITS, output).masked_equivalence
    assert not run_folder(output).exists()


def test_an_interrupted_run_of_stages_goes_on_with_the_next_stage(staged, tmp_path, monkeypatch):
    output = tmp_path / "small.onnx"
    begun = []
    search = stages.search_once

    def killed(*args):
        begun.append(args)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return search(*args)

    options = FAST | {"flops": 0.2, "stages": 2}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="--resume goes on"):
        patch.setattr(stages, "search_once", killed)
        agmc_onnx.compress(DIGITS, output=output, **options)
    assert sorted(path.name for path in run_folder(output).iterdir()) == ["journal.jsonl", "stage-1.onnx"]
    searched = []
    monkeypatch.setattr(stages, "search_once", lambda *args: searched.append(args) or search(*args))
    again = agmc_onnx.compress(DIGITS, output=output, resume=True, **options)
    assert len(searched) == 1
    assert again.plan == staged[0].plan
    assert onnx.load(output) == onnx.load(staged[1])
    assert not run_folder(output).exists()


def test_the_smallest_model_within_a_drop(dropped):
    report = dropped[0].report
    found = report["max_drop"]
    assert found["limit"] == 3
    assert found["drop"] <= found["most"] <= 3
    accepted = [trial for trial in found["trials"] if trial["accepted"]]
    assert report["target"]["reached"] == min(trial["reached"] for trial in accepted) == found["reached"]
    assert max((trial["keep"] for trial in found["trials"] if not trial["accepted"]), default=0) < found["reached"]
    assert found["n"] == 300
    assert json.loads(output_files(dropped[1])["report"].read_text())["max_drop"] == found


def test_the_drop_is_said_with_its_doubt(dropped):
    from agmc_onnx.reporting.text import target_line

    report = dropped[0].report
    drop = report["max_drop"]
    said = f"on 300 reward samples it is {drop['drop']:.2f}, with 95 % confidence at most {drop['most']:.2f}"
    assert said in target_line(report)
    unknown = {**report, "max_drop": {**drop, "most": drop["drop"]}}
    assert "its uncertainty is not known" in target_line(unknown)


def test_an_interrupted_search_for_a_drop_measures_no_budget_twice(dropped, tmp_path, monkeypatch):
    output = tmp_path / "small.onnx"
    recovered = []
    recover = dropping.recover_best

    def killed(*args):
        if len(recovered) == 2:
            raise KeyboardInterrupt
        recovered.append(args)
        return recover(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(dropping, "recover_best", killed)
        agmc_onnx.compress(DIGITS, output=output, max_drop=3, **FAST)
    monkeypatch.setattr(dropping, "recover_best", lambda *args: recovered.append(args) or recover(*args))
    again = agmc_onnx.compress(DIGITS, output=output, max_drop=3, resume=True, **FAST)
    n_trials = len(dropped[0].report["max_drop"]["trials"])
    assert len(again.report["max_drop"]["trials"]) == n_trials
    assert len(recovered) in (n_trials, n_trials + 1)  # one more where the best is of before
    assert again.plan == dropped[0].plan


def test_a_policy_rewarded_for_size_searches_without_a_budget(monkeypatch):
    monkeypatch.setattr(dropping, "CLOSE", 0.6)
    options = FAST | {"policy": "agmc", "episodes": 6, "reward": "flops"}
    report = agmc_onnx.compress(DIGITS, max_drop=5, **options).report
    explored = [record for record in report["history"] if record["trial"] == 2]
    assert len(explored) == 6
    assert len({record["macs"] for record in explored}) > 2
    assert [trial["policy"] for trial in report["max_drop"]["trials"]][:1] == ["greedy"]
    assert report["max_drop"]["most"] <= 5


def test_the_fastest_model_within_a_drop(monkeypatch):
    monkeypatch.setattr(dropping, "CLOSE", 0.3)
    report = agmc_onnx.compress(DIGITS, max_drop=5, minimise="latency", precision="int8", **FAST).report
    found = report["max_drop"]
    assert report.target.kind == "latency" and report.precision is not None and found["most"] <= 5
    shares = [one["reached"] for one in found["trials"] if one["accepted"]]
    assert shares and found["reached"] == min(shares)


def test_a_drop_that_nothing_meets_is_told(monkeypatch):
    monkeypatch.setattr(dropping, "CLOSE", 0.6)
    with pytest.raises(
        BudgetError, match=r"max_drop: no smaller model stays within 0.01 points; the largest tried keeps"
    ):
        agmc_onnx.compress(DIGITS, max_drop=0.01, **FAST)


def test_without_data_no_drop_can_be_measured():
    with pytest.raises(UsageError, match=r"max_drop: got no data"):
        agmc_onnx.compress(DIGITS, max_drop=1, policy="uniform")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": 1, "flops": 0.5}, r"budget: got --flops and --max-drop; expected exactly one"),
        ({"max_drop": 0}, r"--max-drop: the points to lose are out of range, got 0"),
        (
            {"max_drop": 1, "minimise": "size"},
            r"--minimise: unknown name, got 'size'; expected one of flops, params, latency",
        ),
        ({"max_drop": 1, "stages": 2}, r"--stages: got 2 beside --max-drop; expected 1"),
        ({"flops": 0.5, "stages": 2, "recover": "none"}, r"--stages: got 2 beside --recover none"),
        ({"flops": 0.5, "stages": 0}, r"--stages: too small, got 0"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(UsageError, match=message):
        CompressOptions.of(**options)


def test_stages_without_data_are_told():
    with pytest.raises(UsageError, match=r"stages: got 2 without data"):
        agmc_onnx.compress(DIGITS, flops=0.5, stages=2, policy="uniform")


def test_sections_of_a_journal_know_their_own_candidates(tmp_path):
    journal = Journal(tmp_path / "x.run", {"model": {"sha256": "a"}}, True)
    kept = np.array([4, 8])
    for number in (1, 2):
        Section(journal, number).add(kept, Outcome(float(number)), 0.0)
    journal.note("between", {"drop": 1.5})
    journal.end(finished=False)
    again = Journal(tmp_path / "x.run", {"model": {"sha256": "a"}}, True)
    assert [Section(again, number).known[(4, 8)].metric for number in (1, 2)] == [1.0, 2.0]
    assert (again.n_resumed, again.notes) == (2, {"between": {"drop": 1.5}})
    again.end(finished=True)
    assert not (tmp_path / "x.run").exists()


def test_the_bound_of_a_drop_looks_at_changed_answers_only():
    right = np.ones(1000, bool)
    same = upper_bound(right, right)
    assert 0 < same < 0.3
    worse = right.copy()
    worse[:10] = False
    assert 1.0 < upper_bound(right, worse) < 1.8
    swapped = np.roll(worse, 500)
    assert 0.3 < upper_bound(swapped, worse) < 1.2  # ten lost, ten won: no drop, but doubt


def test_the_bound_holds_19_times_of_20():
    generator = np.random.default_rng(0)
    kept = 0
    for _ in range(2000):
        draw = generator.random(400)
        original, model = draw > 0.05, (draw > 0.08) | (draw < 0.02)
        kept += upper_bound(original, model) >= 1.0  # 3 % lost, 2 % won
    assert kept / 2000 > 0.94

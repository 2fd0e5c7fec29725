from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import agmc_onnx
from agmc_onnx.measuring.paired import interval, upper_bound
from agmc_onnx.reporting.html import render
from agmc_onnx.reporting.tables import summary
from agmc_onnx.reporting.verdict import Circumstances, Loss, judged, lines, share_for
from agmc_onnx.verbs.demo import NETWORK


@pytest.mark.parametrize(
    ("loss", "kind", "said"),
    [
        (Loss("top1", 98.5, 0.3, 350, (-0.9, 1.5)), "kept", "no significant loss: 0.30 points of top1 lost"),
        (Loss("top1", 98.5, -0.3, 350, (-1.5, 0.9)), "kept", "0.30 points of top1 gained"),
        (Loss("top1", 92.0, 2.5, 5000, (2.0, 3.0)), "lost", "2.50 points of top1 lost (95 %: 2.00 to 3.00, n = 5,000)"),
        (Loss("top1", 71.0, 22.0, 3000, (20.0, 24.0)), "unusable", "not usable: 22.00 of 71.00 points of top1 lost"),
        (Loss("top1", 71.0, 22.0, 30, (2.0, 42.0)), "lost", "22.00 points of top1 lost"),
        (Loss("m:f", 0.5, 0.01, 100), "lost", "0.01 m:f lost (n = 100, uncertainty not known)"),
        (Loss("m:f", 0.5, 0.2, 100), "unusable", "not usable: 0.20 of 0.50 m:f lost"),
    ],
)
def test_a_verdict_goes_by_the_interval_of_the_loss(loss, kind, said):
    found = judged(loss, is_real=True)
    assert found.kind == kind and said in found.text


def test_without_data_answers_that_are_not_the_originals_are_not_usable():
    same, other = Loss("agreement", 100.0, 0.0, 64, (-3.0, 3.0)), Loss("agreement", 100.0, 60.0, 64, (45.0, 72.0))
    assert judged(same, False, 97.0).kind == "unknown"
    assert judged(other, False, 80.0).kind == "unusable"
    assert judged(same, False, 40.0).kind == "unusable"  # one class always comes first, whatever the input
    assert "give --data" in judged(other, False, 80.0).next


CARD = Path(agmc_onnx.__file__).parent / "data" / "digits" / "digits.toml"
LOST = Loss("top1", 92.0, 2.5, 5000, (2.0, 3.0))
GONE = Loss("top1", 71.0, 22.0, 3000, (20.0, 24.0))


@pytest.mark.parametrize(
    ("loss", "about", "said"),
    [
        (LOST, Circumstances(recover="none"), "leave out --recover none"),
        (LOST, Circumstances(n_calibration=40), "more calibration samples: it had 40"),
        (LOST, Circumstances(keep=0.5, keep_more=0.65), "keep more: --flops 0.65"),
        (LOST, Circumstances(distil_minutes=7.2, n_train=50_000), "--recover distill, about 8 minutes here on 50,000"),
        (LOST, Circumstances(int8=(0.45, 0.02), time=0.6), "int8 instead: 0.45 of the time for 0.02 points"),
        (GONE, Circumstances(keep=0.5, keep_more=0.85, distil_minutes=3.0), "keep more: --flops 0.85"),
        (Loss("agreement", 100.0, 5.0, 900, (3.0, 7.0)), Circumstances(), "labels in the card"),
        (Loss("top1", 98.5, 0.3, 100, (-2.9, 3.5)), Circumstances(), "about 1,100 would show"),
        (Loss("top1", 98.5, 0.0, 5000, (-0.1, 0.1)), Circumstances(time=1.02), "not faster (1.02 of the time)"),
        (Loss("top1", 98.5, 0.0, 5000, (-0.1, 0.1)), Circumstances(keep=0.5, time=0.6), "keep less: --flops 0.40"),
    ],
)
def test_the_next_step_is_what_the_numbers_speak_for(loss, about, said):
    assert said in judged(loss, True, about=about).next


def test_distillation_is_not_advised_where_too_much_is_gone_and_more_can_be_kept():
    found = judged(GONE, True, about=Circumstances(keep=0.5, keep_more=0.85, distil_minutes=3.0))
    assert "distil" not in found.next


def test_of_boxes_the_curves_say_nothing():
    gone = replace(GONE, name="boxes")
    said = judged(
        gone, True, about=Circumstances(keep=0.7, keep_more=0.9, recover="compensate", distil_minutes=20.0)
    ).next
    assert "keep more: boxes" in said and "0.90" not in said and "distil" in said


def test_int8_that_is_not_faster_is_not_advised():
    assert "int8" not in judged(LOST, True, about=Circumstances(int8=(1.07, 0.0), time=0.6)).next


def test_the_share_to_keep_is_where_errors_fall_to_a_point():
    errors, shares = [4.0, 2.0, 1.0, 0.0], [0.5, 0.61, 0.83, 1.0]
    assert share_for(errors, shares, lost=16.0) == pytest.approx(0.85)
    assert share_for(errors, shares, lost=4.0) == pytest.approx(0.65)
    assert share_for(errors, shares, lost=0.5) is None
    assert share_for(errors, shares, lost=100.0) is None  # nothing but the original is that good


def test_the_interval_is_of_paired_samples():
    original = np.ones(1000, bool)
    model = original.copy()
    model[:20] = False
    low, high = interval(original, model)
    assert low < 2.0 < high and low > 1.0
    assert low < upper_bound(original, model) < high
    assert interval(original, original)[0] < 0 < interval(original, original)[1]


def test_reports_without_a_verdict_have_no_line():
    assert lines(None) == []


def run(**options):
    result = agmc_onnx.compress(NETWORK, policy="uniform", latency_seconds=0.1, **options)
    return result.report


SIX = [
    ({"data": "digits", "flops": 0.7}, "kept", "no significant loss", "keep less"),
    ({"data": "digits", "flops": 0.15}, "lost", "points of top1 lost", "keep more: --flops 0."),
    ({"data": "digits", "flops": 0.5, "recover": "none"}, "unusable", "not usable", "leave out --recover none"),
    ({"flops": 0.3}, "unusable", "its answers are not the original's", "give --data"),
    ({"flops": 0.97}, "unknown", "not known without data", "agmc-onnx measure"),
    ({"data": "agreement", "params": 0.06}, "lost", "of agreement lost", "labels in the card"),
]


@pytest.mark.parametrize(("options", "kind", "said", "next_step"), SIX)
def test_six_runs_that_end_differently(options, kind, said, next_step, tmp_path):
    if options.get("data") == "agreement":
        card = tmp_path / "card.toml"
        card.write_text(
            CARD.read_text().replace('"top1"', '"agreement"').replace('= "digits', f'= "{CARD.parent}/digits')
        )
        options = options | {"data": card}
    report = agmc_onnx.compress(NETWORK, policy="uniform", latency_seconds=0.1, **options).report
    assert report.verdict.kind == kind and said in report.verdict.text and next_step in report.verdict.next
    assert (
        summary(report)[:2]
        == lines(report.verdict)
        == [
            f"verdict: {report.verdict.text}",
            f"next: {report.verdict.next}",
        ]
    )
    first = render(report).split("<header>")[1].strip().splitlines()[0]
    assert first.startswith(f'<p class="verdict {kind}">Verdict: ')

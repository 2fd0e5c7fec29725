from agmc_onnx.reporting.text import target_line
from agmc_onnx.reporting.times import CPU, MEDIAN, shown_ms


def facts(p50: float, cpu_p50: float, cpu_p10: float) -> dict[str, object]:
    return {"p50": p50, "cpu_p50": cpu_p50, "cpu_p10": cpu_p10, "threads": 1}


def test_a_busy_machine_is_compared_by_processor_time():
    calm = [facts(5.1, 5.0, 4.9), facts(3.0, 3.0, 2.9)]
    assert shown_ms(calm) == (MEDIAN, [5.1, 3.0])
    # seen: half of the inferences of the longer model were interrupted, and 0.59 of the time looked like 0.24
    busy = [facts(13.0, 5.2, 5.0), facts(3.1, 3.1, 3.0)]
    assert shown_ms(busy) == (CPU, [5.0, 3.0])
    assert shown_ms([facts(5.1, 5.0, 4.9), facts(2.0, 3.0, 2.9)]) == (CPU, [4.9, 2.9])
    assert shown_ms([{**one, "threads": 2} for one in busy])[0] == MEDIAN
    assert shown_ms([{**one, "cpu_p10": None} for one in busy])[0] == MEDIAN


def test_a_share_that_met_the_budget_by_another_clock_says_so():
    times = [facts(5.0, 5.0, 5.0), facts(3.5, 3.5, 3.5)]
    report = {"target": {"kind": "latency", "keep": 0.7, "reached": 0.69}} | {
        side: {"latency_ms": one} for side, one in zip(("original", "compressed"), times, strict=True)
    }
    assert target_line(report).endswith("by what other programs disturb least; the times above divide to 70.0 %")
    assert target_line(report | {"target": {**report["target"], "reached": 0.699}}).endswith("reached 69.90 %")

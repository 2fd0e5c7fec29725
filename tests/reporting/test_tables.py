from agmc_onnx.reporting.times import CPU, MEDIAN, shown_ms


def test_a_busy_machine_is_compared_by_processor_time():
    def facts(p50: float, cpu_p50: float, cpu_p10: float, **more: object) -> dict[str, object]:
        return {"p50": p50, "cpu_p50": cpu_p50, "cpu_p10": cpu_p10, "threads": 1, **more}

    calm = [facts(5.1, 5.0, 4.9), facts(3.0, 3.0, 2.9)]
    assert shown_ms(calm) == (MEDIAN, [5.1, 3.0])
    # seen: half of the inferences of the longer model were interrupted, and 0.59 of the time looked like 0.24
    busy = [facts(13.0, 5.2, 5.0), facts(3.1, 3.1, 3.0)]
    assert shown_ms(busy) == (CPU, [5.0, 3.0])
    assert shown_ms([facts(5.1, 5.0, 4.9), facts(2.0, 3.0, 2.9)]) == (CPU, [4.9, 2.9])
    assert shown_ms([{**one, "threads": 2} for one in busy])[0] == MEDIAN
    assert shown_ms([{**one, "cpu_p10": None} for one in busy])[0] == MEDIAN

"""Which of the times of models that were measured in turns is shown, so that all that is printed of them divides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MEDIAN, CPU = "median ms", "processor ms"  # what is shown of latencies
INTERRUPTED = 1.2  # wall time over processor time beyond which it is the latter
BUSY = 0.03  # how far the ratio of medians may differ from the median of ratios, and from that of processor times


def shown_ms(times: Sequence[Mapping[str, Any]]) -> tuple[str, list[float]]:
    """Return what is shown of models that were timed in turns, and their milliseconds, which can be divided by each other.

    Medians; but where other programs took the processor away in between, as a wall clock beyond the processor time says, or
    another share by it, the first decile of processor time: a long inference is interrupted more often than a short one, so
    that on a busy core half of the time may look like a quarter.
    """
    cpu = [float(one.get("cpu_p10") or 0) for one in times]
    is_known = all(cpu) and all(
        one.get("cpu_p50") and one["threads"] == 1 and one.get("provider", "cpu") == "cpu" for one in times
    )
    wall = [float(one["p50"]) for one in times]
    if not is_known:
        return MEDIAN, wall
    is_interrupted = any(one["p50"] > INTERRUPTED * one["cpu_p50"] for one in times)
    differ = any(abs(a * cpu[0] - b * wall[0]) > BUSY * b * wall[0] for a, b in zip(wall, cpu, strict=True))
    return (CPU, cpu) if is_interrupted or differ else (MEDIAN, wall)

import io
import re
from dataclasses import replace

import pytest

from agmc_onnx.reporting import progress
from agmc_onnx.reporting.progress import Counted, Episodes, duration
from agmc_onnx.run.clock import Clock, Forecast, told, usual

FORECAST = Forecast(candidate=2.0, finalist=10.0, distilling=0.0, timing=0.0, verifying=1.0, measuring=20.0)


@pytest.fixture
def now(monkeypatch):
    """A clock that the test moves."""
    time = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def record(i, n=20):
    return {"episode": i, "n_episodes": n, "n_left": n - i - 1, "reward": -1.0 / (i + 1), "metric": 90.0, "wall_s": 2.0}


def test_what_is_left_counts_every_stage_that_is_to_come(now):
    said = []
    with Episodes(note=said.append) as shown:
        assert shown.left() is None
        now[0] = 5.0
        shown("planned", told(FORECAST, 20, 4, None))
        assert shown.left() == 20 * 2 + 4 * 10 + 1 + 20
        for i in range(20):
            now[0] += 2.0
            shown("episode", record(i))
        assert shown.left() == 4 * 10 + 1 + 20
        shown("finalist", {"place": 0, "n": 4})
        now[0] += 10.0
        shown("finalist", {"place": 1, "n": 4})
        assert shown.left() == pytest.approx(3 * 10 + 21)
        shown("verifying", {})
        shown("measuring", {})
        now[0] += 15.0
        assert shown.left() == pytest.approx(5)
    assert said[0] == (
        "about 1 min 46 s in all, 5 s so far: 20 candidates of 2.0 s, 4 finalists of 10.0 s, verifying 1 s, measuring 20 s"
    )
    assert said[1].endswith("; about 1 min 39 s left")


def test_slower_than_expected_is_learned(now):
    with Episodes(note=lambda line: None) as shown:
        shown("planned", told(FORECAST, 20, 4, None))
        for i in range(10):
            now[0] += 4.0
            shown("episode", {**record(i), "wall_s": 4.0})
        assert 10 * 3.5 < shown.left() - 61 < 10 * 4


def test_what_runs_counts_down_and_stops_where_it_takes_longer(now):
    with Episodes(note=lambda line: None) as shown:
        shown("planned", told(FORECAST, 20, 2, None))
        shown("finalist", {"place": 0, "n": 2})
        now[0] += 4.0
        assert shown.now() == "finalist 1/2, then verifying; about 37 s left"
        now[0] += 60.0
        assert shown.left() == 10 + 21
        assert shown.now() == "finalist 1/2, then verifying; it takes longer than expected, then about 31 s"
        shown("finalist", {"place": 1, "n": 2})
        assert shown.left() == (10 + 64) / 2 + 21


def test_a_stage_that_is_not_expected_is_not_said():
    assert "timing" not in told(FORECAST, 20, 4, None)["stages"]
    assert told(replace(FORECAST, timing=5.0), 20, 4, None)["stages"]["timing"] == (1, 5.0)


def test_without_a_terminal_a_line_comes_every_few_seconds(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.02)
    stream = io.StringIO()
    with Episodes(stream=stream) as shown:
        shown("planned", told(FORECAST, 20, 4, None))
        shown("episode", record(0))
        shown._stop.wait(0.2)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("agmc-onnx: about 1 min 41 s in all") or lines[0] == "agmc-onnx: reading the model"
    assert re.fullmatch(
        r"agmc-onnx: candidate 1/20, then finalists; about 1 min \d+ s left; best metric 90.00", lines[-1]
    )
    assert len(lines) >= 3


def test_quiet_says_nothing(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.01)
    stream = io.StringIO()
    with Episodes(quiet=True, stream=stream) as shown:
        shown("planned", told(FORECAST, 20, 4, None))
        shown._stop.wait(0.05)
    assert stream.getvalue() == ""


def test_a_terminal_has_one_line_of_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Episodes(stream=stream) as shown:
        shown("planned", told(FORECAST, 20, 4, None))
        shown("episode", record(0))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "candidate 1/20" in text
    assert max(len(line) for line in re.split(r"[\r\n]", text) if "candidate 1/20" in line) <= 80
    assert re.search(r"candidate 1/20, then finalists; about 1 min \d+ s left", text)


def test_a_notebook_is_told_by_its_shell(monkeypatch):
    assert not progress.in_notebook()
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(
        progress.sys.modules, "IPython", type("IPython", (), {"get_ipython": staticmethod(lambda: shell)})
    )
    assert progress.in_notebook()


def test_minutes_are_of_the_whole_command(monkeypatch):
    monkeypatch.setattr("agmc_onnx.run.clock.time.perf_counter", lambda: 100.0)
    assert Clock(None, 0.0).for_search(FORECAST, 4) is None
    assert Clock(4, 0.0).for_search(FORECAST, 4) == 240 - 100 - 1 - 20 - 4 * 10
    assert Clock(4, 0.0, searches=2).for_search(FORECAST, 1) == (240 - 121) / 2 - 10
    assert Clock(1, 0.0).for_search(FORECAST, 4) == 0
    assert Clock(4, 0.0).for_search(None, 4) == 140
    assert told(FORECAST, 100, 4, 10.0)["stages"]["candidates"] == (5, 2.0)


@pytest.mark.parametrize(("seconds", "text"), [(8.4, "8 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_how_many_candidates_are_still_to_come():
    assert usual(100, 20) == 52 and usual(30, 20) == 30
    assert usual(100, 20, 40, 2) == 18  # cannot end before 20 without a better one
    assert usual(100, 20, 60, 5) == 15
    assert usual(100, 20, 95, 0) == 5


def test_what_is_measured_before_candidates_says_how_far_it_is(now):
    said = []
    with Episodes(note=said.append) as shown:
        shown("preparing", {"what": "error curves", "done": 0, "n": 4})
        assert shown.now() == "measuring error curves 0/4, then candidates"
        now[0] += 6.0
        shown("preparing", {"what": "error curves", "done": 1, "n": 4})
        assert shown.now() == "measuring error curves 1/4 (18 s left), then candidates"
        shown("preparing", {"what": "losses without layers", "done": 7, "n": None})
        assert shown.now() == "measuring losses without layers, 7 so far, then candidates"
        shown("preparing", {"what": "how long a candidate takes", "done": 0, "n": None})
        assert shown.now() == "measuring how long a candidate takes, then candidates"
        shown("planned", told(FORECAST, 20, 4, None))
        assert shown.left() == 20 * 2 + 4 * 10 + 21
    assert said[:3] == [
        f"measuring {what}" for what in ("error curves", "losses without layers", "how long a candidate takes")
    ]


def test_what_is_many_times_the_same_says_what_is_left(now):
    said = []
    with Counted("timing", note=said.append) as shown:
        for done in range(1, 21):
            now[0] += 2.0
            shown(done, 20)
    assert len(said) == 10 and said[0] == "timing 2/20; about 36 s left"


def test_a_frontier_counts_its_points(now):
    shown = Episodes(stream=io.StringIO())
    for number in (1, 2):
        shown("point", {"number": number, "n": 3, "share": 0.5})
        if number == 2:
            assert shown.now() == "point 2 of 3; about 3 min left"  # two points as long as the first
        shown("planned", told(FORECAST, 20, 4, None))
        shown("episode", {**record(0), "reward": -float(number), "metric": 90.0 - number})
        best = f"best metric {90 - number:.2f}"
        assert shown.now().startswith("point ") and shown.now().endswith(best)  # not that of the point before
    assert shown.now() == f"point 2 of 3: candidate 1/20, then finalists; about 3 min left; {best}"

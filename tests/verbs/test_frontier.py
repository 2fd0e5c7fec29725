"""The frontier of a small network, and what is said of points."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import agmc_onnx
from agmc_onnx.cli import main
from agmc_onnx.errors import UsageError
from agmc_onnx.graph.outputs import set_of, twin_of
from agmc_onnx.reporting.frontier import Frontier, Point, advice_of, best_of, lines, render
from agmc_onnx.reporting.schema import Metric
from agmc_onnx.search.policy import Beginning
from agmc_onnx.search.problem import Outcome
from agmc_onnx.verbs.demo import NETWORK

OPTIONS: dict[str, Any] = {
    "data": "digits",
    "points": 2,
    "precision": "int8",
    "episodes": 3,
    "finalists": 1,
    "seconds": 0.5,
}


def point(file: str, time: float, value: float, kind: str = "pruned") -> Point:
    return Point(
        file,
        kind,
        "float",
        10,
        10,
        int(1e6 * time),
        time,
        time,
        Metric("top1", value, 500, (value - 1, value + 1)),
        90 - value,
    )


POINTS = [
    point("m.onnx", 1.0, 90.0, "original"), point("int8.onnx", 0.5, 89.8, "int8 alone"), point("a.onnx", 0.31, 89.2),
    point("b.onnx", 0.3, 87.5), point("c.onnx", 0.2, 70.0), point("d.onnx", 0.4, 80.0),
]  # fmt: skip


def test_the_advice_is_computed_from_the_points() -> None:
    assert advice_of(POINTS) == (
        "losing at most 1 point: a.onnx, 0.31 of the original's time, 0.80 points lost;"
        " losing at most 3 points: b.onnx, 0.30 of the original's time, 2.50 points lost"
    )
    assert advice_of(POINTS[:3]) == "losing at most 1 point: a.onnx, 0.31 of the original's time, 0.80 points lost"
    slow = [POINTS[0], point("e.onnx", 1.2, 91.0)]
    assert advice_of(slow).startswith("losing at most 1 point: nothing measured is faster than the original")


def test_the_best_points_are_those_that_nothing_beats_in_both() -> None:
    assert [one.file for one in best_of(POINTS)] == ["c.onnx", "b.onnx", "a.onnx", "int8.onnx", "m.onnx"]
    assert [one.file for one in best_of(POINTS, "file_bytes")] == ["c.onnx", "b.onnx", "a.onnx", "int8.onnx", "m.onnx"]


def test_the_page_draws_every_point_twice() -> None:
    versions = {"agmc_onnx": "1", "cpu": "a processor"}
    text = render(Frontier(POINTS, advice_of(POINTS), environment=versions), "m.onnx")
    assert text.count('title="a.onnx: 89.20 % [88.20, 90.20], 0.310 of the time"') == 2
    assert "Losing at most 1 point: a.onnx, 0.31 of the original&#39;s time" in text and "<script src" not in text


class Fixed:
    """Proposes one vector, and notes what it observes."""

    n_episodes = 4

    def __init__(self) -> None:
        self.seen: list[float] = []

    def propose(self, rng: np.random.Generator) -> np.ndarray:
        return np.full(3, 0.5)

    def observe(self, keep_ratio_executed: np.ndarray, reward: float, outcome: Outcome) -> None:
        self.seen.append(reward)


def test_a_search_begins_at_its_neighbours_result() -> None:
    rng, inner = np.random.default_rng(0), Fixed()
    policy = Beginning(inner, np.full(3, 0.9))
    for reward in (1.0, 2.0, 3.0):
        expected = 0.9 if reward == 1.0 else 0.5
        assert policy.propose(rng).tolist() == [expected] * 3
        policy.observe(np.ones(3), reward, Outcome(50.0))
    assert inner.seen == [2.0, 3.0] and policy.n_episodes == 5 and policy.notes == [] and policy.n_extra == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Frontier, Path]:
    folder = tmp_path_factory.mktemp("frontier") / "out"
    return agmc_onnx.frontier(NETWORK, output=folder, **OPTIONS), folder


def test_all_kinds_are_measured_side_by_side(made: tuple[Frontier, Path]) -> None:
    found, folder = made
    kinds = [one.kind for one in found.points]
    assert kinds[:2] == ["original", "int8 alone"] and kinds.count("pruned") == kinds.count("pruned and int8") >= 1
    assert found.points[0].time == 1.0 and found.points[0].lost == 0.0
    assert json.loads((folder / "frontier.json").read_text()) == found.to_dict()
    for one in found.points[1:]:
        model = onnx.load(folder / one.file)
        rounds = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
        assert rounds == (one.precision == "int8") and one.file_bytes == (folder / one.file).stat().st_size
    table, _, about = "\n".join(lines(found)[1:]).partition("\n\n")
    assert max(map(len, table.splitlines())) <= 80 and len(table.splitlines()) == 1 + len(found.points)
    assert about.startswith("pruned-N.onnx: pruned and int8; pruned-N.float.onnx: the same in float")
    assert found.advice == advice_of(found.points) == lines(found)[-1]


def test_its_sets_are_verified(made: tuple[Frontier, Path]) -> None:
    _, folder = made
    path = folder / "pruned-1.onnx"
    assert agmc_onnx.verify(NETWORK, path).masked_equivalence
    assert set_of(path) == set_of(twin_of(path)) == set_of(folder / "pruned-1.plan.json")


def test_the_same_call_goes_on_with_the_points_that_are_there(made: tuple[Frontier, Path]) -> None:
    before, folder = made
    stages: list[str] = []
    again = agmc_onnx.frontier(NETWORK, output=folder, progress=lambda stage, facts: stages.append(stage), **OPTIONS)
    assert "episode" not in stages and "timing all" in stages
    assert [one.file for one in again.points] == [one.file for one in before.points]
    assert [one.metric for one in again.points] == [one.metric for one in before.points]


def test_points_of_earlier_calls_stay_where_there_is_no_time(made: tuple[Frontier, Path]) -> None:
    before, folder = made
    again = agmc_onnx.frontier(NETWORK, output=folder, minutes=1e-4, **OPTIONS)
    assert [one.file for one in again.points] == [one.file for one in before.points]


def test_without_time_there_is_what_needs_no_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "frontier",
        str(NETWORK),
        "--data",
        "digits",
        "-o",
        str(tmp_path / "f"),
        "--minutes",
        "0.0001",
        "--seconds",
        "0.2",
    ]
    assert main(words) == 0
    said = capsys.readouterr().out.strip().splitlines()
    assert any("0 of 5 points: --minutes ended it" in line for line in said)
    assert said[-1].startswith("losing at most 1 point:")


def test_mixed_precision_is_a_point_where_it_is_neither_of_both(tmp_path: Path) -> None:
    found = agmc_onnx.frontier(NETWORK, output=tmp_path, minutes=1e-4, **OPTIONS | {"precision": "mixed"})
    said = next(note for note in found.notes if note.startswith("mixed precision, tried on the original: "))
    is_mixed = "mixed (taken)" in said
    assert [one.kind for one in found.points] == ["original", "int8 alone", *["mixed alone"] * is_mixed]
    assert is_mixed == (tmp_path / "mixed.onnx").exists()


def test_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="points: too small, got 0"):
        agmc_onnx.frontier(NETWORK, **(OPTIONS | {"points": 0}), output=tmp_path)
    with pytest.raises(UsageError, match="precision: got 'float'; expected one of mixed, int8"):
        agmc_onnx.frontier(NETWORK, **(OPTIONS | {"precision": "float"}), output=tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="no folder can be made there"):
        agmc_onnx.frontier(NETWORK, output=tmp_path / "file", **OPTIONS)
    (tmp_path / "frontier.html").write_text("mine")
    with pytest.raises(UsageError, match="is not ours"):
        agmc_onnx.frontier(NETWORK, output=tmp_path, **OPTIONS)

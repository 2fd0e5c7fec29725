"""Racing: who is stopped, what is told of it, and that it stays the same with workers and after a kill."""

from __future__ import annotations

import numpy as np
import pytest

from agmc_onnx.data.samples import Samples
from agmc_onnx.errors import UsageError
from agmc_onnx.measuring.accuracy import Evaluator
from agmc_onnx.measuring.closeness import fidelity
from agmc_onnx.measuring.racing import estimate, image_errors, is_lost
from agmc_onnx.options import CompressOptions
from agmc_onnx.search.journal import Journal, Recorder
from agmc_onnx.search.problem import Outcome


def scores(n: int = 400, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Return class scores of n images, the same for every noise but for it."""
    rng = np.random.default_rng(1)
    clean = rng.standard_normal((n, 10)).astype(np.float32)
    return clean + noise * np.random.default_rng(seed).standard_normal((n, 10)).astype(np.float32)


def test_the_mean_error_of_the_images_gives_the_fidelity() -> None:
    reference, outputs = scores(), scores(noise=0.5)
    errors = image_errors([outputs], [reference])
    assert errors is not None
    assert 100 / (1 + np.sqrt(errors.mean())) == pytest.approx(fidelity([outputs], [reference]), rel=1e-6)


@pytest.mark.parametrize(
    "outputs", [[np.ones((4, 2))] * 2, [np.ones((4, 3))], [np.ones(4)], [np.ones((4, 2), np.int64)]]
)
def test_outputs_without_an_error_for_each_image_are_not_raced(outputs) -> None:
    reference = [np.ones((4, 2), o.dtype) for o in outputs] if outputs[0].shape != (4,) else [np.ones(4)]
    assert image_errors(outputs, reference) is None


def test_only_what_is_clearly_worse_is_lost() -> None:
    reference = scores()
    best, worse, alike = (
        image_errors([scores(noise=noise, seed=i)], [reference]) for i, noise in enumerate((0.5, 0.7, 0.51))
    )
    assert best is not None
    assert worse is not None
    assert alike is not None
    assert is_lost(worse[:100], best)
    assert not is_lost(alike[:100], best)
    assert not is_lost(best[:100], best)


def test_the_estimate_takes_away_what_makes_the_first_images_easy() -> None:
    best = np.concatenate([np.full(100, 0.1), np.full(300, 0.5)])
    assert estimate(best[:100] + 0.2, best) == pytest.approx(100 / (1 + np.sqrt(best.mean() + 0.2)))


class Counting:
    """A runtime whose model adds noise to the wanted scores, and counts the images that it is asked for."""

    def __init__(self, noise: float) -> None:
        self.answers, self.n = scores(noise=noise, seed=int(100 * noise)), 0

    def __call__(self, feed):
        rows = feed["x"][:, 0].astype(np.int64)
        self.n += len(rows)
        return [self.answers[rows]]


def evaluator(n_outputs: int = 1, **options) -> Evaluator:
    """Return one of 400 images whose feed is their number, with the clean scores as the original's."""
    samples = Samples(
        "test", lambda index: {"x": index[:, None].astype(np.float32)}, np.arange(400), np.zeros(400, int)
    )

    def original(feed):
        return [scores()[feed["x"][:, 0].astype(int)]] * n_outputs

    return Evaluator(samples, "agreement", reference=original, original=original, **options)


def test_a_lost_race_ends_after_a_quarter_of_the_images() -> None:
    race = evaluator(stops_early=True)
    best = race(Counting(0.3), race=True)
    slow = Counting(0.9)
    found = race(slow, race=True, best=best.errors)
    assert slow.n == found.n_images == found.score.n == 100
    assert found.errors is None
    assert best.n_images is None
    assert found.fidelity == pytest.approx(race(Counting(0.9)).fidelity, abs=3)
    close = Counting(0.29)
    assert race(close, race=True, best=best.errors).errors is not None
    assert close.n == 400


def test_who_keeps_up_is_measured_on_more_images() -> None:
    race = evaluator(n_first=100)
    plain = Counting(0.3)
    assert race(plain).score.n == plain.n == 100
    assert race(plain).fidelity == pytest.approx(fidelity([plain.answers[:100]], [scores()[:100]]), rel=1e-9)
    best = race(Counting(0.3), race=True)
    assert best.score.n == 400
    assert best.errors is not None
    slow, close = Counting(0.4), Counting(0.29)
    lost = race(slow, race=True, best=best.errors)
    assert slow.n == lost.n_images == 100
    assert lost.fidelity == pytest.approx(fidelity([slow.answers], [scores()]), abs=1)
    won = race(close, race=True, best=best.errors)
    assert close.n == won.score.n == 400
    assert won.errors is not None
    assert won.fidelity == pytest.approx(fidelity([close.answers], [scores()]), rel=1e-9)


def test_who_is_almost_as_good_is_measured_to_the_end_and_is_nobodys_rival() -> None:
    race, best = evaluator(n_first=100), scores(noise=0.3, seed=3)
    errors = image_errors([best], [scores()])
    assert errors is not None
    almost = np.concatenate([best[:200], 1.01 * best[200:]])
    found = race(lambda feed: [almost[feed["x"][:, 0].astype(int)]], race=True, best=errors)
    assert (found.score.n, found.errors, found.n_images) == (400, None, None)


def test_outputs_without_an_error_for_each_image_are_measured_on_the_first_images_alone() -> None:
    race = evaluator(n_outputs=2, n_first=100)
    model = Counting(0.3)
    assert race(lambda feed: model(feed) * 2, race=True, best=np.ones(400)).score.n == model.n == 100


def test_a_race_needs_errors_of_images() -> None:
    with pytest.raises(UsageError, match="--racing: got --judge metric; expected fidelity"):
        CompressOptions.of(flops=0.5, racing=True, judge="metric")


def test_a_journal_keeps_what_candidates_are_raced_against(tmp_path) -> None:
    outcomes = [Outcome(50.0, fidelity=60.0, errors=(0.25, 1.5)), Outcome(40.0, fidelity=30.0, n_images=1)]
    candidates = [np.array([1]), np.array([2])]
    given: list[object] = []

    def measure(wanted, *best):
        given.append(best)
        yield from ((i, outcomes[int(kept[0]) - 1]) for i, kept in enumerate(wanted))

    journal = Journal(tmp_path / "x.run", {"model": "m"}, resume=False)
    record = Recorder(measure, lambda kept, outcome: 0.0, journal)
    assert dict(record.all(candidates[:1])) == {0: outcomes[0]}
    assert dict(record.all(candidates[1:], outcomes[0].errors)) == {0: outcomes[1]}
    journal.end(finished=False)
    again = Journal(tmp_path / "x.run", {"model": "m"}, resume=True)
    assert list(again.known.values()) == outcomes
    assert given == [(), ((0.25, 1.5),)]
    again.end(finished=True)


def test_two_rows_an_image_are_not_raced() -> None:
    """A detector gives any number of rows for an image, so that rows have no image to be told apart by."""
    x = np.arange(6, dtype=np.float32)[:, None]
    samples = Samples("t", lambda rows: {"x": x[rows]}, np.arange(6), None)

    def detect(feed):
        return [np.repeat(feed["x"], 2, axis=0)]

    found = Evaluator(samples, "agreement", reference=detect, original=detect)(detect, race=True)
    assert (found.score.value, found.errors) == (100.0, None)

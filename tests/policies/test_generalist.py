"""The generalist: trained beforehand on other networks; decisions without evaluations."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from agmc_onnx.measuring.roles import Roles
from agmc_onnx.options import CompressOptions
from agmc_onnx.policies import make_policy
from agmc_onnx.policies.guide import generalist
from agmc_onnx.policies.guide.error_model import normalised
from agmc_onnx.policies.guide.guide import Guide, error_tables
from agmc_onnx.policies.guide.guided import GuideOptions
from agmc_onnx.policies.guide.linear_budget import fit_linear_budget
from agmc_onnx.policies.guide.prior import prior_candidates, unchecked_candidates
from agmc_onnx.refit.curves import Curves
from agmc_onnx.run.analysis import analyse_model
from agmc_onnx.run.candidates import environment_of
from agmc_onnx.run.target import target_of
from agmc_onnx.search.budget import met
from agmc_onnx.search.loop import search
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.search.problem import Outcome
from agmc_onnx.search.rewards import err
from tests.policies.test_agmc import known_answer
from tools.experiments import generalist as experiment
from tools.experiments.generalist import Lesson, taught, values

DIGITS = Path(__file__).parents[2] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"


def with_curves(seed, n=12):
    """The known answer, with error curves of two kinds that are alike in all groups."""
    problem, _ = known_answer(seed, n, noise=0.0)
    counts = tuple(np.arange(1, units + 1) for units in problem.n_units)
    curves = Curves(counts, tuple((1 - c / c[-1]) ** 2 for c in counts))
    flat = Curves(counts, tuple(1 - c / c[-1] for c in counts))
    return replace(problem, curves=lambda: curves, divergence=lambda: flat, is_joined=np.zeros(n, bool))


def seen(problem):
    budget = fit_linear_budget(problem)
    tables = error_tables(problem, budget.keep_ratio)
    return generalist.sight(problem, tables.errors, budget.weight, budget.keep_ratio), tables


def untrained(problem, seed=0):
    sight, _ = seen(problem)
    torch.manual_seed(seed)
    made = generalist.Generalist(sight.graph.x.shape[1], sight.graph.n_edge_types, sight.features.shape[1])
    torch.nn.init.normal_(made.critic[2].weight)
    return made.eval()


def guide_of(problem):
    return Guide(problem, 400, torch.Generator().manual_seed(0))


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A generalist for such problems, in a file of its own."""
    members = [untrained(with_curves(0), seed) for seed in (0, 1)]
    monkeypatch.setattr(generalist, "FILE", tmp_path / "generalist.safetensors")
    generalist.save(members, generalist.FILE)
    return members


def test_what_is_stored_says_the_mean_of_its_members_and_plain_errors_for_a_network_of_any_size(stored):
    for n in (12, 20):
        sight, _ = seen(with_curves(1, n))
        told = generalist.weights_of(sight)
        assert told.shape == (generalist.N_KINDS, n) and float(told.min()) > 0
        assert float(told.mean()) == pytest.approx(1, abs=1e-5)
        with torch.no_grad():
            mean = torch.stack([one([sight])[0] for one in stored]).double().mean(0)
        plain = torch.tensor([[2.0], [0.0]])  # refit errors alone, all alike
        assert torch.allclose(told, 0.7 * mean + 0.3 * plain)


def test_networks_side_by_side_get_what_they_get_alone():
    made = untrained(with_curves(0))
    sights = [seen(with_curves(seed, n))[0] for seed, n in ((1, 12), (2, 20))]
    with torch.no_grad():
        for together, one in zip(made(sights), sights, strict=True):
            torch.testing.assert_close(together, made([one])[0])


def test_where_it_does_not_fit_nothing_is_told(stored):
    problem = with_curves(1)
    generator = torch.Generator().manual_seed(0)
    assert Guide(problem, 10, generator).is_taught
    assert not Guide(problem, 10, generator, use_generalist=False).is_taught
    assert not Guide(replace(problem, curves=None), 10, generator).is_taught
    assert not Guide(replace(problem, divergence=None), 10, generator).is_taught
    more = replace(problem, features=np.tile(problem.features, 2))
    assert not Guide(more, 10, generator).is_taught


@pytest.mark.parametrize("name", ["agmc", "amc", "gnn-rl", "guided:random"])
def test_it_is_the_guides_whatever_policy_the_guide_is_round(stored, name):
    rng = np.random.default_rng(0)
    assert make_policy(with_curves(1), SearchOptions(name), rng).guide.is_taught
    without = SearchOptions(name, guide=GuideOptions(generalist=False))
    assert not make_policy(with_curves(1), without, rng).guide.is_taught


def test_no_episodes_is_one_candidate_within_the_budget_and_the_same_every_time(stored):
    problem = with_curves(2)
    found = []
    for _ in range(2):
        rng = np.random.default_rng(3)
        policy = make_policy(problem, SearchOptions(policy="agmc", n_episodes=0), rng)
        found.append(search(problem, policy, err, 0, rng))
    assert found[0].kept.tolist() == found[1].kept.tolist() and len(found[0].history) == 1
    assert problem.cost(found[0].kept) <= problem.budget


def test_no_episodes_offer_as_many_candidates_as_asked_for_the_generalists_favourite_first(stored):
    problem = with_curves(2)
    options = SearchOptions(policy="agmc", n_episodes=0, n_decided=9)
    policy, guide = make_policy(problem, options, np.random.default_rng(0)), guide_of(problem)
    offered = unchecked_candidates(problem)
    assert policy.n_episodes == len(offered) > 1
    history = search(problem, policy, err, 9, np.random.default_rng(0)).history
    expected = guide.model.expected(torch.tensor([r["kept"] for r in history]) / torch.as_tensor(problem.n_units))
    assert len(history) == len(offered) and expected.tolist() == sorted(expected.tolist(), reverse=True)


@pytest.mark.parametrize(
    ("name", "n_groups", "n"), [("agmc", 12, 4), ("gnn-rl", 12, 4), ("agmc", 15, 5), ("gnn-rl", 15, 5)]
)
def test_a_search_measures_what_the_generalist_prefers_of_the_priors_candidates_and_then_its_own(
    stored, name, n_groups, n
):
    problem = with_curves(2, n_groups)
    every, rng = prior_candidates(problem), np.random.default_rng(0)
    policy = make_policy(problem, SearchOptions(policy=name, n_episodes=30), rng)
    guide = guide_of(problem)
    assert len(every) > n and GuideOptions().n_preferred == 4
    for one in guide.preferred(every, 0, n):
        proposed = policy.propose(rng)
        assert proposed.tolist() == one.tolist()
        policy.observe(met(problem, proposed).keep_ratio, -30.0, Outcome(70.0, 0.0))
    own = policy.propose(rng)
    assert not any(np.allclose(own, one) for one in every)


def test_where_there_are_many_groups_all_of_the_priors_candidates_are_preferred_in_the_generalists_order(stored):
    problem = with_curves(2, 30)
    guide, every = guide_of(problem), prior_candidates(problem)
    preferred = guide.preferred(every, 4)
    assert sorted(map(tuple, preferred)) == sorted(map(tuple, every))
    assert [one.tolist() for one in guide.preferred(every, 4, 3)] == [one.tolist() for one in preferred[:3]]


def test_without_the_generalist_a_search_measures_all_of_the_priors_candidates(stored):
    problem, rng = with_curves(2), np.random.default_rng(0)
    options = SearchOptions(policy="amc", n_episodes=30, guide=GuideOptions(generalist=False))
    policy = make_policy(problem, options, rng)
    for one in prior_candidates(problem):
        assert policy.propose(rng).tolist() == one.tolist()
        policy.observe(met(problem, one).keep_ratio, -30.0, Outcome(70.0, 0.0))


def test_without_it_no_episodes_is_the_first_candidate_of_the_prior(monkeypatch, tmp_path):
    monkeypatch.setattr(generalist, "FILE", tmp_path / "none.safetensors")
    problem = with_curves(2)
    policy = make_policy(problem, SearchOptions(policy="agmc", n_episodes=0), np.random.default_rng(0))
    assert policy.propose(np.random.default_rng(0)).tolist() == prior_candidates(problem)[0].tolist()


@pytest.mark.parametrize("name", ["random", "local", "agmc", "amc", "bare:agmc", "guided:random"])
def test_every_policy_takes_no_episodes(name):
    problem = with_curves(2)
    rng = np.random.default_rng(0)
    policy = make_policy(problem, SearchOptions(policy=name, n_episodes=0), rng)
    assert len(search(problem, policy, err, 0, rng).history) == 1


def lesson_of(seed, n):
    """Candidates whose refit errors cost three times as much in odd groups, which their features show."""
    problem = with_curves(seed, n)
    odd = np.arange(n) % 2 == np.random.default_rng(seed).integers(2)
    problem = replace(problem, is_joined=odd)
    sight, tables = seen(problem)
    ratios = torch.rand(30, n, generator=torch.Generator().manual_seed(seed))
    errors = tables.at(ratios).float()
    rewards = normalised(-(errors[:, 0] * torch.tensor(np.where(odd, 3.0, 1.0))).sum(1).float())
    return Lesson(str(seed), 0.5, sight, errors, -errors[:, 0].sum(1), rewards, rewards, torch.zeros(30, dtype=bool))


def test_what_it_learns_on_some_networks_orders_the_candidates_of_others():
    made = taught([lesson_of(seed, n) for seed, n in enumerate((8, 10, 12, 14, 16, 18))], steps=100, seed=0)
    for lesson in (lesson_of(100, 11), lesson_of(101, 22)):
        with torch.no_grad():
            ours = spearmanr(values(lesson, made([lesson.sight])[0]), lesson.rewards)[0]
        assert ours > 0.95 > spearmanr(lesson.plain, lesson.rewards)[0]


@pytest.mark.parametrize("encoder", ["frozen", "none"])
def test_for_comparison_the_encoder_stays_as_initialised_or_says_nothing(encoder):
    lessons = [lesson_of(seed, 8) for seed in range(3)]
    first, last = (taught(lessons, steps, 0, encoder) for steps in (0, 5))
    pairs = list(zip(first.encoder.parameters(), last.encoder.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs) and any(a.any() for a, _ in pairs) == (encoder == "frozen")
    assert not torch.equal(first.critic[0].weight, last.critic[0].weight)


def test_the_command_that_trains_one_says_how_it_orders_candidates_it_has_not_seen(tmp_path, monkeypatch, capsys):
    rows, made = tmp_path / "rows.jsonl", tmp_path / "made.safetensors"
    monkeypatch.setattr(experiment, "BUDGETS", (0.5,))
    monkeypatch.setattr(generalist, "SHRUNK", generalist.SHRUNK)
    for name in ("one", "other"):
        model = tmp_path / f"{name}.onnx"
        model.write_bytes(DIGITS.read_bytes())
        words = ["collect", str(model), "--data", "digits", "--out", str(rows), "--candidates", "14"]
        monkeypatch.setattr("sys.argv", ["generalist.py", *words])
        experiment.main()
    words = ["train", str(rows), "--leave-out", "other", "--steps", "3", "--members", "1", "--shrunk", "1"]
    monkeypatch.setattr("sys.argv", ["generalist.py", *words, "--out", str(made)])
    experiment.main()
    told = capsys.readouterr().out.splitlines()[-1]
    ours, plain, chosen, by_plain, best = (float(number) for number in re.findall(r"[+-]?\d+\.\d+", told))
    assert told.startswith("left out, mean of 1") and generalist.load(made)
    assert ours == plain and chosen == by_plain <= best and best > 0  # shrunk by 1 it is the sum of the refit errors


def test_the_one_in_the_project_fits_the_networks_of_today():
    settings = CompressOptions.of(flops=0.5).with_data(True)
    analysis = analyse_model(DIGITS)
    environment = environment_of(
        analysis, Roles(analysis.file.proto, "digits", settings.data, settings.execution), settings
    )
    target = target_of(settings.budget, analysis.channels)
    problem = environment.problem(target.cost, target.budget)
    assert generalist.load(), "no generalist is there"
    assert Guide(problem, 10, torch.Generator().manual_seed(0)).is_taught

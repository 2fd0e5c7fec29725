"""The papers' experiments: rows, commands, runs that are not repeated, and transfer."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from agmc_onnx import policies
from agmc_onnx.cli.program import verb_named
from agmc_onnx.errors import UsageError
from agmc_onnx.policies.agmc.options import AgmcOptions
from agmc_onnx.search.options import SearchOptions
from agmc_onnx.verbs import compress as pipeline
from tests.policies.test_agmc import known_answer
from tools import compare_policies, policy_tables
from tools.compare_policies import add_variants, as_found
from tools.experiments import paper_runs, papers
from tools.experiments.paper_rows import DEMO, ROOT, Row, chosen, commands, read_rows
from tools.experiments.paper_table import markdown
from tools.experiments.transfer import add_transfer, agent_for, save_agent

ROWS = read_rows()


@pytest.fixture(autouse=True)
def own_policies():
    """Variants of policies stay within a test."""
    before = dict(policies.POLICIES)
    yield
    policies.POLICIES.clear()
    policies.POLICIES.update(before)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_commands_of_a_row_are_understood(row):
    for command in commands(row):
        words = shlex.split(command)
        if words[0] == "agmc-onnx":
            assert verb_named(words[1]).make_context(words[1], words[2:], resilient_parsing=False)
        else:
            assert words[:2] == ["python", "-m"] and find_spec(words[2]) is not None
            add_variants()
            add_transfer()
            assert row.kind == "nodes" or row.policy in policies.POLICIES


def test_every_table_of_the_papers_has_rows():
    tables = {row.table for row in ROWS}
    assert {"agmc-table1", "agmc-table2", "agmc-table3", "agmc-transfer", "agmc-nodes", "gnn-rl"} <= tables
    assert {"agmc-figure4", "agmc-figure5", "agmc-figure6"} <= tables


def test_the_page_has_a_line_for_every_row():
    page = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    assert [row.id for row in ROWS if f"| `{row.id}` |" not in page] == []


def test_list_gives_numbers_needs_and_commands(capsys):
    assert papers.main(["list", "--table", "t1-r20-deep"]) == 0
    told = capsys.readouterr().out
    assert "79.6 before fine-tuning" in told and "CIFAR-10" in told and "--policy deep" in told


def test_an_unknown_row_is_an_error_that_names_the_tables(capsys):
    assert papers.main(["run", "table9", "--out", "runs/none.jsonl"]) == 2
    told = capsys.readouterr().err
    assert "no such row, got 'table9'" in told and "agmc-table1" in told


def test_rows_are_chosen_by_id_table_and_pattern():
    assert [row.id for row in chosen(ROWS, ["t1-r20-deep"])] == ["t1-r20-deep"]
    assert {row.table for row in chosen(ROWS, ["agmc-figure*"])} == {"agmc-figure4", "agmc-figure5", "agmc-figure6"}


def test_a_row_with_an_unknown_key_is_an_error(tmp_path):
    path = tmp_path / "rows.toml"
    path.write_text("networks.n = {files = ['n.onnx'], data = 'none'}\n[[rows]]\nid = 'a'\nnetwork = 'n'\ncolour = 1\n")
    with pytest.raises(UsageError, match=r"unknown keys, got colour"):
        read_rows(path)


def test_a_row_is_measured_once_and_put_beside_the_papers_number(tmp_path, monkeypatch, capsys):
    out = tmp_path / "rows.jsonl"
    words = ["run", "t1-r20-uniform", "--demo", "--episodes", "1", "--seconds", "0.1", "--out", str(out)]
    assert papers.main(words) == 0
    (run,) = paper_runs.read_runs(out)
    assert run["network"] == "digits_resnet.onnx" and run["weights"] == "demo"
    assert run["compressed"]["macs"] <= 0.5 * run["original"]["macs"]
    assert run["compressed"]["weight_bytes"] == 4 * run["compressed"]["weights"]
    assert run["metric"]["refitted"] > run["metric"]["as_cut"]
    assert run["compressed"]["latency_ms"] > 0 and run["compressed"]["peak_bytes"] > 0
    monkeypatch.setattr(papers, "measure_row", lambda *_: pytest.fail("measured again"))
    assert papers.main(words) == 0
    capsys.readouterr()
    assert papers.main(["table", str(out), "--table", "t1-r20-*"]) == 0
    told = capsys.readouterr().out
    assert "| 84.0 before fine-tuning | top1 98.86 -> " in told and "the digits example in its place" in told
    assert "| 88.42 after fine-tuning | not run |" in told


def test_a_result_that_is_slower_than_its_original_is_kept_as_found():
    before = pipeline.settled
    with as_found():
        assert pipeline.settled(None, None, None, "found") == "found"
    assert pipeline.settled is before


def test_policies_that_share_measurements_find_what_they_find_apart(tmp_path, monkeypatch, capsys):
    base = [
        "compare_policies.py",
        str(DEMO),
        "--data",
        "digits",
        "--seeds",
        "0",
        "--episodes",
        "3",
        "--reward-samples",
        "50",
    ]
    words = ["--flops", "0.5", "--policies", "greedy", "local"]
    found = []
    for name, more in (("apart", []), ("shared", ["--share"])):
        out = tmp_path / f"{name}.jsonl"
        monkeypatch.setattr("sys.argv", [*base, *words, *more, "--out", str(out)])
        compare_policies.main()
        found.append([json.loads(line) for line in out.read_text().splitlines()])
    seconds = {"wall_s", "inference_s", "shared"}
    apart, shared = ([{k: v for k, v in row.items() if k not in seconds} for row in rows] for rows in found)
    assert len(apart) == 2 and apart == shared
    assert capsys.readouterr().out.count("(n = 1)") == 4


def test_a_search_that_is_known_is_not_repeated_for_other_finalists(tmp_path, monkeypatch):
    base = [
        "compare_policies.py",
        str(DEMO),
        "--data",
        "digits",
        "--flops",
        "0.5",
        "--policies",
        "local",
        "--seeds",
        "0",
        "--episodes",
        "3",
    ]
    rows = []
    for name, words in (("one", ["--finalists", "1"]), ("known", ["--searches", str(tmp_path / "one")]), ("two", [])):
        out = tmp_path / name
        finalists = [] if name == "one" else ["--finalists", "2"]
        monkeypatch.setattr("sys.argv", [*base, "--reward-samples", "50", *finalists, *words, "--out", str(out)])
        if name == "known":
            monkeypatch.setattr("agmc_onnx.run.candidates.search", None)
        compare_policies.main()
        monkeypatch.undo()
        rows.append(json.loads(out.read_text()))
    seconds = {"wall_s", "inference_s", "evaluations"}
    one, known, two = ({k: v for k, v in row.items() if k not in seconds} for row in rows)
    assert known == two and one["rewards"] == known["rewards"]


def test_runs_are_kept_and_told_in_tables(tmp_path, monkeypatch, capsys):
    def row(policy, seed, test, episodes=30):
        made = {"model": "net.onnx", "flops": 0.5, "policy": policy, "seed": seed, "episodes": episodes, "finalists": 4}
        return {**made, "rewards": [-9.0, -7.123 - seed], "test": test, "test_fidelity": 80.0, "candidates": [[1], [2]]}

    runs, kept = tmp_path / "runs.jsonl", tmp_path / "kept.jsonl"
    first = [row("agmc", 0, 90.0), row("agmc", 1, 91.0), row("greedy", 0, 88.0, episodes=100), row("tpe", 0, 87, 100)]
    for rows in (first, [row("agmc", 1, 92.0)]):
        runs.write_text("".join(json.dumps(one) + "\n" for one in rows))
        monkeypatch.setattr("sys.argv", ["policy_tables.py", str(runs), "--keep", str(kept)])
        policy_tables.main()
    rows = policy_tables.read([kept])
    assert len(rows) == 4 and not any("candidates" in one for one in rows)
    monkeypatch.setattr("sys.argv", ["policy_tables.py", str(kept)])
    policy_tables.main()
    told = capsys.readouterr().out
    assert "| agmc | -7.62 ± 0.71 (2) |" in told and "| agmc | 91.00 ± 1.41 (2); 80.00 |" in told
    assert "| greedy | -7.12 |" in told  # needs no more evaluations than it has
    assert "tpe" not in told  # had a hundred
    monkeypatch.setattr("sys.argv", ["policy_tables.py", str(kept), "--after", "1"])
    policy_tables.main()
    assert "| agmc | -9.00 ± 0.00 (2) |" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["policy_tables.py", str(kept)])
    kept.write_text(kept.read_text() + json.dumps({**row("amc", 0, 90.0), "judge": "metric"}) + "\n")
    with pytest.raises(SystemExit, match="differ in"):
        policy_tables.main()


def test_a_line_that_was_cut_off_is_replaced(tmp_path):
    out = tmp_path / "rows.jsonl"
    out.write_text('{"row": "a"}\n{"row": "b", "se')
    assert paper_runs.read_runs(out) == [{"row": "a"}]
    papers._append(out, '{"row": "c"}')
    assert [run["row"] for run in paper_runs.read_runs(out)] == ["a", "c"]


def test_a_network_without_weights_is_measured_without_accuracy(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    words = ["run", "t3-r20", "--batch", "1", "--seconds", "0.1", "--out", str(out)]
    assert papers.main(words) == 0
    (run,) = paper_runs.read_runs(out)
    assert run["metric"] is None and run["weights"] == "random" and run["policy_used"] == "uniform"
    assert run["compressed"]["weight_bytes"] < run["original"]["weight_bytes"]
    assert "random weights" in capsys.readouterr().out
    assert "random weights, uniform widths: no accuracy" in markdown(chosen(ROWS, ["t3-r20"]), [run])


def test_a_trained_network_needs_data(tmp_path):
    place = paper_runs.Place(tmp_path / "work", models=tmp_path)
    (tmp_path / "resnet20.onnx").write_bytes(paper_runs.DEMO.read_bytes())
    with pytest.raises(UsageError, match="got no --data"):
        paper_runs.measure_row(chosen(ROWS, ["t1-r20-deep"])[0], place, 0, 1)


def test_a_network_that_nothing_builds_needs_a_file(tmp_path):
    row = chosen(ROWS, ["gnnrl-r18"])[0]
    with pytest.raises(UsageError, match=r"expected a folder with resnet18\.onnx"):
        paper_runs.key_of(row, paper_runs.Place(tmp_path), 0, 1)


def test_a_network_that_is_missing_does_not_stop_other_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(papers, "measure_row", lambda row, *_: {"row": row.id})
    monkeypatch.setattr(papers, "here_text", lambda *_: "measured")
    out = tmp_path / "rows.jsonl"
    assert papers.main(["run", "gnnrl-r18", "t3-r20", "--out", str(out)]) == 0
    assert "gnnrl-r18: left out" in capsys.readouterr().out
    assert [run["row"] for run in paper_runs.read_runs(out)] == ["t3-r20"]
    assert papers.main(["run", "gnnrl-r18", "--out", str(out)]) == 2


def test_training_gives_a_network_that_run_finds(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("images", "train"):
        images, labels = rng.integers(0, 256, (70, 32, 32, 3), np.uint8), rng.integers(0, 10, 70)
        np.savez(tmp_path / f"{name}.npz", x=images, y=labels)
    card = tmp_path / "card.toml"
    card.write_text('images = "images.npz"\nlayout = "NCHW"\nscale = 255.0\n[train]\nimages = "train.npz"\n')
    models = tmp_path / "models"
    words = ["train", "resnet20", "--data", str(card), "--models", str(models), "--epochs", "1"]
    assert papers.main(words) == 0, capsys.readouterr().err
    row = chosen(ROWS, ["t1-r20-deep"])[0]
    place = paper_runs.Place(tmp_path, models=models)
    assert paper_runs.network_file(row.network, place) == (models / "resnet20.onnx", "trained")


def transferred(problem, start=None, only_decoder=True):
    return agent_for(problem, SearchOptions(n_episodes=40), np.random.default_rng(1), start, only_decoder)


def test_transfer_starts_from_the_agent_of_another_network_and_only_its_decoder_learns(tmp_path):
    path = tmp_path / "agent.safetensors"
    save_agent(transferred(known_answer(0, 20, noise=0.0)[0], only_decoder=False).agent.networks, path)
    agent = transferred(known_answer(1, 12, noise=0.0)[0], path).agent
    before = {name: tensor.clone() for name, tensor in agent.networks.state_dict().items()}
    stored = load_file(path)
    assert all(torch.equal(before[name], tensor) for name, tensor in stored.items())
    for value in (0.3, 0.5, 0.7):
        agent.remember(torch.full((12,), value), -value)
    for _ in range(3):
        agent.update()
    after = agent.networks.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("represent.decoder.") for name in changed)


def test_an_agent_of_other_sizes_cannot_be_transferred(tmp_path):
    path = tmp_path / "agent.safetensors"
    problem = known_answer(0, 12, noise=0.0)[0]
    small = SearchOptions(n_episodes=40, own=AgmcOptions(hidden_size=8))
    save_agent(agent_for(problem, small, np.random.default_rng(0)).agent.networks, path)
    with pytest.raises(UsageError, match="no agent of these sizes"):
        transferred(problem, path)


def test_transfer_on_the_digits_example(tmp_path):
    out = tmp_path / "rows.jsonl"
    words = ["--demo", "--episodes", "2", "--seconds", "0.1", "--out", str(out)]
    assert papers.main(["run", "transfer-decoder", *words]) == 0
    (run,) = paper_runs.read_runs(out)
    assert run["source"] == "digits_resnet-s0-e2.agent.safetensors" and len(run["rewards"]) == 2
    assert (out.with_suffix(".models") / run["source"]).is_file()


@pytest.mark.parametrize(
    "name", ["state-stride", "state-amc", "state-agmc", "state-frozen", "agmc-linear", "agmc-untaught"]
)
def test_variants_of_what_the_agent_sees_propose_and_learn(name):
    add_variants()
    problem = known_answer(0, 12, noise=0.0)[0]
    problem = replace(problem, layers=np.random.default_rng(0).random((12, 8), np.float32))
    rng = np.random.default_rng(0)
    policy = policies.make_policy(problem, SearchOptions(policy=name, n_episodes=8), rng)
    for _ in range(4):
        ratio = policy.propose(rng)
        assert ratio.shape == (12,)
        policy.observe(ratio, -float(ratio.sum()), None)


def test_runs_that_differ_in_the_seed_only_share_a_line():
    row = replace(chosen(ROWS, ["nodes"])[0])
    runs = [{"row": "nodes", "seed": seed, "accuracy": {"names, edges": 90.0 + seed}} for seed in (0, 2)]
    told = markdown([row], json.loads(json.dumps(runs)))
    assert "names, edges: 91.00 +- 1.41 %" in told and "seeds 0, 2" in told and isinstance(row, Row)

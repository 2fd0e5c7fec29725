import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from agmc_onnx import CompressOptions, compress
from agmc_onnx.cli import main
from agmc_onnx.errors import UsageError
from agmc_onnx.policies.table import POLICIES, Table
from agmc_onnx.search.problem import Outcome
from agmc_onnx.search.workers import Workers

DIGITS = Path(__file__).parents[2] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"
CANDIDATES = [np.array([i, 7]) for i in range(5)]


def double(kept):
    return Outcome(2.0 * float(kept[0]), 0.0, float(os.getpid()))


def prepare_double():
    return double


def prepare_mortal(folder):
    """Make an evaluator whose process dies over candidate 2, the first time only."""

    def evaluate(kept):
        if kept[0] == 2:
            try:
                (folder / "died").mkdir()
            except FileExistsError:
                return double(kept)
            os.kill(os.getpid(), signal.SIGKILL)
        return double(kept)

    return evaluate


def prepare_doomed():
    return lambda kept: os._exit(1)


def prepare_wrong():
    raise UsageError("data: are gone")


def test_workers_measure_everything_in_other_processes():
    workers = Workers(2, prepare_double)
    try:
        found = dict(workers(CANDIDATES))
        assert {place: outcome.metric for place, outcome in found.items()} == {i: 2.0 * i for i in range(5)}
        assert os.getpid() not in {outcome.wall_s for outcome in found.values()}
        assert dict(workers(CANDIDATES[:1]))[0].metric == 0.0
    finally:
        workers.close()


def test_a_worker_that_dies_costs_a_second_evaluation(tmp_path):
    workers = Workers(2, partial(prepare_mortal, tmp_path))
    try:
        found = list(workers(CANDIDATES))
        assert sorted(place for place, _ in found) == list(range(5))
        assert (tmp_path / "died").exists()
    finally:
        workers.close()


def test_workers_that_always_die_end_the_run_with_a_hint():
    workers = Workers(1, prepare_doomed)
    try:
        with pytest.raises(UsageError, match=r"--workers: a worker process died 3 times .*Use fewer --workers"):
            list(workers(CANDIDATES[:1]))
    finally:
        workers.close()


def test_errors_of_a_worker_are_told_as_they_are():
    workers = Workers(1, prepare_wrong)
    try:
        with pytest.raises(UsageError, match=r"^data: are gone$"):
            list(workers(CANDIDATES[:1]))
    finally:
        workers.close()


def test_batch_is_as_large_as_there_are_workers():
    assert CompressOptions.of(flops=0.5).search.batch == 1
    assert CompressOptions.of(flops=0.5, workers=3).search.batch == 3
    assert CompressOptions.of(flops=0.5, workers=3, batch=8).search.batch == 8
    for name in ("workers", "batch"):
        with pytest.raises(UsageError, match=f"--{name}: too small, got 0; expected at least 1"):
            CompressOptions.of(flops=0.5, **{name: 0})


def one_by_one():
    """The table, where uniform alone takes batches."""
    return Table({name: replace(row, batches=name == "uniform") for name, row in POLICIES.items()})


def test_a_policy_that_learns_one_by_one_takes_no_batch(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("agmc_onnx.run.candidates.POLICIES", one_by_one())
    argv = ["compress", str(DIGITS), "--flops", "0.5", "-o", str(tmp_path / "x.onnx"), "--policy", "random"]
    assert main([*argv, "--batch", "2", "--quiet"]) == 2
    assert capsys.readouterr().err == (
        "agmc-onnx: error: --batch: policy random learns from every candidate before it proposes the next, got 2; expected 1."
        " Leave out --batch and --workers, or take a policy of uniform.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_is_taken_without_a_search_may_come_in_batches(monkeypatch):
    monkeypatch.setattr("agmc_onnx.run.candidates.POLICIES", one_by_one())
    options = {"data": "digits", "flops": 0.5, "policy": "local", "episodes": 0, "finalists": 4, "latency_seconds": 0.1}
    report = compress(DIGITS, **options, batch=2).report
    assert report["episodes"] >= len(report["finalists"]) >= 2  # two may come to the same candidate


def arguments(folder, name, *more):
    return [
        "compress", str(DIGITS), "--flops", "0.5", "--data", "digits", "--latency-seconds", "0.05", "--quiet",
        "--episodes", "13",
        "-o", str(folder / f"{name}.onnx"), *more,
    ]  # fmt: skip


def outcome(folder, name):
    report = json.loads((folder / f"{name}.report.json").read_text())
    history = [{k: v for k, v in row.items() if k not in ("wall_s", "inference_s")} for row in report["history"]]
    return (folder / f"{name}.onnx").read_bytes(), (folder / f"{name}.plan.json").read_bytes(), history


PLAIN = ("--policy", "random", "--recover", "none")
REFIT = ("--policy", "agmc", "--search-samples", "32", "--search-positions", "500")


@pytest.mark.parametrize("options", [(*PLAIN, "--racing"), pytest.param(REFIT, marks=pytest.mark.slow)])
def test_two_workers_find_what_one_process_finds(tmp_path, options):
    """With a worker killed in the middle."""
    assert main(arguments(tmp_path, "alone", "--batch", "4", *options)) == 0
    argv = arguments(tmp_path, "pair", "--batch", "4", "--workers", "2", *options)
    process = subprocess.Popen([sys.executable, "-m", "agmc_onnx", *argv], stderr=subprocess.PIPE, text=True)
    journal, killed = tmp_path / "pair.run" / "journal.jsonl", False
    while process.poll() is None:
        n = journal.read_bytes().count(b"\n") if journal.exists() else 0
        if n >= 2 and not killed:
            killed = kill_a_worker(process.pid)
        time.sleep(0.01)
    assert (process.returncode, process.communicate()[1]) == (0, "")
    assert killed
    assert outcome(tmp_path, "pair") == outcome(tmp_path, "alone")


def workers_of(pid):
    """Return the processes that evaluate for this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = re.search(r"^PPid:\s+(\d+)", (path / "status").read_text(), re.M)
            if parent and int(parent[1]) == pid and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def kill_a_worker(pid):
    pids = workers_of(pid)
    if not pids:
        return False
    os.kill(pids[0], signal.SIGKILL)
    return True


def test_workers_end_with_a_killed_run(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "agmc_onnx", *arguments(tmp_path, "x", "--workers", "2", *PLAIN)],
        stderr=subprocess.DEVNULL,
    )
    pids, end = [], time.monotonic() + 60
    while len(pids) < 2 and time.monotonic() < end:
        pids = workers_of(process.pid)
        time.sleep(0.02)
    time.sleep(0.5)
    process.kill()
    process.wait()
    while any(is_alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)


@pytest.mark.parametrize("n_evaluations", [0, 1])
def test_ctrl_c_reaches_the_run_and_not_its_workers(tmp_path, n_evaluations):
    """Before the first evaluation, while the workers start, and after it."""
    argv = arguments(tmp_path, "x", "--workers", "2", *PLAIN, "--episodes", "999")
    command = [sys.executable, "-m", "agmc_onnx", *argv]
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored, and inherited, in a background job of a shell
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    journal, end = tmp_path / "x.run" / "journal.jsonl", time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        n_lines = journal.read_bytes().count(b"\n") if journal.exists() else 0
        if len(workers_of(process.pid)) == 2 and n_lines > n_evaluations:
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130
    assert said.startswith("agmc-onnx: interrupted")
    assert said.count("\n") == 1
    assert journal.exists() or n_lines <= 1


def is_alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False

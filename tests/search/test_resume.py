import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import agmc_onnx
from agmc_onnx.cli import main
from agmc_onnx.errors import UsageError
from agmc_onnx.measuring.roles import digest
from agmc_onnx.search import journal as journals
from agmc_onnx.search.journal import Journal, Recorder, run_folder
from agmc_onnx.search.problem import Outcome

DIGITS = Path(__file__).parents[2] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"
IDENTITY = {"model": {"sha256": "a" * 64}, "settings": {"seed": 0, "policy": "agmc"}}


def opened(tmp_path, resume=True, identity=IDENTITY):
    return Journal(tmp_path / "x.run", identity, resume)


def filled(tmp_path, n=3):
    """Write a journal of n evaluations, as a run leaves it that was killed."""
    journal = opened(tmp_path)
    for i in range(n):
        journal.add(np.array([i, 2]), Outcome(100 / 3 + i, 0.1, 0.2), -1.0)
    journal.end(finished=False)
    return journal


def test_the_run_folder_is_beside_the_output():
    assert run_folder("a/b.onnx") == Path("a/b.run")
    assert run_folder("a/b.small") == Path("a/b.small.run")


def test_a_journal_gives_back_what_was_written(tmp_path):
    first = filled(tmp_path)
    again = opened(tmp_path)
    assert again.known == first.known == {(i, 2): Outcome(100 / 3 + i, 0.1, 0.2) for i in range(3)}
    assert (again.n_resumed, again.n_set_aside) == (3, 0)
    rows = [json.loads(line) for line in again.path.read_text().splitlines()]
    assert all(len(row.pop("sum")) == 16 for row in rows)
    assert rows[0] == {"format": "agmc-onnx/journal@3", **IDENTITY}
    assert rows[1] == {
        "kept": [0, 2],
        "reward": -1.0,
        "metric": 100 / 3,
        "inference_s": 0.1,
        "wall_s": 0.2,
        "fidelity": None,
    }
    again.end(finished=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "torn", ['{"kept": [9, 9], "rew', '{"kept": [9, 9], "reward": 1, "metric": 1, "inference_s": 1}', "\0\0"]
)
def test_a_torn_last_line_is_ignored(tmp_path, torn):
    path = filled(tmp_path).path
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode())
    journal = opened(tmp_path)
    assert list(journal.known) == [(0, 2), (1, 2), (2, 2)]
    assert path.read_bytes() == whole
    journal.end(finished=False)


def test_a_journal_torn_in_its_first_line_starts_anew(tmp_path):
    path = filled(tmp_path).path
    path.write_bytes(path.read_bytes()[:30])
    journal = opened(tmp_path)
    assert journal.known == {}
    assert len(path.read_text().splitlines()) == 1
    journal.end(finished=False)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_or_changed_line_is_named(tmp_path):
    path = filled(tmp_path).path
    lines = path.read_text().splitlines()
    changed = lines[2].replace('"reward": -1.0', '"reward": 1.0')
    assert changed != lines[2]
    other = {"model": {"sha256": "b" * 64}}
    journal = Journal(tmp_path / "y.run", other, False)
    journal.add(np.array([1, 2]), Outcome(1.0, 0.1, 0.2), -1.0)
    journal.end(finished=False)
    foreign = journal.path.read_text().splitlines()[1]
    for wrong in ("{", "[]", "5", '{"kept": [1, 2]}', "[" * 50_000, changed, foreign, "\xff"):
        path.write_text("\n".join([*lines[:2], wrong, *lines[3:]]) + "\n")
        with pytest.raises(UsageError, match=r"journal.jsonl: line 3 is damaged or was changed; .* Remove that line"):
            opened(tmp_path)
    path.write_text("\n".join([*lines[:2], *lines[3:]]) + "\n")
    journal = opened(tmp_path)
    assert len(journal.known) == 2
    journal.end(finished=False)


def test_links_in_the_folder_of_a_run_are_not_followed(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine\n")
    (tmp_path / "x.run").mkdir()
    path = tmp_path / "x.run" / "journal.jsonl"
    for link in (os.symlink, os.link):
        link(mine, path)
        with pytest.raises(UsageError, match=r"journal.jsonl: is a link; expected .* Remove the link"):
            opened(tmp_path)
        path.unlink()
    (tmp_path / "x.run" / "journal.old.jsonl").symlink_to(mine)
    (tmp_path / "x.run" / "stage-1.onnx").symlink_to(mine)
    filled(tmp_path)
    journal = opened(tmp_path, resume=False)
    assert journal.n_set_aside == 3
    assert not journal.model_path(1).is_symlink()
    journal.end(finished=False)
    assert mine.read_text() == "mine\n"


def test_the_journal_of_another_run_is_refused(tmp_path):
    path = filled(tmp_path).path
    before = path.read_bytes()
    other = {"model": {"sha256": "b" * 64}, "settings": {"seed": 1, "policy": "agmc"}}
    with pytest.raises(UsageError) as caught:
        opened(tmp_path, identity=other)
    assert str(caught.value) == (
        f"{path}: belongs to another run, got model sha256 bbbbbbbbbbbb... (journal: aaaaaaaaaaaa...), settings seed 1"
        " (journal: 0); expected the model, data and options of the journal. Give the same as before, or leave out --resume"
        " to start anew."
    )
    path.write_bytes(before.replace(b"journal@3", b"journal@9"))
    with pytest.raises(UsageError, match=r"not a journal of this version, got format 'agmc-onnx/journal@9'"):
        opened(tmp_path)
    assert path.read_bytes() == before.replace(b"journal@3", b"journal@9")


def test_without_resume_an_old_journal_is_set_aside(tmp_path):
    before = filled(tmp_path).path.read_bytes()
    journal = opened(tmp_path, resume=False)
    assert (journal.known, journal.n_resumed, journal.n_set_aside) == ({}, 0, 3)
    assert journal.old_path.read_bytes() == before
    journal.end(finished=True)
    assert list(tmp_path.iterdir()) == []


def test_what_others_put_into_the_folder_stays(tmp_path):
    journal = opened(tmp_path)
    (tmp_path / "x.run" / "notes.txt").write_text("mine")
    journal.end(finished=True)
    assert [path.name for path in (tmp_path / "x.run").iterdir()] == ["notes.txt"]


def test_two_runs_do_not_share_a_journal(tmp_path):
    pytest.importorskip("fcntl")
    journal = opened(tmp_path)
    with pytest.raises(UsageError, match=r"another run is writing it; expected one run per output"):
        opened(tmp_path)
    journal.end(finished=False)
    opened(tmp_path).end(finished=False)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "x.run").write_text("")
    with pytest.raises(UsageError, match=r"x.run/journal.jsonl: the journal cannot be written .*Choose another output"):
        opened(tmp_path)


def test_a_recorder_measures_once_and_in_any_order(tmp_path):
    measured = []

    def backwards(candidates):
        for place in reversed(range(len(candidates))):
            measured.append(tuple(candidates[place].tolist()))
            yield place, Outcome(float(candidates[place][0]))

    candidates = [np.array([i, 2]) for i in range(5)]
    journal = filled(tmp_path, 2)
    journal = opened(tmp_path)
    recorder = Recorder(backwards, lambda kept, outcome: 0.0, journal)
    assert {place: outcome.metric for place, outcome in recorder.all(candidates)} == {
        0: 100 / 3, 1: 100 / 3 + 1, 2: 2.0, 3: 3.0, 4: 4.0,
    }  # fmt: skip
    assert measured == [(4, 2), (3, 2), (2, 2)]
    assert recorder(candidates[4]).metric == 4.0
    assert len(measured) == 3
    journal.end(finished=False)
    journal = opened(tmp_path)
    assert len(journal.known) == 5
    journal.end(finished=False)


def test_a_digest_sees_names_types_shapes_and_entries():
    x = np.arange(6, dtype=np.float32)
    others = [
        ("y", x),
        ("x", x.astype(np.int32)),
        ("x", x.reshape(2, 3)),
        ("x", -x),
        ("x", None),
        ("x", np.array(["a"], object)),
    ]
    found = {digest([pair]) for pair in [("x", x), *others]}
    assert len(found) == 7
    assert digest([("x", np.array(["a"], object))]) == digest([("x", np.array(["a"], object))])


# whole runs


def arguments(folder, name, *more, policy="random", episodes=12):
    return [
        "compress", str(DIGITS), "--flops", "0.5", "--data", "digits", "--recover", "none", "--latency-seconds", "0.05",
        "--policy", policy, "--episodes", str(episodes), "-o", str(folder / f"{name}.onnx"), *more,
    ]  # fmt: skip


def outcome(folder, name):
    """Return what must not depend on interruptions: model, plan, and history without wall times."""
    report = json.loads((folder / f"{name}.report.json").read_text())
    history = [{k: v for k, v in row.items() if k not in ("wall_s", "inference_s")} for row in report["history"]]
    totals = (report["episodes"], report["evaluations"], report["interrupted"])
    return (folder / f"{name}.onnx").read_bytes(), (folder / f"{name}.plan.json").read_bytes(), history, totals


def start(argv):
    return subprocess.Popen(
        [sys.executable, "-m", "agmc_onnx", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def n_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(process, path, n, limit_s=300):
    """Wait until a journal has n lines or its run has ended."""
    end = time.monotonic() + limit_s
    while process.poll() is None and n_lines(path) < n:
        assert time.monotonic() < end
        time.sleep(0.005)


def killed_and_resumed(folder, policy, episodes, n_kills, seed):
    """Kill a run at random moments, resume it each time, and compare it with one that nobody touched."""
    rng = random.Random(seed)
    argv = {name: arguments(folder, name, policy=policy, episodes=episodes) for name in ("whole", "torn")}
    assert main([*argv["whole"], "--quiet"]) == 0
    path, kills, resumed = folder / "torn.run" / "journal.jsonl", 0, 0
    for i in range(n_kills):
        process = start([*argv["torn"], "--resume"])
        wait_for(process, path, (i + 1) * episodes // (n_kills + 1))
        time.sleep(rng.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.communicate()
        resumed = max(resumed, n_lines(path) - 1)
    assert kills >= n_kills - 1  # the last may come too late
    assert resumed > 1
    assert main([*argv["torn"], "--resume", "--quiet"]) == 0
    assert outcome(folder, "torn") == outcome(folder, "whole")
    assert not path.parent.exists()


def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path):
    killed_and_resumed(tmp_path, "random", 12, 2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["agmc", "random"])
def test_twenty_kills(tmp_path, policy):
    killed_and_resumed(tmp_path, policy, 60, 20, seed=1)


def test_ctrl_c_keeps_the_journal_and_resume_goes_on(tmp_path, capsys, monkeypatch):
    assert main(arguments(tmp_path, "whole", "--quiet")) == 0

    def stop(self, told, facts):
        if told == "episode" and facts["episode"] == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("agmc_onnx.reporting.progress.Episodes.__call__", stop)
        assert main(arguments(tmp_path, "torn", "--quiet")) == 130
    assert "written. The same command with --resume goes on." in capsys.readouterr().err
    assert n_lines(tmp_path / "torn.run" / "journal.jsonl") == 1 + 5
    assert main(arguments(tmp_path, "torn", "--resume", "--seed", "1")) == 2
    assert "belongs to another run, got settings seed 1 (journal: 0); expected" in capsys.readouterr().err
    assert main(arguments(tmp_path, "torn", "--resume")) == 0
    said = capsys.readouterr().out
    assert f"resumed: 5 evaluations of an interrupted run, from {tmp_path / 'torn.run' / 'journal.jsonl'}" in said
    assert outcome(tmp_path, "torn") == outcome(tmp_path, "whole")
    assert json.loads((tmp_path / "torn.report.json").read_text())["resumed"] == 5
    assert not (tmp_path / "torn.run").exists()


def test_a_full_disk_loses_nothing(tmp_path, capsys, monkeypatch):
    assert main(arguments(tmp_path, "whole", "--quiet")) == 0
    sync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(journals.os, "fsync", full)
        assert main(arguments(tmp_path, "torn", "--quiet")) == 2
    line = capsys.readouterr().err
    folder = tmp_path / "torn.run"
    assert line == (
        f"agmc-onnx: error: {folder / 'journal.jsonl'}: an evaluation cannot be written down (No space left on device). Make"
        f" room on the disk. 4 evaluations are kept in {folder}; the same command with --resume goes on.\n"
    )
    assert main(arguments(tmp_path, "torn", "--resume", "--quiet")) == 0
    assert outcome(tmp_path, "torn") == outcome(tmp_path, "whole")


def test_without_resume_a_run_starts_anew_and_says_so(tmp_path, capsys):
    folder = tmp_path / "x.run"
    journal = Journal(folder, IDENTITY, False)
    journal.add(np.array([1, 2]), Outcome(1.0), 0.0)
    journal.end(finished=False)
    assert main(arguments(tmp_path, "x", policy="uniform")) == 0
    said = f"starts anew: 1 evaluation of an interrupted run set aside in {folder / 'journal.old.jsonl'}"
    assert said in capsys.readouterr().out
    assert not folder.exists()


def test_resume_without_a_journal_starts_and_without_an_output_is_refused(tmp_path):
    assert main(arguments(tmp_path, "x", "--resume", "--quiet", policy="uniform")) == 0
    with pytest.raises(UsageError, match="resume: got no output; expected that of the interrupted run"):
        agmc_onnx.compress(DIGITS, flops=0.5, policy="uniform", resume=True)

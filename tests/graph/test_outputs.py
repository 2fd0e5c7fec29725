import json
import os
import signal
import subprocess
import sys

import nets
import onnx
import pytest

from agmc_onnx.errors import UsageError
from agmc_onnx.graph import commit
from agmc_onnx.graph.commit import scratch_of, settle, staging
from agmc_onnx.graph.files import read_model, write_atomically, write_model
from agmc_onnx.graph.outputs import (
    check_output,
    check_set,
    output_files,
    set_of,
    stamped,
    write_files,
    write_page,
)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """What a power cut leaves is not tried here, so nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


TEXTS = {name: f'{{"format": "agmc-onnx/{name}@1", "set": "%s"}}' for name in ("plan", "report")}
PAGE = '<meta name="agmc-onnx-set" content="%s">'


def net(scale):
    return nets.model("g (float[N, 8] x) => (float[N, 4] y) { y = MatMul(x, w) }", {"w": (8, 4)}, seed=scale)


def write_set(folder, scale, parts=("plan", "report", "html")):
    """Write a whole set and return its id."""
    model, found = stamped(net(scale), "plan")
    texts = {name: text % found for name, text in {**TEXTS, "html": PAGE}.items() if name in parts}
    write_files(model, texts, folder / "x.onnx")
    return found


def ids(folder):
    return {name: set_of(path) for name, path in output_files(folder / "x.onnx").items() if path.exists()}


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_set_has_one_id_made_from_its_content(tmp_path):
    found = write_set(tmp_path, 1)
    assert ids(tmp_path) == dict.fromkeys(("model", "plan", "report", "html"), found)
    assert len(found) == 16
    model, plan = net(1), "plan"
    assert stamped(model, plan)[1] == stamped(stamped(model, plan)[0], plan)[1] == found
    assert len({found, stamped(net(2), plan)[1], stamped(model, "other")[1]}) == 3
    assert onnx.load(tmp_path / "x.onnx").graph == model.graph


def test_weights_in_another_file_are_part_of_the_id(tmp_path):
    found = set()
    for scale in (1, 2):
        write_model(nets.model("g (float[N, 64] x) => (float[N, 64] y) { y = MatMul(x, w) }", {"w": (64, 64)}, seed=scale),
                    tmp_path / "big.onnx", external=True)  # fmt: skip
        found.add(stamped(onnx.load(tmp_path / "big.onnx", load_external_data=False), folder=tmp_path)[1])
    assert len(found) == 2


def test_a_smaller_set_leaves_nothing_of_the_one_before(tmp_path):
    write_set(tmp_path, 1)
    (tmp_path / "x.txt").write_text("mine")
    found = write_set(tmp_path, 2, ("plan",))
    assert ids(tmp_path) == {"model": found, "plan": found}
    assert listing(tmp_path) == ["x.onnx", "x.plan.json", "x.txt"]


def test_files_of_two_sets_are_refused(tmp_path):
    first = write_set(tmp_path, 1)
    files = output_files(tmp_path / "x.onnx")
    check_set(*files.values())
    old = files["plan"].read_bytes()
    second = write_set(tmp_path, 2)
    files["plan"].write_bytes(old)
    with pytest.raises(UsageError) as caught:
        check_set(files["model"], files["plan"])
    assert str(caught.value) == (
        f"{files['plan']}: is not of one set with {files['model']}, got id {first}; expected {second}."
        " Make both again with one command, or name the files of one set."
    )


# -- what is never written over


@pytest.mark.parametrize("name", ["x.onnx", "x.onnx.data", "x.plan.json", "x.report.json", "x.report.html"])
def test_files_that_are_not_ours_stay(tmp_path, name):
    for content in ("mine", "{}", "<html></html>"):
        (tmp_path / name).write_text(content)
        with pytest.raises(UsageError, match=r"is there already and is no file that agmc-onnx wrote; .* with --force"):
            check_output(tmp_path / "x.onnx", {})
        check_output(tmp_path / "x.onnx", {}, force=True)


def test_a_set_of_ours_may_be_written_again(tmp_path):
    write_set(tmp_path, 1)
    check_output(tmp_path / "x.onnx", {})
    (tmp_path / "x.onnx.data").write_bytes(b"weights")
    check_output(tmp_path / "x.onnx", {})
    write_page('<meta name="agmc-onnx-set" content="">', tmp_path / "page.html")
    check_output(tmp_path / "page.html", {}, alone=True)


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_inputs_stay_even_with_force(tmp_path, link):
    path = tmp_path / "x.report.json"
    if link is None:
        path.write_text("input")
        given = path
    else:
        given = tmp_path / "input"
        given.write_text("input")
        link(given, path)
    with pytest.raises(UsageError) as caught:
        check_output(tmp_path / "x.onnx", {"the data card": [given]}, force=True)
    assert str(caught.value) == (f"{path}: is the data card; expected another file. Choose another output with -o.")


# -- killed while files are moved


def killed(folder, n, number, after):
    """Write a second set over a first in a process that gets a signal at its n-th change of a folder; return its exit code."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    left = n

    def counted(call):
        def run(*args, **kwargs):
            nonlocal left
            made = call(*args, **kwargs) if after else None
            left -= 1
            if left == 0:
                os.kill(os.getpid(), number)
            return made if after else call(*args, **kwargs)

        return run

    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name in ("replace", "link", "unlink", "rmdir", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        write_set(folder, 2, ("plan", "html"))
        code = 0
    finally:
        os._exit(code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_kill_at_any_moment_leaves_one_whole_set(tmp_path, number, after):
    seen, whole = set(), [("html", "model", "plan", "report"), ("html", "model", "plan")]
    for n in range(1, 60):
        folder = tmp_path / str(n)
        folder.mkdir()
        first = write_set(folder, 1)
        code = killed(folder, n, number, after)
        settle(folder / "x.onnx")
        found = ids(folder)
        assert len(set(found.values())) == 1, f"a mixed set after signal {number} at {n}: {found}"
        is_old = found["model"] == first
        assert tuple(sorted(found)) == whole[not is_old]
        assert not [name for name in listing(folder) if name.startswith(".")]
        seen.add(is_old)
        assert code in (0, 1, -signal.SIGKILL)
        if number == signal.SIGINT:
            assert is_old == (code != 0), "an interrupted write is undone, and says so"
        if code == 0:
            break
    assert code == 0 and seen == {True, False}


def test_reading_the_model_finishes_what_a_kill_left(tmp_path):
    write_set(tmp_path, 1)
    n = 1
    while not (scratch_of(tmp_path / "x.onnx") / "commit.json").exists():
        settle(tmp_path / "x.onnx")
        assert killed(tmp_path, n, signal.SIGKILL, True) != 0
        n += 1
    assert listing(tmp_path)[0] == ".x.agmc"
    read_model(tmp_path / "x.onnx")
    assert listing(tmp_path) == ["x.onnx", "x.plan.json", "x.report.html"]


def test_a_set_that_is_being_written_is_left_alone(tmp_path):
    first = write_set(tmp_path, 1)
    with staging(tmp_path / "x.onnx") as staged:
        settle(tmp_path / "x.onnx")
        assert staged.is_dir() and set_of(tmp_path / "x.onnx") == first
        with pytest.raises(UsageError, match="another run is writing it"), staging(tmp_path / "x.onnx"):
            pass
    assert not staged.exists()


@pytest.mark.parametrize(
    "record",
    [
        "no json",
        "[]",
        '{"format": "x", "files": [], "remove": [], "back": false}',
        '{"format": "agmc-onnx/commit@1", "files": ["../x"], "remove": [], "back": false}',
        '{"format": "agmc-onnx/commit@1", "files": [], "remove": ["/etc/passwd"], "back": false}',
    ],
)
def test_a_record_that_is_not_ours_is_refused(tmp_path, record):
    folder = scratch_of(tmp_path / "x.onnx")
    folder.mkdir()
    (folder / "commit.json").write_text(record)
    with pytest.raises(UsageError, match=r"commit.json: not what agmc-onnx writes .*Remove the folder"):
        settle(tmp_path / "x.onnx")
    assert folder.exists()


def test_a_link_in_place_of_an_output_is_replaced_not_followed(tmp_path):
    (tmp_path / "other").write_text("mine")
    (tmp_path / "x.onnx").symlink_to(tmp_path / "other")
    write_set(tmp_path, 1)
    assert (tmp_path / "other").read_text() == "mine"
    assert not (tmp_path / "x.onnx").is_symlink()


def test_folders_of_the_user_are_not_taken_for_old_files(tmp_path):
    write_set(tmp_path, 1)
    before = ids(tmp_path)
    (tmp_path / "x.report.html").unlink()
    (tmp_path / "x.report.html").mkdir()
    with pytest.raises(UsageError, match=r"cannot be written .Is a directory."):
        write_set(tmp_path, 2)
    (tmp_path / "x.report.html").rmdir()
    assert ids(tmp_path) == {name: one for name, one in before.items() if name != "html"}


def test_partial_files_of_killed_processes_are_cleared(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for process in (gone.pid, os.getpid()):
        (tmp_path / f".a.json.{process}.tmp").write_text("part")
    write_atomically(tmp_path / "a.json", b"whole")
    assert listing(tmp_path) == ["a.json"]


def test_the_record_names_what_is_moved(tmp_path, monkeypatch):
    seen = []
    forward = commit._forward

    def look(folder, names, remove):
        seen.append(json.loads((folder / "commit.json").read_text()))
        forward(folder, names, remove)

    write_set(tmp_path, 1)
    monkeypatch.setattr(commit, "_forward", look)
    write_set(tmp_path, 2, ("plan",))
    files = {"files": ["x.onnx", "x.plan.json"], "remove": ["x.report.html", "x.report.json"]}
    assert seen == [{"format": "agmc-onnx/commit@1", **files, "back": False}]

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from agmc_onnx.cli import main, words
from agmc_onnx.cli.compress import default_output
from agmc_onnx.cli.words import no_card
from agmc_onnx.graph.outputs import COMMAND_FILES
from agmc_onnx.verbs import compress as pipeline

DIGITS = Path(__file__).parents[2] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"
QUICK = ["--policy", "uniform", "--latency-seconds", "0.1"]


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """A compressed digits model with everything that lies beside it."""
    output = tmp_path_factory.mktemp("made") / "small.onnx"
    argv = [
        "compress",
        str(DIGITS),
        "--flops",
        "0.5",
        "--data",
        "digits",
        "--recover",
        "none",
        "-o",
        str(output),
        *QUICK,
    ]
    assert main(argv) == 0
    return output


OLD = '{"format": "agmc-onnx/report@1"}'  # a file of ours, which a new result may replace


@pytest.fixture
def out(tmp_path):
    """An output folder with one file in it, which every failure must leave as it is."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "small.report.json").write_text(OLD)
    return folder


def fails(capsys, argv, code=2):
    """Return the one line on stderr of a command that fails."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("agmc-onnx: error: ")
    return lines[0]


def compress_fails(capsys, out, model=DIGITS, *rest, code=2):
    """Return the line of a `compress` that fails and leaves the output folder alone."""
    line = fails(capsys, ["compress", model, "-o", out / "small.onnx", *(rest or ["--flops", "0.5"])], code)
    assert [path.name for path in out.iterdir()] == ["small.report.json"]
    assert (out / "small.report.json").read_text() == OLD
    return line


def card(folder, text="", **arrays):
    """Write an .npz and a data card for the digits model."""
    n = len(arrays.get("y", np.zeros(30)))
    arrays = {"x": np.zeros((n, 8, 8, 1), np.uint8), "y": np.zeros(n, np.int64)} | arrays
    np.savez(folder / "d.npz", **arrays)
    path = folder / "card.toml"
    path.write_text('images = "d.npz"\ncolor = "L"\nscale = 16.0\n' + text)
    return path


def test_compress_says_the_budget_both_ways_first(compressed, capsys):
    argv = ["compress", str(DIGITS), "--flops", "0.3", "-o", str(compressed.with_name("other.onnx")), *QUICK]
    assert main(argv) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "keep at most 30.0 % of the MACs, remove at least 70.0 %"
    assert all(line.startswith("agmc-onnx: ") for line in said.err.splitlines()), "no more than progress"
    assert "Accuracy was not measured" in said.out


def test_compress_prints_table_check_and_files(tmp_path, capsys):
    output = tmp_path / "x.onnx"
    assert main(["compress", str(DIGITS), "--params", "0.5", "--data", "digits", "-o", str(output), *QUICK]) == 0
    text = capsys.readouterr().out
    for wanted in (
        "MACs", "parameters", "file bytes", "top1 (n = 350)", "95 % interval", "latency, ", "batch 1, 1 thread",
        "budget: at most 50.0 % of the parameters; reached 4",
        "equals the original with its removed channels set to zero and the refitted weights",
        "recovery: top1 ",
        f"wrote {output}, ",
    ):  # fmt: skip
        assert wanted in text
    assert "not measured" not in text
    names = ["x.onnx", "x.plan.json", "x.report.html", "x.report.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_quiet_prints_nothing(tmp_path, capsys):
    argv = ["compress", str(DIGITS), "--flops", "0.5", "-o", str(tmp_path / "x.onnx"), "--quiet", *QUICK]
    assert main(argv) == 0
    assert capsys.readouterr() == ("", "")


def test_json_of_compress_verify_and_apply_is_all_that_is_printed(compressed, tmp_path, capsys):
    output = tmp_path / "x.onnx"
    assert main(["compress", str(DIGITS), "--flops", "0.5", "-o", str(output), "--json", *QUICK]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"]["reached"] <= 0.5
    assert found["files"]["model"] == str(output)
    assert not {"history", "network"} & set(found), "long parts stay in the file"
    assert main(["verify", str(DIGITS), str(compressed), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["masked_equivalence"] is True
    plan = str(compressed.with_name("small.plan.json"))
    assert main(["apply", str(DIGITS), plan, "-o", str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verified"]["masked_equivalence"] is True


def test_verify_can_be_quiet(compressed, capsys):
    assert main(["verify", str(DIGITS), str(compressed), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_verbose_tells_every_stage_on_stderr(tmp_path, capsys):
    argv = ["compress", str(DIGITS), "--flops", "0.5", "-o", str(tmp_path / "x.onnx"), "--verbose", *QUICK]
    assert main(argv) == 0
    said = capsys.readouterr()
    assert re.search(r"analysed: 8 groups.*episode 1/1: reward -.*verifying.*measuring", said.err, re.S)
    assert "episode" not in said.out
    assert not re.search(r"\x1b\[", said.out + said.err), "no colours where there is no terminal"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        f'[compress]\nmodel = "{DIGITS}"\nflops = 0.5\npolicy = "uniform"\nlatency-seconds = 0.1\n'
        f'output = "{tmp_path / "from_config.onnx"}"\nresume = true\n[measure]\nmodels = ["{DIGITS}"]\nseconds = 0.1\n'
    )
    return path


def test_config_gives_options_and_arguments(config, capsys):
    assert main(["compress", "--config", str(config), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["settings"]["policy"], found["settings"]["flops"], found["settings"]["resume"]) == (
        "uniform",
        0.5,
        True,
    )
    assert found["files"]["model"].endswith("from_config.onnx")
    assert main(["measure", f"--config={config}", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["models"]) == 1


def test_the_command_line_beats_the_config(config, tmp_path, capsys):
    other = tmp_path / "other.onnx"
    argv = ["compress", "--config", str(config), "--params", "0.6", "-o", str(other), "--seed=4", "--json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["settings"]["flops"], found["settings"]["params"], found["settings"]["seed"]) == (None, 0.6, 4)
    assert other.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[compress]\npolciy = 'agmc'\n", "unknown key in [compress], got 'polciy'; .* Did you mean policy?"),
        ("[comprss]\nflops = 0.5\n", "unknown table, got [comprss]; .* Did you mean compress?"),
        ("flops = 0.5\n", "key outside of a table, got 'flops'; expected it below [compress]"),
        ("[measure]\nthreads = 1\n", "no table for compress, got [measure]"),
        ("[compress]\nresume = 1\n", "[compress] resume: not a switch's value, got 1; expected true or false"),
        ("[compress]\nflops = [1, 2]\n", "[compress] flops: bad value, got [1, 2]"),
        ("[compress]\npolicy = 'agcm'\n", "--policy: unknown name, got 'agcm'; .* Did you mean agmc?"),
        ("[compress\n", "run.toml: not TOML"),
    ],
)
def test_bad_configs(capsys, tmp_path, text, said):
    path = tmp_path / "run.toml"
    path.write_text(text)
    line = fails(capsys, ["compress", DIGITS, "--config", path])
    assert re.search(said.replace("?", r"\?").replace("[", r"\["), line)


def test_the_config_is_an_input_and_never_written_over(tmp_path, capsys):
    path = tmp_path / "c.toml"
    path.write_text(f'[compress]\nmodel = "{DIGITS}"\nflops = 0.5\nforce = true\noutput = "{path}"\n')
    before = path.read_bytes()
    assert main(["compress", "--config", str(path)]) == 2
    assert "c.toml: is the file of options; expected another file" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert COMMAND_FILES.get() == ()


def test_no_config_is_read_that_was_not_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "agmc-onnx.toml").write_text("[inspect]\nnonsense = 1\n")
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", str(DIGITS), "--json"]) == 0


def test_doctor_finds_this_installation_sound(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    assert found["onnxruntime"]["providers"]["CPU"] == "ok"
    assert found["packages"]["onnx"]["ok"] is True
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for wanted in ("agmc-onnx    0.1.0", "processor", "onnxruntime", "torch", "no problem found"):
        assert wanted in said
    assert all(len(line) <= 80 or " " not in line[13:] for line in said.splitlines())  # but what is one word


def test_doctor_names_what_must_be_mended(capsys, monkeypatch):
    from agmc_onnx.verbs import doctor as diagnosis

    def version(name):
        known = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.30.0", "onnx": "1.0"}
        return known.get(name, None if name.startswith("onnxruntime") else "9999")

    monkeypatch.setattr(diagnosis, "_version", version)
    assert main(["doctor"]) == 2
    said = capsys.readouterr().out
    assert "onnxruntime and onnxruntime-gpu are installed at once" in said
    assert re.search(r"PROBLEM: onnx: got 1\.0; expected .*pip install 'onnx", said)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(capsys, shell):
    assert main(["completion", shell]) == 0
    assert "_AGMC_ONNX_COMPLETE" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        (["comp"], "compress completion"),
        (["compress", "--epi"], "--episodes"),
        (["compress", "m.onnx", "--policy", "gree"], "greedy"),
        (["completion", ""], "bash zsh fish"),
    ],
)
def test_bash_completes(capsys, tmp_path, monkeypatch, typed, wanted):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    words = " ".join(f'"{word}"' for word in ["agmc-onnx", *typed])
    program = tmp_path / "agmc-onnx"  # the script asks the program itself, through env: a file, not a function
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m agmc_onnx "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    ask = f"{script}\nCOMP_WORDS=({words}); COMP_CWORD={len(typed)}; "
    ask += '_agmc_onnx_completion agmc-onnx; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == wanted


def test_default_output_is_beside_the_model():
    assert default_output("a/b.onnx") == Path("a/b.agmc.onnx")
    assert default_output("a/b.pb") == Path("a/b.pb.agmc.onnx")


def test_verify_apply_measure(compressed, tmp_path, capsys):
    assert main(["verify", str(DIGITS), str(compressed)]) == 0
    assert "largest difference" in capsys.readouterr().out
    again = tmp_path / "again.onnx"
    assert main(["apply", str(DIGITS), str(compressed.with_name("small.plan.json")), "-o", str(again)]) == 0
    assert again.read_bytes() == compressed.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.onnx", "again.plan.json"]
    capsys.readouterr()
    argv = ["measure", str(DIGITS), str(compressed), "--data", "digits", "--seconds", "0.1"]
    assert main(argv) == 0
    assert "top1 (n = 350)" in capsys.readouterr().out
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "agmc-onnx/measure@1"
    assert [m["metric"]["n"] for m in found["models"]] == [350, 350]
    assert found["models"][1]["macs"] < found["models"][0]["macs"] == 3_614_336


def test_a_folder_without_a_card_is_said_to_be_only_divided(tmp_path, capsys):
    for i in range(12):
        Image.new("L", (8, 8), 20 * i).save(tmp_path / f"{i}.png")
    assert main(["measure", str(DIGITS), "--data", str(tmp_path), "--seconds", "0.1"]) == 2  # RGB is the default
    assert "expected [N, 1, 8, 8]" in capsys.readouterr().err
    Image.new("L", (8, 8)).save(tmp_path / "12.png")
    (tmp_path / "card.toml").write_text('images = "."\ncolor = "L"\n')
    assert main(["measure", str(DIGITS), "--data", str(tmp_path / "card.toml"), "--seconds", "0.1"]) == 0
    assert "without a card" not in capsys.readouterr().out
    assert "divided by 255" in no_card(str(tmp_path))[0]
    assert no_card("digits") == no_card(None) == []


def test_the_tables_of_measure_fit_80_columns(capsys):
    assert main(["measure", str(DIGITS), str(DIGITS), "--seconds", "0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    tables = [line for line in lines if line[:2] in ("mo", "ms", "1 ", "2 ")]
    assert len(tables) == 6 and max(map(len, tables)) <= 80, tables


def test_measure_without_data_says_so(capsys):
    assert main(["measure", str(DIGITS), "--seconds", "0.1"]) == 0
    assert "Accuracy was not measured: no --data was given." in capsys.readouterr().out


def test_verify_finds_a_damaged_model(compressed, tmp_path, capsys):
    model = onnx.load(compressed)
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    wrong = onnx.numpy_helper.to_array(weight).copy()
    del model.graph.initializer[list(model.graph.initializer).index(weight)]
    model.graph.initializer.append(onnx.numpy_helper.from_array(wrong[:-1], weight.name))
    onnx.save(model, tmp_path / "bad.onnx")
    plan = compressed.with_name("small.plan.json")
    assert fails(capsys, ["verify", DIGITS, tmp_path / "bad.onnx", "--plan", plan], 4)


def test_inspect(capsys):
    assert main(["inspect", str(DIGITS)]) == 0
    text = capsys.readouterr().out
    for wanted in (
        "opset 17", "input float32 [batch, 1, 8, 8]", "13 Conv", "can be pruned: 8 groups", "of the MACs", "motifs",
        "smallest reachable share", "stays whole: 1 group", "graph output output: fc (10)",
    ):  # fmt: skip
        assert wanted in text
    assert main(["inspect", str(DIGITS), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "agmc-onnx/inspect@1"
    assert (found["macs"], len(found["groups"]), found["ops"]["Conv"]) == (3_614_336, 8, 13)
    assert found["frozen"] == [{"name": "fc.weight", "layer": "fc", "units": 10, "why": "graph output output"}]
    assert 0 < found["smallest"]["1"]["macs"] < found["smallest"]["4"]["macs"] < found["prunable"]["macs"] <= 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["compres"], "unknown verb, got 'compres'; .* Did you mean compress?"),
        (["compress"], "agmc-onnx compress: MODEL.onnx is missing. See agmc-onnx compress --help"),
        (["--vresion"], "unknown option, got --vresion. Did you mean --version?"),
        (["compress", DIGITS, "--flop", "0.3"], "unknown option, got --flop. Did you mean --flops?"),
        (["compress", DIGITS, "--epsiodes=3"], "unknown option, got --epsiodes. Did you mean --episodes?"),
        (["compress", DIGITS, "--flops", "0.5", "--policy", "agcm"], "--policy: unknown name, got 'agcm'; .* Did you mean agmc?"),
        (["compress", DIGITS, "--flops", "0.5", "--episodes", "1e3"], "--episodes: not a whole number, got '1e3'"),
        (["compress", DIGITS, "--flops", "0.5", "--latency-seconds", "-1"], "--latency-seconds: not a time, got -1.0"),
        (["compress", DIGITS, "--flops", "0.5", "more"], "unexpected extra argument .more.. See agmc-onnx compress --help."),
        (["compress", DIGITS, "--flops"], "--flops: expected a value, got none."),
        (["apply", DIGITS, "p.json"], "agmc-onnx apply: -o/--output is missing"),
        (["apply", DIGITS, Path(__file__).parents[2] / "README.md", "-o", "x.onnx"], "README.md: not JSON"),
        (["verify", DIGITS, "x.onnx", "--plan", "none.json"], "none.json: cannot be read"),
        (["inspect", "none.onnx"], "none.onnx: no such file"),
        (["measure", DIGITS, "--threads", "0"], "--threads: too small, got 0; expected at least 1"),
        (["measure", DIGITS, "--provider", "cdua"], "--provider: unknown name, got 'cdua'; .* Did you mean cuda?"),
    ],
)  # fmt: skip
def test_usage_errors(capsys, argv, said):
    assert re.search(said.replace("?", r"\?"), fails(capsys, argv))


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (["--flops", "abc"], "--flops: not a number, got 'abc'; expected 0 < R < 1"),
        (["--flops", "0"], "--flops: the share to keep is out of range, got 0.0; expected 0 < R < 1"),
        (["--flops", "1.5"], "--flops: the share to keep is out of range, got 1.5; expected 0 < R < 1"),
        (["--flops", "nan"], "--flops: the share to keep is out of range, got nan"),
        (["--params", "-0.5"], "--params: the share to keep is out of range, got -0.5"),
        (["--flops", "0.5", "--minutes", "0"], "--minutes: too few, got 0.0; expected more than 0"),
        (["--seed", "1"], "budget: got none; expected exactly one"),
        (["--flops", "0.5", "--params", "0.5"], "budget: got --flops and --params"),
    ],
)
def test_bad_budgets(capsys, out, budget, said):
    assert said in compress_fails(capsys, out, DIGITS, *budget)


def test_files_that_are_no_models(capsys, out, tmp_path):
    (tmp_path / "text.onnx").write_text("this is no model\n" * 50)
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "half.onnx").write_bytes(DIGITS.read_bytes()[:200_000])
    assert "text.onnx: not a" in compress_fails(capsys, out, tmp_path / "text.onnx")
    assert "empty.onnx: not an ONNX model" in compress_fails(capsys, out, tmp_path / "empty.onnx")
    assert "Is it truncated" in compress_fails(capsys, out, tmp_path / "half.onnx")
    assert "is a folder; expected an .onnx file" in compress_fails(capsys, out, tmp_path)


def test_missing_external_data(capsys, out, tmp_path):
    path = tmp_path / "big.onnx"
    onnx.save(onnx.load(DIGITS), path, save_as_external_data=True, location="big.data", size_threshold=0)
    (tmp_path / "big.data").unlink()
    assert "external data file big.data is missing" in compress_fails(capsys, out, path)


def test_a_model_of_custom_ops(capsys, out, tmp_path):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in "xy")
    nodes = [
        helper.make_node("Magic", ["x"], ["z"], domain="mine"),
        helper.make_node("Spell", ["z"], ["y"], domain="mine"),
    ]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=opsets, ir_version=8),
        tmp_path / "c.onnx",
    )
    assert "op mine:Magic is not one of ONNX or onnxruntime" in compress_fails(capsys, out, tmp_path / "c.onnx")
    assert main(["inspect", str(tmp_path / "c.onnx")]) == 0
    assert "can be pruned: 0 groups" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "arrays", "said"),
    [
        ('[roles]\ncalibration = "0:10"\nreward = "5:20"\ntest = "20:30"\n', {}, "card.toml: roles overlap"),
        ("", {"x": np.zeros((30, 9, 9, 1), np.uint8)}, "images of the wrong size for input 'input'"),
        ("", {"y": np.arange(30) % 11}, "label is no class of the model, got 10; expected 0..9"),
        ("", {"y": np.arange(30) - 5}, "labels are not whole numbers, got -5"),
        ("", {"y": np.zeros(29, np.int64), "x": np.zeros((30, 8, 8, 1), np.uint8)}, "labels do not match the images"),
        ("colour = 3\n", {}, "unknown key, got 'colour'"),
        ('[roles]\nreward = "0:99"\n', {}, "outside of the data"),
    ],
)
def test_bad_data(capsys, out, tmp_path, text, arrays, said):
    path = card(tmp_path, text, **arrays)
    assert said in compress_fails(capsys, out, DIGITS, "--flops", "0.5", "--data", path, *QUICK)


def test_missing_card(capsys, out):
    assert "none.toml: no such data" in compress_fails(capsys, out, DIGITS, "--flops", "0.5", "--data", "none.toml")


def test_unwritable_outputs(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "x.report.html").mkdir()
    argv = ["compress", DIGITS, "--flops", "0.5", *QUICK, "-o"]
    assert "does not exist" in fails(capsys, [*argv, tmp_path / "none" / "x.onnx"])
    assert "is a file, not a folder" in fails(capsys, [*argv, tmp_path / "file" / "x.onnx"])
    assert "is a folder" in fails(capsys, [*argv, tmp_path])
    assert "x.report.html: is a folder" in fails(capsys, [*argv, tmp_path / "x.onnx"])
    assert "is the model itself" in fails(capsys, [*argv, DIGITS])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "x.report.html"]


def test_a_budget_out_of_reach_exits_3_with_the_best_value(capsys, out):
    line = compress_fails(capsys, out, DIGITS, "--flops", "0.001", code=3)
    best = float(re.search(r"best reachable value is (0\.\d+)", line)[1])
    assert 0.001 < best < 0.1
    asked = re.search(r"Ask for at least (0\.\d+)", line)[1]
    assert main(["compress", str(DIGITS), "--flops", asked, "-o", str(out / "y.onnx"), *QUICK]) == 0


def test_a_failed_verification_exits_4_and_writes_nothing(capsys, out, monkeypatch):
    def cut_wrong(self, n_kept):
        kept = [np.arange(n, dtype=np.int64) for n in n_kept.tolist()]
        return self._surgeon.cut(kept)

    monkeypatch.setattr(pipeline.Environment, "candidate", cut_wrong)
    line = compress_fails(capsys, out, DIGITS, "--flops", "0.5", *QUICK, code=4)
    assert "differs from the masked original" in line


@pytest.mark.parametrize("stage", ["analysed", "verifying"])
def test_interrupted_writes_nothing(capsys, out, monkeypatch, stage):
    def stop(self, told, facts):
        if told == stage:
            raise KeyboardInterrupt

    monkeypatch.setattr("agmc_onnx.reporting.progress.Episodes.__call__", stop)
    argv = ["compress", str(DIGITS), "--flops", "0.5", "-o", str(out / "small.onnx"), *QUICK]
    assert main(argv) == 130
    kept = f" 1 evaluation is kept in {out / 'small.run'}; the same command with --resume goes on."
    said = f"agmc-onnx: interrupted; nothing was written.{kept if stage == 'verifying' else ''}\n"
    assert capsys.readouterr().err == said
    assert (out / "small.run").exists() is (stage == "verifying")
    assert (out / "small.report.json").read_text() == OLD


def test_interrupted_search_keeps_the_best_so_far(capsys, out, monkeypatch):
    def stop(self, told, facts):
        if told == "episode":
            self.n_episodes = facts["n_episodes"]
            if facts["episode"] == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr("agmc_onnx.reporting.progress.Episodes.__call__", stop)
    argv = ["--flops", "0.5", "--policy", "random", "--episodes", "9", "--latency-seconds", "0.1"]
    assert main(["compress", str(DIGITS), "-o", str(out / "small.onnx"), *argv]) == 130
    assert "interrupted after 2 of 9 episodes; the best model so far was verified" in capsys.readouterr().err
    assert json.loads((out / "small.report.json").read_text())["interrupted"] is True


def test_a_search_that_is_out_of_time_ends_like_any_other(capsys, out):
    argv = ["--flops", "0.5", "--policy", "random", "--episodes", "9", "--minutes", "1e-6", "--latency-seconds", "0.1"]
    assert main(["compress", str(DIGITS), "-o", str(out / "small.onnx"), *argv]) == 0
    assert "search: ended after 1 of 9 candidates by --minutes 1e-06" in capsys.readouterr().out
    assert json.loads((out / "small.report.json").read_text())["episodes"] == 1
    assert not (out / "small.run").exists()


def test_errors_of_the_system_are_one_line(capsys, out, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("agmc_onnx.graph.commit._forward", full)
    argv = ["compress", DIGITS, "--flops", "0.5", *QUICK, "-o", out / "small.onnx"]
    line = fails(capsys, argv)
    assert "small.onnx: cannot be written (No space left on device)" in line
    assert line.endswith(f"1 evaluation is kept in {out / 'small.run'}; the same command with --resume goes on.")
    assert sorted(path.name for path in out.iterdir()) == ["small.report.json", "small.run"]


def test_a_defect_is_one_line_too(capsys, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("agmc_onnx.verbs.inspect.inspect", broken)
    assert "internal error, ZeroDivisionError: division by zero" in fails(capsys, ["inspect", DIGITS], 1)
    with pytest.raises(ZeroDivisionError):
        main(["inspect", str(DIGITS), "--verbose"])
    monkeypatch.setenv("AGMC_ONNX_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["inspect", str(DIGITS)])


def run(*words, **options):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, check=False, **options)


def test_help_and_version_as_a_program_without_torch():
    code = "import sys; from agmc_onnx.cli import main; assert main(['inspect', sys.argv[1]]) == 0; print('torch' in sys.modules)"
    done = run("-c", code, str(DIGITS))
    assert done.stdout.splitlines()[-1] == "False"
    code = (
        "import sys; from agmc_onnx.cli import main; assert main(['--help']) == 0;"
        "print([m for m in ('torch', 'scipy', 'onnx', 'numpy') if m in sys.modules])"
    )
    assert run("-c", code).stdout.splitlines()[-1] == "[]"
    assert run("-m", "agmc_onnx", "--version").stdout == "agmc-onnx 0.1.0\n"


def test_a_reader_that_leaves_is_no_error():
    start = "import subprocess, sys; p = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=-1)"
    code = f"{start}; p.stdout.close(); sys.exit(p.wait())"
    done = run("-c", code, "-m", "agmc_onnx", "inspect", str(DIGITS), "--json")
    assert (done.returncode, done.stderr) == (0, "")


def test_sentences_are_broken_between_words_in_a_terminal_alone(capsys, monkeypatch):
    sentence = "  verified: it equals the original " + "a/long/path/" * 9 + " and more words behind it, up to here"
    words.tell(sentence)
    assert capsys.readouterr().out == f"{sentence}\n"
    monkeypatch.setattr(words.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    words.tell(sentence)
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(line.strip() for line in lines) == sentence.strip()
    assert [len(line) for line in lines] == [34, 112, 40] and all(line.startswith("    ") for line in lines[1:])

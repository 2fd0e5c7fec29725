"""A folder of models in one command."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from agmc_onnx.cli import main
from agmc_onnx.cli.batch import row_line
from agmc_onnx.verbs.batch import Row
from agmc_onnx.verbs.batch import batch as compress_folder

DIGITS = Path(__file__).parents[2] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"
QUICK = {"flops": 0.5, "policy": "uniform", "recover": "none", "latency_seconds": 0.1}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with a good model and a broken one, after one run, and what that run told."""
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "in" / "sub").mkdir(parents=True)
    shutil.copy(DIGITS, folder / "in" / "sub" / "good.onnx")
    (folder / "in" / "broken.onnx").write_text("junk")
    told = []
    rows = compress_folder(folder / "in", folder / "out", jobs=2, progress=lambda *facts: told.append(facts), **QUICK)
    return folder, rows, told


def test_a_broken_model_costs_itself_only(done):
    folder, rows, told = done
    assert [(row.model, row.exit_code) for row in rows] == [("broken.onnx", 2), ("sub/good.onnx", 0)]
    assert "do not parse" in rows[0].message and rows[0].reached is None
    assert rows[1].reached <= 0.5 and rows[1].before is None and rows[1].file_ratio < 0.7
    assert (folder / "out" / "sub" / "good.onnx").exists() and not (folder / "out" / "broken.onnx").exists()
    assert [(n, of) for _, n, of in told] == [(1, 2), (2, 2)]


def test_summary_has_every_model(done):
    folder, rows, _ = done
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert [row["model"] for row in summary["models"]] == [row.model for row in rows]
    assert summary["options"]["flops"] == 0.5


def test_the_same_command_again_makes_only_what_is_left(done, capsys):
    folder, _, _ = done
    before = (folder / "out" / "sub" / "good.onnx").stat().st_mtime_ns
    code = main(["batch", str(folder / "in"), "-o", str(folder / "out"), "--flops", "0.5", "--policy", "uniform",
                 "--recover", "none", "--latency-seconds", "0.1"])  # fmt: skip
    said = capsys.readouterr().out
    assert code == 2 and "done before" in said and "1 of 2 models compressed" in said
    assert (folder / "out" / "sub" / "good.onnx").stat().st_mtime_ns == before


def test_a_card_beside_a_model_is_its_data(tmp_path):
    (tmp_path / "in").mkdir()
    shutil.copy(DIGITS, tmp_path / "in" / "a.onnx")
    (tmp_path / "in" / "a.toml").write_text('images = "nowhere"\n')
    rows = compress_folder(tmp_path / "in", tmp_path / "out", data="digits", **QUICK)
    assert rows[0].exit_code == 2 and "nowhere" in rows[0].message


@pytest.mark.parametrize(
    ("folder", "words"),
    [("none", "no such folder"), (".", "no models")],
)
def test_usage_errors(tmp_path, capsys, folder, words):
    assert main(["batch", str(tmp_path / folder), "-o", str(tmp_path / "out"), "--flops", "0.5"]) == 2
    assert words in capsys.readouterr().err


def test_options_are_checked_before_anything_is_read(tmp_path, capsys):
    assert main(["batch", str(tmp_path), "-o", str(tmp_path / "out"), "--flops", "2"]) == 2
    assert "out of range" in capsys.readouterr().err


def test_a_line_of_progress_fits_80_columns():
    row = Row(
        "vision/a_network_with_a_long_name_that_somebody_exported.onnx", 0, "", 0.4998, 98.75, 98.57, 0.52, 0.3, 1234
    )
    line = f"[10/12] {row_line(row, 80 - len('[10/12] '))}"
    assert len(line) == 80
    assert line.startswith("[10/12] …") and line.endswith(
        ".onnx: 49.98 % left, metric 98.75 -> 98.57, time x 0.52, 1234 s"
    )
    assert row_line(replace(row, model="a.onnx"), 72).startswith("a.onnx: 49.98 % left")

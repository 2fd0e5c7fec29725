"""Op times of another device, end to end: a request, filled by its own program elsewhere, and taken by compress."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from agmc_onnx.cli import main

DIGITS = Path(__file__).parents[2] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"


def test_a_request_is_filled_elsewhere_and_steers_a_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request, device, table = tmp_path / "request.zip", tmp_path / "device", tmp_path / "table.json"
    assert main(["time-ops", str(DIGITS), "-o", str(request)]) == 0
    assert f"wrote {request}: unpack it on the device, run time_ops.py there" in capsys.readouterr().out

    with zipfile.ZipFile(request) as packed:
        packed.extractall(device)
    words = [sys.executable, "time_ops.py", ".", "-o", str(table), "--runs", "1"]
    subprocess.run(words, cwd=device, check=True, capture_output=True, env={"PATH": ""})  # without this project

    output = tmp_path / "small.onnx"
    words = ["compress", str(DIGITS), "--latency", "0.7", "--latency-table", str(table), "-o", str(output)]
    words += ["--policy", "uniform", "--recover", "none", "--latency-seconds", "0.1", "--quiet"]
    assert main(words) == 0, capsys.readouterr().err
    assert json.loads(output.with_suffix(".report.json").read_text())["target"]["kind"] == "latency"


def test_a_request_is_filled_here_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request, table = tmp_path / "request.zip", tmp_path / "table.json"
    assert main(["time-ops", str(DIGITS), "-o", str(request), "--quiet"]) == 0
    assert main(["time-ops", str(request), "-o", str(table), "--runs", "1", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["output"] == str(table) and "pass" not in said.err
    assert json.loads(table.read_text())["models"]


def test_a_zip_that_is_no_request_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as packed:
        packed.writestr("a.txt", "a")
    assert main(["time-ops", str(other), "-o", str(tmp_path / "t.json")]) == 2
    assert "no request; expected what agmc-onnx time-ops MODEL.onnx wrote" in capsys.readouterr().err

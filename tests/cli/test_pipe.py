"""A reader that has gone away takes nothing with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DIGITS = Path(__file__).parents[2] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"


def test_a_closed_pipe_on_stdout_still_has_the_set_written(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    options = ["--flops", "0.5", "--policy", "uniform", "--recover", "none", "--latency-seconds", "0"]
    words = [sys.executable, "-m", "agmc_onnx", "compress", str(DIGITS), *options, "-o", "c.onnx"]
    done = subprocess.run(words, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    found = sorted(path.name for path in tmp_path.iterdir())
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert found == ["c.onnx", "c.plan.json", "c.report.html", "c.report.json"]

"""Short runs of tools/fuzz and tools/cases.py; a long one is `python -m tools.fuzz --inputs 10000 --log fuzz.jsonl`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx

from tools.fuzz.nets import net

ROOT = Path(__file__).parents[1]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)


def test_mutated_files_end_in_an_answer_or_an_error() -> None:
    done = run("tools.fuzz", "--inputs", "16", "--kinds", "model", "card", "journal")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("12 inputs: 0 internal, 0 hang, 0 memory, 0 partial\n")


def test_cases_say_what_came_of_every_model_and_go_on(tmp_path: Path) -> None:
    onnx.save(net("conv"), tmp_path / "conv.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    words = ("tools.cases", str(tmp_path), "--log", str(tmp_path / "log"))
    first, second = run(*words), run(*words)
    assert first.returncode == 0 and first.stdout == second.stdout, first.stdout + first.stderr
    broken, conv, last = first.stdout.splitlines()
    assert (
        "inspect 2: agmc-onnx: error: " in broken
        and "verify 0: verified: equals" in conv
        and last == "2 models, 0 wrong"
    )

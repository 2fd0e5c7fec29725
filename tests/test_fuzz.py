"""A short run of tools/fuzz.py; the long one is `python tools/fuzz.py --inputs 10000 --log fuzz.jsonl`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_mutated_files_end_in_an_answer_or_an_error() -> None:
    here = Path(__file__).parents[1]
    words = ["tools/fuzz.py", "--inputs", "16", "--kinds", "model", "card", "journal"]
    done = subprocess.run([sys.executable, *words], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("12 inputs: 0 internal, 0 hang, 0 memory, 0 partial\n")

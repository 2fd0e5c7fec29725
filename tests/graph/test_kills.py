import os
import runpy
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "kills.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("n", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_after_a_kill_the_next_command_finds_one_whole_set(capsys, n):
    assert runpy.run_path(str(TOOL))["main"](["--kills", str(n)]) == 0
    assert f"{n} kills" in capsys.readouterr().out

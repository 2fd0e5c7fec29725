"""What is public: exactly what `agmc_onnx` exports and docs/stability.md lists."""

import re
import warnings
from pathlib import Path

import pytest

import agmc_onnx
from agmc_onnx.cli.program import VERBS, verb_named

STABILITY = Path(__file__).parents[1] / "docs" / "stability.md"
LISTED = """
    AgmcError Applied BudgetError CompressOptions DataError Frontier Imported ModelError PlanError Report Result UsageError
    Verification VerificationError apply batch card compress compress_folder demo doctor export finetune from_torch frontier
    import_ import_model inspect measure report time_ops to_torch verify write_report
"""
PUBLIC = LISTED.split()
OLD = {"compress_folder": "batch", "import_model": "import_", "write_report": "report"}


def test_the_exported_names_are_these():
    assert sorted(agmc_onnx.__all__) == sorted(PUBLIC), (
        "a change of the public face: say it in CHANGELOG.md and stability.md"
    )


def test_the_page_lists_them_all():
    table = re.search(r"## Names of.*?(?=\n## )", STABILITY.read_text(encoding="utf-8"), re.S)[0]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ") and "| names |" not in line]
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row)) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_there_and_documented(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = getattr(agmc_onnx, name)
    assert callable(found)
    assert (found.__doc__ or "").strip()


def test_every_verb_has_one_name_everywhere():
    for verb in VERBS:
        name = "import_" if verb == "import" else verb.replace("-", "_")
        assert verb_named(verb).name == verb
        if verb != "completion":  # of the command line alone
            assert name in PUBLIC


@pytest.mark.parametrize(("old", "new"), OLD.items())
def test_old_names_warn_and_are_the_new_ones(old, new):
    with pytest.warns(DeprecationWarning, match=f"agmc_onnx.{old} is now {new}"):
        assert getattr(agmc_onnx, old) is getattr(agmc_onnx, new)

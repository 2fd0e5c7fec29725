"""The page of equations names lines that have them."""

import re

import pytest

from tools.equations import AGMC, PAGE, ROOT, lines_with, page


def test_the_lines_that_the_page_names_hold():
    assert PAGE.read_text() == page(), "old: run python -m tools.equations"


def test_every_equation_of_agmc_has_a_line_that_cites_it():
    assert [int(re.search(r"eq\. (\d+)", one).group(1)) for one in list(AGMC)[:14]] == list(range(1, 15))
    for citation in AGMC:
        for place in lines_with(f"AGMC, {citation}"):
            file, _, number = place.rpartition(":")
            assert citation in (ROOT / file).read_text().splitlines()[int(number) - 1]


def test_a_citation_is_no_part_of_another(tmp_path):
    folder = tmp_path / "agmc_onnx" / "search"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text("# AGMC, sec. 3.4.2, eq. 10\n# AGMC, sec. 3.4.2, eq. 1.\n")
    assert lines_with("AGMC, sec. 3.4.2, eq. 1", tmp_path) == ["agmc_onnx/search/a.py:2"]


@pytest.mark.parametrize("start", ["index.md"])
def test_from_the_docs_to_the_update_of_ddpg_in_five_clicks(start):
    """index -> methods -> equations -> the file: three links, and one search for the function's name."""
    docs = PAGE.parent
    assert "(methods.md)" in (docs / start).read_text()
    assert "(equations.md)" in (docs / "methods.md").read_text()
    named = re.search(r"`(\w+)\.(\w+)` in `(agmc_onnx/policies/agmc/\w+\.py)`", PAGE.read_text())
    text = (ROOT / named.group(3)).read_text()
    assert f"class {named.group(1)}" in text and f"def {named.group(2)}" in text

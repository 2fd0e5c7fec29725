import re
import runpy
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from agmc_onnx.cli.program import verb_named

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page):
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_results_are_one_page():
    assert len((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split()) <= 1500


def commands(page):
    """Return the agmc-onnx commands of a page's code blocks."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", text, re.S | re.M)
    blocks += re.findall(r"(?:^    .*\n)+", text, re.M)
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            words = re.split(r"&&|\|", line.strip().removeprefix("$ "))
            yield from (word.strip() for word in words if re.match(r"(\S*/)?agmc-onnx ", word.strip()))


COMMANDS = sorted({(page.name, command) for page in PAGES for command in commands(page)})


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_are_understood(page, command, tmp_path, monkeypatch):
    if re.search(r"\b(MODEL|OUT|VERB|SOURCE|FORMAT|CARD)\b|\.\.\.", command):
        pytest.skip("a form, not a command")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text('[compress]\nmodel = "model.onnx"\nflops = 0.5\n')
    verb, *words = shlex.split(command, comments=True)[1:]
    verb_named(verb).make_context(verb, words)


def test_python_of_the_pages_compiles():
    for page in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M):
            compile(block, page.name, "exec")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [path.name])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


def test_tables_of_fields_are_those_of_the_schemas():
    made = runpy.run_path(str(ROOT / "docs" / "_ext" / "schemas.py"))
    pages = {page: page.read_text(encoding="utf-8") for page in PAGES}
    assert sum("<!-- fields of" in text for text in pages.values()) >= 2
    for page, text in pages.items():
        assert made["written"](text) == text, f"{page.name}: run python docs/_ext/schemas.py"


RUN = """
import sys, nbclient, nbformat
book = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute()
print([list(out.get("data", {})) for cell in book.cells for out in cell.get("outputs", [])])
"""


@pytest.mark.skipif(find_spec("nbclient") is None or find_spec("ipykernel") is None, reason="no notebooks here")
def test_the_notebook_runs_and_shows_cards(tmp_path):
    command = [sys.executable, "-c", RUN, str(ROOT / "examples" / "digits.ipynb")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "text/html" in done.stdout
    assert (tmp_path / "small.report.html").exists()


def test_there_are_examples():
    assert len(EXAMPLES) >= 4


@pytest.mark.skipif(find_spec("sphinx") is None, reason="the extra 'docs' is not installed")
def test_site_is_built_without_warnings(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr

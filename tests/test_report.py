import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import agmc_onnx
from agmc_onnx.report import text
from agmc_onnx.report.html import curve, headline, render, ticks

DIGITS = Path(__file__).parents[1] / "models" / "digits" / "digits_resnet.onnx"


@pytest.fixture(scope="module")
def report():
    """The report of a short search."""
    options = {"policy": "random", "episodes": 5, "latency_seconds": 0.1}
    return agmc_onnx.compress(DIGITS, flops=0.3, data="digits", **options).report


class Page(HTMLParser):
    """Collects tags, addresses and text, and checks that tags close."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.words = [], [], []

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def parse(html):
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def test_page_is_whole_and_needs_nothing_else(report):
    html = render(report)
    page = parse(html)
    assert page.addresses == []
    assert not re.search(r"<script|https?://|url\(|@import", html)
    words = " ".join(" ".join(page.words).split())
    for wanted in (
        "digits_resnet.onnx", "3,614,336", f"{report['compressed']['macs']:,}", "Kept channels", "onnx::Conv_127",
        "graph output output", "best so far", "Verified: equals the original", "95 % interval", "latency, median ms",
        "agmc-onnx compress", "--flops 0.3", "--policy random", "onnxruntime", report["model"]["sha256"],
    ):  # fmt: skip
        assert wanted in words


def test_page_escapes_what_it_shows(report):
    html = render(report | {"model": report["model"] | {"path": "a/<b>&.onnx"}})
    assert "&lt;b&gt;&amp;.onnx" in html
    parse(html)


def test_page_without_data_curve_interval_or_comparison(report):
    metric = {"name": "mine:score", "value": 0.25, "n": 64, "interval": None}
    bare = report | {
        "accuracy_measured": False, "data": None, "history": report["history"][:1], "interrupted": True,
        "original": report["original"] | {"metric": metric}, "compressed": report["compressed"] | {"metric": metric},
        "verified": report["verified"] | {"masked_equivalence": None, "max_abs_diff": None, "checker": None, "note": "a reason"},
    }  # fmt: skip
    html = render(bare)
    parse(html)
    for wanted in (
        "Accuracy was not measured",
        "single proposal",
        "not comparable",
        "rejects the original too",
        "was interrupted",
    ):
        assert wanted in html


def test_headline(report):
    assert re.fullmatch(
        r"\d+\.\d % of the multiply-adds kept; top1 98\.86 % before, \d+\.\d\d % after", headline(report)
    )
    assert headline(report | {"accuracy_measured": False}).endswith("accuracy not measured")


def test_curve_of_a_search():
    history = [{"episode": i, "reward": r} for i, r in enumerate([-40.0, -60.0, -10.0, math.nan, -20.0])]
    found = curve(history)
    assert found.dots.count("M") == 4
    assert found.best == "M0.00 60.00H25.00H50.00V0.00H100.00"
    assert [tick.label for tick in found.y] == ["-60", "-50", "-40", "-30", "-20", "-10"]
    assert [tick.label for tick in found.x] == ["1", "2", "3", "4", "5"]
    assert curve(history[:1]) is None


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (-93, -7, [-100, -80, -60, -40, -20, 0]),
        (3, 3, [2.4, 2.6, 2.8, 3.0, 3.2, 3.4, 3.6]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, wanted):
    assert ticks(low, high) == wanted


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (0.3, "30.0 %|70.0 %"),
        (0.5, "50.0 %|50.0 %"),
        (0.125, "12.5 %|87.5 %"),
        (0.12345, "12.345 %|87.655 %"),
        (0.9999, "99.99 %|0.01 %"),
    ],
)
def test_budget_line_says_both_numbers(keep, said):
    kept, removed = said.split("|")
    assert text.budget_line("flops", keep) == f"keep at most {kept} of the multiply-adds, remove at least {removed}"


def test_command_makes_the_same_options_again(report):
    words = " ".join(text.command(report)).split()
    assert words[:2] == ["agmc-onnx", "compress"]
    assert "--round-to" not in words  # at its default
    assert words[words.index("--episodes") + 1] == "5"
    assert words[words.index("--data") + 1] == "digits"
    assert words[words.index("--recover") + 1] == "compensate"
    quoted = text.command(report | {"model": report["model"] | {"path": "a b.onnx"}})
    assert quoted[0] == "agmc-onnx compress 'a b.onnx'"


def test_table_columns_are_aligned():
    assert text.aligned([("", "a"), ("long", "12"), ("x", "1")]) == ["         a", "  long  12", "  x      1"]

import json
import math
import random
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import agmc_onnx
from agmc_onnx.errors import UsageError
from agmc_onnx.reporting import tables, text
from agmc_onnx.reporting.drawing import draw
from agmc_onnx.reporting.html import headline, latency_words, render
from agmc_onnx.reporting.layout import layered
from agmc_onnx.reporting.loading import read_run
from agmc_onnx.reporting.plots import curves, latency_scale, metric_scale, ticks
from agmc_onnx.search.journal import Journal
from agmc_onnx.search.problem import Outcome
from agmc_onnx.verbs.report import render_runs
from agmc_onnx.verbs.report import report as write_report
from tools.fuzz.texts import mutate_json

DIGITS = Path(__file__).parents[2] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"


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
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "link", "br", "input"):
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
    assert page.addresses == ["data:,"]  # the empty icon
    assert not re.search(r"url\((?!#)|@import|<iframe|fetch\(|XMLHttpRequest|import\(", html)
    assert set(re.findall(r"https?://[^\"\s]+", html)) <= {"http://www.w3.org/2000/svg"}  # a name, never loaded
    assert "default-src 'none'" in html  # the browser itself refuses to load anything
    words = " ".join(" ".join(page.words).split())
    for wanted in (
        "digits_resnet.onnx", "3,614,336", f"{report['compressed']['macs']:,}", "Kept channels", "stages.0.0/conv1",
        "graph output output", "best so far", "Verified: equals the original", "95 % interval", "latency, ",
        "The network and its motifs",
        "agmc-onnx compress", "--flops 0.3", "--policy random", "onnxruntime", report["model"]["sha256"],
    ):  # fmt: skip
        assert wanted in words


def test_page_escapes_what_it_shows(report):
    op = report["network"]["ops"][0] | {"name": "</script><b>&"}
    network = report["network"] | {"ops": [op, *report["network"]["ops"][1:]]}
    html = render(report | {"model": report["model"] | {"path": "a/<b>&.onnx"}, "network": network})
    assert "&lt;b&gt;&amp;.onnx" in html
    assert "</script><b>" not in html
    parse(html)
    details = json.loads(re.search(r'<script type="application/json" id="network">(.*?)</script>', html, re.S)[1])
    assert details["boxes"][0]["ops"][0][1] == "</script><b>&"


def test_page_of_a_report_that_does_not_say_which_finalist_was_taken(report):
    kept = [group["kept"] for group in report["groups"] if group["why_frozen"] is None]
    found = [{"kept": kept, "reward": -1.0, "metric": metric} for metric in (97.0, 99.0)]
    rows = re.findall(r"<td>([^<]*)</td><td></td><td>(taken)?</td></tr>", render(report | {"finalists": found}))
    assert [taken for _, taken in rows] == ["", "taken"]


def test_page_of_a_report_without_network_and_rounds(report):
    """As older versions wrote them."""
    old = {key: value for key, value in report.items() if key not in ("network", "finalists", "resumed")}
    for side in ("original", "compressed"):
        times = {key: value for key, value in report[side]["latency_ms"].items() if key != "rounds"}
        old[side] = report[side] | {"latency_ms": times}
    html = render(old)
    parse(html)
    assert 'id="level2"' not in html
    assert "Before and after" in html


def test_page_without_data_curve_interval_or_comparison(report):
    metric = {"name": "mine:score", "value": 0.25, "n": 64, "interval": None}
    bare = report | {
        "accuracy_measured": False, "data": None, "history": report["history"][:1], "interrupted": True,
        "original": report["original"] | {"metric": metric}, "compressed": report["compressed"] | {"metric": metric},
        "verified": report["verified"]
        | {"masked_equivalence": None, "max_abs_diff": None, "checker": None, "note": "a reason"},
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
        r"\d+\.\d % of the MACs kept, \d+ % of the time; top1 98\.86 % before, \d+\.\d\d % after", headline(report)
    )
    assert headline(report | {"accuracy_measured": False}).endswith("accuracy not measured")


def test_latency_ratio_is_said_with_what_is_known():
    old = {"median": 0.8, "minimum": 0.75}
    assert latency_words(old) == "Median of the rounds' ratios 80.0 %, of the fastest runs 75.0 %."
    new = old | {"interval": [0.7, 0.9], "cpu": 0.78}
    assert latency_words(new).startswith("Median of the rounds' ratios 80.0 % [70.0, 90.0]; by processor time")
    assert latency_words(None) == ""


def test_curve_of_a_search():
    history = [{"episode": i, "reward": r} for i, r in enumerate([-40.0, -60.0, -10.0, math.nan, -20.0])]
    found = curves({"agmc": history})
    assert found.lines[0].dots.count("M") == 4
    assert found.lines[0].best == "M0.00 60.00H25.00H50.00V0.00H100.00"
    assert [tick.label for tick in found.y] == ["-60", "-50", "-40", "-30", "-20", "-10"]
    assert [tick.label for tick in found.x] == ["1", "2", "3", "4", "5"]
    assert curves({"agmc": history[:1]}) is None
    assert curves({"agmc": [{"episode": 3, "reward": r} for r in (-2.0, -1.0)]}) is not None  # a file changed by hand


def test_one_very_bad_candidate_does_not_press_the_curve_together():
    rewards = [-9000.0, *([-10.0, -11.0, -12.0] * 5)]
    found = curves({"agmc": [{"episode": i, "reward": r} for i, r in enumerate(rewards)]})
    assert float(found.y[-1].label) == -10 or found.y[-1].at == 0
    assert min(float(tick.label) for tick in found.y) > -20


def test_metric_scale_leaves_out_what_is_far_away():
    def metric(value, interval=None):
        return {"name": "top1", "value": value, "interval": interval}

    scale = metric_scale([("a", metric(98.0, (97.0, 99.0))), ("b", metric(8.0)), ("c", metric(97.0, (96.0, 98.0)))])
    assert [span.at is None for span in scale.spans] == [False, True, False]
    assert [tick.label for tick in scale.ticks] == ["96", "97", "98", "99"]
    assert scale.spans[1].text == "8.00 %"


def test_latency_histograms_share_a_scale_and_count_every_round():
    times = [
        ("a", {"p50": 2.0, "p90": 2.0, "rounds": [2.0] * 10}),
        ("b", {"p50": 1.0, "p90": 1.0, "rounds": [1.0] * 10}),
    ]
    (slow, fast), marks = latency_scale(times)
    assert (fast.median, slow.median) == (0, 100 * (2.0 - 1.0) / (float(marks[-1].label) - 1.0))
    assert [height for _, height in fast.bars] == [100]


@pytest.mark.parametrize(
    ("edges", "tops"),
    [
        ([(0, 1), (1, 2), (0, 2)], [0, 30, 60]),
        ([(0, 1), (0, 2), (1, 3), (2, 3)], [0, 30, 30, 60]),
        ([], [0, 0]),
    ],
)
def test_layout_puts_every_box_below_what_it_depends_on(edges, tops):
    drawn = layered(len(tops), edges, (50, 20), (10, 10))
    assert [y for _, y in drawn.at] == tops
    assert len(set(drawn.at)) == len(tops), "boxes on top of each other"
    assert len(drawn.paths) == len(edges)
    assert all(0 <= x <= drawn.width - 50 for x, _ in drawn.at)


def test_layout_of_a_thousand_boxes_is_fast_and_inside_its_frame():
    edges = (
        [(i, i + 1) for i in range(999)]
        + [(i, i + 5) for i in range(0, 990, 3)]
        + [(i, i + 90) for i in range(0, 900, 90)]
    )
    start = time.process_time()
    drawn = layered(1000, edges, (50, 20))
    assert time.process_time() - start < 5
    numbers = [float(n) for path in drawn.paths for n in re.findall(r"[-\d.]+", path)]
    assert min(numbers) >= 0
    assert drawn.width < 600


def test_picture_has_every_op_in_one_box_and_the_motifs_named(report):
    picture = draw(report["network"])
    details = picture.details
    names = [op[1] for box in details["boxes"] for op in box["ops"]]
    assert sorted(names) == sorted(op["name"] for op in report["network"]["ops"])
    titles = [box["title"] for box in details["boxes"]]
    assert {motif["name"]: motif["count"] for motif in report["network"]["motifs"]} == {
        name: titles.count(name) for name in titles if name.startswith("M")
    }
    assert sum(op[4] for box in details["boxes"] for op in box["ops"] if len(op) > 4) == report["original"]["macs"]
    assert sum(op[5] for box in details["boxes"] for op in box["ops"] if len(op) > 4) == report["compressed"]["macs"]
    for box in details["boxes"]:
        assert len(details["templates"][box["template"]]["at"]) >= len(box["ops"])


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
    assert text.budget_line("flops", keep) == f"keep at most {kept} of the MACs, remove at least {removed}"


def test_command_makes_the_same_options_again(report):
    words = " ".join(text.command(report)).split()
    assert words[:2] == ["agmc-onnx", "compress"]
    assert "--round-to" not in words  # at its default
    assert words[words.index("--episodes") + 1] == "5"
    assert words[words.index("--data") + 1] == "digits"
    assert words[words.index("--recover") + 1] == "compensate"
    quoted = text.command(report | {"model": report["model"] | {"path": "a b.onnx"}})
    assert quoted[0] == "agmc-onnx compress 'a b.onnx'"
    read = report["settings"] | {"input_shape": ["x=1,3", "y=4"], "custom_ops": [], "patience": None}
    again = text.command(report | {"settings": read})
    assert [word for word in again if word.startswith("--input")] == ["--input-shape x=1,3", "--input-shape y=4"]
    assert "--custom-ops" not in " ".join(again) and "--patience" not in " ".join(again)


def test_few_calibration_samples_are_said(report):
    assert text.few_samples(report) is None
    few = report | {"data": report["data"] | {"roles": {"calibration": 40}}}
    assert "only 40 calibration samples" in tables.summary(few)[-1]
    assert "only 40 calibration samples" in render(few)
    assert text.few_samples(few | {"verified": report["verified"] | {"recovered": False}}) is None


def test_stages_are_on_the_page(report):
    html = render(report | {"stages": [{"reached": 0.7}, {"reached": 0.5}]})
    assert "Stages: 70.0 %, 50.0 %" in html


def test_the_table_fits_a_terminal(report):
    lines = [line for line in tables.summary(report) if line.startswith("  ")]
    assert len(lines) >= 7 and max(map(len, lines)) <= 80
    latency = next(line.split() for line in lines if line.split()[0] == "latency,")
    assert latency[1:3] in (["median", "ms"], ["processor", "ms"])  # the latter where this machine is busy


def test_table_columns_are_aligned():
    assert tables.aligned([("", "a"), ("long", "12"), ("x", "1")]) == ["         a", "  long  12", "  x      1"]


@pytest.fixture
def runs(report, tmp_path):
    """Two reports on disk, and the journal of a run that lasts."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.report.json").write_text(json.dumps(report | {"policy": name, "seed": 7}))
    kept = np.array(report["history"][0]["kept"])
    settings = {"flops": 0.5, "policy": "agmc", "episodes": 9, "seed": 1}
    journal = Journal(tmp_path / "c.run", {"settings": settings}, resume=False)
    for i in range(3):
        journal.add(kept, Outcome(90.0, 0.1, 0.2), -float(i))
    journal.end(finished=False)
    with journal.path.open("a") as file:
        file.write('{"kept": [1')
    return tmp_path


def test_report_is_made_again_beside_its_json(runs, report):
    assert write_report(runs / "a.report.json") == runs / "a.report.html"
    page = (runs / "a.report.html").read_text()
    assert page == render(report | {"policy": "a", "seed": 7})
    assert write_report(runs / "a.onnx", output=runs / "other.html").read_text() == page


def test_a_report_that_was_changed_is_drawn_or_refused(runs, report):
    """What a page needs of a report is checked when it is read: no other error comes out of it."""
    drawn = refused = 0
    for i in range(300):
        changed = mutate_json(report.to_dict(), random.Random(i))
        (runs / "a.report.json").write_text(json.dumps(changed))
        try:
            render_runs([read_run(runs / "a.report.json")])
            drawn += 1
        except UsageError:
            refused += 1
    assert drawn > 50 and refused > 50


def test_page_of_a_run_that_lasts(runs):
    path = write_report(runs / "c.run")
    assert path == runs / "c.running.html"
    words = " ".join(" ".join(parse(path.read_text()).words).split())
    assert "3 of at most 9 candidates measured" in words
    assert "keep at most 50.0 % of the MACs" in words
    assert "nothing has been verified" in words
    assert write_report(runs / "c.onnx") == path, "X.onnx names the run while there is no report"


def test_a_watched_page_follows_the_run_to_its_report(runs, report, monkeypatch):
    pages = []

    def later(seconds):
        pages.append((runs / "c.running.html").read_text())
        (runs / "c.run" / "journal.jsonl").unlink(missing_ok=True)
        if len(pages) == 2:  # the report comes a moment after the journal has gone
            (runs / "c.report.json").write_text(json.dumps(report | {"seed": 7}))

    monkeypatch.setattr("time.sleep", later)
    assert write_report(runs / "c.run", watch=True) == runs / "c.running.html"
    assert len(pages) == 2
    assert all('http-equiv="refresh" content="10"' in page for page in pages)
    assert (runs / "c.running.html").read_text() == render(report | {"seed": 7})
    with pytest.raises(UsageError, match="--watch takes one run, got 2"):
        write_report(runs / "a.report.json", runs / "b.report.json", watch=True)


def test_several_runs_on_one_page(runs):
    path = write_report(runs / "a.report.json", runs / "b.report.json", runs / "c.run", output=runs / "all.html")
    page = parse(path.read_text())
    words = " ".join(" ".join(page.words).split())
    for wanted in ("3 runs side by side", "Accuracy and cost", "Not ended yet: c.", "Best reward so far", "--seed 0"):
        assert wanted in words
    assert words.count("agmc-onnx compress") == 2, "a command for each run that ended"
    assert page.addresses == ["data:,"]


def test_runs_that_do_not_compare_are_not_plotted_together(runs, report):
    other = report | {"model": report["model"] | {"sha256": "0" * 64}}
    (runs / "b.report.json").write_text(json.dumps(other))
    html = write_report(runs / "a.onnx", runs / "b.onnx", output=runs / "all.html").read_text()
    assert "These runs began with different models." in html
    assert "Accuracy and cost" not in html


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.report.json", "{}", "not a report, got None"),
        ("x.report.json", "no json", "not JSON"),
        ("journal.jsonl", "{}\n", "not a journal"),
        (None, "", "has no report, got no file"),
    ],
)
def test_what_is_no_run(tmp_path, name, content, said):
    if name:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=said):
        write_report(tmp_path / (name or "none.onnx"))


BROWSER = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
@pytest.mark.parametrize("width", [390, 1280])
def test_page_in_a_browser(runs, tmp_path, width):
    """The script runs (it draws level 1), and nothing is wider than the window."""
    page = write_report(runs / "a.report.json")
    probe = (
        "<script>onload = () => setTimeout(() => { const d = document.getElementById('frame').contentDocument;"
        " document.title = [d.querySelectorAll('#level1 g.b').length, d.documentElement.scrollWidth,"
        " d.getElementById('about').textContent].join('|') }, 300)</script>"
    )
    outer = tmp_path / "frame.html"
    outer.write_text(
        f'<title></title><iframe id="frame" src="{page.name}" style="width:{width}px;height:900px;border:0"></iframe>{probe}'
    )
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000", "--dump-dom", outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    title = re.search(r"<title>(\d+)\|(\d+)\|(.*?)</title>", done.stdout)
    assert title, done.stderr[-300:]
    assert int(title[1]) > 1
    assert int(title[2]) <= width
    assert "MACs" in title[3]


def test_a_recovery_that_changed_nothing_is_said(report):
    value = report["compressed"]["metric"]["value"]
    same = report | {"compressed": report["compressed"] | {"metric_before_recovery": value}}
    for lost in (0.0, 1.0):
        original = report["original"] | {"metric": report["original"]["metric"] | {"value": value + lost}}
        assert (text.NOTHING_RECOVERED in tables.summary(same | {"original": original})) == (lost > 0)
    assert text.NOTHING_RECOVERED not in tables.summary(report)


def test_a_fact_is_short_on_a_busy_machine(report):
    busy = report | {"latency_ratio": report["latency_ratio"] | {"median": 3.0, "cpu": None}}
    html = render(busy)
    facts = html.split('<div class="facts">')[1].split('<div class="grid">')[0]
    assert "busy machine" in html and "busy machine" not in facts


def test_peak_bytes_of_one_side_alone(runs):
    report = json.loads((runs / "a.report.json").read_text())
    report["original"]["peak_bytes"] = None
    row = tables.rows(report)[-1]
    assert (row.what, row.before, row.change, row.better) == ("peak bytes of activations", "not known", "-", None)
    assert row.after == f"{report['compressed']['peak_bytes']:,}"

import copy
import json
import pickle

import pytest

from agmc_onnx.errors import UsageError
from agmc_onnx.reporting.schema import (
    Compressed,
    LatencyFacts,
    Metric,
    Report,
    Side,
    SourceFacts,
    TargetFacts,
    VerifiedFacts,
    read_report,
)

METRIC = Metric("top1", 98.5, 350, (97.1, 99.5))
TIMES = LatencyFacts(p50=0.2, p90=0.3, batch=1, threads=1)
REPORT = Report(
    model=SourceFacts("net.onnx", "0" * 64),
    original=Side(200, 20, 1000, METRIC, TIMES),
    compressed=Compressed(90, 9, 500, METRIC, TIMES, metric_before_recovery=8.0),
    target=TargetFacts("flops", 0.5, 0.45),
    policy="agmc",
    seed=0,
    verified=VerifiedFacts(True, 0.0, 1.0, 0.1, True),
)


def test_a_report_reads_as_a_mapping_and_as_attributes():
    assert REPORT["compressed"]["metric"]["value"] == REPORT.compressed.metric.value == 98.5
    assert REPORT.get("stages") is None and "stages" not in REPORT and "network" in REPORT
    assert dict(REPORT)["target"] == {"kind": "flops", "keep": 0.5, "reached": 0.45} == REPORT.target
    assert (REPORT | {"policy": "x"})["policy"] == "x"
    assert REPORT != REPORT | {"policy": "x"}
    with pytest.raises(KeyError):
        REPORT["to_json"]
    with pytest.raises(AttributeError):
        REPORT.policy = "x"
    assert copy.deepcopy(REPORT) == REPORT == pickle.loads(pickle.dumps(REPORT))


def test_a_report_comes_back_from_its_file(tmp_path):
    path = tmp_path / "x.report.json"
    path.write_text(REPORT.to_json())
    assert read_report(path) == REPORT == json.loads(path.read_text())
    assert isinstance(read_report(path).compressed, Compressed)


def test_reports_of_older_and_newer_versions_are_read(tmp_path):
    path, least = tmp_path / "x.report.json", REPORT.to_dict()
    for name in ("schema_version", "history", "finalists", "network", "groups", "latency_ratio", "accuracy_measured"):
        del least[name]
    path.write_text(json.dumps(least | {"new": 1}))
    found = read_report(path)
    assert (found.finalists, found.network, found.accuracy_measured, "new" in found) == ([], None, True, False)


def changed(*place_and_value):
    *place, last, value = place_and_value
    found = REPORT.to_dict()
    part = found
    for name in place:
        part = part[name]
    part[last] = value
    return json.dumps(found).encode()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\xff\xfe", "not JSON ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte); expected a report."),
        (b"[" * 100_000, "not JSON ("),
        (b"[]", "not a report, got list; expected a JSON object."),
        (b"{}", "not a report, got None; expected format 'agmc-onnx/report@1'."),
        (changed("original", 5), "not a report, original: expected `object`, got `int`."),
        (changed("original", "metric", "value", "x"), "original.metric.value: expected `float`, got `str`."),
        (changed("original", "macs", -1), "original.macs: expected `int` >= 0."),
        (changed("groups", [{"units": 3, "kept": 1}]), "groups[0]: object missing required field `name`."),
    ],
)  # fmt: skip
def test_what_is_no_report_is_said_with_its_place(tmp_path, raw, said):
    path = tmp_path / "x.report.json"
    path.write_bytes(raw)
    with pytest.raises(UsageError) as caught:
        read_report(path)
    text = str(caught.value)
    assert said in text
    assert text.startswith(f"{path}: ") and text.endswith("Name an X.report.json that compress wrote.")

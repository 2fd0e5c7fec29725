"""The verb `export`: every format on the digits network; those whose converter is not installed are skipped."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from agmc_onnx import export, measure
from agmc_onnx.cli import main
from agmc_onnx.errors import DataError, ModelError, UsageError, VerificationError
from agmc_onnx.exchange.exporters import table
from agmc_onnx.exchange.exporters.plain import converting, strides_as_pools
from agmc_onnx.exchange.exporters.row import Exporter
from agmc_onnx.graph.files import write_model
from agmc_onnx.measuring.session import make_session, run_model
from agmc_onnx.verbs import export as exporting
from tests import nets

DIGITS = Path(__file__).parents[2] / "agmc_onnx" / "data" / "digits" / "digits_resnet.onnx"
QUICK = {"data": "digits", "samples": 100, "seconds": 0.1}


@pytest.mark.parametrize("to, most_bytes, most_difference", [
    ("ort", 1.2, 1e-6), ("fp16", 0.55, 1e-2), ("bf16", 0.55, 1e-1), ("int8", 0.4, 5e-1),
])  # fmt: skip
def test_onnx_formats_run_and_say_how_they_differ(to, most_bytes, most_difference, tmp_path):
    output = tmp_path / f"out{table.EXPORTERS[to].suffix}"
    # without VNNI onnxruntime's sums of 8-bit products saturate: the target for such processors is tested here
    report = export(DIGITS, to=to, output=output, **QUICK, target="avx2")
    assert report["output"]["files"] == [str(output)] and report["output"]["file_bytes"] == output.stat().st_size
    assert output.stat().st_size < most_bytes * DIGITS.stat().st_size
    assert report["ran"] and report["difference"]["max_abs"] <= most_difference
    assert report["difference"]["same_class"] == 100.0 and report["difference"]["inputs"] == "test role"
    assert report["metric"]["exported"]["value"] >= 97.0 and report["metric"]["exported"]["n"] == 100
    assert report["latency_ms"]["exported"]["n"] == report["latency_ms"]["onnx"]["n"] >= 5
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


@pytest.mark.parametrize("to", ["openvino", "tflite", "ncnn", "mnn", "tvm", "coreml"])
def test_other_formats_answer_as_the_onnx_model_does(to, tmp_path):
    row = table.EXPORTERS[to]
    absent = table.missing((*row.packages, *row.runtime))
    if absent:
        pytest.skip(f"{', '.join(absent)} not installed: pip install 'agmc-onnx[{row.extra}]'")
    report = export(DIGITS, to=to, output=tmp_path / f"out{row.suffix}", **QUICK)
    assert all(Path(path).exists() for path in report["output"]["files"])
    if not report["ran"]:
        assert to == "coreml" and "macOS only" in report["why_not"]
        return
    assert report["difference"]["max_abs"] < 1e-3 and report["difference"]["same_class"] == 100.0


def test_the_command_prints_what_it_measured_and_json(tmp_path, capsys):
    words = ["export", str(DIGITS), "--to", "fp16", "-o", str(tmp_path / "half.onnx"), "--seconds", "0.1"]
    assert main([*words, "--data", "digits", "--samples", "50"]) == 0
    printed = capsys.readouterr().out
    assert "top1 (n = 50)" in printed and "largest difference" in printed and "note: onnxruntime computes" in printed
    assert printed.splitlines()[-1] == f"wrote {tmp_path / 'half.onnx'}"
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["format"] == "agmc-onnx/export@1" and report["metric"] is None
    assert report["difference"]["inputs"] == "synthetic"


def test_the_output_goes_beside_the_model_unless_said(tmp_path):
    (tmp_path / "net.onnx").write_bytes(DIGITS.read_bytes())
    assert export(tmp_path / "net.onnx", to="bf16", seconds=0.1)["output"]["path"] == str(tmp_path / "net.bf16.onnx")


def test_int8_reads_the_calibration_role_alone(tmp_path, monkeypatch):
    seen = []
    original = exporting.Dataset.role
    monkeypatch.setattr(exporting.Dataset, "role", lambda self, name: seen.append(name) or original(self, name))
    export(DIGITS, to="int8", output=tmp_path / "a.onnx", calibration_samples=20, **QUICK)
    assert set(seen) == {"calibration", "test"}
    first = (tmp_path / "a.onnx").read_bytes()
    export(DIGITS, to="int8", output=tmp_path / "a.onnx", calibration_samples=20, **{**QUICK, "samples": 7})
    assert (tmp_path / "a.onnx").read_bytes() == first  # other test samples change nothing
    with pytest.raises(DataError, match=r"int8: needs inputs to find the range .* Add data=CARD"):
        export(DIGITS, to="int8", output=tmp_path / "b.onnx")


def test_int8_weights_have_a_scale_per_channel_and_targets_their_own_numbers(tmp_path):
    def made(target):
        export(DIGITS, to="int8", output=tmp_path / "q.onnx", target=target, calibration_samples=20, **QUICK)
        model = onnx.load(tmp_path / "q.onnx")
        constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        weights = {name: array for name, array in constants.items() if name.endswith("_quantized") and array.ndim == 4}
        zeros = [constants[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"]
        return constants, weights, zeros

    constants, weights, zeros = made("x86")
    assert all(len(constants[name.replace("_quantized", "_scale")]) == len(array) for name, array in weights.items())
    assert {zero.dtype for zero in zeros} == {np.dtype(np.uint8)}
    assert max(np.abs(array.astype(int)).max() for array in made("avx2")[1].values()) <= 64  # 7 bits
    _, _, zeros = made("gpu")
    assert {zero.dtype for zero in zeros} == {np.dtype(np.int8)} and not any(zero.any() for zero in zeros)


def test_a_quantised_model_passes_through_measure(tmp_path):
    export(DIGITS, to="int8", output=tmp_path / "q.onnx", **QUICK)
    found = measure(DIGITS, tmp_path / "q.onnx", data="digits", seconds=0.1)["models"]
    assert found[0]["macs"] == found[1]["macs"] and found[0]["params"] == found[1]["params"]
    assert found[1]["metric"]["value"] >= 97.0


@pytest.mark.parametrize("name, row", [(n, r) for n, r in table.EXPORTERS.items() if r.extra and r.check is None])
def test_a_converter_that_is_not_installed_is_named_with_its_extra(name, row, tmp_path, monkeypatch):
    monkeypatch.setattr(table.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UsageError) as raised:
        export(DIGITS, to=name, output=tmp_path / f"out{row.suffix}")
    assert str(raised.value) == (
        f"{name}: its converter is not installed, got no {row.packages[0][1]}; expected it. "
        f"Run: pip install 'agmc-onnx[export-{name}]'"
    )


def test_tensorrt_without_a_gpu_gives_the_command_for_elsewhere(tmp_path, capsys):
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("tensorrt is installed here")
    assert main(["export", str(DIGITS), "--to", "tensorrt", "-o", str(tmp_path / "d.engine"), "--batch", "4"]) == 2
    assert (
        f"trtexec --onnx={DIGITS} --saveEngine={tmp_path / 'd.engine'} --shapes=input:4x1x8x8"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("options, text", [
    ({"to": "caffe"}, "to: unknown format, got 'caffe'; expected one of ort, fp16, "),
    ({"to": "ort", "output": "x.onnx"}, "wrong ending for ort, got '.onnx'; expected '.ort'"),
    ({"to": "fp16", "output": DIGITS}, "is the model itself"),
    ({"to": "int8", "target": "dsp"}, "target: unknown name, got 'dsp'; expected one of x86, avx2, arm, gpu"),
    ({"to": "int8", "calibrate": "mean"}, "calibrate: unknown name, got 'mean'"),
    ({"to": "fp16", "batch": 0}, "batch: too small, got 0; expected at least 1"),
])  # fmt: skip
def test_options_that_cannot_be_used(options, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as raised:
        export(DIGITS, **options)
    assert text in str(raised.value)
    assert not list(tmp_path.iterdir())


def a_row(convert, run, **options):
    return Exporter("test", "a test", ".out", convert, lambda path, source: run, **options)


def same(feed):
    return run_model(make_session(DIGITS), feed)


def write(source, path):
    path.write_text("made")


@pytest.mark.parametrize("run, what", [
    (lambda feed: [same(feed)[0] + 1], "outputs that differ by 1 "),
    (lambda feed: [same(feed)[0] * np.nan], "infinite or undefined outputs"),
    (lambda feed: [same(feed)[0][:, :5]], "outputs of shapes"),
])  # fmt: skip
def test_a_model_that_answers_otherwise_is_not_written(run, what, tmp_path, monkeypatch):
    monkeypatch.setitem(table.EXPORTERS, "test", a_row(write, run))
    with pytest.raises(VerificationError, match=what):
        export(DIGITS, to="test", output=tmp_path / "x.out", **QUICK)
    assert not list(tmp_path.iterdir())


def test_what_a_converter_prints_and_raises_becomes_one_line(tmp_path, monkeypatch, capfd):
    def noisy(source, path):
        print("hello")
        os.write(1, b"from C")
        raise RuntimeError("first\nop Foo is not supported")

    monkeypatch.setitem(table.EXPORTERS, "test", a_row(noisy, same))
    with pytest.raises(ModelError) as raised:
        export(DIGITS, to="test", output=tmp_path / "x.out", **QUICK)
    assert "\n" not in str(raised.value) and "RuntimeError: op Foo is not supported" in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_files_of_the_model_are_never_replaced(tmp_path, monkeypatch):
    model = onnx.load(DIGITS)
    write_model(model, tmp_path / "net.onnx", external=True)
    weights = (tmp_path / "net.onnx.data").read_bytes()

    def two_files(source, path):
        write(source, path)
        path.with_name("net.onnx.data").write_text("not the weights")

    monkeypatch.setitem(table.EXPORTERS, "test", a_row(two_files, same))
    with pytest.raises(UsageError, match=r"net\.onnx\.data: is a file with weights of a model that is read"):
        export(tmp_path / "net.onnx", to="test", output=tmp_path / "net.out", **QUICK)
    assert (tmp_path / "net.onnx.data").read_bytes() == weights and len(list(tmp_path.iterdir())) == 2


def test_a_fixed_batch_is_filled_up_and_measured_without_the_filling(tmp_path, monkeypatch):
    def run(feed):
        assert feed["input"].shape[0] == 8
        return same(feed)

    monkeypatch.setitem(table.EXPORTERS, "test", a_row(write, run, fixed_batch=True))
    report = export(DIGITS, to="test", output=tmp_path / "x.out", batch=8, **QUICK)
    assert report["metric"]["exported"] == report["metric"]["onnx"] and report["metric"]["onnx"]["n"] == 100


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_old_files_that_list_weights_as_inputs_are_halved_too(to, tmp_path):
    model = nets.model(
        '<ir_version: 3, opset_import: ["" : 9]>\n'
        "g (float[1, 3, 8, 8] x) => (float[1, 8, 8, 8] y) { y = Conv<pads = [1, 1, 1, 1]>(x, w) }",
        {"w": (8, 3, 3, 3)},
    )
    model.graph.input.add().CopyFrom(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [8, 3, 3, 3]))
    onnx.save(model, tmp_path / "old.onnx")
    report = export(tmp_path / "old.onnx", to=to, seconds=0.1)
    half = onnx.load(report["output"]["path"])
    assert [value.name for value in half.graph.input] == ["x"] and report["difference"]["max_abs"] < 0.05
    assert {len(tensor.raw_data or tensor.int32_data) for tensor in half.graph.initializer} <= {2 * 216, 216}


def test_every_second_row_and_column_is_a_pool():
    model = nets.model(
        "g (float[N, 3, 8, 9] x) => (float[N, 3, 4, 5] y) { y = Slice(x, start, stop, axes, steps) }",
        {
            "start": np.array([0, 0]),
            "stop": np.array([2**62, 2**62]),
            "axes": np.array([2, -1]),
            "steps": np.array([2, 2]),
        },
    )
    pooled = strides_as_pools(model)
    assert [node.op_type for node in pooled.graph.node] == ["MaxPool"]
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 9)).astype(np.float32)}
    assert np.array_equal(run_model(make_session(model), feed)[0], run_model(make_session(pooled), feed)[0])


def test_noise_is_kept_from_the_terminal_and_errors_of_ours_stay(capfd):
    with pytest.raises(DataError, match="no such"), converting("x"):
        os.write(2, b"noise")
        raise DataError("no such thing")
    assert capfd.readouterr() == ("", "")

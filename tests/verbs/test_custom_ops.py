"""Libraries of custom ops: what they make runs everywhere, what they touch stays whole."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import agmc_onnx
from agmc_onnx.cli import main
from agmc_onnx.errors import ModelError, UsageError
from tests.nets import model

extensions = pytest.importorskip("onnxruntime_extensions")
NET = """<ir_version: 8, opset_import: ["" : 17, "ai.onnx.contrib" : 1]> g (float[N, 6] x) => (float[N, 3] out) {
   a = MatMul(x, wa) r = Relu(a) h = MatMul(r, wh) negative, positive = ai.onnx.contrib.NegPos(h) out = MatMul(positive, wo) }"""
QUICK = {"flops": 0.7, "policy": "uniform", "recover": "none", "round_to": 1, "latency_seconds": 0.02}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGMC_ONNX_CUSTOM_OPS", "")
    onnx.save(model(NET, {"wa": (6, 24), "wh": (24, 8), "wo": (8, 3)}), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_an_op_of_a_library_runs_and_stays_whole(path: Path) -> None:
    library, small = extensions.get_library_path(), path.with_name("small.onnx")
    result = agmc_onnx.compress(path, output=small, custom_ops=(library,), **QUICK)
    assert result.report.compressed.macs <= 0.7 * result.report.original.macs
    assert agmc_onnx.verify(path, small, custom_ops=[library]).masked_equivalence
    stays = {group["name"]: group["why"] for group in agmc_onnx.inspect(path, custom_ops=[library])["frozen"]}
    assert stays["wh"] == "NegPos negative: this op is not understood"


def test_without_its_library_the_option_is_named(path: Path) -> None:
    with pytest.raises(ModelError, match=r"NegPos is not one of .* with custom_ops"):
        agmc_onnx.compress(path, **QUICK)


def test_a_file_that_is_no_library(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="custom_ops: not a library of custom ops"):
        agmc_onnx.inspect(path, custom_ops=[str(path)])
    assert main(["inspect", str(path), "--custom-ops", str(path)]) == 2
    assert "--custom-ops: not a library of custom ops" in capsys.readouterr().err

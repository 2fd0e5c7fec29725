"""What crashes or breaks, as a user meets it: a process, its exit code, and what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nets
import numpy as np
import pytest

from agmc_onnx.cli import main
from agmc_onnx.measuring.probe import why_unusable


def broken(folder: Path) -> Path:
    """A model whose weights and biases do not fit: every node alone is as its schema says."""
    model = nets.model(
        "g (float[N, 3, 4, 4] x) => (float[N, 5] y) { c = Conv(x, w) p = GlobalAveragePool(c) f = Flatten(p) y = Gemm(f, v, b) }",
        {"w": (8, 3, 1, 1), "v": (8, 5), "b": (6,)},
    )
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def aborting(folder: Path) -> Path:
    """A model at which an assertion in onnx's shape inference fails: a Slice of what is too small for its convolution."""
    model = nets.model(
        "g (float[1, 4, 2, 2] x) => (float[N, C, A, B] y) { c = Conv(x, w) y = Slice(c, one, nine, two) }",
        {"w": (4, 4, 9, 9), "one": np.array([1]), "nine": np.array([9]), "two": np.array([2])},
    )
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False, timeout=300)


def test_a_crash_in_c_ends_with_exit_code_2_and_one_line(tmp_path: Path) -> None:
    done = run("-m", "agmc_onnx", "inspect", aborting(tmp_path))
    assert done.returncode == 2
    assert done.stderr == (
        "agmc-onnx: error: a library in C++ crashed (SIGABRT), and nothing was written; expected a model that it can work on."
        " Check it with onnx.checker; --verbose shows where.\n"
    )
    done = run("-m", "agmc_onnx", "inspect", "--verbose", tmp_path / "m.onnx")
    assert done.returncode == 2
    assert "Assertion" in done.stderr
    assert "shapes.py" in done.stderr


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="no Linux")
def test_a_process_may_not_take_more_than_is_free() -> None:
    import resource  # not on Windows

    code = (
        "import resource; from agmc_onnx.cli.crash import limit_memory; limit_memory();"
        "print(*resource.getrlimit(resource.RLIMIT_DATA))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert total // 2 - 1024 <= int(told[0]) <= total and int(told[1]) == resource.getrlimit(resource.RLIMIT_DATA)[1]


def test_a_model_that_breaks_the_analysis_is_broken(tmp_path: Path, capsys) -> None:
    assert main(["inspect", str(broken(tmp_path))]) == 2
    said = capsys.readouterr().err
    assert said.startswith("agmc-onnx: error: m.onnx: ")
    assert "internal" not in said
    assert said.count("\n") == 1


def test_what_the_probe_says(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = nets.model("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    path.write_bytes(model.SerializeToString())
    assert why_unusable(path) is None
    said = why_unusable(aborting(tmp_path))
    assert said is not None
    assert said.startswith("m.onnx: ")
    model.graph.node[0].op_type = "Nonesuch"
    path.write_bytes(model.SerializeToString())
    assert str(why_unusable(path)).startswith("m.onnx: onnxruntime cannot load it, got '")


def test_columns_that_a_convolution_slides_along_are_put_back_among_zeros(tmp_path: Path) -> None:
    """Linear, then graph_of(N, C, H, W), then Conv: its columns differ along other dims, and are cut alike."""
    model = nets.model(
        "g (float[N, 8] x) => (float[N, C, H, W] y) { h = MatMul(x, w) r = Relu(h) v = Reshape(r, s)"
        " y = Conv<pads = [1, 1, 1, 1]>(v, k) }",
        {"w": (8, 256), "s": np.array([-1, 16, 4, 4]), "k": (8, 16, 3, 3)},
    )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    cut = ["--flops", "0.5", "--policy", "uniform", "--recover", "none", "--round-to", "1", "--latency-seconds", "0"]
    assert main(["compress", str(tmp_path / "m.onnx"), *cut, "-o", str(tmp_path / "o.onnx")]) in (0, 2, 3)
